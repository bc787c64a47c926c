"""The sweep's memory: an Optuna study that knows a total, resumes dead trials, and keeps diverged apart from failed."""

import contextlib
import functools
import json
import logging
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lrsweep.config import PrunerConfig, SearchConfig, SweepConfig, flatten
from lrsweep.errors import InputError, StorageError
from lrsweep.lockstep import Heard, Lockstep, NoLockstep, Rungs
from lrsweep.space import LR, Axis, grid, grown

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)

Status = Literal["complete", "pruned", "diverged", "failed"]
# Why a trial is there: the search's own point, the rate that rules of thumb give, or something that followed from results.
Role = Literal["search", "prior", "extension", "rescue", "replicate"]
# What may change between two runs of one sweep: it decides how far and where, not what is measured.
_FREE = (
    "search.n_trials", "search.storage", "search.extend", "search.replicates", "search.rescue", "search.prior",
    "search.preflight", "engine.name", "engine.slots", "engine.compile", "executor.", "tracking.", "training.save_adapter",
    "training.checkpoint_seconds",
)  # fmt: skip

_DATA = "data fingerprint"


@dataclass(frozen=True)
class Point:
    """What a trial is to try: stored axis values, and config keys that set it apart beside them.

    `of` is the trial that it repeats or rescues.
    """

    params: dict[str, Any]
    role: Role = "search"
    overrides: dict[str, Any] = field(default_factory=dict)
    of: int | None = None


@dataclass(frozen=True)
class Record:
    """A finished trial: what it tried, how it ended, and its last eval loss (None if it never had one)."""

    number: int
    point: Point
    status: Status
    step: int
    eval_loss: float | None
    reason: str


