"""THE loop: one worker takes trials from the study, has an engine train them, and hands on what it hears.

What a trial measured is on disk before Optuna or MLflow hears of it.
"""

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from lrsweep import curves, machine, outputs, space
from lrsweep.config import SweepConfig, flatten
from lrsweep.engines import Engine, Measurement, Outcome, Trial
from lrsweep.errors import InputError, LrsweepError, NoWinnerError
from lrsweep.followup import follow_up
from lrsweep.lockstep import Heard
from lrsweep.outputs import MetricsLog, SweepFolder
from lrsweep.prepare import first_point, prepare, rule_of_thumb
from lrsweep.report.conclusion import artifacts, conclude
from lrsweep.report.screen import Screen
from lrsweep.report.summary import About, Links, Summary, read_summary, summarise
from lrsweep.report.words import shown
from lrsweep.study import Point, Record, Study, check_search, find_study, open_study
from lrsweep.tracking import Tracker, open_tracker

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
    folder: SweepFolder
    study: Study
    tracker: Tracker
    screen: Screen
    interrupt: Interrupt
    _logs: dict[int, MetricsLog] = field(default_factory=dict)
    _eval_loss: dict[int, float] = field(default_factory=dict)
    _budgets: dict[int, tuple[int, int]] = field(default_factory=dict)
    _curves: dict[int, curves.Curve] = field(default_factory=dict)

    def catch_up(self) -> None:
        """Tells the tracker of ended trials what a kill kept from it; what they measured is on disk."""
        records = {record.number: record for record in self.study.records()}
        for number in self.tracker.missing(list(records)):
            record = records[number]
            self._track(number, record.point)
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
        number, point = taken
        try:
            config = self._config(point)
        except InputError as fault:
            # Values that are good alone may not go together; a sampler cannot know.
            self.study.tell(Record(number, point, "failed", 0, None, str(fault)))
            self.screen.note(f"trial {number}: failed ({fault})")
            return self.next_trial()
        trial = Trial(number, config, self.folder.trial(number))
        self._budgets[number] = (config.training.max_steps, config.scheduler.warmup(config.training.schedule_steps))
        outputs.write(trial.folder / "config.yaml", outputs.to_yaml(outputs.masked(config)))
        self._track(number, point)
        self.screen.trial_started(number, space.values(self.study.axes, point.params), config)
        return trial

    def _config(self, point: Point) -> SweepConfig:
        return space.trial_config(self.config, self.study.axes, point.params, point.overrides)

    def _track(self, number: int, point: Point) -> None:
        config = self._config(point)
        name = title(number, {**space.values(self.study.axes, point.params), **point.overrides})
        tags = {"engine": config.engine.name, "role": point.role}
        self.tracker.start_trial(number, name, flatten(outputs.masked(config)), tags)

    def report(self, measurements: Sequence[Measurement]) -> frozenset[int]:
        """Writes, tracks and shows what was measured; answers the trials that the pruner or a signal stops."""
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
                    evals.append(Heard(number, step, *self._budgets[number], metrics["eval_loss"]))
        stop = self.study.report(evals)
        for measurement in measurements:
            self.tracker.log(measurement)
            self.screen.measured(measurement)
        return stop if self.interrupt.signum is None else frozenset(self._logs)

    def _open_log(self, number: int, first: int) -> None:
        """The log of a trial that begins, or goes on, with the step `first`; what it kept is told to the tracker anew."""
        self._logs[number] = MetricsLog(self.folder.trial(number), first)
        for row in self._logs[number].kept:
            metrics = {key: value for key, value in row.items() if key != "step"}
            self.tracker.log(Measurement(number, int(row["step"]), metrics))
            self._eval_loss[number] = metrics.get("eval_loss", self._eval_loss.get(number, math.nan))

    def finish(self, outcome: Outcome) -> None:
        """Ends a trial everywhere; one that a signal stopped stays open in the study, to be taken up again."""
        number = outcome.number
        if number in self._logs:
            self._logs.pop(number).close()
        last = self._eval_loss.pop(number, math.nan)
        eval_loss = last if math.isfinite(last) else None
        interrupted = outcome.status == "stopped" and self.interrupt.signum is not None
        status = "interrupted" if interrupted else "pruned" if outcome.status == "stopped" else outcome.status
        if status != "interrupted":
            self.study.tell(Record(number, Point({}), status, outcome.step, eval_loss, outcome.reason))
        tags = _reason(outcome.reason) | _engine(outcome.engine) | {"diagnosis": self._label(number)}
        self.tracker.finish_trial(number, status, tags)
        if status != "interrupted":
            self._remove_checkpoint(number)
        self.screen.trial_finished(number, status, outcome.reason)

    def _remove_checkpoint(self, number: int) -> None:
        from lrsweep import checkpoint  # imports torch, as the engine has

        checkpoint.remove(self.folder.trial(number))

    def _label(self, number: int) -> str:
        """What the trial's curve shows beside those that have ended; once all have, the summary looks again."""
        others = list(self._curves.values())
        self._curves[number] = curves.curve(outputs.read_metrics(self.folder.trial(number)))
        return curves.diagnose(self._curves[number], others).label


