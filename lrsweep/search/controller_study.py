"""The controller's side of the study: totals, followups, dead workers and finished trials."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import TrialState

from lrsweep.config.search_space import Axis
from lrsweep.search.records import Record, TrialSpec, TrialView, claim_of, is_paused, record_of, spec_of
from lrsweep.search.study_store import HARDWARE, StudyStore

log = logging.getLogger(__name__)


class ControllerStudy:
    """The study as the controller sees it. `study_lifecycle.py` opens it.

    Args:
        store: The study.
    """

    def __init__(self, store: StudyStore) -> None:
        self._store = store

    @property
    def sweep_id(self) -> str:
        """The id that connects MLflow's runs with the study; created with it."""
        return str(self._store.attributes()["sweep_id"])

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, including the learning rates that extensions have added."""
        return self._store.axes()

    @property
    def total(self) -> int:
        """The number of trials of the whole sweep, over all its runs, including followups."""
        return self._store.total()

    @property
    def on_server(self) -> bool:
        """Whether workers on other machines can reach the study."""
        return self._store.storage.on_server

    def beat(self, worker: str) -> None:
        """Increments a worker's heartbeat, which processes on other machines watch."""
        self._store.beat(worker)

    @property
    def seconds(self) -> float:
        """Seconds spent training, over all runs of the sweep, without the part that a kill lost."""
        return float(self._store.attributes().get("seconds", 0.0))

    def add_seconds(self, seconds: float) -> None:
        """Adds to the seconds spent training."""
        self._store.set("seconds", self.seconds + seconds)

    @property
    def hardware(self) -> list[str]:
        """What the sweep's workers trained on, each machine or device once."""
        names = self._store.attributes()
        return sorted(name.removeprefix(HARDWARE) for name in names if name.startswith(HARDWARE))

    @property
    def ended(self) -> str:
        """When the last trial ended, such as `2026-05-31T18:02`; empty if none has."""
        ends = [trial.datetime_complete for trial in self._store.trials() if trial.datetime_complete is not None]
        return max(ends).isoformat(timespec="minutes") if ends else ""

    @property
    def dataset(self) -> dict[str, Any]:
        """The facts about the sweep's data that `open` stored."""
        return dict(self._store.attributes()["dataset"])

    def open(self, controller: str, dataset: Mapping[str, Any]) -> None:
        """Stores which process runs the sweep, and on which data.

        Workers wait for followups until the study is closed or its controller is dead.

        Args:
            controller: The controller's name, made like a worker's.
            dataset: The facts about the data.
        """
        # "keeper" is the name that studies on disk have for the controller.
        self._store.set("keeper", controller)
        self._store.set("closed", False)
        self._store.set("dataset", dict(dataset))

    def close(self) -> None:
        """Marks the search as complete: no followups will come, and idle workers end."""
        self._store.set("closed", True)

    def add_followups(self, specs: Sequence[TrialSpec]) -> None:
        """Enqueues followup trials; new learning rates are added to the axis."""
        with self._store.transaction():
            listed = [*self._store.followups(), *(asdict(spec) for spec in specs)]
            self._store.study.set_user_attr("followed", listed)
            self._store.enqueue_followups()

    def record_death(self, worker: str, reason: str, *, killed: bool = False) -> list[int]:
        """Records that a worker died while it trained its trials.

        Such a trial is retried, and ends as failed once its worker has died too often after the same evaluation.

        Args:
            worker: The worker's name.
            reason: How it died.
            killed: Whether someone else killed it.

        Returns:
            The numbers of its running trials.
        """
        with self._store.transaction():
            found = [
                frozen
                for frozen in self._store.trials(TrialState.RUNNING)
                if (claim := claim_of(frozen.user_attrs)) is not None and claim.worker == worker
            ]
            for frozen in found:
                self._store.suspect(frozen, reason, "the process that trained it died", killed=killed)
            return [frozen.number for frozen in found]

    def trials(self) -> list[TrialView]:
        """Every trial that has started, by number."""
        keys = {axis.key for axis in self.axes}
        views = []
        for frozen in self._store.trials():
            record = record_of(frozen) if frozen.state.is_finished() else None
            claim = claim_of(frozen.user_attrs)
            # Optuna reads a trial in several queries, so one that is just being claimed may be incomplete.
            started = claim is not None and frozen.params.keys() >= keys
            if record is not None or (frozen.state == TrialState.RUNNING and started):
                views.append(TrialView(frozen.number, spec_of(frozen.params, frozen.user_attrs), claim, record))
        return views

    def records(self) -> list[Record]:
        """Every finished trial, by number."""
        return self._store.records()

    def finished(self) -> bool:
        """Returns whether all trials have ended."""
        return not self._store.trials(TrialState.RUNNING) and len(self.records()) >= self.total

    def read_once(self) -> AbstractContextManager[None]:
        """Reads what workers have changed once in this block, at the first access."""
        return self._store.storage.read_once()

    def idle(self) -> bool:
        """Returns whether all trials have ended or are paused."""
        trials = self._store.trials()
        still = [frozen for frozen in trials if frozen.state.is_finished() or is_paused(frozen)]
        return len(still) == len(trials) >= self.total

    def steps_left(self, of_one: int) -> int:
        """The optimizer steps until all trials have ended or pause.

        Args:
            of_one: The steps of a whole trial.
        """
        trials = self._store.trials()
        left = (self.total - len(trials)) * of_one
        for frozen in trials:
            if not frozen.state.is_finished() and not is_paused(frozen):
                until = frozen.user_attrs.get("point", {}).get("pause_at") or of_one
                left += max(until - max(frozen.intermediate_values, default=0), 0)
        return left

    def paused(self) -> list[Record]:
        """Every paused trial, as it would be if it ended now, by number."""
        found = []
        for frozen in self._store.trials(TrialState.RUNNING):
            if is_paused(frozen):
                step, loss = max(frozen.intermediate_values.items(), default=(0, None))
                spec = spec_of(frozen.params, frozen.user_attrs)
                found.append(Record(frozen.number, spec, "pruned", step, loss, "paused"))
        return found

    def resume(self, numbers: Sequence[int]) -> None:
        """Lets paused trials go on to their end."""
        with self._store.transaction():
            for frozen in self._store.trials(TrialState.RUNNING):
                if frozen.number in numbers and is_paused(frozen):
                    trial = optuna.Trial(self._store.study, frozen._trial_id)
                    trial.set_user_attr("point", {**frozen.user_attrs["point"], "pause_at": None})
                    trial.set_user_attr("paused", False)

    def end_paused(self, record: Record) -> None:
        """Ends a paused trial."""
        with self._store.transaction():
            for frozen in self._store.trials(TrialState.RUNNING):
                if frozen.number == record.number and is_paused(frozen):
                    self._store.end(optuna.Trial(self._store.study, frozen._trial_id), record)

    def importances(self) -> dict[str, float]:
        """Each axis's share in the differences of the losses, by Optuna's PED-ANOVA; empty for one axis."""
        if len(self.axes) < 2:
            return {}
        with self._store.storage.faults(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Importances that are equal for want of trials are none.
            warnings.filterwarnings("error", message="The number of trials is too small", category=UserWarning)
            try:
                return optuna.importance.get_param_importances(self._store.study)
            except (ValueError, RuntimeError, UserWarning) as fault:
                # Too few trials, or all have the same loss.
                log.info("no importances: %s", fault)
                return {}