class Study:
    """One sweep's trials in Optuna's storage. Open it with `open_study`."""

    def __init__(self, study: optuna.Study, axes: Sequence[Axis], config: SweepConfig, folder: Path) -> None:
        self._study = study
        self._faults = functools.partial(_storage_faults, config, folder)
        search = config.search
        lockstep = self._lockstep = _lockstep(config)
        for frozen in study.get_trials(deepcopy=False):
            # What earlier runs of the sweep measured stands; their own trials were judged then.
            max_steps, warmup = frozen.user_attrs.get("budget", (1, 0))
            for step, value in sorted(frozen.intermediate_values.items()):
                lockstep.hear([Heard(frozen.number, step, max_steps, warmup, value)])
        self._axes = axes
        points = len(grid(axes)) if search.method == "grid" else None
        self._total = min(search.n_trials or points, points) if points is not None else search.n_trials or 0
        self._running: dict[int, optuna.Trial] = {}
        self._orphans = [
            optuna.Trial(study, frozen._trial_id)
            for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]
        self.axes = self._grown()

    @property
    def total(self) -> int:
        """The number of trials that the sweep runs to, over all its runs; what followed from results is among them."""
        return self._total + len(self._followed())

    @property
    def sweep_id(self) -> str:
        """Made once with the study; ties MLflow's runs to it."""
        return str(self._study.user_attrs["sweep_id"])

    @property
    def seconds(self) -> float:
        """Time spent training, over all runs of the sweep but what a kill cut off."""
        return float(self._study.user_attrs.get("seconds", 0.0))

    def spend(self, seconds: float) -> None:
        """Adds to the time spent."""
        with self._faults():
            self._study.set_user_attr("seconds", self.seconds + seconds)

    def follow(self, points: Sequence[Point]) -> None:
        """Adds trials to the total; learning rates that a growing axis does not have yet become its own."""
        with self._faults():
            followed = [*self._followed(), *(asdict(point) for point in points)]
            self._study.set_user_attr("followed", followed)
            self._enqueue_followed()

    def _followed(self) -> list[dict[str, Any]]:
        return list(self._study.user_attrs.get("followed", []))

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

    def _grown(self) -> tuple[Axis, ...]:
        """The axes, with the learning rates that an extension has added."""
        return grown(self._axes, sorted({p["params"][LR] for p in self._followed() if p["role"] == "extension"}))

    def next(self) -> tuple[int, Point] | None:
        """The next trial's number and what it tries; first those that a killed run left behind. None at the total."""
        with self._faults():
            if self._orphans:
                trial = self._orphans.pop(0)
            elif self._started() < self.total:
                trial = self._study.ask()
            else:
                return None
            params = {axis.key: _suggest(trial, axis) for axis in self.axes}
            self._running[trial.number] = trial
            return trial.number, Point(params, **trial.user_attrs.get("point", {}))

    def report(self, evals: Sequence[Heard]) -> frozenset[int]:
        """Records the evaluations of one moment; answers the trials that the pruner stops."""
        with self._faults():
            # A replicate measures noise, and has to be whole.
            whole = {heard.number for heard in evals if self._role(heard.number) == "replicate"}
            stop = set(self._lockstep.hear([heard for heard in evals if heard.number not in whole]))
            for heard in evals:
                trial = self._running[heard.number]
                if "budget" not in trial.user_attrs:
                    trial.set_user_attr("budget", [heard.max_steps, heard.warmup])
                with warnings.catch_warnings():
                    # A trial begun anew reports its first steps again; Optuna keeps the old value, which is the same.
                    warnings.filterwarnings("ignore", message=".*already reported", category=UserWarning)
                    trial.report(heard.eval_loss, heard.step)
                if heard.number not in whole and trial.should_prune():
                    stop.add(heard.number)
            return frozenset(stop)

    def _role(self, number: int) -> Role:
        return self._running[number].user_attrs.get("point", {}).get("role", "search")  # type: ignore[no-any-return]

    def tell(self, record: Record) -> None:
        """Ends a trial. A diverged one is told to the sampler as worse than all it knows, and never counts as the best."""
        with self._faults():
            trial = self._running.pop(record.number)
            trial.set_user_attr("outcome", {"status": record.status, "step": record.step, "reason": record.reason})
            if record.eval_loss is not None:
                trial.set_user_attr("eval_loss", record.eval_loss)
            if record.status == "complete":
                self._study.tell(trial, record.eval_loss)
            elif record.status == "diverged":
                self._study.tell(trial, self._worse_than_all(record))
            else:
                self._study.tell(trial, state=TrialState.PRUNED if record.status == "pruned" else TrialState.FAIL)

    def records(self) -> list[Record]:
        """Every finished trial, by number."""
        with self._faults():
            done = self._study.get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
            )
            return [_record(frozen) for frozen in done]

    def importances(self) -> dict[str, float]:
        """Each axis's share in how much the losses differ, by Optuna's default (PED-ANOVA); empty for one axis."""
        if len(self.axes) < 2:
            return {}
        with self._faults(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                return optuna.importance.get_param_importances(self._study)
            except (ValueError, RuntimeError) as fault:
                # Too few trials, or all alike.
                log.info("no importances: %s", fault)
                return {}

    def finished(self) -> bool:
        """Whether nothing is left to run."""
        return not self._orphans and not self._running and len(self.records()) >= self.total

    def check_same(self, identity: dict[str, Any]) -> None:
        """Refuses to go on under a changed config. Raises InputError naming the first change."""
        before = json.loads(self._study.user_attrs["identity"])
        now = json.loads(json.dumps(identity))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise InputError(
                    f"{key}: was {before.get(key)!r} and is now {now.get(key)!r}, but the sweep {self._study.study_name} has "
                    "trials already; set name=... for a new sweep, or remove its folder to start over"
                )

    def _started(self) -> int:
        return sum(frozen.state != TrialState.WAITING for frozen in self._study.get_trials(deepcopy=False))

    def _worse_than_all(self, record: Record) -> float:
        seen = [
            value for frozen in self._study.get_trials(deepcopy=False) for value in frozen.intermediate_values.values()
        ]
        return 2.0 * max([1.0, record.eval_loss or 0.0, *seen])


def identity(config: SweepConfig, fingerprint: str) -> dict[str, Any]:
    """What makes two runs the same sweep: the config, less what may change, and the data's fingerprint."""
    flat = flatten(config.model_dump())
    return {key: value for key, value in flat.items() if not key.startswith(_FREE)} | {_DATA: fingerprint}


def check_search(config: SweepConfig) -> None:
    """Builds the sampler and the pruner once, so that a bad option shows before any work. Raises InputError."""
    _pruner(config.pruner)
    _lockstep(config)
    try:
        _sampler(config.search, 0)
    except ImportError as fault:
        raise InputError(
            f"search.method={config.search.method!r}: needs a package that is not installed: {fault}"
        ) from None


def find_study(config: SweepConfig, axes: Sequence[Axis], folder: Path) -> Study | None:
    """The sweep's study as it stands, or None where there is none yet; writes nothing.

    Raises InputError if the config has changed, StorageError if the storage does not answer.
    """
    with _storage_faults(config, folder):
        file = folder / "study.db"
        if config.search.storage is None and (not file.exists() or file.stat().st_size == 0):
            return None
        if config.name not in optuna.get_all_study_names(_url(config, folder)):
            return None
        study = optuna.load_study(study_name=config.name, storage=_url(config, folder))
        if "identity" not in study.user_attrs:
            return None
        found = Study(study, axes, config, folder)
        found.check_same(identity(config, json.loads(study.user_attrs["identity"])[_DATA]))
        return found


def open_study(
    config: SweepConfig, axes: Sequence[Axis], folder: Path, fingerprint: str, first: Mapping[str, Any] | None = None
) -> Study:
    """Opens the sweep's study, or creates it with all its grid points; for one process at a time.

    A search that is no grid begins with `first`: stored values of some axes.

    Raises InputError if the config or the data have changed, StorageError if the storage does not answer.
    """
    with _storage_faults(config, folder):
        study = optuna.create_study(
            storage=_url(config, folder), study_name=config.name, direction="minimize", load_if_exists=True,
            pruner=_pruner(config.pruner),
        )  # fmt: skip
        if "identity" not in study.user_attrs:
            study.set_user_attr("sweep_id", uuid.uuid4().hex)
            study.set_user_attr("identity", json.dumps(identity(config, fingerprint)))
        # A seeded sampler would draw again on resume what it drew at first, so the seed moves with the trials.
        study.sampler = _sampler(config.search, len(study.get_trials(deepcopy=False)))
        points = grid(axes)[: config.search.n_trials] if config.search.method == "grid" else []
        enqueued = study.user_attrs.get("enqueued", 0)
        for point in points[enqueued:]:
            study.enqueue_trial(point, skip_if_exists=True)
        if enqueued == 0 and first is not None and not points:
            study.enqueue_trial(dict(first), user_attrs={"point": {"role": "prior"}}, skip_if_exists=True)
        study.set_user_attr("enqueued", max(enqueued, len(points), 1))
        opened = Study(study, axes, config, folder)
        opened._enqueue_followed()
        opened.check_same(identity(config, fingerprint))
        return opened


@contextlib.contextmanager
def _storage_faults(config: SweepConfig, folder: Path) -> Iterator[None]:
    """Turns the storage's own errors into one line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as fault:
        where = "search.storage" if config.search.storage else str(folder / "study.db")
        log.exception("the study's storage failed")
        raise StorageError(f"{where}: not usable as a study: {str(fault).splitlines()[0]}") from None


def _url(config: SweepConfig, folder: Path) -> str:
    return config.search.storage or f"sqlite:///{folder / 'study.db'}"


def _suggest(trial: optuna.Trial, axis: Axis) -> Any:
    """The stored value of one axis; a trial that has it already keeps it."""
    spread = axis.distribution
    if isinstance(spread, CategoricalDistribution):
        return trial.suggest_categorical(axis.key, spread.choices)
    if isinstance(spread, IntDistribution):
        return trial.suggest_int(axis.key, spread.low, spread.high, log=spread.log, step=spread.step)
    assert isinstance(spread, FloatDistribution)
    return trial.suggest_float(axis.key, spread.low, spread.high, log=spread.log, step=spread.step)


def _sampler(search: SearchConfig, trials: int) -> BaseSampler:
    seed = search.seed + trials
    match search.method:
        case "tpe":
            return TPESampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # A Sobol sequence goes on by the number of trials, and has to keep its seed.
                return QMCSampler(seed=search.seed, warn_independent_sampling=False)
        case "gp":
            return GPSampler(seed=seed)
        case "cmaes":
            return CmaEsSampler(seed=seed)
        case "random" | "grid" | "auto":  # a grid is enqueued, and auto has been settled: nothing is drawn for them
            return RandomSampler(seed=seed)


def _lockstep(config: SweepConfig) -> Lockstep | NoLockstep:
    automatic = config.pruner.name == "auto" and config.search.method != "grid" and config.engine.name != "trainer"
    if not automatic and config.pruner.name != "lockstep":
        return NoLockstep()
    try:
        return Lockstep(Rungs(**config.pruner.kwargs))
    except (TypeError, ValueError) as fault:
        raise InputError(f"pruner.kwargs={config.pruner.kwargs}: {fault}") from None


def _pruner(pruner: PrunerConfig) -> BasePruner:
    kinds: dict[str, Any] = {
        "median": MedianPruner,
        "successive_halving": SuccessiveHalvingPruner,
        "hyperband": HyperbandPruner,
    }
    try:
        if pruner.name in kinds:
            return kinds[pruner.name](**pruner.kwargs)  # type: ignore[no-any-return]
        return NopPruner()
    except (TypeError, ValueError) as fault:
        raise InputError(f"pruner.kwargs={pruner.kwargs}: {fault}") from None


def _record(frozen: FrozenTrial) -> Record:
    outcome = frozen.user_attrs.get("outcome", {"status": "failed", "step": 0, "reason": "ended outside lrsweep"})
    point = Point(dict(frozen.params), **frozen.user_attrs.get("point", {}))
    return Record(frozen.number, point, eval_loss=frozen.user_attrs.get("eval_loss"), **outcome)
