"""THE loop: one worker takes trials from the study, has an engine train them, and hands on what it hears.

What a trial measured is on disk before Optuna or MLflow hears of it.
"""

import contextlib
import logging
import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from lrsweep import machine, outputs, space
from lrsweep.config import SweepConfig, flatten
from lrsweep.engines import Engine, Measurement, Outcome, Trial
from lrsweep.errors import InputError, LrsweepError, NoWinnerError
from lrsweep.finetune.data import check_paths
from lrsweep.finetune.folder import check_path
from lrsweep.lockstep import Heard
from lrsweep.outputs import MetricsLog, SweepFolder
from lrsweep.report.conclusion import artifacts, conclude
from lrsweep.report.screen import Screen
from lrsweep.report.summary import Links, Summary, read_summary, summarise
from lrsweep.report.words import shown
from lrsweep.space import Axis
from lrsweep.study import Record, Study, check_search, find_study, open_study
from lrsweep.tracking import DatasetInfo, Tracker, open_tracker

log = logging.getLogger(__name__)


class InterruptedSweepError(LrsweepError):
    """A signal ended the run; the same command resumes."""

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted; the same command goes on from here")
        self.exit_code = 128 + signum


class Interrupt:
    """Remembers the first SIGINT or SIGTERM, so that the step in hand is finished; a second one exits at once."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> "Interrupt":
        self._before = {s: signal.signal(s, self._received) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            os._exit(128 + signum)
        self.signum = signum


@dataclass
class Worker:
    """The engine's host: one process's side of the sweep."""

    config: SweepConfig
    axes: Sequence[Axis]
    folder: SweepFolder
    study: Study
    tracker: Tracker
    screen: Screen
    interrupt: Interrupt
    _logs: dict[int, MetricsLog] = field(default_factory=dict)
    _eval_loss: dict[int, float] = field(default_factory=dict)
    _budgets: dict[int, tuple[int, int]] = field(default_factory=dict)

    def catch_up(self) -> None:
        """Tells the tracker of ended trials what a kill kept from it; what they measured is on disk."""
        records = {record.number: record for record in self.study.records()}
        for number in self.tracker.missing(list(records)):
            record = records[number]
            self._track(number, record.params)
            for row in outputs.read_metrics(self.folder.trial(number)):
                step = int(row.pop("step"))
                self.tracker.log(Measurement(number, step, row))
            self.tracker.finish_trial(number, record.status, _reason(record.reason))

    def next_trial(self) -> Trial | None:
        """The next trial to train, its folder and tracking run begun; None when all are done or a signal came."""
        if self.interrupt.signum is not None:
            return None
        taken = self.study.next()
        if taken is None:
            return None
        number, stored = taken
        values = space.values(self.axes, stored)
        try:
            config = space.trial_config(self.config, self.axes, stored)
        except InputError as fault:
            # Values that are good alone may not go together; a sampler cannot know.
            self.study.tell(Record(number, stored, "failed", 0, None, str(fault)))
            self.screen.note(f"trial {number}: failed ({fault})")
            return self.next_trial()
        trial = Trial(number, config, self.folder.trial(number))
        self._logs[number] = MetricsLog(trial.folder)
        self._budgets[number] = (config.training.max_steps, config.scheduler.warmup(config.training.schedule_steps))
        outputs.write(trial.folder / "config.yaml", outputs.to_yaml(outputs.masked(config)))
        self._track(number, stored)
        self.screen.trial_started(number, values, config)
        return trial

    def _track(self, number: int, stored: Mapping[str, Any]) -> None:
        config = space.trial_config(self.config, self.axes, stored)
        name = title(number, space.values(self.axes, stored))
        self.tracker.start_trial(number, name, flatten(outputs.masked(config)), {"engine": config.engine.name})

    def report(self, measurements: Sequence[Measurement]) -> frozenset[int]:
        """Writes, tracks and shows what was measured; answers the trials that the pruner or a signal stops."""
        evals = []
        for measurement in measurements:
            number, step, metrics = measurement.number, measurement.step, measurement.metrics
            self._logs[number].append(step, metrics)
            if "eval_loss" in metrics:
                self._logs[number].sync()
                self._eval_loss[number] = metrics["eval_loss"]
                # Before training all are equal, and what is not finite ends as diverged, not as pruned.
                if step > 0 and math.isfinite(metrics["eval_loss"]):
                    evals.append(Heard(number, step, *self._budgets[number], metrics["eval_loss"]))
        stop = self.study.report(evals)
        for measurement in measurements:
            self.tracker.log(measurement)
            self.screen.measured(measurement)
        return stop if self.interrupt.signum is None else frozenset(self._logs)

    def finish(self, outcome: Outcome) -> None:
        """Ends a trial everywhere; one that a signal stopped stays open in the study, to be taken up again."""
        number = outcome.number
        self._logs.pop(number).close()
        last = self._eval_loss.pop(number, math.nan)
        eval_loss = last if math.isfinite(last) else None
        interrupted = outcome.status == "stopped" and self.interrupt.signum is not None
        status = "interrupted" if interrupted else "pruned" if outcome.status == "stopped" else outcome.status
        if status != "interrupted":
            self.study.tell(Record(number, {}, status, outcome.step, eval_loss, outcome.reason))
        self.tracker.finish_trial(number, status, _reason(outcome.reason) | _engine(outcome.engine))
        self.screen.trial_finished(number, status, outcome.reason)


def run(config: SweepConfig, screen: Screen) -> Summary:
    """Runs the sweep to its total, or finds it finished; returns its summary, which is on disk by then.

    Raises InputError before anything is created, NoWinnerError when no trial completed, StorageError for a disk or database
    fault, InterruptedSweepError after a signal.
    """
    axes = space.axes(config)
    check_search(config)
    folder = SweepFolder(config.name)
    there = find_study(config, axes, folder.path)
    if there is not None and there.finished() and folder.concluded(len(there.records())):
        summary = read_summary(folder)
        screen.note(f"{config.name} is finished: {len(summary.results)} trials, nothing left to run")
        return _with_winner(summary, folder)
    screen.note("loading model and data")
    engine, dataset = _prepare(config, axes)
    tracker = open_tracker(config.tracking, Path.cwd())
    folder.create()
    with folder.locked(), _logging_to(folder), Interrupt() as interrupt:
        study = open_study(config, axes, folder.path, dataset.fingerprint)
        outputs.write(folder.config, outputs.to_yaml(outputs.masked(config)))
        tracker.start(config.name, study.sweep_id, flatten(outputs.masked(config)), machine.tags(), dataset)
        worker = Worker(config, axes, folder, study, tracker, screen, interrupt)
        try:
            worker.catch_up()
            with screen.running(study.total, len(study.records()), config.training.max_steps):
                engine.run(worker)
            links = Links(tracker.ui_command(), tracker.compare_url())
            summary = summarise(config, axes, study.records(), folder, dataset, links)
            if interrupt.signum is not None:
                raise InterruptedSweepError(interrupt.signum)
            conclude(summary, folder)
        except BaseException:
            tracker.finish("interrupted", {}, [])
            raise
        best = summary.verdict.best
        tracker.finish(
            "complete" if best else "failed",
            {} if best is None else {"best_eval_loss": best.eval_loss or math.nan, "best_trial": best.number},
            artifacts(folder),
        )
        if not tracker.unsent:
            folder.conclude(len(summary.results))
        else:
            screen.note(f"{tracker.unsent} points have not reached MLflow; they are in {folder.path}/trials")
    return _with_winner(summary, folder)


def _reason(text: str) -> dict[str, str]:
    return {"reason": text} if text else {}


def _engine(name: str) -> dict[str, str]:
    """What trained the trial, where `engine: auto` had the choice."""
    return {"engine": name} if name else {}


def title(number: int, values: Mapping[str, Any]) -> str:
    """A trial's name in MLflow: its number and axis values, by their short names."""
    return f"{number:04d} " + " ".join(f"{key.rsplit('.', 1)[-1]}={shown(value)}" for key, value in values.items())


