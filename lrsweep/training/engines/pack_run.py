"""One pack at work: its trials' steps, evaluations and ends."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrsweep.config.trial_schema import TrainingConfig
from lrsweep.errors import StorageError
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.engines import Host, Measurement, Outcome, Stop, Trial, failed
from lrsweep.training.engines.checkpointing import is_due
from lrsweep.training.engines.pack_loader import LoadedPack, pack_key
from lrsweep.training.engines.slot import NAME, Slot, admit, save, save_adapter
from lrsweep.training.packing import eval_pass, join, runs, train_pass
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
    """

    def __init__(self, loaded: LoadedPack, pass_sizes: PassSizes, host: Host) -> None:
        self._loaded = loaded
        self._pack = loaded.pack
        self._pass_sizes = pass_sizes
        self._host = host
        # The slots in use, by index.
        self._slots: dict[int, Slot] = {}
        self._base_loss: RowLosses | None = None
        # Trials in one pass of an evaluation: fewer once it has run out of memory.
        self._eval_at_most = loaded.pack.arena.slots
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
                evals = self._evaluate([slot for slot in self._in_use() if slot.evaluates])
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
        for index in range(self._pack.arena.slots):
            while index not in self._slots:
                if waiting is None and self._more:
                    waiting = self._host.next_trial()
                    self._more = waiting is not None
                if waiting is None or pack_key(waiting.config) != self._loaded.key:
                    return waiting
                self._admit(index, waiting)
                waiting = None
        return waiting

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
        if slot.step > 0:
            return  # its base loss was reported before its checkpoint
        if self._base_loss is None:
            # An untrained trial has the base's loss, which is therefore every trial's at step 0.
            phase("evaluating the model before training")
            try:
                self._base_loss = self._evaluate([slot])[index]
            except torch.AcceleratorError:
                raise
            except Exception as fault:
                self._end(slot, failed(trial, fault))
                return
            phase(NONE)
        measured = Measurement.of_evaluation(trial.number, 0, self._base_loss)
        self._end_if_over(slot, measured, self._host.report([measured]).get(trial.number))

    def _step(self) -> None:
        """One optimizer step of every trial in the pack."""
        slots = self._in_use()
        rows = {slot.index: next(slot.row_batches) for slot in slots}
        tokens = {index: sum(self._label_tokens(tuple(batch)) for batch in batches) for index, batches in rows.items()}
        losses = self._gradients(rows, tokens)
        norms = self._pack.arena.step([slot.index for slot in slots])
        for slot, norm in zip(slots, norms, strict=True):
            slot.step += 1
            lr = float(slot.optimizer.param_groups[0]["lr"])
            slot.history.append((slot.step, losses[slot.index], norm, lr))
            if slot.trial.config.scheduler.name != "reduce_lr_on_plateau":
                slot.schedule.step()

    def _gradients(self, rows: dict[int, list[list[int]]], tokens: dict[int, int]) -> dict[int, Tensor]:
        """Adds one step's gradients to the arena; returns the losses by slot. Halves the passes when out of memory."""
        size = self._pass_size(rows, tokens)
        while True:
            before = self._pack.context.progress()
            try:
                return self._forward_backward(rows, tokens, size)
            except torch.OutOfMemoryError as fault:
                if size == 1:
                    raise
                size = self._pass_sizes.halve(self._loaded.key, size)
                log.warning(
                    "out of GPU memory (%s): continuing with %d trials a pass", str(fault).splitlines()[0], size
                )
                self._undo(rows, before)

    def _undo(self, indices: Iterable[int], before: list[int]) -> None:
        """Undoes passes: clears their gradients and rewinds the counters that key the dropout masks."""
        self._pack.context.rewind(before)
        for index in indices:
            self._pack.arena.grads[index].zero_()

    def _forward_backward(
        self, rows: dict[int, list[list[int]]], tokens: dict[int, int], size: int
    ) -> dict[int, Tensor]:
        losses: dict[int, Tensor] = {}
        for i in range(max(len(batches) for batches in rows.values())):
            taking_part = [index for index, batches in rows.items() if i < len(batches)]
            for start, stop in runs(taking_part, size):
                indices = range(start, stop)
                batch = join([self._loaded.batch(tuple(rows[index][i])) for index in indices], self._loaded.multiple)
                parts = train_pass(self._pack, start, stop, batch, [tokens[index] for index in indices])
                for index, part in zip(indices, parts, strict=True):
                    losses[index] = losses[index] + part if index in losses else part
        return losses

    def _pass_size(self, rows: dict[int, list[list[int]]], tokens: dict[int, int]) -> int:
        """Trials in one pass: measured once for each pack key, on passes whose gradients are discarded."""

        def run(size: int) -> None:
            first = {index: rows[index][:1] for index in list(rows)[:size]}
            before = self._pack.context.progress()
            try:
                self._forward_backward(first, tokens, size)
            finally:
                self._undo(first, before)

        return self._pass_sizes.fastest(self._loaded.key, len(rows), run)

    def _label_tokens(self, rows: tuple[int, ...]) -> int:
        return int((self._loaded.batch(rows)["labels"] != -100).sum())

    @torch.no_grad()
    def _evaluate(self, slots: Sequence[Slot]) -> dict[int, RowLosses]:
        """Each trial's losses on the eval rows, by slot. Halves the passes when out of memory."""
        while slots:
            size = self._eval_pass_size(slots[0].trial.config.training)
            try:
                return self._row_losses(slots, size)
            except torch.OutOfMemoryError as fault:
                if size == 1:
                    raise
                self._eval_at_most = size // 2
                log.warning("out of GPU memory in evaluation (%s): %d trials a pass", fault, self._eval_at_most)
        return {}

    def _eval_pass_size(self, training: TrainingConfig) -> int:
        """Trials in one pass of an evaluation, which then has about as many rows as a training pass."""
        rows = self._pass_sizes.current(self._loaded.key) * training.batch_size
        return max(1, min(rows // training.eval_batch_size, self._eval_at_most))

    def _row_losses(self, slots: Sequence[Slot], size: int) -> dict[int, RowLosses]:
        sums: dict[int, list[Tensor]] = {slot.index: [] for slot in slots}
        tokens: list[int] = []
        for batch in self._loaded.eval_batches:
            tokens += (batch["labels"][:, 1:] != -100).sum(1).tolist()
            for start, stop in runs([slot.index for slot in slots], size):
                losses, _ = eval_pass(self._pack, start, stop, join([batch] * (stop - start), self._loaded.multiple))
                for index, of_rows in zip(range(start, stop), losses, strict=True):
                    sums[index].append(of_rows)
        return {index: RowLosses(torch.cat(of_rows).tolist(), tokens) for index, of_rows in sums.items()}

    def _report(self, evals: Mapping[int, RowLosses]) -> None:
        """Reports the new measurements of all trials together and ends those that are over.

        Args:
            evals: Losses on the eval rows, by slot.
        """
        on_gpu = self._pack.arena.weights.is_cuda
        fetched = [s for s in self._in_use() if s.index in evals or not on_gpu or len(s.history) >= _FETCH_EVERY]
        if not fetched:
            return
        measurements = {slot.index: self._fetch_history(slot) for slot in fetched}
        for index, losses in evals.items():
            slot = self._slots[index]
            measurements[index].append(Measurement.of_evaluation(slot.trial.number, slot.step, losses))
            if slot.trial.config.scheduler.name == "reduce_lr_on_plateau":
                slot.schedule.step(losses.mean)
        reported = {index: _until_not_finite(measured) for index, measured in measurements.items()}
        stop = self._host.report(list(itertools.chain.from_iterable(reported.values())))
        for slot in fetched:
            over = self._end_if_over(slot, reported[slot.index][-1], stop.get(slot.trial.number))
            if not over and slot.index in evals and is_due(slot.trial.config.training, slot.saved_at):
                self._save(slot)

    def _fetch_history(self, slot: Slot) -> list[Measurement]:
        """The measurements of the steps not reported yet, fetched from the device together."""
        values = torch.stack(
            [torch.stack([loss.double(), norm.double()]) for _, loss, norm, _ in slot.history]
        ).tolist()
        measured = [
            Measurement(slot.trial.number, step, {"loss": loss, "grad_norm": norm, "learning_rate": lr})
            for (step, _, _, lr), (loss, norm) in zip(slot.history, values, strict=True)
        ]
        slot.history.clear()
        return measured

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
        self._end(slot, outcome)
        return True

    def _save(self, slot: Slot) -> None:
        save(slot, self._pack, self._pass_sizes.current(self._loaded.key), len(self._slots))

    def _end(self, slot: Slot, outcome: Outcome) -> None:
        self._pack.evict(slot.index)
        del self._slots[slot.index]
        # The search may have been waiting for this trial to end.
        self._more = True
        self._host.finish(outcome)


def _until_not_finite(measured: list[Measurement]) -> list[Measurement]:
    """The measurements up to and including the first that is not finite: those after it are meaningless."""
    for i, measurement in enumerate(measured):
        if measurement.not_finite:
            return measured[: i + 1]
    return measured
