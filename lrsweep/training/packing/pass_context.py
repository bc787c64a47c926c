"""What a model's packed layers need for a pass: its slots, and their trials' parameters, scaling and dropout."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrsweep.training.packing.arena import Arena
from lrsweep.training.packing.dropout import Masks, layer_keys, token_places
from lrsweep.training.packing.errors import Unpackable
from lrsweep.training.packing.working_copy import View


class PassContext:
    """The k slots start..stop of the current pass, with their parameters, LoRA scaling and dropout.

    The k*B rows of a pass go trial by trial: row i belongs to the slot start + i // B.

    Args:
        arena: The arena of the slots.

    Attributes:
        start: The first slot of the pass.
        stop: The slot after the last one.
        rows: The rows of the pass, k*B.
        count: The number of passes so far.
        views: The arena's parameters of these slots, by name.
    """

    def __init__(self, arena: Arena) -> None:
        device, dtype = arena.weights.device, arena.weights.dtype
        self._arena = arena
        self._scaling = [1.0] * arena.slots
        self._rates = torch.zeros(arena.slots, dtype=dtype, device=device)
        self._dropout = [0.0] * arena.slots
        self._seeds = [0] * arena.slots
        self._done = [0] * arena.slots
        self._layers = 0
        self._masks: Masks | None = None
        self.start = self.stop = self.rows = self._tokens = self.count = 0
        self.views: Mapping[str, View] = {}

    def layer(self) -> int:
        """Registers a layer with dropout on its input; returns its number."""
        self._layers += 1
        return self._layers - 1

    def admit(self, slot: int, *, scaling: float = 1.0, dropout: float = 0.0, seed: int = 0, done: int = 0) -> None:
        """Sets a slot's trial. The defaults are those of a free slot.

        Args:
            slot: The slot.
            scaling: The adapter's scaling.
            dropout: The dropout rate of the adapter's input.
            seed: Keys the dropout masks.
            done: How many training passes the trial has done.
        """
        self._scaling[slot] = scaling
        self._arena.scales[slot] = scaling
        self._rates[slot] = dropout
        self._dropout[slot] = dropout
        self._seeds[slot] = seed
        self._done[slot] = done

    def move(self, source: int, target: int) -> None:
        """Copies a slot's trial to another slot."""
        self.restore(target, self.state(source))

    def state(self, slot: int) -> dict[str, Any]:
        """What `restore` needs to continue a slot's trial."""
        return {
            "scaling": self._scaling[slot],
            "dropout": self._dropout[slot],
            "seed": self._seeds[slot],
            "passes": self._done[slot],
        }

    def restore(self, slot: int, state: Mapping[str, Any]) -> None:
        """Sets a slot's trial from what `state` returned."""
        self.admit(slot, scaling=state["scaling"], dropout=state["dropout"], seed=state["seed"], done=state["passes"])

    def select(
        self, start: int, stop: int, rows: int, length: int, *, training: bool, places: Tensor | None = None
    ) -> None:
        """Selects the slots of the next pass, forward and backward.

        Args:
            start: The first slot.
            stop: The slot after the last one.
            rows: The rows of the pass, k*B.
            length: The tokens of a row.
            training: Whether dropout applies, and the pass counts as a training pass.
            places: The tokens' places in the trials' batches [k, tokens of a trial] (see `dropout.token_places`), if
                the rows of the pass are not those of the batches.

        Raises:
            ValueError: There are no such slots, or the rows cannot be divided among them.
        """
        if not 0 <= start < stop <= self._arena.slots or rows % (stop - start):
            raise ValueError(f"{rows} rows cannot be shared out among the slots {start}..{stop} of {self._arena.slots}")
        self.start, self.stop, self.rows, self._tokens = start, stop, rows, rows * length
        self.count += 1
        self.views = self._arena.views(start, stop)
        self._masks = None
        if training:
            if self.will_drop(start, stop):
                keys = layer_keys(self._seeds[start:stop], self._done[start:stop], self._layers, self._rates.device)
                if places is None:
                    by_row = torch.arange(rows // (stop - start))[:, None], torch.arange(length)
                    places = token_places(*by_row).view(1, -1)
                places = places.to(self._rates.device, non_blocking=True)
                self._masks = Masks(keys, places, self._rates[start:stop])
            for slot in range(start, stop):
                self._done[slot] += 1

    def clear(self) -> None:
        """Forgets the current pass, and with it the arena's memory."""
        self.start = self.stop = self.rows = self._tokens = 0
        self.views = {}

    def check(self, x: Tensor) -> None:
        """Checks that a layer's input, [k*B, T, D] or [k*B*T, D], has all rows of the pass, and so has them in order.

        Raises:
            Unpackable: It has not.
        """
        if x.shape[0] not in (self.rows, self._tokens):
            raise Unpackable(
                f"a layer got {tuple(x.shape)}, not all of the pass's {self.rows} rows: whose they are is unknown"
            )

    def progress(self) -> list[int]:
        """The number of training passes that each slot's trial has done, for `rewind`."""
        return list(self._done)

    def rewind(self, progress: list[int]) -> None:
        """Forgets the training passes since `progress`, so that they drop the same elements when they are run again."""
        self._done = list(progress)

    def will_drop(self, start: int, stop: int) -> bool:
        """Whether any trial of these slots uses dropout in training."""
        return any(self._dropout[start:stop])

    @property
    def drops(self) -> bool:
        """Whether any trial of the pass uses dropout."""
        return self._masks is not None

    def drop(self, layer: int, x: Tensor) -> Tensor:
        """Applies each trial's dropout to a layer's input, scaling the kept elements by 1 / (1 - rate).

        Args:
            layer: The layer's number, from `layer`.
            x: The input, [k*B, T, D] or [k*B*T, D].
        """
        if self._masks is None:
            return x
        by_trial = x.reshape(self.stop - self.start, -1, x.shape[-1])
        return self._masks.drop(layer, by_trial).view(x.shape)
