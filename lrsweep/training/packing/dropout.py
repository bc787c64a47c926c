"""Counter-based dropout: a mask is a pure function of (trial's seed, training pass, layer, row, position, column).

So a trial drops the same elements in any slot, with any neighbours and any padding, and a recomputed forward pass
(gradient checkpointing) drops the same elements as the first one.

The hashes are splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014) and a shortened
lowbias32 (https://github.com/skeeto/hash-prospector).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Multipliers of splitmix64 and lowbias32, as signed integers, whose products wrap around in torch.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
_FINAL_A, _FINAL_B = 0x7FEB352D, 0x846CA68B - 2**32


def layer_keys(seeds: Sequence[int], done: Sequence[int], layers: int, device: torch.device) -> Tensor:
    """One key for each layer and trial.

    Args:
        seeds: The trials' seeds, k of them.
        done: The training passes that each trial has done.
        layers: The number of layers with dropout.
        device: The device of the result.

    Returns:
        The keys [layers, k], int64.
    """
    pairs = torch.tensor([seeds, done], dtype=torch.int64).to(device, non_blocking=True)
    trials = _mix(_mix(pairs[0]) ^ pairs[1])
    return _mix(trials[None] + torch.arange(1, layers + 1, device=device)[:, None] * _GOLDEN)


def token_places(rows: Tensor, positions: Tensor) -> Tensor:
    """A number for each token.

    Args:
        rows: The number of the token's row in its trial's batch, int64.
        positions: The token's position in that row, of a shape that broadcasts with `rows`.
    """
    return rows * 2**32 + positions


def keep(keys: Tensor, places: Tensor, dim: int, rates: Tensor) -> Tensor:
    """The elements that dropout keeps; each is dropped with its trial's rate.

    Args:
        keys: The layer's keys [k].
        places: The tokens' places, [k, tokens of a trial], or [1, tokens] if they are the same in all trials.
        dim: The last dimension D of the layer's input.
        rates: The dropout rates [k].

    Returns:
        A mask [k, tokens, D], bool.
    """
    # Row and column are hashed well before they are combined, so a cheap hash of all elements is enough.
    row = _mix(keys[:, None] ^ _mix(places)).to(torch.int32)
    column = _mix(torch.arange(dim, device=keys.device) * _GOLDEN).to(torch.int32)
    bits = row[..., None] ^ column
    bits.mul_(_FINAL_A)
    bits.bitwise_xor_(bits >> 15)
    bits.mul_(_FINAL_B)
    threshold = (rates.double() * 2**32 - 2**31).to(torch.int32)
    return torch.ge(bits, threshold.view(-1, 1, 1))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64."""
    x = (x ^ _shift(x, 30)) * _MIX_A
    x = (x ^ _shift(x, 27)) * _MIX_B
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift of int64; torch's is arithmetic."""
    return torch.bitwise_and(x >> bits, 2 ** (64 - bits) - 1)
