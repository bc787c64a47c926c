"""What the packed layers of a model need to know of a pass: its slots, and their trials' scaling and dropout."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrsweep.training.packing.arena import Arena, View
from lrsweep.training.packing.dropout import keep, layer_keys, token_places
from lrsweep.training.packing.errors import Unpackable


class PassContext:
    """The slots start..stop of a pass (k of them), their parameters, LoRA scaling and dropout.

    Rows of a pass are trial-major: row i belongs to the slot start + i // B.
    """

    def __init__(self, arena: Arena) -> None:
        device, dtype = arena.weights.device, arena.weights.dtype
        self._arena = arena
        self._scaling = torch.ones(arena.slots, 1, 1, dtype=dtype, device=device)
        self._rates = torch.zeros(arena.slots, dtype=dtype, device=device)
        self._dropout = [0.0] * arena.slots
        self._seeds = [0] * arena.slots
        self._done = [0] * arena.slots
        self._layers = 0
        self._keys: Tensor | None = None
        self._places = torch.zeros(1, 0, dtype=torch.int64)
        self.start = self.stop = self.rows = self._tokens = 0
        self.views: Mapping[str, View] = {}
        self.scaling = self._scaling[:0]

    def layer(self) -> int:
        """A number for one more layer that drops its inputs."""
        self._layers += 1
        return self._layers - 1

    def admit(self, slot: int, *, scaling: float = 1.0, dropout: float = 0.0, seed: int = 0, done: int = 0) -> None:
        """Sets a slot's trial; `done` is how many training passes it has done."""
        self._scaling[slot] = scaling
        self._rates[slot] = dropout
        self._dropout[slot] = dropout
        self._seeds[slot] = seed
        self._done[slot] = done

    def move(self, source: int, target: int) -> None:
        """Takes a slot's trial to another slot."""
        self.restore(target, self.state(source))

    def state(self, slot: int) -> dict[str, Any]:
        """What `restore` needs to resume a slot's trial."""
        return {
            "scaling": self._scaling[slot].item(),
            "dropout": self._dropout[slot],
            "seed": self._seeds[slot],
            "passes": self._done[slot],
        }

    def restore(self, slot: int, state: Mapping[str, Any]) -> None:
        """Sets a slot's trial as `state` found it."""
        self.admit(slot, scaling=state["scaling"], dropout=state["dropout"], seed=state["seed"], done=state["passes"])

    def select(
        self, start: int, stop: int, rows: int, length: int, *, training: bool, places: Tensor | None = None
    ) -> None:
        """The slots of the next pass, of `rows` rows of `length` tokens in all; holds for its backward too.

        `places` are the tokens' in their batches, [k, tokens of a trial], where the rows are not just those of the batches.
        """
        if not 0 <= start < stop <= self._arena.slots or rows % (stop - start):
            raise ValueError(f"{rows} rows cannot be shared out among the slots {start}..{stop} of {self._arena.slots}")
        self.start, self.stop, self.rows, self._tokens = start, stop, rows, rows * length
        self.views = self._arena.views(start, stop)
        self.scaling = self._scaling[start:stop]
        self._keys = None
        if training:
            if any(self._dropout[start:stop]):
                self._keys = layer_keys(
                    self._seeds[start:stop], self._done[start:stop], self._layers, self._scaling.device
                )
                if places is None:
                    by_row = torch.arange(rows // (stop - start))[:, None], torch.arange(length)
                    places = token_places(*by_row).view(1, -1)
                self._places = places.to(self._scaling.device, non_blocking=True)
            for slot in range(start, stop):
                self._done[slot] += 1

    def check(self, x: Tensor) -> None:
        """Raises Unpackable unless x [k*B, T, D] or [k*B*T, D] has all rows of the pass, and so can have them in order."""
        if x.shape[0] not in (self.rows, self._tokens):
            raise Unpackable(
                f"a layer got {tuple(x.shape)}, not all of the pass's {self.rows} rows: whose they are is unknown"
            )

    def progress(self) -> list[int]:
        """What `rewind` needs to forget the passes after this moment."""
        return list(self._done)

    def rewind(self, progress: list[int]) -> None:
        """Forgets passes, so that those run again drop the same inputs."""
        self._done = list(progress)

    @property
    def drops(self) -> bool:
        """Whether any trial of the pass uses dropout."""
        return self._keys is not None

    def drop(self, layer: int, x: Tensor) -> Tensor:
        """Each trial's dropout on the layer's input, [k*B, T, D] or [k*B*T, D]."""
        if self._keys is None:
            return x
        k = self.stop - self.start
        by_trial = x.reshape(k, -1, x.shape[-1])
        rates = self._rates[self.start : self.stop]
        mask = keep(self._keys[layer], self._places, x.shape[-1], rates) / (1 - rates).view(-1, 1, 1)
        return (by_trial * mask.to(x.dtype)).view(x.shape)
