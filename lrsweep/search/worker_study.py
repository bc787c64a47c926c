"""A worker's side of the study: it claims trials, reports their evaluations to the pruner, and ends them."""

import contextlib
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from lrsweep.analysis.ranking import Role
from lrsweep.config.search_space import Axis
from lrsweep.search.distributions import suggest
from lrsweep.search.records import Record, TrialSpec, claim_of, eval_reports, is_paused, is_suspect, spec_of
from lrsweep.search.samplers import sampler, sync_halving
from lrsweep.search.study_store import HARDWARE, StudyStore, beat_key
from lrsweep.search.sync_halving import EvalReport
from lrsweep.training.engines import Stop

log = logging.getLogger(__name__)


class Liveness(Protocol):
    """Which of a sweep's workers are alive, as one of them sees it.

    Attributes:
        worker: The name of this worker.
    """

    worker: str

    def is_dead(self, worker: str, beats: int) -> bool:
        """Returns whether a worker has ended; `beats` is its current heartbeat in the study."""


class WorkerStudy:
    """The study as one worker sees it. `study_lifecycle.py` opens it.

    Args:
        store: The study.
        liveness: This worker's view of the other workers.

    Attributes:
        axes: The axes, including the learning rates that extensions have added; `next` updates them.
    """

    def __init__(self, store: StudyStore, liveness: Liveness) -> None:
        self._store = store
        self._liveness = liveness
        self._running: dict[int, optuna.Trial] = {}
        self._halving = sync_halving(store.config)
        # Ended trials whose evaluations the pruner has.
        self._given_to_pruner: set[int] = set()
        self.axes: tuple[Axis, ...] = store.axes()
        # The pruner compares with the trials of earlier runs, too.
        self._give_to_pruner(store.trials())

    @property
    def on_server(self) -> bool:
        """Whether workers on other machines can reach the study."""
        return self._store.storage.on_server

    def beat(self, worker: str) -> None:
        """Increments a worker's heartbeat, which processes on other machines watch."""
        self._store.beat(worker)

    def trains_on(self, hardware: str) -> None:
        """Records what this worker trains on, such as `AMD EPYC, 2 cores, AVX2`."""
        # An attribute for each: workers may record theirs at the same time.
        self._store.set(f"{HARDWARE}{hardware}", True)

    def next(self) -> tuple[int, TrialSpec] | None:
        """Claims a trial: one that a dead worker left, else a new one.

        A trial that may have killed a worker is claimed last, and only by a worker that has no other trial.

        Returns:
            The trial's number and what it tries; None if no trial is available.
        """
        with self._store.transaction(), self._store.storage.read_once():
            # Read once: all other workers may be waiting, and there may be hundreds of trials.
            attributes = self._store.study.user_attrs
            self.axes = self._store.axes(attributes)
            trial = self._available(attributes)
            if trial is None:
                return None
            # The claim is written last, so that a claimed trial has all its values.
            params = {axis.key: suggest(trial, axis) for axis in self.axes}
            before = claim_of(trial.user_attrs)
            try:
                trial.set_user_attr("claim", [self._liveness.worker, before.attempt + 1 if before else 0])
            except optuna.exceptions.UpdateFinishedTrialError:
                # Its previous worker has just ended it. There may be other trials, which the next call finds.
                return None
            self._running[trial.number] = trial
            return trial.number, spec_of(params, trial.user_attrs)

    def _available(self, attributes: Mapping[str, Any]) -> optuna.Trial | None:
        """The trial to claim next, by the rules of `next`."""
        if any(is_suspect(trial.user_attrs) for trial in self._running.values()):
            return None
        study, trials = self._store.study, self._store.trials()
        left = [
            frozen
            for frozen in trials
            if frozen.state == TrialState.RUNNING
            and frozen.number not in self._running
            and not is_paused(frozen)
            and self._is_orphan(frozen, attributes)
        ]
        suspects = [frozen for frozen in left if is_suspect(frozen.user_attrs)]
        unsuspected = [frozen for frozen in left if not is_suspect(frozen.user_attrs)]
        if unsuspected:
            return optuna.Trial(study, unsuspected[0]._trial_id)
        started = sum(frozen.state != TrialState.WAITING for frozen in trials)
        if started < self._store.total(attributes):
            study.sampler = sampler(self._store.config.search, started)
            return study.ask()
        if suspects and not self._running:
            return optuna.Trial(study, suspects[0]._trial_id)
        return None

    def _is_orphan(self, frozen: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        """Returns whether a running trial has no living worker."""
        claim = claim_of(frozen.user_attrs)
        return claim is None or not claim.worker or self._is_dead(claim.worker, attributes)

    def _is_dead(self, worker: str, attributes: Mapping[str, Any]) -> bool:
        return self._liveness.is_dead(worker, attributes.get(beat_key(worker), 0))

    def report(self, evals: Sequence[EvalReport]) -> dict[int, Stop]:
        """Reports evaluations that were made at the same time.

        Args:
            evals: The evaluations.

        Returns:
            The trials to stop, and why: `pruned`, or `lost` if another worker has taken over the trial.
        """
        if not evals:
            return {}
        with self._store.storage.faults():
            trials = {frozen.number: frozen for frozen in self._store.trials()}
            stop: dict[int, Stop] = {e.number: "lost" for e in evals if not self._is_owner(trials[e.number])}
            own = [report for report in evals if report.number not in stop]
            # First the evaluations that other workers have reported since.
            self._give_to_pruner(frozen for frozen in trials.values() if frozen.number not in self._running)
            # A replicate measures the noise, for which it must be complete.
            unpruned = {report.number for report in own if self._role(report.number) == "replicate"}
            halved = self._halving.report([report for report in own if report.number not in unpruned])
            stop |= dict.fromkeys(halved, "pruned")
            for report in own:
                trial = self._running[report.number]
                if "budget" not in trial.user_attrs:
                    trial.set_user_attr("budget", [report.max_steps, report.warmup])
                with warnings.catch_warnings():
                    # A trial that starts again reports its first steps again; Optuna keeps the old, equal value.
                    warnings.filterwarnings("ignore", message=".*already reported", category=UserWarning)
                    trial.report(report.eval_loss, report.step)
                if report.number not in unpruned and trial.should_prune():
                    stop[report.number] = "pruned"
            return stop

    def tell(self, record: Record) -> None:
        """Ends a trial, unless another worker has taken it over."""
        # On a server, each of these writes is a transaction of its own; a lock would only make all workers wait.
        storage = self._store.storage
        with storage.faults(), contextlib.nullcontext() if storage.on_server else storage.exclusive():
            owned = self.owns(record.number)
            trial = self._running.pop(record.number)
            try:
                if owned:
                    self._store.end(trial, record)
            except optuna.exceptions.UpdateFinishedTrialError:
                owned = False
            if not owned:
                log.warning("trial %d has been taken over by another worker", record.number)

    def suspect(self, number: int, reason: str) -> None:
        """Releases a trial that failed in a pack, to be retried by itself; if it failed too often, ends it as failed.

        Args:
            number: The trial's number.
            reason: How it failed.
        """
        with self._store.transaction():
            owned = self.owns(number)
            trial = self._running.pop(number)
            if owned:
                self._unclaim(trial)
                self._store.suspect(self._store.study._storage.get_trial(trial._trial_id), reason, "it failed")

    def release(self, number: int) -> None:
        """Releases a trial, to be resumed later by any worker."""
        self._hand_back(number, paused=False)

    def pause(self, number: int) -> None:
        """Releases a trial that waits until the search decides whether it goes on."""
        self._hand_back(number, paused=True)

    def _hand_back(self, number: int, *, paused: bool) -> None:
        with self._store.transaction():
            owned = self.owns(number)
            trial = self._running.pop(number)
            if owned:
                if paused:
                    trial.set_user_attr("paused", True)
                self._unclaim(trial)

    @staticmethod
    def _unclaim(trial: optuna.Trial) -> None:
        before = claim_of(trial.user_attrs)
        trial.set_user_attr("claim", ["", before.attempt if before else 0])

    def more_may_follow(self) -> bool:
        """Returns whether followups may come: the controller has not closed the study, and is alive."""
        with self._store.storage.faults():
            attributes = self._store.study.user_attrs
            controller = attributes.get("keeper", "")
            return not attributes.get("closed", True) and not self._is_dead(controller, attributes)

    def last_evaluation(self, number: int) -> int:
        """The step of the last evaluation of a trial that this worker has claimed; 0 if there is none."""
        frozen = self._store.study._storage.get_trial(self._running[number]._trial_id)
        return max(frozen.intermediate_values, default=0)

    def owns(self, number: int) -> bool:
        """Returns whether a trial that this worker claimed still belongs to it."""
        return self._is_owner(self._store.study._storage.get_trial(self._running[number]._trial_id))

    def _is_owner(self, frozen: FrozenTrial) -> bool:
        claim = claim_of(frozen.user_attrs)
        return not frozen.state.is_finished() and claim is not None and claim.worker == self._liveness.worker

    def _give_to_pruner(self, trials: Iterable[FrozenTrial]) -> None:
        """Gives the pruner the evaluations of other workers' trials; those of an ended trial only once."""
        for frozen in trials:
            if frozen.number in self._given_to_pruner:
                continue
            for report in eval_reports(frozen):
                self._halving.report([report])
            if frozen.state.is_finished():
                self._given_to_pruner.add(frozen.number)

    def _role(self, number: int) -> Role:
        return self._running[number].user_attrs.get("point", {}).get("role", "search")  # type: ignore[no-any-return]
