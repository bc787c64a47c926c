"""Many trials at once over one frozen base: the trainer engine's curves in a fraction of its time.

A trial keeps its own step, schedule, row order and optimizer; only the forward and backward passes are shared. A slot
that comes free is refilled before the next step.
"""

import gc
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lrsweep import checkpoint
from lrsweep.config import TrainingConfig
from lrsweep.engines import Engine, Host, Measurement, Outcome, Stop, Trial, failed
from lrsweep.engines.member import NAME, Member, admit, save, save_adapter
from lrsweep.engines.shared import Shared, pack_key
from lrsweep.errors import StorageError
from lrsweep.packing import Unpackable, eval_pass, join, runs, train_pass
from lrsweep.packing.width import Widths

log = logging.getLogger(__name__)

# On a GPU, losses are fetched together: waiting for each step's would empty its queue.
_FETCH_EVERY = 10


class PackedEngine:
    """Trains up to `slots` trials in lockstep. Trials that cannot share a base are trained pack after pack.

    `rank` is the highest LoRA rank among the trials to come; lower ones are padded to it. A trial that cannot be packed goes to
    the engine `otherwise`, or fails with the reason. `widths` is the file that keeps how many trials share a pass. `at_most` is
    the worker's share of the sweep, for `slots` auto: one that takes more leaves others idle.
    """

    def __init__(
        self, slots: int | Literal["auto"], rank: int, otherwise: Engine | None = None, widths: Path | None = None,
        at_most: int = 256,
    ) -> None:  # fmt: skip
        self._slots = slots
        self._at_most = at_most
        self._rank = rank
        self._otherwise = otherwise
        self._widths = Widths(widths)

    def run(self, host: Host) -> None:
        """Trains every trial that `host` gives. An error inside one trial ends that trial, not the run."""
        trial = host.next_trial()
        while trial is not None:
            try:
                shared = Shared.load(trial.config, self._slots, max(self._rank, trial.config.finetune.r), self._at_most)
            except (StorageError, torch.AcceleratorError):
                raise
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


class _Lockstep:
    """One pack from its first trial until it has drained."""

    def __init__(self, shared: Shared, widths: Widths, host: Host) -> None:
        self._shared = shared
        self._pack = shared.pack
        self._widths = widths
        self._host = host
        self._members: dict[int, Member] = {}
        self._base_loss: float | None = None
        # Trials in one pass of an evaluation: fewer once it has run out of memory.
        self._eval_at_most = shared.pack.arena.slots
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
            except torch.AcceleratorError:
                raise  # after it the device does nothing more for this process
            except Exception as fault:
                # A shared pass failed, or memory has no room for even one trial: whose doing it is shows alone.
                company = len(self._members) > 1
                for member in self._in_slots():
                    self._end(member, replace(failed(member.trial, fault), step=member.step, in_company=company))
                continue
            self._tell(evals)

    def _in_slots(self) -> list[Member]:
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
        try:
            member = admit(self._shared, self._widths, slot, trial)
        except (StorageError, torch.AcceleratorError):
            raise
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
            except torch.AcceleratorError:
                raise
            except Exception as fault:
                self._end(member, failed(trial, fault))
                return
        told = Measurement(trial.number, 0, {"eval_loss": self._base_loss})
        self._end_if_over(member, told, self._host.report([told]).get(trial.number))

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
                batch = join([self._shared.batch(tuple(rows[slot][i])) for slot in slots], self._shared.multiple)
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
    def _evaluate(self, members: Sequence[Member]) -> dict[int, float]:
        """Each member's mean loss over all label tokens of the eval set, by slot. Out of memory, in smaller passes."""
        while members:
            width = self._eval_width(members[0].trial.config.training)
            try:
                return self._eval_passes(members, width)
            except torch.OutOfMemoryError as fault:
                if width == 1:
                    raise
                self._eval_at_most = width // 2
                log.warning("out of GPU memory in evaluation (%s): %d trials a pass", fault, self._eval_at_most)
        return {}

    def _eval_width(self, training: TrainingConfig) -> int:
        """Trials in one pass of an evaluation: as many as make it about as many rows as a pass of training."""
        rows = self._widths.known(self._shared.key) * training.batch_size
        return max(1, min(rows // training.eval_batch_size, self._eval_at_most))

    def _eval_passes(self, members: Sequence[Member], width: int) -> dict[int, float]:
        totals: dict[int, Tensor] = {}
        tokens = 0
        for batch in self._shared.eval_batches:
            tokens += int((batch["labels"][:, 1:] != -100).sum())
            for start, stop in runs([member.slot for member in members], width):
                sums, _ = eval_pass(self._pack, start, stop, join([batch] * (stop - start), self._shared.multiple))
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
            over = self._end_if_over(member, heard[member.slot][-1], stop.get(member.trial.number))
            if not over and member.slot in evals and checkpoint.due(member.trial.config.training, member.saved_at):
                save(member, self._pack, self._widths.known(self._shared.key), len(self._members))

    def _history(self, member: Member) -> list[Measurement]:
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

    def _end_if_over(self, member: Member, last: Measurement, stop: Stop | None) -> bool:
        """Ends a trial that has diverged, is complete, or is to stop; whether it did."""
        number, training = member.trial.number, member.trial.config.training
        if last.not_finite:
            outcome = Outcome(number, last.step, "diverged", f"{last.not_finite} at step {last.step}", NAME)
        elif member.finished:
            if training.save_adapter and self._pack.adapters is not None:
                save_adapter(member, self._pack)
            outcome = Outcome(number, member.step, "complete", engine=NAME)
        elif stop is not None:
            if stop == "paused":
                save(member, self._pack, self._widths.known(self._shared.key), len(self._members))
            outcome = Outcome(number, member.step, "stopped", engine=NAME)
        else:
            return False
        self._end(member, outcome)
        return True

    def _end(self, member: Member, outcome: Outcome) -> None:
        self._pack.evict(member.slot)
        del self._members[member.slot]
        # What has just ended may be what the search was waiting for.
        self._more = True
        self._host.finish(outcome)


def _until_not_finite(told: list[Measurement]) -> list[Measurement]:
    """The measurements up to and with the first that is not finite: nothing after it means anything."""
    for i, measurement in enumerate(told):
        if measurement.not_finite:
            return told[: i + 1]
    return told
