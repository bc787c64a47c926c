"""One pack at work: its trials' steps, evaluations and ends."""

import gc
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrsweep.errors import StorageError
from lrsweep.files.checkpoint import Checkpoint
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.engines import Host, Measurement, Outcome, Stop, Trial, failed
from lrsweep.training.engines.checkpoint_writer import CheckpointWriter
from lrsweep.training.engines.checkpointing import is_due
from lrsweep.training.engines.pack_evaluation import PackEvaluation
from lrsweep.training.engines.pack_loader import LoadedPack, pack_key
from lrsweep.training.engines.slot import NAME, Slot, admit, readmit, save_adapter, snapshot, until_not_finite
from lrsweep.training.out_of_memory import is_out_of_memory
from lrsweep.training.packing import join, runs
from lrsweep.training.packing.graphs import EagerRunner, PassRunner
from lrsweep.training.packing.pass_size import PassSizes
from lrsweep.training.phases import NONE, phase

log = logging.getLogger(__name__)

# On a GPU, losses are fetched together: waiting for each step's would empty its queue.
_FETCH_EVERY = 10


class PackRun:
    """A pack and the trials in it.

    Args:
        loaded: The pack.
        pass_sizes: How many trials share a pass.
        host: Gives trials, and takes measurements and outcomes.
        writer: Writes the trials' checkpoints.
    """

    def __init__(self, loaded: LoadedPack, pass_sizes: PassSizes, host: Host, writer: CheckpointWriter) -> None:
        self._loaded = loaded
        self._pack = loaded.pack
        self._pass_sizes = pass_sizes
        self._host = host
        self._writer = writer
        self._evaluation = PackEvaluation(loaded)
        # The slots in use, by index.
        self._slots: dict[int, Slot] = {}
        # Trials that a smaller pack had no room for: in host memory, until a slot is free.
        self._swapped_out: list[tuple[Slot, Checkpoint]] = []
        self._base_loss: RowLosses | None = None
        self._more = True

    def takes(self, trial: Trial, host: Host) -> bool:
        """Whether a trial belongs to this pack, and this pack to the host."""
        return host is self._host and pack_key(trial.config) == self._loaded.key

    def train(self, first: Trial) -> Trial | None:
        """Trains `first` and all trials that may share its pack; returns the first that may not, or None."""
        waiting: Trial | None = first
        self._more = True
        while True:
            waiting = self._refill(waiting)
            if not self._slots:
                return waiting
            try:
                self._step()
                evals = self._evaluate([slot for slot in self._in_use() if slot.owes_evaluation])
            except torch.AcceleratorError:
                raise  # after it the device does nothing more for this process
            except Exception as fault:
                # A pass of several trials failed: each is tried by itself to find out which one caused it.
                in_company = len(self._slots) > 1
                for slot in self._in_use():
                    self._end(slot, replace(failed(slot.trial, fault), step=slot.step, in_company=in_company))
                continue
            self._report(evals)

    def _in_use(self) -> list[Slot]:
        return [self._slots[index] for index in sorted(self._slots)]

    def _refill(self, waiting: Trial | None) -> Trial | None:
        """Fills the free slots; returns the first trial that belongs to another pack, and asks for no more after it."""
        while (index := self._free_slot()) is not None:
            if self._swapped_out:
                self._swap_in(index)
                continue
            if waiting is None and self._more:
                waiting = self._host.next_trial()
                self._more = waiting is not None
            if waiting is None or pack_key(waiting.config) != self._loaded.key:
                return waiting
            self._admit(index, waiting)
            waiting = None
        return waiting

    def _free_slot(self) -> int | None:
        return next((index for index in range(self._pack.arena.slots) if index not in self._slots), None)

    def _admit(self, index: int, trial: Trial) -> None:
        try:
            slot = admit(self._loaded, self._pass_sizes, index, trial)
        except (StorageError, torch.AcceleratorError):
            raise
        except Exception as fault:
            self._pack.evict(index)
            self._host.finish(failed(trial, fault))
            return
        self._slots[index] = slot
        # The base loss of a trial that resumes was reported before its checkpoint.
        if slot.step == 0:
            self._report_base_loss(slot)

    def _report_base_loss(self, slot: Slot) -> None:
        """Reports a trial's loss at step 0. Untrained it is the base's, which is therefore every trial's."""
        slot.owes_evaluation = True
        if self._base_loss is None:
            phase("evaluating the model before training")
            try:
                self._base_loss = self._evaluate([slot]).get(slot.index)
            except torch.AcceleratorError:
                raise
            except Exception as fault:
                self._end(slot, failed(slot.trial, fault))
                return
            phase(NONE)
        if self._base_loss is None:
            return  # the pack shrank, and the trial is out of it for now
        slot.owes_evaluation = False
        measured = Measurement.of_evaluation(slot.trial.number, 0, self._base_loss)
        self._end_if_over(slot, measured, self._host.report([measured]).get(slot.trial.number))

    def _step(self) -> None:
        """One optimizer step of every trial in the pack, except of those that owe an evaluation."""
        slots = [slot for slot in self._in_use() if not slot.owes_evaluation]
        rows = {slot.index: next(slot.row_batches) for slot in slots}
        divisors = {slot.index: self._divisors(slot, rows[slot.index]) for slot in slots}
        losses = self._gradients(rows, divisors)
        slots = [slot for slot in slots if slot.index in losses]
        if not slots:
            return
        norms = self._pack.arena.step([slot.index for slot in slots])
        for slot, norm in zip(slots, norms, strict=True):
            slot.step += 1
            slot.owes_evaluation = slot.evaluates
            lr = float(slot.optimizer.param_groups[0]["lr"])
            slot.history.append((slot.step, losses[slot.index], norm, lr))
            if slot.trial.config.scheduler.name != "reduce_lr_on_plateau":
                slot.schedule.step()

    def _gradients(self, rows: dict[int, list[list[int]]], divisors: dict[int, list[int]]) -> dict[int, Tensor]:
        """Adds one step's gradients to the arena; returns the losses by slot.

        When out of memory, it halves the passes, then the pack: trials that are swapped out have no loss.
        """
        while rows:
            size = self._pass_size(rows, divisors)
            before = self._pack.context.progress()
            try:
                return self._forward_backward(rows, divisors, size, self._loaded.runner)
            except RuntimeError as fault:
                if not is_out_of_memory(fault) or (size == 1 and self._pack.arena.slots == 1):
                    raise
                reason = str(fault).splitlines()[0]
            # Here the error is gone, and with it the frames that hold the pass's activations.
            self._loaded.runner.forget()
            self._undo(rows, before)
            if size > 1:
                size = self._pass_sizes.halve(self._loaded.key, size)
                log.warning("out of GPU memory (%s): continuing with %d trials a pass", reason, size)
            else:
                self._shrink(reason)
                rows = {index: batches for index, batches in rows.items() if index in self._slots}
        return {}

    def _shrink(self, reason: str) -> None:
        """Halves the pack; the trials in its upper half wait in host memory until a slot is free."""
        slots = self._pack.arena.slots // 2
        log.warning("out of GPU memory (%s): continuing with %d slots", reason, slots)
        for slot in self._in_use():
            if slot.index >= slots:
                self._swapped_out.append((slot, self._snapshot(slot)))
                self._pack.evict(slot.index)
                del self._slots[slot.index]
        self._loaded.runner.forget()
        self._pack.shrink(slots)
        # What did not fit may fit now.
        self._pass_sizes.forget(self._loaded.key)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _swap_in(self, index: int) -> None:
        slot, kept = self._swapped_out.pop(0)
        try:
            slot = self._slots[index] = readmit(self._loaded, self._pass_sizes, index, slot, kept)
        except torch.AcceleratorError:
            raise
        except Exception as fault:
            self._pack.evict(index)
            self._host.finish(replace(failed(slot.trial, fault), step=slot.step, in_company=True))
            return
        if slot.step == 0 and slot.owes_evaluation:
            self._report_base_loss(slot)

    def _undo(self, indices: Iterable[int], before: list[int]) -> None:
        """Undoes passes: clears their gradients and rewinds the counters that key the dropout masks."""
        self._pack.context.rewind(before)
        for index in indices:
            self._pack.arena.grads[index].zero_()

    def _forward_backward(
        self, rows: dict[int, list[list[int]]], divisors: dict[int, list[int]], size: int, runner: PassRunner
    ) -> dict[int, Tensor]:
        losses: dict[int, Tensor] = {}
        for i in range(max(len(batches) for batches in rows.values())):
            taking_part = [index for index, batches in rows.items() if i < len(batches)]
            for start, stop in runs(taking_part, size):
                indices = range(start, stop)
                batch = join([self._loaded.batch(tuple(rows[index][i])) for index in indices], self._loaded.multiple)
                parts = runner.train(start, stop, batch, [divisors[index][i] for index in indices])
                for index, part in zip(indices, parts, strict=True):
                    losses[index] = losses[index] + part if index in losses else part
        return losses

    def _pass_size(self, rows: dict[int, list[list[int]]], divisors: dict[int, list[int]]) -> int:
        """Trials in one pass: measured once for each pack key, on passes whose gradients are discarded."""

        def run(size: int) -> None:
            first = {index: rows[index][:1] for index in list(rows)[:size]}
            before = self._pack.context.progress()
            try:
                self._forward_backward(first, divisors, size, EagerRunner(self._pack))
            finally:
                self._undo(first, before)

        return self._pass_sizes.fastest(self._loaded.key, len(rows), run)

    def _divisors(self, slot: Slot, batches: list[list[int]]) -> list[int]:
        """What the summed losses of each of a step's batches are divided by."""
        tokens = [self._label_tokens(tuple(batch)) for batch in batches]
        if slot.trial.config.training.mean_over == "batches":
            return [len(batches) * count for count in tokens]
        return [sum(tokens)] * len(batches)

    def _label_tokens(self, rows: tuple[int, ...]) -> int:
        return int((self._loaded.batch(rows)["labels"] != -100).sum())

    def _evaluate(self, slots: Sequence[Slot]) -> dict[int, RowLosses]:
        """The trials' losses on the eval rows, by slot. Halves the pack if it must; who is swapped out has none."""
        while slots := [slot for slot in slots if self._slots.get(slot.index) is slot]:
            # A pass then has about as many rows as one of the training.
            rows = self._pass_sizes.current(self._loaded.key) * slots[0].trial.config.training.batch_size
            try:
                found = self._evaluation.row_losses([slot.index for slot in slots], rows)
            except RuntimeError as fault:
                if not is_out_of_memory(fault) or self._pack.arena.slots == 1:
                    raise
                reason = str(fault).splitlines()[0]
            else:
                for slot in slots:
                    slot.owes_evaluation = False
                return found
            self._shrink(reason)
        return {}

    def _report(self, evals: Mapping[int, RowLosses]) -> None:
        """Reports the new measurements of all trials together and ends those that are over.

        Args:
            evals: Losses on the eval rows, by slot.
        """
        on_gpu = self._pack.arena.weights.is_cuda
        enough = _FETCH_EVERY if on_gpu else 1
        fetched = [slot for slot in self._in_use() if slot.index in evals or len(slot.history) >= enough]
        if not fetched:
            return
        measurements = {slot.index: slot.fetch_history() for slot in fetched}
        for index, losses in evals.items():
            slot = self._slots[index]
            measurements[index].append(Measurement.of_evaluation(slot.trial.number, slot.step, losses))
            if slot.trial.config.scheduler.name == "reduce_lr_on_plateau":
                slot.schedule.step(losses.mean)
        reported = {index: until_not_finite(measured) for index, measured in measurements.items()}
        stop = self._host.report(list(itertools.chain.from_iterable(reported.values())))
        for slot in fetched:
            over = self._end_if_over(slot, reported[slot.index][-1], stop.get(slot.trial.number))
            # Every trial of the pack has a checkpoint to be written in that time.
            cost = self._writer.seconds * len(self._slots)
            if not over and slot.index in evals and is_due(slot.trial.config.training, slot.saved_at, cost):
                self._save(slot)

    def _end_if_over(self, slot: Slot, last: Measurement, stop: Stop | None) -> bool:
        """Ends a trial that has diverged, is complete, or has to stop; returns whether it did."""
        number, training = slot.trial.number, slot.trial.config.training
        if last.not_finite:
            outcome = Outcome(number, last.step, "diverged", f"{last.not_finite} at step {last.step}", NAME)
        elif slot.finished:
            if training.save_adapter and self._pack.adapters is not None:
                save_adapter(slot, self._pack)
            outcome = Outcome(number, slot.step, "complete", engine=NAME)
        elif stop is not None:
            if stop == "paused":
                self._save(slot)
            outcome = Outcome(number, slot.step, "stopped", engine=NAME)
        else:
            return False
        self._end(slot, outcome, resumes=stop == "paused")
        return True

    def _save(self, slot: Slot) -> None:
        """Has a trial checkpointed, unless checkpoints are off or its last one is of this step."""
        if slot.trial.config.training.checkpoint_seconds is not None and slot.saved != slot.step:
            self._writer.write(slot.trial.folder, self._snapshot(slot))
            slot.saved, slot.saved_at = slot.step, time.monotonic()

    def _snapshot(self, slot: Slot) -> Checkpoint:
        return snapshot(slot, self._pack, self._pass_sizes.current(self._loaded.key), len(self._slots))

    def _end(self, slot: Slot, outcome: Outcome, *, resumes: bool = False) -> None:
        self._pack.evict(slot.index)
        del self._slots[slot.index]
        # From `finish` on, the folder may be another worker's: nothing is written to it any more.
        if resumes or outcome.in_company:
            self._writer.wait(slot.trial.folder)
        else:
            self._writer.drop(slot.trial.folder)
        # The search may have been waiting for this trial to end.
        self._more = True
        self._host.finish(outcome)
