"""The controller's side of the study: totals, followups, workers that died, and what is done."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import TrialState

from lrsweep.config.search_space import Axis
from lrsweep.search.records import Record, TrialSpec, TrialView, claim_of, record_of, spec_of
from lrsweep.search.study_store import StudyStore

log = logging.getLogger(__name__)


class ControllerStudy:
    """The study as the process that runs the sweep sees it. `study_lifecycle.py` opens it."""

    def __init__(self, store: StudyStore) -> None:
        self._store = store

    @property
    def sweep_id(self) -> str:
        """Made once with the study; ties MLflow's runs to it."""
        return str(self._store.attributes()["sweep_id"])

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, with the learning rates that extensions have added."""
        return self._store.axes()

    @property
    def total(self) -> int:
        """The number of trials that the sweep runs to, over all its runs, followups included."""
        return self._store.total()

    @property
    def on_server(self) -> bool:
        """Whether workers on other machines can reach the study."""
        return self._store.storage.on_server

    def beat(self, worker: str) -> None:
        """Counts one more sign of life of a worker, for those on other machines."""
        self._store.beat(worker)

    @property
    def seconds(self) -> float:
        """Time spent training, over all runs of the sweep, except what a kill cut off."""
        return float(self._store.attributes().get("seconds", 0.0))

    def add_seconds(self, seconds: float) -> None:
        """Adds to the time spent training."""
        self._store.set("seconds", self.seconds + seconds)

    @property
    def dataset(self) -> dict[str, Any]:
        """What the sweep's data are, as `open` noted it."""
        return dict(self._store.attributes()["dataset"])

    def open(self, controller: str, dataset: Mapping[str, Any]) -> None:
        """Notes which process runs the sweep, on what data: workers wait for followups until it closes, or is dead."""
        self._store.set("keeper", controller)
        self._store.set("closed", False)
        self._store.set("dataset", dict(dataset))

    def close(self) -> None:
        """No followups will come: workers without a trial may end."""
        self._store.set("closed", True)

    def add_followups(self, specs: Sequence[TrialSpec]) -> None:
        """Adds trials to the total; their new learning rates become the axis's."""
        with self._store.transaction():
            listed = [*self._store.followups(), *(asdict(spec) for spec in specs)]
            self._store.study.set_user_attr("followed", listed)
            self._store.enqueue_followups()

    def record_death(self, worker: str, reason: str) -> list[int]:
        """Puts the trials of a worker that died under suspicion, or gives them up; returns their numbers."""
        with self._store.transaction():
            found = [
                frozen
                for frozen in self._store.trials(TrialState.RUNNING)
                if (claim := claim_of(frozen.user_attrs)) is not None and claim.worker == worker
            ]
            for frozen in found:
                self._store.suspect(frozen, reason, "the process that trained it died")
            return [frozen.number for frozen in found]

    def trials(self) -> list[TrialView]:
        """Every trial that has started, by number."""
        keys = {axis.key for axis in self.axes}
        views = []
        for frozen in self._store.trials():
            record = record_of(frozen) if frozen.state.is_finished() else None
            claim = claim_of(frozen.user_attrs)
            # Optuna reads a trial in several queries: one that a worker is just taking may be there in parts.
            started = claim is not None and frozen.params.keys() >= keys
            if record is not None or (frozen.state == TrialState.RUNNING and started):
                views.append(TrialView(frozen.number, spec_of(frozen.params, frozen.user_attrs), claim, record))
        return views

    def records(self) -> list[Record]:
        """Every finished trial, by number."""
        return self._store.records()

    def finished(self) -> bool:
        """Whether there is nothing to run."""
        return not self._store.trials(TrialState.RUNNING) and len(self.records()) >= self.total

    def importances(self) -> dict[str, float]:
        """Each axis's share in how much the losses differ, by Optuna's PED-ANOVA; empty for one axis."""
        if len(self.axes) < 2:
            return {}
        with self._store.storage.faults(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                return optuna.importance.get_param_importances(self._store.study)
            except (ValueError, RuntimeError) as fault:
                # Too few trials, or all alike.
                log.info("no importances: %s", fault)
                return {}
