"""Many trials at once over one frozen base: the trainer engine's curves in a fraction of its time.

A trial keeps its own step, schedule, row order and optimizer; only the forward and backward passes are shared. A slot
that comes free is refilled before the next step.
"""

import functools
import gc
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import get_scheduler
from transformers.pytorch_utils import Conv1D

from lrsweep import checkpoint
from lrsweep.checkpoint import Checkpoint
from lrsweep.config import SweepConfig
from lrsweep.engines import Engine, Host, Measurement, Outcome, Trial, failed
from lrsweep.finetune.data import collate
from lrsweep.finetune.evaluation import eval_batches
from lrsweep.finetune.inputs import inputs
from lrsweep.finetune.model import enable_checkpointing, load_model, lora_config, make_trainable, resolve_dtype
from lrsweep.finetune.optimizer import optimizer_class
from lrsweep.finetune.order import row_order
from lrsweep.outputs import disk_faults
from lrsweep.packing import Pack, Unpackable, eval_pass, join, pack_lora, pack_weights, runs, train_pass
from lrsweep.packing.arena import Groups, MakeOptimizer
from lrsweep.packing.width import Widths

log = logging.getLogger(__name__)

_NAME = "packed"
# What may differ between trials of one pack; every other key of these sections changes shapes or the base.
_FREE = {
    "finetune": {"r", "alpha", "dropout", "rslora"},
    "training": {"max_steps", "max_grad_norm", "eval_every", "seed", "horizon", "save_adapter", "checkpoint_seconds"},
}
# These look at a parameter's shape; all others work element by element.
_SHAPED = {"adafactor"}
# On a GPU, losses are fetched together: waiting for each step's would empty its queue.
_FETCH_EVERY = 10


class PackedEngine:
    """Trains up to `slots` trials in lockstep. Trials that cannot share a base are trained pack after pack.

    `rank` is the highest LoRA rank among the trials to come; lower ones are padded to it. `widths` is the file that keeps how
    many trials share a pass. A trial that cannot be packed
    goes to the engine `otherwise`, or fails with the reason.
    """

    def __init__(
        self, slots: int | Literal["auto"], rank: int, otherwise: Engine | None = None, widths: Path | None = None
    ) -> None:
        self._slots = slots
        self._rank = rank
        self._otherwise = otherwise
        self._widths = Widths(widths)

    def run(self, host: Host) -> None:
        """Trains every trial that `host` gives. An error inside one trial ends that trial, not the run."""
        trial = host.next_trial()
        while trial is not None:
            try:
                shared = _Shared.load(trial.config, self._slots, max(self._rank, trial.config.finetune.r))
            except Exception as fault:
                if isinstance(fault, Unpackable) and self._otherwise is not None:
                    log.warning("trial %d is trained alone: %s", trial.number, fault)
                    self._otherwise.run(_Only(trial, host))
                else:
                    host.finish(failed(trial, fault))
                trial = host.next_trial()
                continue
            trial = _Lockstep(shared, self._widths, host).train(trial)
            del shared
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class _Only:
    """A host with one trial left."""

    def __init__(self, trial: Trial, host: Host) -> None:
        self._trials = [trial]
        self.report = host.report
        self.finish = host.finish

    def next_trial(self) -> Trial | None:
        return self._trials.pop() if self._trials else None


def pack_key(config: SweepConfig) -> str:
    """Trials with the same key may share a pack."""
    sections: dict[str, Any] = {"model": config.model.model_dump(), "data": config.data.model_dump()}
    for name, free in _FREE.items():
        sections[name] = getattr(config, name).model_dump(exclude=free)
    return repr(sections)


def check_packable(config: SweepConfig) -> None:
    """Builds a pack of one slot and drops it. Raises Unpackable with the reason, or InputError."""
    _Shared.load(config, 1, config.finetune.r)


