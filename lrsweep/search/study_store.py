"""A sweep's Optuna study in its storage: what its controller and its workers both read and write."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import LR, Axis, grid, with_more_lrs
from lrsweep.search.records import Record, TrialSpec, deaths_of, record_of
from lrsweep.search.storage import Storage

optuna.logging.set_verbosity(optuna.logging.WARNING)

# A trial is given up once its process has died so often at the same evaluation.
_MOST_DEATHS = 2


class StudyStore:
    """One sweep's study.

    Args:
        study: Optuna's study.
        axes: The config's axes.
        config: The sweep's config.
        storage: Where the study is kept.
    """

    def __init__(self, study: optuna.Study, axes: Sequence[Axis], config: SweepConfig, storage: Storage) -> None:
        self.study = study
        self.config = config
        self.storage = storage
        self._axes = axes
        points = len(grid(axes)) if config.search.method == "grid" else None
        n_trials = config.search.n_trials
        self._total = min(n_trials or points, points) if points is not None else n_trials or 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """No other process changes the study meanwhile; the storage's own errors become one line."""
        with self.storage.faults(), self.storage.exclusive():
            yield

    def attributes(self) -> Mapping[str, Any]:
        """The study's own attributes, read now."""
        with self.storage.faults():
            return self.study.user_attrs

    def set(self, name: str, value: Any) -> None:
        """Sets one of the study's own attributes."""
        with self.storage.faults():
            self.study.set_user_attr(name, value)

    def beat(self, worker: str) -> None:
        """Counts one more sign of life of a worker, for those on other machines; costs one write."""
        key = beat_key(worker)
        with self.storage.faults():
            self.study.set_user_attr(key, self.study.user_attrs.get(key, 0) + 1)

    def axes(self, attributes: Mapping[str, Any] | None = None) -> tuple[Axis, ...]:
        """The axes with the learning rates that extensions have added; `attributes` saves reading the study's."""
        added = {spec["params"][LR] for spec in self.followups(attributes) if spec["role"] == "extension"}
        return with_more_lrs(self._axes, sorted(added))

    def total(self, attributes: Mapping[str, Any] | None = None) -> int:
        """The number of trials that the sweep runs to, over all its runs, followups included."""
        return self._total + len(self.followups(attributes))

    def followups(self, attributes: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The trials that followed from results, as plain data."""
        return list((self.attributes() if attributes is None else attributes).get("followed", []))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Optuna's trials, by number; `states` keeps only those in one of them."""
        with self.storage.faults():
            return self.study.get_trials(deepcopy=False, states=states or None)

    def records(self) -> list[Record]:
        """Every finished trial, by number."""
        return [record_of(frozen) for frozen in self.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]

    def enqueue_followups(self) -> None:
        """Enqueues followups that are listed and that a kill may have kept from the queue."""
        listed = self.followups()
        enqueued = sum(frozen.user_attrs.get("point", {}).get("role", "prior") != "prior" for frozen in self.trials())
        for spec in listed[enqueued:]:
            attributes = {key: value for key, value in spec.items() if key != "params"}
            self.study.enqueue_trial(spec["params"], user_attrs={"point": attributes})

    def end(self, trial: optuna.Trial, record: Record) -> None:
        """Ends a trial. A diverged one is told to the sampler as worse than all that it knows."""
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

    def suspect(self, frozen: FrozenTrial, reason: str, what: str) -> None:
        """Notes that a trial may have killed its worker; gives it up once that has happened too often."""
        step = max(frozen.intermediate_values, default=0)
        # What has come further since is not what kills it.
        deaths = [*(death for death in deaths_of(frozen.user_attrs) if death[0] == step), (step, reason)]
        trial = optuna.Trial(self.study, frozen._trial_id)
        if len(deaths) < _MOST_DEATHS:
            trial.set_user_attr("deaths", deaths)
        else:
            why = f"{what} {len(deaths)} times: {reason}"
            self.end(trial, Record(frozen.number, TrialSpec({}), "failed", step, None, why))

    def _worse_than_all(self, record: Record) -> float:
        seen = [value for frozen in self.trials() for value in frozen.intermediate_values.values()]
        return 2.0 * max([1.0, record.eval_loss or 0.0, *seen])


def beat_key(worker: str) -> str:
    """The study's attribute that counts a worker's signs of life."""
    return f"beat {worker}"
