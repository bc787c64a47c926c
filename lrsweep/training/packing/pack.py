"""A pack: a converted model, its slots, and what a trial needs to enter, leave, pause and be saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from lrsweep.training.packing.adapters import Adapter, AdapterMaker
from lrsweep.training.packing.arena import Arena, MakeOptimizer, Weights
from lrsweep.training.packing.errors import Unpackable
from lrsweep.training.packing.head import Head
from lrsweep.training.packing.pass_context import PassContext


@dataclass(frozen=True)
class Pack:
    """K slots over one frozen base. Either each trial trains an adapter (`adapters` makes them), or its own copy of `base`.

    The model is called through `passes`; called by itself it runs the slots of the last pass. Rows of up to `unpadded`
    tokens may be laid end to end (`unpadded.py`).
    """

    model: PreTrainedModel
    arena: Arena
    context: PassContext
    head: Head
    adapters: AdapterMaker | None = None
    base: Weights | None = None
    unpadded: int = 0

    def start(self, config: LoraConfig | None = None, seed: int = 0) -> Adapter | Weights:
        """What a trial begins with: PEFT's own fresh adapter of that seed, or the base's weights."""
        if self.adapters is None:
            assert self.base is not None
            return self.base
        if config is None:
            raise ValueError("an adapter needs its LoraConfig")
        adapter = self.adapters.make(config, seed)
        for name, weight in adapter.weights.items():
            place = self.arena.shapes.get(name)
            if place is None or any(size > room for size, room in zip(weight.shape, place, strict=True)):
                raise Unpackable(f"{name} {tuple(weight.shape)} has no place in this pack: {place and tuple(place)}")
        return adapter

    def admit(
        self,
        slot: int,
        start: Adapter | Weights,
        make_optimizer: MakeOptimizer,
        *,
        max_norm: float = 0.0,
        seed: int = 0,
        flat: bool = True,
    ) -> torch.optim.Optimizer:
        """Puts a trial into a free slot and returns its optimizer, to build a schedule on.

        `seed` keys its dropout, `max_norm` clips its gradients (0 is off); `make_optimizer` is called with parameter groups
        as transformers' Trainer makes them: decayed, undecayed. For `flat` see Arena.admit.
        """
        weights = start.weights if isinstance(start, Adapter) else start
        optimizer = self.arena.admit(slot, weights, make_optimizer, max_norm=max_norm, flat=flat)
        if isinstance(start, Adapter):
            self.context.admit(slot, scaling=start.scaling, dropout=start.dropout, seed=seed)
        return optimizer

    def evict(self, slot: int) -> None:
        """Frees a slot."""
        self.arena.evict(slot)
        self.context.admit(slot)

    def move(self, source: int, target: int) -> None:
        """Takes a trial to a free slot; its optimizer stays the same object."""
        self.arena.move(source, target)
        self.context.move(source, target)
        self.context.admit(source)

    def weights(self, slot: int) -> dict[str, Tensor]:
        """A copy of what a slot's trial has trained, under the names PEFT (or the model) saves it by, at its own rank."""
        return {name: weight.detach().clone() for name, weight in self.arena.read(slot).items()}

    def state(self, slot: int) -> dict[str, Any]:
        """A copy of all that the rest of a slot's trial depends on but its schedule and data: tensors, numbers, strings."""
        return {"arena": self.arena.state(slot), "window": self.context.state(slot)}

    def restore(
        self,
        slot: int,
        state: Mapping[str, Any],
        make_optimizer: MakeOptimizer,
        *,
        max_norm: float = 0.0,
        flat: bool = True,
    ) -> torch.optim.Optimizer:
        """Puts a trial back as `state` found it, into any free slot."""
        optimizer = self.arena.restore(slot, state["arena"], make_optimizer, max_norm=max_norm, flat=flat)
        self.context.restore(slot, state["window"])
        return optimizer
