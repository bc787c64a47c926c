"""Where the parameters of a trial lie in its row of the arena."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A row's norm is computed in blocks of this many columns: one float32 sum over millions of squares is off by 1e-4.
BLOCK = 1024


class Part(NamedTuple):
    """The columns of neighbours that are in the same parameter group.

    Attributes:
        columns: The columns.
        decays: Whether they have weight decay.
        lr_factor: Their learning rate over the optimizer's.
    """

    columns: slice
    decays: bool
    lr_factor: float = 1.0


@dataclass(frozen=True)
class Columns:
    """The columns of each parameter. Those with weight decay come first, and those that are scaled are neighbours.

    Attributes:
        shapes: The shape of each parameter, by name, in the order of the columns.
        stacks: The shape of each stack, by name.
        places: The columns of each parameter, and of each stack, by name.
        undecayed: The names of the parameters without weight decay.
        scaled: The columns that the slot's scale multiplies.
        count: The number of columns N, padded to a multiple of BLOCK.
    """

    shapes: Mapping[str, torch.Size]
    stacks: Mapping[str, torch.Size]
    places: Mapping[str, slice]
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
        used = 0
        for name, shape in sizes.items():
            places[name] = slice(used, used + shape.numel())
            used += shape.numel()
        multiplied = [place for name, place in places.items() if name in scaled]
        stacked = {}
        for name, joined in stacks.items():
            places[name] = slice(places[joined[0]].start, places[joined[-1]].stop)
            stacked[name] = torch.Size((sum(sizes[one][0] for one in joined), *sizes[joined[0]][1:]))
        return cls(
            shapes=sizes,
            stacks=stacked,
            places=places,
            undecayed=frozenset(undecayed),
            scaled=slice(multiplied[0].start, multiplied[-1].stop) if multiplied else slice(0, 0),
            count=-(-used // BLOCK) * BLOCK,
        )

    def of_rows(self, name: str, start: int, stop: int) -> slice:
        """The columns of a parameter's rows from `start` on, `stop` not included."""
        first, row = self.places[name].start, self.shapes[name][1:].numel()
        return slice(first + start * row, first + stop * row)

    def groups(self, lr_factors: Mapping[str, float]) -> list[list[Part]]:
        """The parameter groups, each as the parts that it consists of; those at the optimizer's own rate come first.

        Args:
            lr_factors: The learning rates of parameters over the optimizer's, by name; 1 for others.
        """
        parts: list[Part] = []
        for name in self.shapes:
            place, decays, factor = self.places[name], name not in self.undecayed, lr_factors.get(name, 1.0)
            if parts and parts[-1][1:] == (decays, factor):
                parts[-1] = Part(slice(parts[-1].columns.start, place.stop), decays, factor)
            else:
                parts.append(Part(place, decays, factor))
        groups: dict[tuple[bool, float], list[Part]] = {}
        for part in sorted(parts, key=lambda part: part.lr_factor != 1):
            groups.setdefault(part[1:], []).append(part)
        return list(groups.values())

    def within(self, part: Part) -> list[str]:
        """The names of the parameters in a part, in their order."""
        return [name for name in self.shapes if part.columns.start <= self.places[name].start < part.columns.stop]

    def rearranged(self, state: Mapping[str, Any], flat: bool, lr_factors: Mapping[str, float]) -> dict[str, Any]:
        """A saved optimizer state, with the parameters in the order of these columns.

        The saved state has them in the order of the saved weights: that of earlier versions is another.

        Args:
            state: What `Arena.state` returned.
            flat: As for `Arena.admit`.
            lr_factors: As for `Arena.admit`.

        Raises:
            ValueError: The order is another, and there are parameters with a rate of their own, which versions with
                that order did not have.
        """
        optimizer: dict[str, Any] = state["optimizer"]
        saved, own = sorted(state["weights"], key=lambda name: name in self.undecayed), list(self.shapes)
        if saved == own:
            return optimizer
        if lr_factors:
            raise ValueError("the state has its parameters in another order")
        entries: Mapping[int, Mapping[str, Any]] = optimizer["state"]
        if not flat:
            return optimizer | {"state": {own.index(saved[index]): entry for index, entry in entries.items()}}
        parts = [part for group in self.groups({}) for part in group]
        rearranged = {}
        for index, entry in entries.items():
            names = self.within(parts[index])
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