def _prepare(config: SweepConfig, axes: Sequence[Axis]) -> tuple[Engine, DatasetInfo]:
    """Everything that a trial will need, looked at before anything is created. Raises InputError."""
    check_path(config.model)
    check_paths(config.data)
    # torch and transformers take seconds to import: after what can be refused without them.
    from lrsweep.engines.choice import choose
    from lrsweep.finetune.inputs import inputs
    from lrsweep.finetune.model import check_quantization, check_trainable
    from lrsweep.finetune.optimizer import check_buildable

    check_quantization(config.model, config.finetune)
    for trial in _combinations(config, axes):
        check_buildable(trial.optimizer, trial.scheduler, trial.training.schedule_steps)
    check_trainable(config.model, config.finetune)
    _, data = inputs(config.model, config.data)
    dataset = DatasetInfo(config.data.path, data.source, data.fingerprint, len(data.train), len(data.evaluation))
    ranks = [point for axis in axes if axis.key == "finetune.r" for point in axis.ends()]
    return choose(config, max([config.finetune.r, *ranks])), dataset


def _combinations(config: SweepConfig, axes: Sequence[Axis]) -> list[SweepConfig]:
    """A grid's trials; of another search, whose points are not known yet, the base."""
    if config.search.method != "grid":
        return [config]
    return [space.trial_config(config, axes, point) for point in space.grid(axes)]


def _with_winner(summary: Summary, folder: SweepFolder) -> Summary:
    if summary.verdict.best is None:
        reasons = sorted({f"{result.status}: {result.reason}" for result in summary.results})
        raise NoWinnerError(
            f"no trial completed, so there is no best ({'; '.join(reasons[:3])}); details in {folder.log}"
        )
    return summary


@contextlib.contextmanager
def _logging_to(folder: SweepFolder) -> Iterator[None]:
    """Sends warnings and the libraries' chatter to lrsweep.log instead of the terminal."""
    with outputs.disk_faults(folder.log):
        handler = logging.FileHandler(folder.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
