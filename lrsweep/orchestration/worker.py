"""One worker: it claims trials from the study, has an engine train them, and writes down what they measure.

What a trial measured, and how it ended, is on disk before the study hears of it. The controller reads it there, for the
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

from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError, LrsweepError
from lrsweep.files.atomic import write_text
from lrsweep.files.metrics_log import MetricsLog
from lrsweep.files.paths import SweepFolder, remove_checkpoints
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.orchestration.liveness import BEAT_EVERY
from lrsweep.search.records import Record, TrialSpec
from lrsweep.search.sync_halving import EvalReport
from lrsweep.search.worker_study import WorkerStudy
from lrsweep.training.engines import Engine, Measurement, Outcome, Stop, Trial

log = logging.getLogger(__name__)

# Seconds between two looks for more to do.
_LOOK_EVERY = 0.3
# At most so many on a server: hundreds of workers without a trial must not keep those with one from the database.
_LOOK_AT_LEAST_EVERY = 5.0


@dataclass
class Worker:
    """The engine's host. Once `stop` is set, trials are checkpointed and released, and no more are claimed."""

    config: SweepConfig
    folder: SweepFolder
    study: WorkerStudy
    stop: threading.Event
    _logs: dict[int, MetricsLog] = field(default_factory=dict)
    _eval_loss: dict[int, float] = field(default_factory=dict)
    # Of the trials that it has: optimizer steps, and those of the warm-up.
    _budgets: dict[int, tuple[int, int]] = field(default_factory=dict)
    _stops: dict[int, Stop] = field(default_factory=dict)

    def next_trial(self) -> Trial | None:
        """The next trial to train, its folder made; None when there is none now, or a stop was asked for."""
        while not self.stop.is_set():
            claimed = self.study.next()
            if claimed is None:
                return None
            number, spec = claimed
            folder = self.folder.trial(number)
            ended = _read_outcome(folder)
            if ended is not None:
                # A kill came between the file and the study.
                self.study.tell(Record(number, spec, **ended))
                continue
            try:
                config = search_space.trial_config(self.config, self.study.axes, spec.params, spec.overrides)
            except InputError as fault:
                # Values that are valid alone may not go together; a sampler cannot know.
                self.study.tell(Record(number, spec, "failed", 0, None, str(fault)))
                continue
            self._budgets[number] = (config.training.max_steps, config.scheduler.warmup(config.training.schedule_steps))
            write_text(folder / "config.yaml", to_yaml(config.masked()))
            return Trial(number, config, folder)
        return None

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        """Writes what was measured; returns the trials that the pruner, a stop or another worker ends, and why."""
        evals = []
        for measurement in measurements:
            number, step, metrics = measurement.number, measurement.step, measurement.metrics
            if number not in self._logs:
                self._open_log(number, step)
            self._logs[number].append(step, metrics)
            if "eval_loss" in metrics:
                self._logs[number].sync()
                self._eval_loss[number] = metrics["eval_loss"]
                # Before training all are equal, and what is not finite ends as diverged, not as pruned.
                if step > 0 and math.isfinite(metrics["eval_loss"]):
                    evals.append(EvalReport(number, step, *self._budgets[number], metrics["eval_loss"]))
        stop: dict[int, Stop] = self.study.report(evals)
        if self.stop.is_set():
            stop = {**dict.fromkeys(self._budgets, "paused"), **stop}
        # The first reason stands: a pruned trial is not resumed because a stop comes before its end.
        return {number: self._stops.setdefault(number, why) for number, why in stop.items()}

    def _open_log(self, number: int, first: int) -> None:
        """Opens the log of a trial that starts, or is resumed, with the step `first`."""
        self._logs[number] = MetricsLog(self.folder.trial(number), first)
        for row in self._logs[number].kept:
            self._eval_loss[number] = row.get("eval_loss", self._eval_loss.get(number, math.nan))

    def finish(self, outcome: Outcome) -> None:
        """Ends a trial; one that a stop ended is resumed later."""
        number = outcome.number
        if number in self._logs:
            self._logs.pop(number).close()
        last = self._eval_loss.pop(number, math.nan)
        del self._budgets[number]
        paused = self._stops.pop(number, None) == "paused" and outcome.status == "stopped"
        if paused or not self.study.owns(number):
            self.study.release(number)
            return
        reason = self.config.redactor.mask(outcome.reason)
        if outcome.in_company:
            self.study.suspect(number, reason)
            return
        status = "pruned" if outcome.status == "stopped" else outcome.status
        eval_loss = last if math.isfinite(last) else None
        record = Record(number, TrialSpec({}), status, outcome.step, eval_loss, reason, outcome.engine)
        _write_outcome(self.folder.trial(number), record)
        self.study.tell(record)
        remove_checkpoints(self.folder.trial(number))


def work(worker: Worker, engine: Engine) -> None:
    """Trains what there is, and what follows, until the controller says that nothing does, or a stop is asked for."""
    pause = _LOOK_EVERY
    while not worker.stop.is_set():
        engine.run(worker)
        if not worker.study.more_may_follow():
            return
        time.sleep(pause)
        if worker.study.on_server:
            pause = min(1.5 * pause, _LOOK_AT_LEAST_EVERY)


class _BeatingStudy(Protocol):
    @property
    def on_server(self) -> bool: ...

    def beat(self, worker: str) -> None: ...


def start_beating(study: _BeatingStudy, worker: str) -> None:
    """Starts a thread that gives signs of life, where workers on other machines look for them."""

    def beat() -> None:
        while True:
            # A database that does not answer for a while is no reason to stop.
            with contextlib.suppress(LrsweepError):
                study.beat(worker)
            time.sleep(BEAT_EVERY)

    if study.on_server:
        threading.Thread(target=beat, name="lrsweep-beat", daemon=True).start()


def _write_outcome(folder: Path, record: Record) -> None:
    names = ("status", "step", "eval_loss", "reason", "engine")
    write_text(folder / "outcome.json", json.dumps({name: getattr(record, name) for name in names}))


def _read_outcome(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found
