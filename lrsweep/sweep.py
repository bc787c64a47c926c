"""The process that keeps a sweep: it opens the study, has an executor's workers train, watches, and concludes.

It never trains itself, unless the executor is `inline`: whatever happens in a trial, the sweep goes on.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from lrsweep import machine, outputs, space
from lrsweep.config import SweepConfig, flatten
from lrsweep.config import replace as with_keys
from lrsweep.engines.external import end_left_over
from lrsweep.errors import LrsweepError, NoWinnerError
from lrsweep.executors import Executor
from lrsweep.executors.choice import executor
from lrsweep.followup import follow_up
from lrsweep.outputs import SweepFolder, logging_to
from lrsweep.prepare import first_point, rule_of_thumb
from lrsweep.presence import Presence, new_worker, wait_for_the_dead
from lrsweep.report.conclusion import artifacts, conclude
from lrsweep.report.screen import Screen
from lrsweep.report.summary import About, Links, Summary, read_summary, summarise
from lrsweep.report.text import missing_rows
from lrsweep.samplers import check_search
from lrsweep.space import Axis
from lrsweep.studies import find_study, method_before, open_study, put_aside
from lrsweep.study import Study
from lrsweep.tracking import DatasetInfo, Tracker, open_tracker
from lrsweep.watch import Watch
from lrsweep.worker import start_beating

log = logging.getLogger(__name__)

# Seconds between two looks at what the workers do, and how long workers of an earlier run may take to end.
_LOOK_EVERY, _LINGER = 0.5, 60.0
# The former where many may be at work, and a look costs the database as much as a worker's question.
_LOOK_ELSEWHERE_EVERY = 1.0


class InterruptedSweepError(LrsweepError):
    """A signal ended the run; the same command resumes."""

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted; run again, it goes on from here")
        self.exit_code = 128 + signum


class Interrupt:
    """Remembers the first SIGINT or SIGTERM, so that workers finish their step; a second one kills them and exits at once."""

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self.signum: int | None = None

    def __enter__(self) -> "Interrupt":
        self._before = {s: signal.signal(s, self._received) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            self._kill()
            os._exit(128 + signum)
        self.signum = signum


@dataclass
class Keeper:
    """A sweep while it runs."""

    config: SweepConfig
    folder: SweepFolder
    study: Study
    executor: Executor
    tracker: Tracker
    screen: Screen
    interrupt: Interrupt

    def run(self, about: About) -> Summary:
        """Has the search's trials trained, then what follows from their results, until nothing does.

        Raises InterruptedSweepError, NoWinnerError for too many failures, and what ended a worker for good.
        """
        watch = Watch(self.config, self.folder, self.study, self.tracker, self.screen)
        watch.catch_up()
        self.executor.start(self.study)
        try:
            while True:
                with self.screen.running(self.study.total, len(self.study.records()), self.config.training.max_steps):
                    self._until_settled(watch)
                summary = self._summary(about)
                self._check_failures(summary)
                points, why = follow_up(self.config, self.study.axes, summary)
                if not points:
                    self.study.close()
                    return summary
                self.screen.note(why)
                self.study.follow(points)
        except BaseException:
            self._wind_up(watch, about)
            raise

    def _until_settled(self, watch: Watch) -> None:
        """Watches until no trial is left to run."""
        begun = time.monotonic()
        try:
            self._look_on(watch)
        finally:
            # Of a storage that is gone, more is lost than the time spent.
            with contextlib.suppress(LrsweepError):
                self.study.spend(time.monotonic() - begun)

    def _look_on(self, watch: Watch) -> None:
        while True:
            settled = self.study.finished()
            watch.look()
            if self.interrupt.signum is not None:
                raise InterruptedSweepError(self.interrupt.signum)
            if settled or self._failures() >= (self.config.search.max_failures or self.study.total + 1):
                return
            for text in self.executor.tend():
                self.screen.note(text)
            time.sleep(_LOOK_ELSEWHERE_EVERY if self.study.shared else _LOOK_EVERY)

    def _failures(self) -> int:
        return sum(record.status == "failed" for record in self.study.records())

    def _check_failures(self, summary: Summary) -> None:
        most = self.config.search.max_failures
        if most is not None and self._failures() >= most:
            reasons = sorted({result.reason for result in summary.results if result.status == "failed"})
            raise NoWinnerError(
                f"search.max_failures={most}: {self._failures()} trials failed ({'; '.join(reasons[:3])}); "
                f"details in {self.folder.log}"
            )

    def _summary(self, about: About) -> Summary:
        """The sweep as it stands; writes summary.json."""
        about = replace(about, seconds=self.study.seconds, importances=self.study.importances())
        return summarise(self.config, self.study.axes, self.study.records(), self.folder, about)

    def _wind_up(self, watch: Watch, about: About) -> None:
        """Lets the workers checkpoint and end, and tells what they still wrote."""
        self.executor.stop()
        while self.executor.running():
            time.sleep(_LOOK_EVERY)
        # What ends the sweep may be the disk or the database itself.
        with contextlib.suppress(LrsweepError):
            watch.look()
            self._summary(about)
        watch.interrupted()


def run(config: SweepConfig, screen: Screen) -> Summary:
    """Runs the sweep to its total, or finds it finished; returns its summary, which is on disk by then.

    Raises InputError before anything is created, NoWinnerError when no trial completed, StorageError for a disk or database
    fault, InterruptedSweepError after a signal.
    """
    fresh, config = config.resume == "fresh", with_keys(config, {"resume": "auto"})
    folder = SweepFolder(config.name)
    automatic = config.search.method == "auto" and not fresh
    config, searched = space.settle(config, method_before(config, folder.path) if automatic else None)
    axes = space.axes(config)
    check_search(config)
    there = None if fresh else find_study(config, axes, folder.path)
    if there is not None and there.finished() and folder.concluded(len(there.records())):
        summary = read_summary(folder)
        if not follow_up(config, there.axes, summary)[0]:
            screen.note(f"{config.name} is finished: {len(summary.results)} trials, nothing left to run")
            return _with_winner(summary, folder)
    screen.note("loading model and data")
    workers = executor(config)
    try:
        dataset = workers.prepare(there is None)
        tracker = open_tracker(config.tracking, Path.cwd(), config.name)
        # Not before all that may be wrong has been looked at.
        if fresh:
            aside = put_aside(config, folder.path)
            screen.note(f"the earlier {config.name} is now {aside}" if aside else f"there was no earlier {config.name}")
        return _with_winner(_run(config, axes, searched, folder, workers, screen, tracker, dataset), folder)
    finally:
        workers.end()


def _run(
    config: SweepConfig, axes: Sequence[Axis], searched: str, folder: SweepFolder, workers: Executor, screen: Screen,
    tracker: Tracker, dataset: DatasetInfo,
) -> Summary:  # fmt: skip
    prior = rule_of_thumb(config, axes)
    folder.create()

    def kill() -> None:
        workers.kill()
        end_left_over(folder.path)

    with folder.locked(), logging_to(folder), Interrupt(kill) as interrupt:
        wait_for_the_dead(folder.path, _LINGER)
        study = open_study(config, axes, folder.path, dataset.fingerprint, first_point(axes, prior))
        presence = Presence(folder.path, new_worker())
        study.keep(presence)
        study.remember(asdict(dataset))
        start_beating(study)
        for note in (searched, *missing_rows(dataset, config.data)):
            if note:
                screen.note(note)
        outputs.write(folder.config, outputs.to_yaml(outputs.masked(config)))
        tracker.start(config.name, study.sweep_id, flatten(outputs.masked(config)), machine.tags(), dataset)
        about = About(dataset, Links(tracker.ui_command(), tracker.compare_url()), prior, searched)
        try:
            summary = Keeper(config, folder, study, workers, tracker, screen, interrupt).run(about)
            conclude(summary, folder)
        except BaseException:
            tracker.finish("interrupted", {}, [])
            raise
        finally:
            presence.close()
        if not finish_tracking(tracker, summary, folder):
            screen.note(
                f"{tracker.unsent} points have not reached MLflow; they are in {folder.path}/trials: lrsweep sync "
                f"{config.name} sends them"
            )
    return summary


def finish_tracking(tracker: Tracker, summary: Summary, folder: SweepFolder) -> bool:
    """Tells the tracker how the sweep ended; once it has got everything, marks the sweep as done. Whether it has."""
    tracker.label({number: diagnosis.label for number, diagnosis in summary.diagnoses.items()})
    best = summary.verdict.recommended
    tracker.finish(
        "complete" if best else "failed",
        {} if best is None else {"best_eval_loss": best.mean, "best_trial": best.result.number},
        artifacts(folder),
    )
    if tracker.unsent:
        return False
    folder.conclude(len(summary.results))
    return True


def _with_winner(summary: Summary, folder: SweepFolder) -> Summary:
    if summary.verdict.best is None:
        reasons = sorted({f"{result.status}: {result.reason}" for result in summary.results})
        raise NoWinnerError(
            f"no trial completed, so there is no best ({'; '.join(reasons[:3])}); details in {folder.log}"
        )
    return summary
