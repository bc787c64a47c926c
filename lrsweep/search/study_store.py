"""A sweep's Optuna study in its storage: the operations that the controller and the workers share."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_method import starts
from lrsweep.config.search_space import GRIDS, LR, Axis, with_more_lrs
from lrsweep.search.records import Record, TrialSpec, deaths_of, kills_of, record_of
from lrsweep.search.storage import Storage

optuna.logging.set_verbosity(optuna.logging.WARNING)

# A trial ends as failed once its worker has died this many times after the same evaluation: by itself, or in any way.
_MOST_DEATHS, _MOST_ENDS = 2, 3


# The study's user attributes with what its workers train on begin with this.
HARDWARE = "hardware "


class StudyStore:
    """One sweep's study.

    Args:
        study: Optuna's study.
        axes: The config's axes.
        config: The sweep's config.
        storage: The study's storage.

    Attributes:
        study: Optuna's study.
        config: The sweep's config.
        storage: The study's storage.
    """

    def __init__(self, study: optuna.Study, axes: Sequence[Axis], config: SweepConfig, storage: Storage) -> None:
        self.study = study
        self.config = config
        self.storage = storage
        self._axes = axes
        points = len(starts(config, axes)) if config.search.method in GRIDS else None
        n_trials = config.search.n_trials
        self._total = min(n_trials or points, points) if points is not None else n_trials or 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Keeps other processes from changing the study in this block. Raises StorageError if the storage fails."""
        with self.storage.faults(), self.storage.exclusive():
            yield

    def attributes(self) -> Mapping[str, Any]:
        """The study's user attributes, read now."""
        with self.storage.faults():
            return self.study.user_attrs

    def set(self, name: str, value: Any) -> None:
        """Sets a user attribute of the study."""
        with self.storage.faults():
            self.study.set_user_attr(name, value)

    def beat(self, worker: str) -> None:
        """Increments a worker's heartbeat, which processes on other machines watch."""
        key = beat_key(worker)
        with self.storage.faults():
            self.study.set_user_attr(key, self.study.user_attrs.get(key, 0) + 1)

    def axes(self, attributes: Mapping[str, Any] | None = None) -> tuple[Axis, ...]:
        """The axes, including the learning rates that were added.

        Args:
            attributes: The study's user attributes, if they have been read already.
        """
        added = {spec["params"][LR] for spec in self.followups(attributes) if spec["role"] in ("extension", "fit")}
        return with_more_lrs(self._axes, sorted(added))

    def total(self, attributes: Mapping[str, Any] | None = None) -> int:
        """The number of trials of the whole sweep, over all its runs, including followups.

        Args:
            attributes: The study's user attributes, if they have been read already.
        """
        return self._total + len(self.followups(attributes))

    def followups(self, attributes: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The followup trials, as dicts with the fields of TrialSpec.

        Args:
            attributes: The study's user attributes, if they have been read already.
        """
        return list((self.attributes() if attributes is None else attributes).get("followed", []))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Optuna's trials, by number; with `states`, only those in one of these states."""
        with self.storage.faults():
            return self.study.get_trials(deepcopy=False, states=states or None)

    def records(self) -> list[Record]:
        """Every finished trial, by number."""
        return [record_of(frozen) for frozen in self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]

    def enqueue_followups(self) -> None:
        """Enqueues the listed followups that are not in the queue yet, such as after a kill."""
        listed = self.followups()
        enqueued = sum(frozen.user_attrs.get("point", {}).get("role", "prior") != "prior" for frozen in self.trials())
        for spec in listed[enqueued:]:
            attributes = {key: value for key, value in spec.items() if key != "params"}
            self.study.enqueue_trial(spec["params"], user_attrs={"point": attributes})

    def end(self, trial: optuna.Trial, record: Record) -> None:
        """Ends a trial. For the sampler, a diverged one counts as worse than all others."""
        outcome = {"status": record.status, "step": record.step, "reason": record.reason, "engine": record.engine}
        trial.set_user_attr("outcome", outcome)
        if record.eval_loss is not None:
            trial.set_user_attr("eval_loss", record.eval_loss)
        if record.status == "complete":
            self.study.tell(trial, record.eval_loss)
        elif record.status == "diverged":
            self.study.tell(trial, self._worse_than_all(record))
        else:
            self.study.tell(trial, state=TrialState.PRUNED if record.status == "pruned" else TrialState.FAIL)

    def suspect(self, frozen: FrozenTrial, reason: str, what: str, *, killed: bool = False) -> None:
        """Records that a trial may have ended its worker; ends it as failed once that has happened too often.

        Args:
            frozen: The trial.
            reason: How the worker died.
            what: What happened, for the reason of a failed trial.
            killed: Whether someone else killed the worker, which alone blames no trial.
        """
        step = max(frozen.intermediate_values, default=0)
        # Deaths before an earlier evaluation do not count: the trial has got past that point since.
        deaths = [death for death in deaths_of(frozen.user_attrs) if death[0] == step]
        kills = [kill for kill in kills_of(frozen.user_attrs) if kill[0] == step]
        (kills if killed else deaths).append((step, reason))
        trial = optuna.Trial(self.study, frozen._trial_id)
        if len(deaths) < _MOST_DEATHS and len(deaths) + len(kills) < _MOST_ENDS:
            trial.set_user_attr("kills" if killed else "deaths", kills if killed else deaths)
        else:
            why = f"{what} {len(deaths) + len(kills)} times: {reason}"
            self.end(trial, Record(frozen.number, TrialSpec({}), "failed", step, None, why))

    def _worse_than_all(self, record: Record) -> float:
        seen = [value for frozen in self.trials() for value in frozen.intermediate_values.values()]
        return 2.0 * max([1.0, record.eval_loss or 0.0, *seen])


def beat_key(worker: str) -> str:
    """The study's user attribute with a worker's heartbeat."""
    return f"beat {worker}"
