"""A worker's side of the study: which trials are its own, what they measure and how they end, and what a pruner says."""

import contextlib
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from lrsweep.config import SweepConfig
from lrsweep.engines import Stop
from lrsweep.lockstep import Heard
from lrsweep.presence import Presence
from lrsweep.samplers import lockstep, sampler
from lrsweep.space import Axis
from lrsweep.storage import Storage
from lrsweep.study import Study
from lrsweep.trials import Point, Record, Role, claim_of, deaths_of, heard_of

log = logging.getLogger(__name__)


class Claims(Study):
    """The study as the worker `presence` has joined it."""

    def __init__(
        self, study: optuna.Study, axes: Sequence[Axis], config: SweepConfig, storage: Storage, presence: Presence
    ) -> None:
        super().__init__(study, axes, config, storage)
        self._presence: Presence = presence
        self._running: dict[int, optuna.Trial] = {}
        self._lockstep = lockstep(config)
        # What earlier runs of the sweep measured stands; their own trials were judged then.
        self._heard_out: set[int] = set()
        self._listen(study.get_trials(deepcopy=False))

    def next(self) -> tuple[int, Point] | None:
        """The next trial's number and what it tries; first those that dead workers left behind. None where there is none.

        One whose process died while training it is given out last, and alone.
        """
        with self._where.faults(), self._where.alone(), self._where.read_once():
            # Read once: all other workers may be waiting meanwhile, and there may be hundreds of trials.
            attributes = self._study.user_attrs
            self.axes = self._grown(attributes)
            trial = self._taken(attributes)
            if trial is None:
                return None
            # The claim comes last: whoever has one has its values.
            params = {axis.key: _suggest(trial, axis) for axis in self.axes}
            before = claim_of(trial.user_attrs)
            try:
                trial.set_user_attr("claim", [self._presence.worker, before[1] + 1 if before else 0])
            except optuna.exceptions.UpdateFinishedTrialError:
                # The last thing that its worker did was to tell its end; there may be others.
                return None
            self._running[trial.number] = trial
            return trial.number, Point(params, **trial.user_attrs.get("point", {}))

    def _taken(self, attributes: Mapping[str, Any]) -> optuna.Trial | None:
        if any(deaths_of(trial.user_attrs) for trial in self._running.values()):
            return None
        trials = self._study.get_trials(deepcopy=False)
        left = [
            frozen
            for frozen in trials
            if frozen.state == TrialState.RUNNING
            and frozen.number not in self._running
            and self._ownerless(frozen, attributes)
        ]
        suspects = [frozen for frozen in left if deaths_of(frozen)]
        clean = [frozen for frozen in left if not deaths_of(frozen)]
        if clean:
            return optuna.Trial(self._study, clean[0]._trial_id)
        started = sum(frozen.state != TrialState.WAITING for frozen in trials)
        if started < self._total + len(attributes.get("followed", [])):
            self._study.sampler = sampler(self._config.search, started)
            return self._study.ask()
        if suspects and not self._running:
            return optuna.Trial(self._study, suspects[0]._trial_id)
        return None

    def _ownerless(self, frozen: FrozenTrial, attributes: Mapping[str, Any]) -> bool:
        claim = claim_of(frozen)
        return claim is None or not claim[0] or self._presence.dead(claim[0], attributes.get(f"beat {claim[0]}", 0))

    def report(self, evals: Sequence[Heard]) -> dict[int, Stop]:
        """Records the evaluations of one moment; answers the trials to stop: the pruner's, and those that another has."""
        if not evals:
            return {}
        with self._where.faults():
            trials = {frozen.number: frozen for frozen in self._study.get_trials(deepcopy=False)}
            stop: dict[int, Stop] = {heard.number: "lost" for heard in evals if not self._owns(trials[heard.number])}
            own = [heard for heard in evals if heard.number not in stop]
            # What other workers have measured meanwhile.
            self._listen(frozen for frozen in trials.values() if frozen.number not in self._running)
            # A replicate measures noise, and has to be whole.
            whole = {heard.number for heard in own if self._role(heard.number) == "replicate"}
            stop |= dict.fromkeys(self._lockstep.hear([heard for heard in own if heard.number not in whole]), "pruned")
            for heard in own:
                trial = self._running[heard.number]
                if "budget" not in trial.user_attrs:
                    trial.set_user_attr("budget", [heard.max_steps, heard.warmup])
                with warnings.catch_warnings():
                    # A trial begun anew reports its first steps again; Optuna keeps the old value, which is the same.
                    warnings.filterwarnings("ignore", message=".*already reported", category=UserWarning)
                    trial.report(heard.eval_loss, heard.step)
                if heard.number not in whole and trial.should_prune():
                    stop[heard.number] = "pruned"
            return stop

    def tell(self, record: Record) -> None:
        """Ends a trial; of one that another worker has taken over, the other's word counts.

        A diverged one is told to the sampler as worse than all it knows, and never counts as the best.
        """
        # A server holds many tells at once, and whoever takes a trial over meanwhile finds its end on disk.
        with self._where.faults(), contextlib.nullcontext() if self._where.shared else self._where.alone():
            mine = self.mine(record.number)
            trial = self._running.pop(record.number)
            try:
                if mine:
                    self._end(trial, record)
            except optuna.exceptions.UpdateFinishedTrialError:
                mine = False
            if not mine:
                log.warning("trial %d has been taken over by another worker", record.number)

    def suspect(self, number: int, reason: str) -> None:
        """A trial that failed in company, maybe of another one's doing: it is let go of, to be tried alone, or given up."""
        with self._where.faults(), self._where.alone():
            mine = self.mine(number)
            trial = self._running.pop(number)
            if mine:
                trial.set_user_attr("claim", ["", (claim_of(trial.user_attrs) or ("", 0))[1]])
                self._suspect(self._study._storage.get_trial(trial._trial_id), reason, "it failed")

    def release(self, number: int) -> None:
        """A trial that is to go on later, here or elsewhere."""
        with self._where.faults(), self._where.alone():
            mine = self.mine(number)
            trial = self._running.pop(number)
            if mine:
                before = claim_of(trial.user_attrs)
                trial.set_user_attr("claim", ["", before[1] if before else 0])

    def waits(self) -> bool:
        """Whether something may follow: the keeper has not closed the study, and is alive."""
        with self._where.faults():
            attributes = self._study.user_attrs
            keeper = attributes.get("keeper", "")
            closed = attributes.get("closed", True)
            return not closed and not self._presence.dead(keeper, attributes.get(f"beat {keeper}", 0))

    def mine(self, number: int) -> bool:
        """Whether a trial that this worker took is still its own."""
        return self._owns(self._study._storage.get_trial(self._running[number]._trial_id))

    def _owns(self, frozen: FrozenTrial) -> bool:
        claim = claim_of(frozen)
        return not frozen.state.is_finished() and claim is not None and claim[0] == self._presence.worker

    def _listen(self, trials: Iterable[FrozenTrial]) -> None:
        """Has the pruner hear what others measure; of a trial that has ended, once."""
        for frozen in trials:
            if frozen.number in self._heard_out:
                continue
            for heard in heard_of(frozen):
                self._lockstep.hear([heard])
            if frozen.state.is_finished():
                self._heard_out.add(frozen.number)

    def _role(self, number: int) -> Role:
        return self._running[number].user_attrs.get("point", {}).get("role", "search")  # type: ignore[no-any-return]


def _suggest(trial: optuna.Trial, axis: Axis) -> Any:
    """The stored value of one axis; a trial that has it already keeps it."""
    spread = axis.distribution
    if isinstance(spread, CategoricalDistribution):
        return trial.suggest_categorical(axis.key, spread.choices)
    if isinstance(spread, IntDistribution):
        return trial.suggest_int(axis.key, spread.low, spread.high, log=spread.log, step=spread.step)
    assert isinstance(spread, FloatDistribution)
    return trial.suggest_float(axis.key, spread.low, spread.high, log=spread.log, step=spread.step)
