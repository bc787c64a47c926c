"""A pack: a converted model and its slots, with the operations to start, end, move, save and restore a trial."""

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
    """K slots over one frozen base. Each trial trains either an adapter or its own copy of some of the model's weights.

    Build one with `pack_lora` or `pack_weights`, and run it with `train_pass` and `eval_pass`. A direct call of the
    model runs the slots of the last pass.

    Attributes:
        model: The converted model.
        arena: The trials' weights, gradients and optimizers.
        context: The slots of the current pass, and the trials' scaling and dropout.
        head: The output layer.
        adapters: Makes the trials' adapters; None if the trials train copies of `base`.
        base: The weights that the trials' copies start from, by the model's name; None for adapters.
        unpadded: Padded rows of up to so many tokens may be laid end to end, see `unpadded.py`; 0 is off.
        maskless: Rows of up to so many tokens, padded on the right, need no mask (`causal_only`); 0 is off.
    """

    model: PreTrainedModel
    arena: Arena
    context: PassContext
    head: Head
    adapters: AdapterMaker | None = None
    base: Weights | None = None
    unpadded: int = 0
    maskless: int = 0

    def start(self, config: LoraConfig | None = None, seed: int = 0) -> Adapter | Weights:
        """What a trial starts with: a fresh adapter, or the base's weights.

        Args:
            config: PEFT's config of the adapter; not used without adapters.
            seed: Seeds the adapter's initialisation.

        Raises:
            Unpackable: The adapter does not fit this pack.
            ValueError: The config is missing.
        """
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
        lr_factors: Mapping[str, float] | None = None,
    ) -> torch.optim.Optimizer:
        """Puts a trial into a free slot.

        Args:
            slot: The slot.
            start: What `start` returned.
            make_optimizer: Builds the trial's optimizer over parameter groups as transformers' Trainer makes them: with
                weight decay, and without.
            max_norm: The trial's gradient clipping; 0 is off.
            seed: Keys the trial's dropout masks.
            flat: See `Arena.admit`.
            lr_factors: See `Arena.admit`.

        Returns:
            The optimizer, to build a schedule on.
        """
        weights = start.weights if isinstance(start, Adapter) else start
        optimizer = self.arena.admit(
            slot, weights, make_optimizer, max_norm=max_norm, flat=flat, lr_factors=lr_factors or {}
        )
        if isinstance(start, Adapter):
            self.context.admit(slot, scaling=start.scaling, dropout=start.dropout, seed=seed)
        return optimizer

    def evict(self, slot: int) -> None:
        """Frees a slot; nothing of its trial is left."""
        self.arena.evict(slot)
        self.context.admit(slot)

    def move(self, source: int, target: int) -> None:
        """Moves a trial to a free slot; its optimizer stays the same object."""
        self.arena.move(source, target)
        self.context.move(source, target)
        self.context.admit(source)

    def shrink(self, slots: int) -> None:
        """Keeps the first slots only, and gives back the memory of the others, which must be free."""
        self.context.clear()
        self.arena.shrink(slots)

    def weights(self, slot: int) -> dict[str, Tensor]:
        """A copy of the weights that a slot's trial has trained, by the names that PEFT or the model saves them under.

        An adapter's are at its own rank.
        """
        return {name: weight.detach().clone() for name, weight in self.arena.read(slot).items()}

    def state(self, slot: int) -> dict[str, Any]:
        """A copy of everything that the rest of a slot's trial depends on, except its schedule and data.

        It holds tensors, numbers and strings.
        """
        # The key "window" is that of the checkpoints of 0.1.0.
        return {"arena": self.arena.state(slot), "window": self.context.state(slot)}

    def restore(
        self,
        slot: int,
        state: Mapping[str, Any],
        make_optimizer: MakeOptimizer,
        *,
        max_norm: float = 0.0,
        flat: bool = True,
        lr_factors: Mapping[str, float] | None = None,
    ) -> torch.optim.Optimizer:
        """Puts a trial with a saved state into any free slot.

        Args:
            slot: The slot.
            state: What `state` returned.
            make_optimizer: As for `admit`.
            max_norm: As for `admit`.
            flat: As for `admit`.
            lr_factors: As for `admit`.

        Returns:
            The optimizer, with its state restored.

        Raises:
            ValueError: The state is of another kind of pack, or the slot is taken.
        """
        optimizer = self.arena.restore(
            slot, state["arena"], make_optimizer, max_norm=max_norm, flat=flat, lr_factors=lr_factors or {}
        )
        self.context.restore(slot, state["window"])
        return optimizer
