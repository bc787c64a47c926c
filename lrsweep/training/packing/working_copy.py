"""What the products read of the slots' weights: a working copy in their dtype, and views of it by parameter."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lrsweep.training.packing.columns import Columns


class View(NamedTuple):
    """One parameter of k neighbouring slots, in the arena's own memory.

    Attributes:
        weight: The weights [k, *shape].
        compute: The weights for the products [k, *shape]: `weight` itself, or a copy of it in their dtype, scaled if
            the arena scales it.
        grad: The gradients with respect to `compute` [k, *shape].
    """

    weight: Tensor
    compute: Tensor
    grad: Tensor


class WorkingCopy:
    """A copy of the weights for the products: of all if the dtypes differ, else of those that are scaled.

    Args:
        columns: Where the parameters lie.
        weights: The weights [K, N].
        grads: The gradients [K, N].
        scales: The slots' scales [K, 1].
        dtype: The dtype of the products.
    """

    def __init__(self, columns: Columns, weights: Tensor, grads: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        self._columns = columns
        self._weights, self._grads, self._scales = weights, grads, scales
        self._whole = dtype != weights.dtype
        self._first = 0 if self._whole else columns.scaled.start
        copied = weights.shape[1] if self._whole else columns.scaled.stop - columns.scaled.start
        self._copy = torch.zeros(len(weights), copied, dtype=dtype, device=weights.device)
        self._shapes = {**columns.shapes, **columns.stacks}
        self._views: dict[tuple[int, int], dict[str, View]] = {}

    @torch.no_grad()
    def views(self, start: int, stop: int) -> Mapping[str, View]:
        """The parameters of the slots start..stop, and their stacks, by name, with the copies brought up to date."""
        weights, scaled = self._weights[start:stop], self._columns.scaled
        if self._whole:
            self._copy[start:stop].copy_(weights)
        if scaled.start < scaled.stop:
            torch.mul(weights[:, scaled], self._scales[start:stop], out=self._copy[start:stop, self._copied(scaled)])
        if (start, stop) not in self._views:
            if len(self._views) >= len(self._weights):
                self._views.clear()
            self._views[start, stop] = {name: self._view(name, start, stop) for name in self._shapes}
        return self._views[start, stop]

    def _copied(self, place: slice) -> slice:
        """The columns of the copy for columns of the weights."""
        return slice(place.start - self._first, place.stop - self._first)

    def _view(self, name: str, start: int, stop: int) -> View:
        place, shape = self._columns.places[name], self._shapes[name]

        def view(buffer: Tensor, place: slice) -> Tensor:
            return buffer[start:stop, place].view(stop - start, *shape)

        weight = compute = view(self._weights, place).requires_grad_()
        if self._whole or self._columns.scaled.start <= place.start < self._columns.scaled.stop:
            compute = view(self._copy, self._copied(place)).requires_grad_()
        return View(weight, compute, view(self._grads, place))
