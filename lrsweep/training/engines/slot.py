"""A slot of a pack and the trial in it: how it starts, resumes from its checkpoint, and is saved."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from lrsweep.files import checkpoint
from lrsweep.files.atomic import disk_faults
from lrsweep.files.checkpoint import Checkpoint
from lrsweep.training.data.row_sampler import row_batches
from lrsweep.training.engines import Measurement, Trial
from lrsweep.training.engines.adapter_files import write_adapter
from lrsweep.training.engines.checkpointing import trial_digest
from lrsweep.training.engines.pack_loader import LoadedPack
from lrsweep.training.lora_init import takes_from_base
from lrsweep.training.model import lora_config
from lrsweep.training.optimizer import lr_factors, optimizer_class
from lrsweep.training.packing import Adapter, Pack
from lrsweep.training.packing.arena import Groups, MakeOptimizer
from lrsweep.training.packing.pass_size import PassSizes

log = logging.getLogger(__name__)

NAME = "packed"
# These optimizers use a parameter's shape; all others work element by element.
_SHAPED = {"adafactor"}


@dataclass
class Slot:
    """A trial in its slot.

    Attributes:
        trial: The trial.
        index: The slot's place in the pack.
        row_batches: The row numbers of the coming steps' batches.
        optimizer: The trial's own optimizer, over the slot's row of the arena.
        schedule: The trial's own learning-rate schedule.
        step: Optimizer steps done.
        owes_evaluation: An evaluation is due that has not been made yet.
        saved: The step of the last checkpoint.
        saved_at: When that was, in monotonic seconds.
        history: Steps not reported yet: step, loss and gradient norm (on the device), learning rate.
    """

    trial: Trial
    index: int
    row_batches: Iterator[list[list[int]]]
    optimizer: torch.optim.Optimizer
    schedule: Any
    step: int = 0
    owes_evaluation: bool = False
    saved: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    history: list[tuple[int, Tensor, Tensor, float]] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.trial.config.training.max_steps

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is due at this step."""
        return self.finished or self.step % self.trial.config.training.eval_every == 0

    def fetch_history(self) -> list[Measurement]:
        """The measurements of the steps not reported yet, fetched from the device together."""
        if not self.history:
            return []
        values = torch.stack(
            [torch.stack([loss.double(), norm.double()]) for _, loss, norm, _ in self.history]
        ).tolist()
        measured = [
            Measurement(self.trial.number, step, {"loss": loss, "grad_norm": norm, "learning_rate": lr})
            for (step, _, _, lr), (loss, norm) in zip(self.history, values, strict=True)
        ]
        self.history.clear()
        return measured


def until_not_finite(measured: list[Measurement]) -> list[Measurement]:
    """The measurements up to and including the first that is not finite: those after it are meaningless."""
    for i, measurement in enumerate(measured):
        if measurement.not_finite:
            return measured[: i + 1]
    return measured


def admit(loaded: LoadedPack, pass_sizes: PassSizes, index: int, trial: Trial) -> Slot:
    """Puts a trial into a free slot. A trial with a checkpoint of this engine resumes from it.

    Args:
        loaded: The pack.
        pass_sizes: Takes over the pass size that the checkpoint was made with.
        index: The slot.
        trial: The trial.

    Raises:
        Unpackable: The trial does not fit this pack.
    """
    kept = checkpoint.load(trial.folder, NAME, trial_digest(trial.config))
    slot = None if kept is None else _resumed(loaded, pass_sizes, index, trial, kept)
    return slot or _started(loaded, index, trial)


def _started(loaded: LoadedPack, index: int, trial: Trial) -> Slot:
    """A trial at its first step."""
    config, training = trial.config, trial.config.training
    optimizer = loaded.pack.admit(
        index,
        loaded.pack.start(lora_config(config.finetune), training.seed),
        _optimizer(trial),
        max_norm=training.max_grad_norm,
        seed=training.seed,
        flat=config.optimizer.name not in _SHAPED,
        lr_factors=_lr_factors(loaded, trial),
    )
    return _slot(loaded, index, trial, optimizer)


