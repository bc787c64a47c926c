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
# Hashes of tokens that are computed at once.
_HASHED = 2**22


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
    """A well-mixed number for each token.

    Args:
        rows: The number of the token's row in its trial's batch, int64.
        positions: The token's position in that row, of a shape that broadcasts with `rows`.
    """
    return _mix(rows * 2**32 + positions)


class Masks:
    """The dropout of one pass. What its layers have in common is computed once.

    Args:
        keys: The layers' keys [layers, k].
        places: The tokens' places, [k, tokens of a trial], or [1, tokens] if they are the same in all trials.
        rates: The dropout rates [k].
    """

    def __init__(self, keys: Tensor, places: Tensor, rates: Tensor) -> None:
        self._keys, self._places = keys, places
        self._factors = (1 - rates).reciprocal().view(-1, 1, 1)
        self._thresholds = (rates.double() * 2**32 - 2**31).to(torch.int32).view(-1, 1, 1)
        self._columns: dict[int, Tensor] = {}
        self._at_once = max(1, _HASHED // (keys.shape[1] * places.shape[1]))
        self._first = -1
        self._rows = keys[:0]

    def keep(self, layer: int, dim: int) -> Tensor:
        """The elements that a layer's dropout keeps; each is dropped with its trial's rate.

        Args:
            layer: The layer's number.
            dim: The last dimension D of the layer's input.

        Returns:
            A mask [k, tokens, D], bool.
        """
        # Row and column are hashed well before they are combined, so a cheap hash of all elements is enough.
        if dim not in self._columns:
            self._columns[dim] = _mix(torch.arange(dim, device=self._keys.device) * _GOLDEN).to(torch.int32)
        bits = self._row(layer)[..., None] ^ self._columns[dim]
        bits.mul_(_FINAL_A)
        bits.bitwise_xor_(bits >> 15)
        bits.mul_(_FINAL_B)
        return torch.ge(bits, self._thresholds)

    def drop(self, layer: int, x: Tensor) -> Tensor:
        """Drops elements of a layer's input [k, tokens, D], and scales the others by 1 / (1 - rate)."""
        return x * self.keep(layer, x.shape[2]) * self._factors.to(x.dtype)

    def _row(self, layer: int) -> Tensor:
        """The tokens' hashes in a layer [k, tokens], computed for many layers at once."""
        first = layer - layer % self._at_once
        if first != self._first:
            keys = self._keys[first : first + self._at_once, :, None]
            self._rows, self._first = _mix(keys ^ self._places).to(torch.int32), first
        return self._rows[layer - first]


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64, on int64."""
    x = (x ^ _shift(x, 30)) * _MIX_A
    x = (x ^ _shift(x, 27)) * _MIX_B
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical right shift of int64; torch's is arithmetic."""
    return torch.bitwise_and(x >> bits, 2 ** (64 - bits) - 1)
