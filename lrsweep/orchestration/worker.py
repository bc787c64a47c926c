"""A worker: it claims trials from the study, lets an engine train them, and writes their metrics and outcomes.

A trial's metrics and its outcome are on disk before the study gets them. The controller reads them there, for the
terminal and MLflow.
"""

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lrsweep import hardware
from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError, LrsweepError
from lrsweep.files.atomic import write_text
from lrsweep.files.metrics_log import MetricsLog
from lrsweep.files.paths import SweepFolder, remove_checkpoints
from lrsweep.files.row_losses import write_row_losses
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.formatting import printable
from lrsweep.orchestration.liveness import BEAT_EVERY
from lrsweep.search.records import Record, TrialSpec
from lrsweep.search.sync_halving import EvalReport
from lrsweep.search.worker_study import WorkerStudy
from lrsweep.training.engines import Engine, Measurement, Outcome, Stop, Trial

log = logging.getLogger(__name__)

# Seconds until an idle worker looks for trials again.
_POLL_EVERY = 0.3
# On a server, the pause grows to this: the queries of hundreds of idle workers would slow down the others.
_LONGEST_PAUSE = 5.0
# The keys of a trial's outcome.json.
_OUTCOME = ("status", "step", "eval_loss", "reason", "engine")


@dataclass
class Worker:
    """The engine's host: it gives the engine trials, and takes their metrics and outcomes.

    Attributes:
        config: The sweep's config.
        folder: The sweep's folder.
        study: The study, as this worker sees it.
        stop: Once it is set, trials are checkpointed and released, and no more are claimed.
    """

    config: SweepConfig
    folder: SweepFolder
    study: WorkerStudy
    stop: threading.Event
    _logs: dict[int, MetricsLog] = field(default_factory=dict)
    _scores: dict[int, float] = field(default_factory=dict)
    # For each of its trials: the optimizer steps, and those of the warm-up.
    _budgets: dict[int, tuple[int, int]] = field(default_factory=dict)
    # For each of its trials that will pause: the step at which it does.
    _pauses: dict[int, int] = field(default_factory=dict)
    _stops: dict[int, Stop] = field(default_factory=dict)
    # For each of its trials: the step of its last evaluation.
    _evaluated: dict[int, int] = field(default_factory=dict)

    def next_trial(self) -> Trial | None:
        """The next trial to train, with its folder created; None if none is available, or `stop` is set."""
        while not self.stop.is_set():
            claimed = self.study.next()
            if claimed is None:
                return None
            number, spec = claimed
            folder = self.folder.trial(number)
            ended = _read_outcome(folder)
            if ended is not None:
                # The previous worker was killed after it had written the outcome, before it updated the study.
                self.study.tell(Record(number, spec, **ended))
                continue
            try:
                config = search_space.trial_config(self.config, self.study.axes, spec.params, spec.overrides)
            except InputError as fault:
                # Valid values may contradict each other, which a sampler cannot know.
                self.study.tell(Record(number, spec, "failed", 0, None, str(fault)))
                continue
            if spec.pause_at is not None:
                from lrsweep.files.checkpoint import last_step  # with torch, which a worker has by now

                if last_step(folder) >= self.study.last_evaluation(number) >= spec.pause_at:
                    # The previous worker was killed after the checkpoint at which the trial pauses.
                    self.study.pause(number)
                    continue
                self._pauses[number] = spec.pause_at
            self._budgets[number] = (config.training.max_steps, config.scheduler.warmup(config.training.schedule_steps))
            write_text(folder / "config.yaml", to_yaml(config.masked()))
            return Trial(number, config, folder)
        return None

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        """Writes metrics to disk, and reports evaluations to the study.

        Args:
            measurements: Metrics that were measured at the same time.

        Returns:
            The trials to stop, by number, and why: `pruned`, `paused` by `stop`, or `lost` to another worker.
        """
        evals = []
        objective = self.config.search.objective
        for measurement in measurements:
            number, step, metrics = measurement.number, measurement.step, measurement.metrics
            if number not in self._logs:
                self._open_log(number, step)
            self._logs[number].append(step, metrics)
            if measurement.row_losses is not None and step == self._budgets[number][0]:
                write_row_losses(self.folder.trial(number), measurement.row_losses)
            score = objective.score(metrics)
            if score is not None:
                self._logs[number].sync()
                self._scores[number] = score
                self._evaluated[number] = step
                # Before training all trials are equal, and a loss that is not finite is diverged, not pruned.
                if step > 0 and math.isfinite(score):
                    evals.append(EvalReport(number, step, *self._budgets[number], score))
        stop: dict[int, Stop] = self.study.report(evals)
        due = [e.number for e in evals if self._is_due(e.number, e.step)]
        stop = {**dict.fromkeys(self._budgets if self.stop.is_set() else due, "paused"), **stop}
        # The first reason stays: a pruned trial must not be resumed because `stop` is set before it ends.
        return {number: self._stops.setdefault(number, why) for number, why in stop.items()}

    def _is_due(self, number: int, step: int) -> bool:
        """Returns whether a trial pauses at this step, until the search decides whether it goes on."""
        return step >= self._pauses.get(number, math.inf)

    def _open_log(self, number: int, first: int) -> None:
        """Opens the log of a trial that starts or resumes at the step `first`."""
        self._logs[number] = MetricsLog(self.folder.trial(number), first)
        for row in self._logs[number].kept:
            score = self.config.search.objective.score(row)
            self._scores[number] = self._scores.get(number, math.nan) if score is None else score

    def finish(self, outcome: Outcome) -> None:
        """Ends a trial; releases one that was paused, to be resumed once `stop` is over or the search decides so."""
        number = outcome.number
        if number in self._logs:
            self._logs.pop(number).close()
        last = self._scores.pop(number, math.nan)
        del self._budgets[number]
        paused = self._stops.pop(number, None) == "paused" and outcome.status == "stopped"
        # A stop pauses a trial anywhere; the search decides after an evaluation only.
        due = self._is_due(number, self._evaluated.pop(number, 0))
        self._pauses.pop(number, None)
        if paused and due:
            self.study.pause(number)
            return
        if paused or not self.study.owns(number):
            self.study.release(number)
            return
        reason = printable(self.config.redactor.mask(outcome.reason))
        if outcome.in_company:
            self.study.suspect(number, reason)
            return
        status = "pruned" if outcome.status == "stopped" else outcome.status
        eval_loss = last if math.isfinite(last) else None
        record = Record(number, TrialSpec({}), status, outcome.step, eval_loss, reason, outcome.engine)
        write_outcome(self.folder.trial(number), record)
        self.study.tell(record)
        remove_checkpoints(self.folder.trial(number))