def _resumed(loaded: LoadedPack, pass_sizes: PassSizes, index: int, trial: Trial, kept: Checkpoint) -> Slot | None:
    """A trial where its checkpoint left it; None if the checkpoint does not fit this pack."""
    try:
        optimizer = loaded.pack.restore(
            index,
            kept.state["pack"],
            _optimizer(trial),
            max_norm=trial.config.training.max_grad_norm,
            flat=trial.config.optimizer.name not in _SHAPED,
            lr_factors=_lr_factors(loaded, trial),
        )
    except (ValueError, KeyError, RuntimeError) as fault:
        log.warning("trial %d starts again: its checkpoint does not fit (%s)", trial.number, fault)
        loaded.pack.evict(index)
        return None
    slot = _slot(loaded, index, trial, optimizer)
    slot.schedule.load_state_dict(kept.state["schedule"])
    # Building a schedule has set the learning rates of its first step.
    for group, rates in zip(optimizer.param_groups, kept.state["rates"], strict=True):
        group.update(rates)
    slot.step = slot.saved = kept.step
    for _ in range(kept.step):
        next(slot.row_batches)
    # Another pass size would add in another order: equal up to rounding, but not bit for bit.
    pass_sizes.take_over(loaded.key, kept.state["width"], kept.state["active"])
    return slot


def readmit(loaded: LoadedPack, pass_sizes: PassSizes, index: int, slot: Slot, kept: Checkpoint) -> Slot:
    """Puts a trial that was swapped out into a free slot, where it goes on as if nothing had happened.

    Args:
        loaded: The pack.
        pass_sizes: As for `admit`.
        index: The new slot.
        slot: The trial in its former slot.
        kept: Its `snapshot` there.
    """
    resumed = _resumed(loaded, pass_sizes, index, slot.trial, kept)
    assert resumed is not None, "a snapshot fits the pack that it was taken from"
    return replace(
        resumed,
        owes_evaluation=slot.owes_evaluation,
        saved=slot.saved,
        saved_at=slot.saved_at,
        history=slot.history,
    )


def _lr_factors(loaded: LoadedPack, trial: Trial) -> Mapping[str, float]:
    return lr_factors(loaded.pack.arena.shapes, trial.config.optimizer, trial.config.finetune)


def _optimizer(trial: Trial) -> MakeOptimizer:
    kind, arguments = optimizer_class(trial.config.optimizer)

    def make(groups: Groups) -> torch.optim.Optimizer:
        for group in groups:
            if "lr_factor" in group:
                group["lr"] = trial.config.optimizer.lr * group.pop("lr_factor")
        # A group without weight decay of its own takes the optimizer's.
        return kind(groups, **arguments, weight_decay=trial.config.optimizer.weight_decay)  # type: ignore[call-arg]

    return make


def _slot(loaded: LoadedPack, index: int, trial: Trial, optimizer: torch.optim.Optimizer) -> Slot:
    config, training = trial.config, trial.config.training
    schedule = get_scheduler(
        config.scheduler.name,
        optimizer,
        config.scheduler.warmup(training.schedule_steps),
        training.schedule_steps,
        dict(config.scheduler.kwargs),
    )
    batches = row_batches(len(loaded.rows), training.batch_size, training.gradient_accumulation_steps, training.seed)
    return Slot(trial, index, batches, optimizer, schedule)


def snapshot(slot: Slot, pack: Pack, pass_size: int, active: int) -> Checkpoint:
    """A trial as it is now, in host memory: its checkpoint.

    Args:
        slot: The trial's slot.
        pack: The pack.
        pass_size: Trials that share a pass.
        active: Trials in the pack.
    """
    groups = slot.optimizer.param_groups
    state = {
        "pack": _on_host(pack.state(slot.index)),
        "schedule": slot.schedule.state_dict(),
        "rates": [{key: group[key] for key in ("lr", "initial_lr") if key in group} for group in groups],
        # The name that checkpoints of 0.1.0 have for the pass size.
        "width": pass_size,
        "active": active,
    }
    return Checkpoint(NAME, trial_digest(slot.trial.config), slot.step, state)


def _on_host(value: Any) -> Any:
    """The value with its tensors in host memory."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(item) for key, item in value.items()}
    return value


def save_adapter(slot: Slot, pack: Pack) -> None:
    """Writes the trial's adapter in PEFT's format. Raises StorageError."""
    folder = slot.trial.folder / "adapter"
    config = lora_config(slot.trial.config.finetune)
    start = pack.start(config) if takes_from_base(config) else None
    first = start.weights if isinstance(start, Adapter) else {}
    with disk_faults(folder):
        write_adapter(folder, pack.weights(slot.index), config, pack.model.config._name_or_path, first)
