"""Where the parameters of a trial lie in its row of the arena."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A row's norm is computed in blocks of this many columns: one float32 sum over millions of squares is off by 1e-4.
BLOCK = 1024


class Part(NamedTuple):
    """The columns of a parameter group.

    Attributes:
        columns: The columns.
        decays: Whether they have weight decay.
        scaled: Whether they are those that are scaled; False for a group of both kinds.
    """

    columns: slice
    decays: bool
    scaled: bool = False


@dataclass(frozen=True)
class Columns:
    """The columns of each parameter. Those with weight decay come first, and those that are scaled are neighbours.

    Attributes:
        shapes: The shape of each parameter, by name, in the order of the columns.
        stacks: The shape of each stack, by name.
        places: The columns of each parameter, and of each stack, by name.
        parts: The columns with weight decay and those without; no empty one.
        undecayed: The names of the parameters without weight decay.
        scaled: The columns that the slot's scale multiplies.
        count: The number of columns N, padded to a multiple of BLOCK.
    """

    shapes: Mapping[str, torch.Size]
    stacks: Mapping[str, torch.Size]
    places: Mapping[str, slice]
    parts: Sequence[Part]
    undecayed: frozenset[str]
    scaled: slice
    count: int

    @classmethod
    def of(
        cls,
        shapes: Mapping[str, Sequence[int]],
        undecayed: Collection[str],
        scaled: Collection[str],
        stacks: Mapping[str, Sequence[str]],
    ) -> "Columns":
        """Arranges the parameters; the arguments are those of Arena."""
        arranged = sorted(shapes, key=lambda name: (name in undecayed, (name in scaled) != (name in undecayed)))
        sizes = {name: torch.Size(shapes[name]) for name in arranged}
        places: dict[str, slice] = {}
        used = decayed = 0
        for name, shape in sizes.items():
            places[name] = slice(used, used + shape.numel())
            used += shape.numel()
            decayed = decayed if name in undecayed else used
        multiplied = [place for name, place in places.items() if name in scaled]
        both = [Part(slice(0, decayed), True), Part(slice(decayed, used), False)]
        stacked = {}
        for name, joined in stacks.items():
            places[name] = slice(places[joined[0]].start, places[joined[-1]].stop)
            stacked[name] = torch.Size((sum(sizes[one][0] for one in joined), *sizes[joined[0]][1:]))
        return cls(
            shapes=sizes,
            stacks=stacked,
            places=places,
            parts=[part for part in both if part.columns.start < part.columns.stop],
            undecayed=frozenset(undecayed),
            scaled=slice(multiplied[0].start, multiplied[-1].stop) if multiplied else slice(0, 0),
            count=-(-used // BLOCK) * BLOCK,
        )

    def groups(self, apart: bool) -> Sequence[Part]:
        """The parts that get a parameter group.

        Args:
            apart: Gives those that are scaled groups of their own.
        """
        if not apart:
            return self.parts
        found = []
        for part in self.parts:
            start, stop = part.columns.start, part.columns.stop
            cuts = sorted({start, stop} | {cut for cut in (self.scaled.start, self.scaled.stop) if start < cut < stop})
            found += [
                Part(slice(*ends), part.decays, self.scaled.start <= ends[0] < self.scaled.stop)
                for ends in pairwise(cuts)
            ]
        return found

    def within(self, part: Part) -> list[str]:
        """The names of the parameters in a part, in their order."""
        return [name for name in self.shapes if part.columns.start <= self.places[name].start < part.columns.stop]

    def rearranged(self, state: Mapping[str, Any], flat: bool, apart: bool) -> dict[str, Any]:
        """A saved optimizer state, with the parameters in the order of these columns.

        The saved state has them in the order of the saved weights: that of earlier versions is another.

        Args:
            state: What `Arena.state` returned.
            flat: As for `Arena.admit`.
            apart: As for `Arena.admit`.
        """
        optimizer: dict[str, Any] = state["optimizer"]
        saved, own = sorted(state["weights"], key=lambda name: name in self.undecayed), list(self.shapes)
        if saved == own:
            return optimizer
        entries: Mapping[int, Mapping[str, Any]] = optimizer["state"]
        if not flat:
            return optimizer | {"state": {own.index(saved[index]): entry for index, entry in entries.items()}}
        rearranged = {}
        for index, entry in entries.items():
            names = self.within(self.groups(apart)[index])
            sizes = {name: self.shapes[name].numel() for name in saved if name in names}
            rearranged[index] = {
                key: _reordered(value, sizes, names) if isinstance(value, Tensor) and value.dim() else value
                for key, value in entry.items()
            }
        return optimizer | {"state": rearranged}


def _reordered(flat: Tensor, sizes: Mapping[str, int], names: Sequence[str]) -> Tensor:
    """A flat tensor of parts of these sizes, with the parts in the order of `names`."""
    parts = dict(zip(sizes, torch.split(flat, list(sizes.values())), strict=True))
    return torch.cat([parts[name] for name in names])
