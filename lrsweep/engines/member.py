"""A trial in its slot of a pack: put there at its beginning or where its checkpoint left it, and saved."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import get_scheduler

from lrsweep import checkpoint
from lrsweep.checkpoint import Checkpoint
from lrsweep.engines import Trial
from lrsweep.engines.shared import Shared
from lrsweep.finetune.model import lora_config
from lrsweep.finetune.optimizer import optimizer_class
from lrsweep.finetune.order import row_order
from lrsweep.outputs import disk_faults
from lrsweep.packing import Pack
from lrsweep.packing.arena import Groups, MakeOptimizer
from lrsweep.packing.width import Widths

log = logging.getLogger(__name__)

NAME = "packed"
# These look at a parameter's shape; all others work element by element.
_SHAPED = {"adafactor"}


@dataclass
class Member:
    """A trial in its slot. `saved` is the step of its last checkpoint, made at `saved_at`.

    `history` holds steps not yet reported: loss and gradient norm (on the device), lr.
    """

    trial: Trial
    slot: int
    order: Iterator[list[list[int]]]
    optimizer: torch.optim.Optimizer
    schedule: Any
    step: int = 0
    saved: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    history: list[tuple[int, Tensor, Tensor, float]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.step >= self.trial.config.training.max_steps

    @property
    def evaluates(self) -> bool:
        """Whether this step is one to evaluate at."""
        return self.finished or self.step % self.trial.config.training.eval_every == 0


def admit(shared: Shared, widths: Widths, slot: int, trial: Trial) -> Member:
    """Puts a trial into a free slot; one with a checkpoint of this engine goes on from it."""
    kept = checkpoint.load(trial.folder, NAME, checkpoint.digest(trial.config))
    member = None if kept is None else _resumed(shared, widths, slot, trial, kept)
    return member or _begun(shared, slot, trial)


def _begun(shared: Shared, slot: int, trial: Trial) -> Member:
    """A trial at its beginning."""
    config, training = trial.config, trial.config.training
    optimizer = shared.pack.admit(
        slot, shared.pack.start(lora_config(config.finetune), training.seed), _optimizer(trial),
        max_norm=training.max_grad_norm, seed=training.seed, flat=config.optimizer.name not in _SHAPED,
    )  # fmt: skip
    return _member(shared, slot, trial, optimizer)


def _resumed(shared: Shared, widths: Widths, slot: int, trial: Trial, kept: Checkpoint) -> Member | None:
    """A trial where its checkpoint left it; None if that is of another pack."""
    try:
        optimizer = shared.pack.restore(
            slot, kept.state["pack"], _optimizer(trial),
            max_norm=trial.config.training.max_grad_norm, flat=trial.config.optimizer.name not in _SHAPED,
        )  # fmt: skip
    except (ValueError, KeyError, RuntimeError) as fault:
        log.warning("trial %d begins anew: its checkpoint does not fit (%s)", trial.number, fault)
        shared.pack.evict(slot)
        return None
    member = _member(shared, slot, trial, optimizer)
    member.schedule.load_state_dict(kept.state["schedule"])
    # Making a schedule has set the rates of its first step.
    for group, rates in zip(optimizer.param_groups, kept.state["rates"], strict=True):
        group.update(rates)
    member.step = member.saved = kept.step
    for _ in range(kept.step):
        next(member.order)
    # Another width would sum in another order: the same numbers, but not the same bits.
    widths.keep(shared.key, kept.state["width"], kept.state["active"])
    return member


def _optimizer(trial: Trial) -> MakeOptimizer:
    kind, arguments = optimizer_class(trial.config.optimizer)

    def make(groups: Groups) -> torch.optim.Optimizer:
        # A group that says nothing of weight decay takes the optimizer's.
        return kind(groups, **arguments, weight_decay=trial.config.optimizer.weight_decay)  # type: ignore[call-arg]

    return make


def _member(shared: Shared, slot: int, trial: Trial, optimizer: torch.optim.Optimizer) -> Member:
    config, training = trial.config, trial.config.training
    schedule = get_scheduler(
        config.scheduler.name, optimizer, config.scheduler.warmup(training.schedule_steps),
        training.schedule_steps, dict(config.scheduler.kwargs),
    )  # fmt: skip
    order = row_order(len(shared.rows), training.batch_size, training.gradient_accumulation_steps, training.seed)
    return Member(trial, slot, order, optimizer, schedule)


def save(member: Member, pack: Pack, width: int, active: int) -> None:
    """Checkpoints a trial; nothing to do where none is wanted, or its last one is of this step.

    `width` trials share a pass, of `active` that are in the pack. Raises StorageError.
    """
    if member.trial.config.training.checkpoint_seconds is None or member.saved == member.step:
        return
    groups = member.optimizer.param_groups
    state = {
        "pack": pack.state(member.slot),
        "schedule": member.schedule.state_dict(),
        "rates": [{key: group[key] for key in ("lr", "initial_lr") if key in group} for group in groups],
        "width": width,
        "active": active,
    }
    trial = checkpoint.digest(member.trial.config)
    checkpoint.save(member.trial.folder, Checkpoint(NAME, trial, member.step, state))
    member.saved, member.saved_at = member.step, time.monotonic()


def save_adapter(member: Member, pack: Pack) -> None:
    """Writes the trial's adapter as PEFT does. Raises StorageError."""
    folder = member.trial.folder / "adapter"
    weights = {name: weight.cpu().contiguous() for name, weight in pack.weights(member.slot).items()}
    config = lora_config(member.trial.config.finetune)
    config.inference_mode = True
    config.base_model_name_or_path = pack.model.config._name_or_path
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
