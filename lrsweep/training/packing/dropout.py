"""Dropout that knows trials, not slots: a mask is a pure function of (trial's seed, pass, layer, row, position, column).

So a trial drops the same elements wherever it sits, whoever its neighbours are and however far its batch is padded, and
a recomputed forward (gradient checkpointing) drops what the first one did.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Multipliers of splitmix64 and of a 32-bit finaliser with low bias, as signed integers: torch's integers wrap.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_FINAL_A, _FINAL_B = 0x7FEB352D, 0x846CA68B - 2**32


def layer_keys(seeds: Sequence[int], done: Sequence[int], layers: int, device: torch.device) -> Tensor:
    """One key for each layer and trial, [layers, k]: `done` counts the training passes of each trial so far."""
    pairs = torch.tensor([seeds, done], dtype=torch.int64).to(device, non_blocking=True)
    trials = _mix(_mix(pairs[0]) ^ pairs[1])
    return _mix(trials[None] + torch.arange(1, layers + 1, device=device)[:, None] * _GOLDEN)


def token_places(rows: Tensor, positions: Tensor) -> Tensor:
    """A number for each token, of its row in the trial's batch and its position in the row."""
    return rows * 2**32 + positions


def keep(keys: Tensor, places: Tensor, width: int, rates: Tensor) -> Tensor:
    """Which elements stay, as bools [k, N, D = width]: keys [k], the tokens' places [k, N] (or [1, N]), dropout rates [k]."""
    # The two halves are mixed well before they meet, so that one cheap finaliser over all elements is enough.
    row = _mix(keys[:, None] ^ _mix(places)).to(torch.int32)
    column = _mix(torch.arange(width, device=keys.device) * _GOLDEN).to(torch.int32)
    bits = row[..., None] ^ column
    bits.mul_(_FINAL_A)
    bits.bitwise_xor_(bits >> 15)
    bits.mul_(_FINAL_B)
    threshold = (rates.double() * 2**32 - 2**31).to(torch.int32)
    return torch.ge(bits, threshold.view(-1, 1, 1))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, over int64."""
    x = (x ^ _shift(x, 30)) * _MIX_A
    x = (x ^ _shift(x, 27)) * _MIX_B
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's is arithmetic."""
    return torch.bitwise_and(x >> bits, 2 ** (64 - bits) - 1)