def run(config: SweepConfig, screen: Screen) -> Summary:
    """Runs the sweep to its total, or finds it finished; returns its summary, which is on disk by then.

    Raises InputError before anything is created, NoWinnerError when no trial completed, StorageError for a disk or database
    fault, InterruptedSweepError after a signal.
    """
    config, searched = space.settle(config)
    axes = space.axes(config)
    check_search(config)
    folder = SweepFolder(config.name)
    there = find_study(config, axes, folder.path)
    if there is not None and there.finished() and folder.concluded(len(there.records())):
        summary = read_summary(folder)
        if not follow_up(config, there.axes, summary)[0]:
            screen.note(f"{config.name} is finished: {len(summary.results)} trials, nothing left to run")
            return _with_winner(summary, folder)
    screen.note("loading model and data")
    engine, dataset = prepare(config, axes, look=there is None)
    tracker = open_tracker(config.tracking, Path.cwd())
    prior = rule_of_thumb(config, axes)
    folder.create()
    with folder.locked(), _logging_to(folder), Interrupt() as interrupt:
        study = open_study(config, axes, folder.path, dataset.fingerprint, first_point(axes, prior))
        if searched:
            screen.note(searched)
        outputs.write(folder.config, outputs.to_yaml(outputs.masked(config)))
        tracker.start(config.name, study.sweep_id, flatten(outputs.masked(config)), machine.tags(), dataset)
        worker = Worker(config, folder, study, tracker, screen, interrupt)
        about = About(dataset, Links(tracker.ui_command(), tracker.compare_url()), prior, searched)
        try:
            worker.catch_up()
            summary = _train(worker, engine, about)
            if interrupt.signum is not None:
                raise InterruptedSweepError(interrupt.signum)
            conclude(summary, folder)
            tracker.label({number: diagnosis.label for number, diagnosis in summary.diagnoses.items()})
        except BaseException:
            tracker.finish("interrupted", {}, [])
            raise
        best = summary.verdict.recommended
        tracker.finish(
            "complete" if best else "failed",
            {} if best is None else {"best_eval_loss": best.mean, "best_trial": best.result.number},
            artifacts(folder),
        )
        if not tracker.unsent:
            folder.conclude(len(summary.results))
        else:
            screen.note(f"{tracker.unsent} points have not reached MLflow; they are in {folder.path}/trials")
    return _with_winner(summary, folder)


def _train(worker: Worker, engine: Engine, about: About) -> Summary:
    """Trains the search's trials, then what follows from their results, until nothing does or a signal comes."""
    study, config = worker.study, worker.config
    while True:
        begun = time.monotonic()
        with worker.screen.running(study.total, len(study.records()), config.training.max_steps):
            engine.run(worker)
        study.spend(time.monotonic() - begun)
        about = replace(about, seconds=study.seconds, importances=study.importances())
        summary = summarise(config, study.axes, study.records(), worker.folder, about)
        points, why = follow_up(config, study.axes, summary)
        if not points or worker.interrupt.signum is not None:
            return summary
        worker.screen.note(why)
        study.follow(points)


def _reason(text: str) -> dict[str, str]:
    return {"reason": text} if text else {}


def _engine(name: str) -> dict[str, str]:
    """What trained the trial, where `engine: auto` had the choice."""
    return {"engine": name} if name else {}


def title(number: int, values: Mapping[str, Any]) -> str:
    """A trial's name in MLflow: its number and axis values, by their short names."""
    return f"{number:04d} " + " ".join(f"{key.rsplit('.', 1)[-1]}={shown(value)}" for key, value in values.items())


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