def _slots_that_fit(model: nn.Module, config: SweepConfig, rank: int) -> int:
    """How many trials' weights, gradients and AdamW moments fit in half the free memory; at most 8, on a GPU 32."""
    if config.finetune.mode == "lora":
        linear = (module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
        # A quantized weight's shape says nothing; a Conv1D has only its shape.
        sizes = ((m.in_features, m.out_features) if isinstance(m, nn.Linear) else m.weight.shape for m in linear)
        trained = sum(rank * sum(size) for size in sizes)
    else:
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    # Four numbers of four bytes a parameter; the other half is for activations.
    return max(1, min(int(free / 2 / (16 * max(trained, 1))), 32 if on_gpu else 8))


@dataclass(frozen=True)
class _Shared:
    """What the trials of a pack share: the converted base, its slots, and the data."""

    key: str
    pack: Pack
    rows: Sequence[Any]
    eval_batches: Sequence[dict[str, Tensor]]
    pad_token_id: int

    @classmethod
    def load(cls, config: SweepConfig, slots: int | Literal["auto"], rank: int) -> "_Shared":
        tokenizer, data = inputs(config.model, config.data)
        model = load_model(config.model, config.finetune)
        if config.finetune.dora:
            raise Unpackable(
                "finetune.dora=true: DoRA's norms depend on the base's weights; packed adapters are plain LoRA"
            )
        if config.training.gradient_checkpointing:
            enable_checkpointing(model)
        compute = resolve_dtype(config.model)
        trainable = model if config.finetune.mode == "lora" else make_trainable(model, config.finetune, 0)
        slots = _slots_that_fit(trainable, config, rank) if slots == "auto" else slots
        if config.finetune.mode == "lora":
            pack = pack_lora(model, lora_config(config.finetune), slots, rank=rank, compute=compute)
        else:
            pack = pack_weights(trainable, slots, compute=compute)
        pad = tokenizer.pad_token_id
        held_out = list(eval_batches(data.evaluation, config.training.eval_batch_size, pad))
        # Some models show only in a pass that their rows cannot be told apart.
        eval_pass(pack, 0, 1, held_out[0])
        if config.engine.compile:
            pack.model.get_decoder().compile()
        return cls(pack_key(config), pack, data.train, held_out, pad)

    @functools.lru_cache(maxsize=32)  # noqa: B019 - lives as long as its pack
    def batch(self, rows: tuple[int, ...]) -> dict[str, Tensor]:
        """The rows as a padded batch; trials of one seed ask for the same one."""
        return collate([self.rows[row] for row in rows], self.pad_token_id)

    # Frozen, but holding what does not hash: it is itself, for the cache.
    __hash__ = object.__hash__


@dataclass
class _Member:
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


class _Lockstep:
    """One pack from its first trial until it has drained."""

    def __init__(self, shared: _Shared, widths: Widths, host: Host) -> None:
        self._shared = shared
        self._pack = shared.pack
        self._widths = widths
        self._host = host
        self._members: dict[int, _Member] = {}
        self._base_loss: float | None = None
        # Less than the training passes' width once evaluation has run out of memory.
        self._eval_width = 0
        self._more = True

    def train(self, first: Trial) -> Trial | None:
        """Trains `first` and all that may join it; returns the first trial that may not, None when there are no more."""
        waiting: Trial | None = first
        while True:
            waiting = self._refill(waiting)
            if not self._members:
                return waiting
            try:
                self._step()
                evals = self._evaluate([member for member in self._in_slots() if member.evaluates])
            except Exception as fault:
                # A shared pass failed, or memory has no room for even one trial: none of these can go on.
                for member in self._in_slots():
                    self._end(member, failed(member.trial, fault))
                continue
            self._tell(evals)

    def _in_slots(self) -> list[_Member]:
        return [self._members[slot] for slot in sorted(self._members)]

    def _refill(self, waiting: Trial | None) -> Trial | None:
        """Puts trials into the free slots; returns one that does not belong into this pack, and then asks for no more."""
        for slot in range(self._pack.arena.slots):
            while slot not in self._members:
                if waiting is None and self._more:
                    waiting = self._host.next_trial()
                    self._more = waiting is not None
                if waiting is None or pack_key(waiting.config) != self._shared.key:
                    return waiting
                self._admit(slot, waiting)
                waiting = None
        return waiting

    def _admit(self, slot: int, trial: Trial) -> None:
        config = trial.config
        kind, arguments = optimizer_class(config.optimizer)

        def make_optimizer(groups: Groups) -> torch.optim.Optimizer:
            # A group that says nothing of weight decay takes the optimizer's.
            return kind(groups, **arguments, weight_decay=config.optimizer.weight_decay)  # type: ignore[call-arg]

        kept = checkpoint.load(trial.folder, _NAME, checkpoint.digest(config))
        try:
            member = None if kept is None else self._resumed(slot, trial, make_optimizer, kept)
            member = member or self._begun(slot, trial, make_optimizer)
        except Exception as fault:
            self._pack.evict(slot)
            self._host.finish(failed(trial, fault))
            return
        self._members[slot] = member
        if member.step > 0:
            return  # what it has measured is known
        if self._base_loss is None:
            # No trial has moved yet: the loss is the base's, and every trial's at step 0.
            try:
                self._base_loss = self._evaluate([member])[slot]
            except Exception as fault:
                self._end(member, failed(trial, fault))
                return
        told = Measurement(trial.number, 0, {"eval_loss": self._base_loss})
        self._end_if_over(member, told, trial.number in self._host.report([told]))

    def _begun(self, slot: int, trial: Trial, make_optimizer: MakeOptimizer) -> _Member:
        """A trial at its beginning, in its slot."""
        config, training = trial.config, trial.config.training
        optimizer = self._pack.admit(
            slot, self._pack.start(lora_config(config.finetune), training.seed), make_optimizer,
            max_norm=training.max_grad_norm, seed=training.seed, flat=config.optimizer.name not in _SHAPED,
        )  # fmt: skip
        return self._member(slot, trial, optimizer)

    def _resumed(self, slot: int, trial: Trial, make_optimizer: MakeOptimizer, kept: Checkpoint) -> _Member | None:
        """A trial where its checkpoint left it; None if that is of another pack."""
        try:
            optimizer = self._pack.restore(
                slot, kept.state["pack"], make_optimizer,
                max_norm=trial.config.training.max_grad_norm, flat=trial.config.optimizer.name not in _SHAPED,
            )  # fmt: skip
        except (ValueError, KeyError, RuntimeError) as fault:
            log.warning("trial %d begins anew: its checkpoint does not fit (%s)", trial.number, fault)
            self._pack.evict(slot)
            return None
        member = self._member(slot, trial, optimizer)
        member.schedule.load_state_dict(kept.state["schedule"])
        # Making a schedule has set the rates of its first step.
        for group, rates in zip(optimizer.param_groups, kept.state["rates"], strict=True):
            group.update(rates)
        member.step = member.saved = kept.step
        for _ in range(kept.step):
            next(member.order)
        # Another width would sum in another order: the same numbers, but not the same bits.
        self._widths.keep(self._shared.key, kept.state["width"], kept.state["active"])
        return member

    def _member(self, slot: int, trial: Trial, optimizer: torch.optim.Optimizer) -> _Member:
        config, training = trial.config, trial.config.training
        schedule = get_scheduler(
            config.scheduler.name, optimizer, config.scheduler.warmup(training.schedule_steps),
            training.schedule_steps, dict(config.scheduler.kwargs),
        )  # fmt: skip
        order = row_order(
            len(self._shared.rows), training.batch_size, training.gradient_accumulation_steps, training.seed
        )
        return _Member(trial, slot, order, optimizer, schedule)

    def _save_checkpoint(self, member: _Member) -> None:
        if member.trial.config.training.checkpoint_seconds is None or member.saved == member.step:
            return
        groups = member.optimizer.param_groups
        state = {
            "pack": self._pack.state(member.slot),
            "schedule": member.schedule.state_dict(),
            "rates": [{key: group[key] for key in ("lr", "initial_lr") if key in group} for group in groups],
            "width": self._widths.known(self._shared.key),
            "active": len(self._members),
        }
        trial = checkpoint.digest(member.trial.config)
        checkpoint.save(member.trial.folder, Checkpoint(_NAME, trial, member.step, state))
        member.saved, member.saved_at = member.step, time.monotonic()

    def _step(self) -> None:
        """One optimizer step of every member."""
        members = self._in_slots()
        rows = {member.slot: next(member.order) for member in members}
        tokens = {slot: sum(self._tokens(tuple(batch)) for batch in batches) for slot, batches in rows.items()}
        losses = self._gradients(rows, tokens)
        norms = self._pack.arena.step([member.slot for member in members])
        for member, norm in zip(members, norms, strict=True):
            member.step += 1
            lr = float(member.optimizer.param_groups[0]["lr"])
            member.history.append((member.step, losses[member.slot], norm, lr))
            if member.trial.config.scheduler.name != "reduce_lr_on_plateau":
                member.schedule.step()

    def _gradients(self, rows: dict[int, list[list[int]]], tokens: dict[int, int]) -> dict[int, Tensor]:
        """The gradients of one step, gathered in the arena; the members' losses. Out of memory, in smaller passes."""
        width = self._width(rows, tokens)
        while True:
            before = self._pack.window.progress()
            try:
                return self._passes(rows, tokens, width)
            except torch.OutOfMemoryError as fault:
                if width == 1:
                    raise
                width = self._widths.halve(self._shared.key, width)
                log.warning("out of GPU memory (%s): going on with %d trials a pass", str(fault).splitlines()[0], width)
                self._forget(rows, before)

    def _forget(self, slots: Iterable[int], before: list[int]) -> None:
        """Undoes passes: their gradients, and their place in the stream of dropout masks."""
        self._pack.window.rewind(before)
        for slot in slots:
            self._pack.arena.grads[slot].zero_()

    def _passes(self, rows: dict[int, list[list[int]]], tokens: dict[int, int], width: int) -> dict[int, Tensor]:
        losses: dict[int, Tensor] = {}
        for i in range(max(len(batches) for batches in rows.values())):
            taking_part = [slot for slot, batches in rows.items() if i < len(batches)]
            for start, stop in runs(taking_part, width):
                slots = range(start, stop)
                batch = join([self._shared.batch(tuple(rows[slot][i])) for slot in slots])
                parts = train_pass(self._pack, start, stop, batch, [tokens[slot] for slot in slots])
                for slot, part in zip(slots, parts, strict=True):
                    losses[slot] = losses[slot] + part if slot in losses else part
        return losses

    def _width(self, rows: dict[int, list[list[int]]], tokens: dict[int, int]) -> int:
        """Trials in one pass: measured once for each pack key, on passes whose gradients are thrown away."""

        def run(width: int) -> None:
            first = {slot: rows[slot][:1] for slot in list(rows)[:width]}
            before = self._pack.window.progress()
            try:
                self._passes(first, tokens, width)
            finally:
                self._forget(first, before)

        return self._widths.best(self._shared.key, len(rows), run)

    def _tokens(self, rows: tuple[int, ...]) -> int:
        return int((self._shared.batch(rows)["labels"] != -100).sum())

    @torch.no_grad()
    def _evaluate(self, members: Sequence[_Member]) -> dict[int, float]:
        """Each member's mean loss over all label tokens of the eval set, by slot. Out of memory, in smaller passes."""
        while True:
            width = self._eval_width or self._widths.known(self._shared.key)
            try:
                return self._eval_passes(members, width)
            except torch.OutOfMemoryError as fault:
                if width == 1:
                    raise
                self._eval_width = width // 2
                log.warning("out of GPU memory in evaluation (%s): %d trials a pass", fault, self._eval_width)

    def _eval_passes(self, members: Sequence[_Member], width: int) -> dict[int, float]:
        totals: dict[int, Tensor] = {}
        tokens = 0
        for batch in self._shared.eval_batches:
            tokens += int((batch["labels"][:, 1:] != -100).sum())
            for start, stop in runs([member.slot for member in members], width):
                sums, _ = eval_pass(self._pack, start, stop, join([batch] * (stop - start)))
                for slot, part in zip(range(start, stop), sums.double(), strict=True):
                    totals[slot] = totals[slot] + part if slot in totals else part
        return {slot: float(total) / tokens for slot, total in totals.items()}

    def _tell(self, evals: Mapping[int, float]) -> None:
        """Reports what is due, all members together, and ends those that are over. `evals` are eval losses by slot."""
        on_gpu = self._pack.arena.weights.is_cuda
        fetched = [m for m in self._in_slots() if m.slot in evals or not on_gpu or len(m.history) >= _FETCH_EVERY]
        if not fetched:
            return
        measurements = {member.slot: self._history(member) for member in fetched}
        for slot, loss in evals.items():
            member = self._members[slot]
            measurements[slot].append(Measurement(member.trial.number, member.step, {"eval_loss": loss}))
            if member.trial.config.scheduler.name == "reduce_lr_on_plateau":
                member.schedule.step(loss)
        heard = {slot: _until_not_finite(told) for slot, told in measurements.items()}
        stop = self._host.report(list(itertools.chain.from_iterable(heard.values())))
        for member in fetched:
            over = self._end_if_over(member, heard[member.slot][-1], member.trial.number in stop)
            if not over and member.slot in evals and checkpoint.due(member.trial.config.training, member.saved_at):
                self._save_checkpoint(member)

    def _history(self, member: _Member) -> list[Measurement]:
        """The steps not reported yet, fetched from the device at once."""
        values = torch.stack(
            [torch.stack([loss.double(), norm.double()]) for _, loss, norm, _ in member.history]
        ).tolist()
        told = [
            Measurement(member.trial.number, step, {"loss": loss, "grad_norm": norm, "learning_rate": lr})
            for (step, _, _, lr), (loss, norm) in zip(member.history, values, strict=True)
        ]
        member.history.clear()
        return told

    def _end_if_over(self, member: _Member, last: Measurement, stopped: bool) -> bool:
        """Ends a trial that has diverged, is complete, or was stopped (which may be for a while); whether it did."""
        number, training = member.trial.number, member.trial.config.training
        if last.not_finite:
            outcome = Outcome(number, last.step, "diverged", f"{last.not_finite} at step {last.step}", "packed")
        elif member.finished:
            if training.save_adapter and self._pack.adapters is not None:
                self._save_adapter(member)
            outcome = Outcome(number, member.step, "complete", engine="packed")
        elif stopped:
            self._save_checkpoint(member)
            outcome = Outcome(number, member.step, "stopped", engine="packed")
        else:
            return False
        self._end(member, outcome)
        return True

    def _end(self, member: _Member, outcome: Outcome) -> None:
        self._pack.evict(member.slot)
        del self._members[member.slot]
        # What has just ended may be what the search was waiting for.
        self._more = True
        self._host.finish(outcome)

    def _save_adapter(self, member: _Member) -> None:
        """Writes the trial's adapter as PEFT does."""
        folder = member.trial.folder / "adapter"
        weights = {name: weight.cpu().contiguous() for name, weight in self._pack.weights(member.slot).items()}
        config = lora_config(member.trial.config.finetune)
        config.inference_mode = True
        config.base_model_name_or_path = self._pack.model.config._name_or_path
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(folder)


def _until_not_finite(told: list[Measurement]) -> list[Measurement]:
    """The measurements up to and with the first that is not finite: nothing after it means anything."""
    for i, measurement in enumerate(told):
        if measurement.not_finite:
            return told[: i + 1]
    return told
