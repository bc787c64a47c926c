"""The controller: it starts workers, watches them, and asks what follows from the results, until nothing does.

It does not train, unless the executor is `inline`, so the sweep continues whatever happens in a trial.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import Axis
from lrsweep.errors import LrsweepError, NoWinnerError
from lrsweep.files.paths import SweepFolder, remove_checkpoints
from lrsweep.orchestration.executors import Executor
from lrsweep.orchestration.interrupt import Interrupt, InterruptedSweepError
from lrsweep.orchestration.monitor import Monitor
from lrsweep.orchestration.worker import write_outcome
from lrsweep.report.screen import Screen
from lrsweep.report.summary import About, Summary, summarise
from lrsweep.search import axis_by_axis
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.followups import followups, seeds_beside
from lrsweep.search.records import TrialSpec
from lrsweep.tracking import Tracker

# Seconds between two polls of the workers; on a database server each competes with the queries of many workers.
_POLL_EVERY, _POLL_EVERY_ON_SERVER = 0.5, 1.0


@dataclass
class Controller:
    """A running sweep.

    Attributes:
        config: The sweep's config.
        folder: The sweep's folder.
        study: The sweep's study.
        executor: Runs the workers; it is prepared.
        tracker: Gets the loss curves.
        screen: Shows progress.
        interrupt: Reports signals.
    """

    config: SweepConfig
    folder: SweepFolder
    study: ControllerStudy
    executor: Executor
    tracker: Tracker
    screen: Screen
    interrupt: Interrupt

    def run(self, about: About) -> Summary:
        """Runs the search's trials, then the trials that follow from their results, until none follow.

        Args:
            about: The facts about the sweep besides its trials.

        Returns:
            The summary of the finished sweep.

        Raises:
            InterruptedSweepError: A signal came.
            NoWinnerError: Too many trials failed.
            LrsweepError: A worker reported an error that ends the sweep, or workers keep dying.
        """
        monitor = Monitor(self.config, self.folder, self.study, self.tracker, self.screen)
        monitor.catch_up()
        self.executor.start(self.study)
        try:
            while True:
                steps = self.study.steps_left(self.config.training.max_steps)
                if steps:
                    self.screen.note(f"{steps} steps to train")
                with self.screen.running(self.study.total, len(self.study.records()), steps):
                    self._until_finished(monitor)
                summary = self._summary(about)
                self._check_failures(summary)
                if self._refine(summary):
                    continue
                monitor.look()
                summary = self._summary(about)
                specs, why = next_trials(self.config, self.study.axes, summary)
                if why:
                    self.screen.note(why)
                if not specs:
                    self.study.close()
                    return summary
                self.study.add_followups(specs)
        except BaseException:
            self._stop_workers(monitor, about)
            raise

    def _refine(self, summary: Summary) -> bool:
        """Adds and resumes the trials that `search.method=refine` asks for; ends the paused ones if there are none.

        Returns:
            Whether there is more to train.
        """
        paused = {record.number: record for record in self.study.paused()}
        seconds = self.study.seconds
        found = axis_by_axis.plan(self.config, self.study.axes, summary.results, paused, summary.base_loss, seconds)
        if found.why and (found.goes_on or paused):
            self.screen.note(found.why)
        if found.goes_on:
            seeds, why = seeds_beside(self.config, self.study.axes, summary.results, found.new, self.study.total)
            if why:
                self.screen.note(why)
            self.study.add_followups([*found.new, *seeds])
            self.study.resume(found.resumed)
            return True
        for record in paused.values():
            ended = replace(record, reason="")
            write_outcome(self.folder.trial(record.number), ended)
            self.study.end_paused(ended)
            remove_checkpoints(self.folder.trial(record.number))
        return False

    def _until_finished(self, monitor: Monitor) -> None:
        """Watches the workers until all trials have ended; adds the time to the study's."""
        started = time.monotonic()
        try:
            self._watch(monitor)
        finally:
            # If the storage fails too, the original error matters more than the time spent.
            with contextlib.suppress(LrsweepError):
                self.study.add_seconds(time.monotonic() - started)

    def _watch(self, monitor: Monitor) -> None:
        while True:
            # A poll reads the study once: it competes with the training for the CPU, or with workers for the server.
            with self.study.read_once():
                finished = self.study.idle()
                monitor.look()
                failures = self._failures()
            if self.interrupt.signum is not None:
                raise InterruptedSweepError(self.interrupt.signum)
            if finished or failures >= (self.config.search.max_failures or self.study.total + 1):
                return
            for text in self.executor.replace_dead():
                self.screen.note(text)
            time.sleep(_POLL_EVERY_ON_SERVER if self.study.on_server else _POLL_EVERY)

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
        """Summarizes the sweep as it is now; writes summary.json."""
        about = replace(
            about,
            seconds=self.study.seconds,
            importances=self.study.importances(),
            hardware=", ".join(self.study.hardware),
            ended=self.study.ended,
        )
        records = sorted([*self.study.records(), *self.study.paused()], key=lambda record: record.number)
        return summarise(self.config, self.study.axes, records, self.folder, about)

    def _stop_workers(self, monitor: Monitor, about: About) -> None:
        """Waits for the workers to checkpoint and end, then shows and sends the rest of their metrics."""
        self.executor.stop()
        while self.executor.running():
            time.sleep(_POLL_EVERY)
        # The error that ends the sweep may be the disk's or the database's.
        with contextlib.suppress(LrsweepError):
            monitor.look()
            self._summary(about)
        monitor.interrupted()


def next_trials(config: SweepConfig, axes: Sequence[Axis], summary: Summary) -> tuple[list[TrialSpec], str]:
    """The trials that follow from a summary, and the reason for them; none if the sweep is complete."""
    labels = {number: diagnosis.label for number, diagnosis in summary.diagnoses.items()}
    return followups(config, axes, summary.results, summary.verdict, labels, summary.about.seconds)