def work(worker: Worker, engine: Engine) -> None:
    """Trains trials until the controller has closed the study or is dead, or `worker.stop` is set."""
    worker.study.trains_on(hardware.describe())
    pause = _POLL_EVERY
    while not worker.stop.is_set():
        engine.run(worker)
        if not worker.study.more_may_follow():
            return
        time.sleep(pause)
        if worker.study.on_server:
            pause = min(1.5 * pause, _LONGEST_PAUSE)


class _StudyWithHeartbeats(Protocol):
    @property
    def on_server(self) -> bool: ...

    def beat(self, worker: str) -> None: ...


def start_beating(study: _StudyWithHeartbeats, worker: str) -> None:
    """Starts a thread that increments a worker's heartbeat, if the study is on a server; else nobody needs it."""

    def beat() -> None:
        while True:
            # The database may be down for a while.
            with contextlib.suppress(LrsweepError):
                study.beat(worker)
            time.sleep(BEAT_EVERY)

    if study.on_server:
        threading.Thread(target=beat, name="lrsweep-beat", daemon=True).start()


def write_outcome(folder: Path, record: Record) -> None:
    """Writes how a trial ended to its folder, before the study gets it."""
    write_text(folder / "outcome.json", json.dumps({name: getattr(record, name) for name in _OUTCOME}))


def _read_outcome(folder: Path) -> dict[str, Any] | None:
    """The outcome on disk; None if there is none, or it is damaged."""
    if not (folder / "outcome.json").is_file():
        return None  # a pipe would block
    try:
        found = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == set(_OUTCOME) else None
