"""The sweep's memory: an Optuna study that knows a total, what follows from results, and diverged from failed.

What a worker does with it is in `claims.py`.
"""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lrsweep.config import SweepConfig
from lrsweep.errors import InputError
from lrsweep.presence import Presence
from lrsweep.space import LR, Axis, grid, grown
from lrsweep.storage import Storage
from lrsweep.trials import Point, Record, Seen, claim_of, deaths_of, point_of, record_of

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)

# A trial whose process has died so often without having come further is given up.
_DEATHS = 2
# As many of the changed keys are shown.
_SHOWN = 5


class Study:
    """One sweep's trials in Optuna's storage. `studies.py` opens them."""

    def __init__(self, study: optuna.Study, axes: Sequence[Axis], config: SweepConfig, storage: Storage) -> None:
        self._study = study
        self._config = config
        self._where = storage
        self._axes = axes
        points = len(grid(axes)) if config.search.method == "grid" else None
        n_trials = config.search.n_trials
        self._total = min(n_trials or points, points) if points is not None else n_trials or 0
        self._presence: Presence | None = None
        self.axes = self._grown()

    @property
    def total(self) -> int:
        """The number of trials that the sweep runs to, over all its runs; what followed from results is among them."""
        return self._total + len(self._followed())

    @property
    def sweep_id(self) -> str:
        """Made once with the study; ties MLflow's runs to it."""
        return str(self._attributes()["sweep_id"])

    @property
    def seconds(self) -> float:
        """Time spent training, over all runs of the sweep but what a kill cut off."""
        return float(self._attributes().get("seconds", 0.0))

    def spend(self, seconds: float) -> None:
        """Adds to the time spent."""
        with self._where.faults():
            self._study.set_user_attr("seconds", self.seconds + seconds)

    # For the process that keeps the sweep.

    def keep(self, presence: Presence) -> None:
        """This process keeps the sweep: workers wait for what follows until it closes the study, or is dead."""
        self._presence = presence
        with self._where.faults():
            self._study.set_user_attr("keeper", presence.worker)
            self._study.set_user_attr("closed", False)

    def remember(self, dataset: Mapping[str, Any]) -> None:
        """Notes what the data are, for whoever has no access to them."""
        with self._where.faults():
            self._study.set_user_attr("dataset", dict(dataset))

    @property
    def dataset(self) -> dict[str, Any]:
        """What was noted."""
        return dict(self._attributes()["dataset"])

    def close(self) -> None:
        """Nothing follows any more: workers may go."""
        with self._where.faults():
            self._study.set_user_attr("closed", True)

    def follow(self, points: Sequence[Point]) -> None:
        """Adds trials to the total; learning rates that a growing axis does not have yet become its own."""
        with self._where.faults(), self._where.alone():
            followed = [*self._followed(), *(asdict(point) for point in points)]
            self._study.set_user_attr("followed", followed)
            self._enqueue_followed()

    def note_death(self, worker: str, reason: str) -> list[int]:
        """A worker's process has died by itself: its trials are under suspicion, or given up. Answers their numbers."""
        with self._where.faults(), self._where.alone():
            found = [frozen for frozen in self._unfinished() if (claim_of(frozen) or ("",))[0] == worker]
            for frozen in found:
                self._suspect(frozen, reason, "the process that trained it died")
            return [frozen.number for frozen in found]

    def _suspect(self, frozen: FrozenTrial, reason: str, what: str) -> None:
        step = max(frozen.intermediate_values, default=0)
        # What has come further since is not what kills it.
        deaths = [*(death for death in deaths_of(frozen) if death[0] == step), (step, reason)]
        if len(deaths) < _DEATHS:
            optuna.Trial(self._study, frozen._trial_id).set_user_attr("deaths", deaths)
        else:
            why = f"{what} {len(deaths)} times: {reason}"
            self._end(frozen, Record(frozen.number, Point({}), "failed", step, None, why))

    def trials(self) -> list[Seen]:
        """Every trial that has begun, by number."""
        with self._where.faults():
            self.axes = self._grown()
            seen = []
            for frozen in self._study.get_trials(deepcopy=False):
                record = record_of(frozen) if frozen.state.is_finished() else None
                # Optuna reads a trial in several queries: what a worker is just beginning may be there in parts.
                begun = claim_of(frozen) is not None and frozen.params.keys() >= {axis.key for axis in self.axes}
                if record is not None or (frozen.state == TrialState.RUNNING and begun):
                    seen.append(Seen(frozen.number, point_of(frozen), claim_of(frozen), record))
            return seen

    def finished(self) -> bool:
        """Whether nothing is left to run."""
        return not self._unfinished() and len(self.records()) >= self.total

    # For everybody.

    @property
    def shared(self) -> bool:
        """Whether workers on other machines can reach it."""
        return self._where.shared

    def beat(self) -> None:
        """Another sign of life, for workers on other machines; costs one write."""
        assert self._presence is not None
        key = f"beat {self._presence.worker}"
        with self._where.faults():
            self._study.set_user_attr(key, self._study.user_attrs.get(key, 0) + 1)

    def records(self) -> list[Record]:
        """Every finished trial, by number."""
        with self._where.faults():
            done = self._study.get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
            )
            return [record_of(frozen) for frozen in done]

    def importances(self) -> dict[str, float]:
        """Each axis's share in how much the losses differ, by Optuna's default (PED-ANOVA); empty for one axis."""
        if len(self.axes) < 2:
            return {}
        with self._where.faults(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                return optuna.importance.get_param_importances(self._study)
            except (ValueError, RuntimeError) as fault:
                # Too few trials, or all alike.
                log.info("no importances: %s", fault)
                return {}

    def check_same(self, identity: dict[str, Any]) -> None:
        """Refuses to go on under a changed config. Raises InputError with what has changed."""
        before = json.loads(self._attributes()["identity"])
        now = json.loads(json.dumps(identity))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            shown = [f"{key}: was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed[:_SHOWN]]
            more = f"; and {len(changed) - _SHOWN} keys more" if len(changed) > _SHOWN else ""
            raise InputError(
                f"{'; '.join(shown)}{more}; but the sweep {self._study.study_name} has trials already: set name=... for a new "
                "sweep, or resume=fresh to put the old one aside and start over"
            )

    def _end(self, trial: optuna.Trial | FrozenTrial, record: Record) -> None:
        trial = trial if isinstance(trial, optuna.Trial) else optuna.Trial(self._study, trial._trial_id)
        outcome = {"status": record.status, "step": record.step, "reason": record.reason, "engine": record.engine}
        trial.set_user_attr("outcome", outcome)
        if record.eval_loss is not None:
            trial.set_user_attr("eval_loss", record.eval_loss)
        if record.status == "complete":
            self._study.tell(trial, record.eval_loss)
        elif record.status == "diverged":
            self._study.tell(trial, self._worse_than_all(record))
        else:
            self._study.tell(trial, state=TrialState.PRUNED if record.status == "pruned" else TrialState.FAIL)

    def _followed(self) -> list[dict[str, Any]]:
        return list(self._attributes().get("followed", []))

    def _attributes(self) -> dict[str, Any]:
        """What the study itself remembers; no connection stays with whoever only looks."""
        with self._where.faults():
            return self._study.user_attrs

    def _enqueue_followed(self) -> None:
        """Enqueues what `followed` lists and a kill may have kept from the queue."""
        followed = self._followed()
        there = sum(
            frozen.user_attrs.get("point", {}).get("role", "prior") != "prior"
            for frozen in self._study.get_trials(deepcopy=False)
        )
        for point in followed[there:]:
            attributes = {key: value for key, value in point.items() if key != "params"}
            self._study.enqueue_trial(point["params"], user_attrs={"point": attributes})
        self.axes = self._grown()

    def _grown(self, attributes: Mapping[str, Any] | None = None) -> tuple[Axis, ...]:
        """The axes, with the learning rates that an extension has added."""
        followed = self._followed() if attributes is None else attributes.get("followed", [])
        return grown(self._axes, sorted({point["params"][LR] for point in followed if point["role"] == "extension"}))

    def _unfinished(self) -> list[FrozenTrial]:
        with self._where.faults():
            return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _worse_than_all(self, record: Record) -> float:
        seen = [
            value for frozen in self._study.get_trials(deepcopy=False) for value in frozen.intermediate_values.values()
        ]
        return 2.0 * max([1.0, record.eval_loss or 0.0, *seen])
