"""The controller, the process that runs a sweep: it opens the study, starts workers, watches them, and reports.

It does not train, unless the executor is `inline`, so the sweep continues whatever happens in a trial.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig, flatten
from lrsweep.config.schema import replace as with_keys
from lrsweep.config.search_space import Axis
from lrsweep.errors import LrsweepError, NoWinnerError
from lrsweep.files.atomic import write_text
from lrsweep.files.logs import logging_to
from lrsweep.files.paths import SweepFolder, remove_checkpoints
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.orchestration.conclusion import conclude, finish_tracking
from lrsweep.orchestration.executors import Executor
from lrsweep.orchestration.executors.factory import build_executor, check_executor
from lrsweep.orchestration.liveness import Liveness, new_worker_name, wait_for_earlier_workers
from lrsweep.orchestration.monitor import Monitor
from lrsweep.orchestration.preflight import first_point, rule_of_thumb
from lrsweep.orchestration.worker import start_beating, write_outcome
from lrsweep.report.screen import Screen
from lrsweep.report.summary import About, Links, Summary, read_summary, summarise
from lrsweep.report.text import missing_rows
from lrsweep.search import refine
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.followups import followups
from lrsweep.search.records import TrialSpec
from lrsweep.search.samplers import check_method, check_search
from lrsweep.search.study_lifecycle import find_study, method_before, open_study, put_aside
from lrsweep.tracking import DatasetInfo, Tracker, check_uri, open_tracker
from lrsweep.tracking.tags import tags
from lrsweep.training.engines.factory import check_engine
from lrsweep.training.engines.left_over import end_left_over
from lrsweep.training.model_folder import own_code

log = logging.getLogger(__name__)

# Seconds between two polls of the workers, and the seconds that workers of an earlier run may take to end.
_POLL_EVERY, _LINGER = 0.5, 60.0
# Seconds between two polls on a database server, where each competes with the queries of many workers.
_POLL_EVERY_ON_SERVER = 1.0


class InterruptedSweepError(LrsweepError):
    """A signal ended the run; the same command resumes it.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__("interrupted; run the same command to resume")
        self.exit_code = 128 + signum


class Interrupt:
    """Records the first signal to end, so that workers can finish their step; a second one kills them and exits.

    SIGINT and SIGTERM are such signals, and SIGHUP, which a closed terminal sends, unless nohup has it ignored.

    Args:
        kill: Kills the workers.

    Attributes:
        signum: The signal; None before it comes.
    """

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self.signum: int | None = None

    def __enter__(self) -> "Interrupt":
        # Python allows handlers in the main thread only; a program may run a sweep in another.
        own = threading.current_thread() is threading.main_thread()
        signals = [signal.SIGINT, signal.SIGTERM] if own else []
        if own and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signals.append(signal.SIGHUP)
        self._before = {s: signal.signal(s, self._received) for s in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None and signum == signal.SIGHUP:
            return  # a shell passes a closed terminal's on: it comes twice
        if self.signum is not None:
            self._kill()
            os._exit(128 + signum)
        self.signum = signum


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
                if not specs:
                    self.study.close()
                    return summary
                self.screen.note(why)
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
        found = refine.plan(self.config, summary.results, paused, summary.base_loss, seconds)
        if found.why and (found.goes_on or paused):
            self.screen.note(found.why)
        if found.goes_on:
            self.study.add_followups(found.new)
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
            finished = self.study.idle()
            monitor.look()
            if self.interrupt.signum is not None:
                raise InterruptedSweepError(self.interrupt.signum)
            if finished or self._failures() >= (self.config.search.max_failures or self.study.total + 1):
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


def run(config: SweepConfig, screen: Screen, command: str = "") -> Summary:
    """Runs or resumes the sweep; a complete one is only read.

    Args:
        config: The sweep's config.
        screen: Shows progress.
        command: The command that the user ran; empty if there was none.

    Returns:
        The summary, which is on disk too.

    Raises:
        InputError: The config, the model or the data are invalid; nothing has been created.
        NoWinnerError: No trial completed.
        WorkerError: Workers keep dying; the same command resumes.
        StorageError: The disk or a database failed; the same command resumes.
        InterruptedSweepError: A signal came; the same command resumes.
    """
    check_method(config.search)
    check_engine(config)
    check_executor(config)
    check_uri(config.tracking)
    fresh, config = config.resume == "fresh", with_keys(config, {"resume": "auto"})
    folder = SweepFolder(config.name)
    folder.check_writable()
    automatic = config.search.method == "auto" and not fresh
    config, searched = search_space.settle(config, method_before(config, folder.path) if automatic else None)
    axes = search_space.axes(config)
    check_search(config)
    existing = None if fresh else find_study(config, axes, folder.path)
    if existing is not None and existing.finished() and folder.concluded(len(existing.records())):
        summary = read_summary(folder)
        refined = refine.plan(config, summary.results, (), summary.base_loss, existing.seconds)
        if not refined.goes_on and not next_trials(config, existing.axes, summary)[0]:
            screen.note(f"{config.name} is already complete: {len(summary.results)} trials")
            return _with_winner(summary, folder)
    screen.note("loading model and data")
    executor = build_executor(config)
    try:
        dataset = executor.prepare(existing is None, screen.note)
        tracker = open_tracker(config.tracking, Path.cwd(), config.name)
        # Only after all checks, so that an invalid config renames nothing.
        if fresh:
            aside = put_aside(config, folder.path)
            screen.note(
                f"renamed the earlier {config.name} to {aside}" if aside else f"no earlier {config.name} to rename"
            )
        about = About(dataset, Links("", ""), rule_of_thumb(config, axes), searched, command=command)
        return _with_winner(_run(config, axes, about, folder, executor, screen, tracker), folder)
    finally:
        executor.end()


def _run(
    config: SweepConfig,
    axes: Sequence[Axis],
    about: About,
    folder: SweepFolder,
    executor: Executor,
    screen: Screen,
    tracker: Tracker,
) -> Summary:
    dataset = about.dataset
    folder.create()

    def kill() -> None:
        executor.kill()
        end_left_over(folder.path)

    with folder.locked(), logging_to(folder, config.redactor), Interrupt(kill) as interrupt:
        wait_for_earlier_workers(folder.path, _LINGER)
        study = open_study(config, axes, folder.path, dataset.fingerprint, first_point(axes, about.prior))
        code = own_code(config.model) if config.engine.name != "external" else None
        for note in (about.searched, code, *missing_rows(dataset, config.data)):
            if note:
                screen.note(note)
        write_text(folder.config, to_yaml(config.masked()))
        with _alive(folder, study, dataset):
            tracker.start(config.name, study.sweep_id, flatten(config.masked()), tags(), dataset)
            objective = config.search.objective
            page = tracker.compare_page([axis.key for axis in axes], objective.key, lowest_first=not objective.maximize)
            about = replace(about, links=Links(tracker.ui_command(), page))
            try:
                summary = Controller(config, folder, study, executor, tracker, screen, interrupt).run(about)
                conclude(summary, folder)
            except BaseException:
                tracker.finish("interrupted", {}, [])
                raise
        if not finish_tracking(tracker, summary, folder):
            screen.note(
                f"{tracker.unsent} points have not reached MLflow; they are in {folder.path}/trials, and lrsweep sync "
                f"{config.name} sends them"
            )
    return summary


@contextlib.contextmanager
def _alive(folder: SweepFolder, study: ControllerStudy, dataset: DatasetInfo) -> Iterator[None]:
    """Opens the study, and shows its workers that the controller is alive."""
    liveness = Liveness(folder.path, new_worker_name())
    try:
        study.open(liveness.worker, asdict(dataset))
        start_beating(study, liveness.worker)
        yield
    finally:
        liveness.close()


def next_trials(config: SweepConfig, axes: Sequence[Axis], summary: Summary) -> tuple[list[TrialSpec], str]:
    """The trials that follow from a summary, and the reason for them; none if the sweep is complete."""
    labels = {number: diagnosis.label for number, diagnosis in summary.diagnoses.items()}
    return followups(config, axes, summary.results, summary.verdict, labels)


def _with_winner(summary: Summary, folder: SweepFolder) -> Summary:
    """The summary. Raises NoWinnerError if no trial completed."""
    if summary.verdict.best is None:
        reasons = sorted({f"{result.status}: {result.reason}" for result in summary.results})
        raise NoWinnerError(
            f"no trial completed, so there is no best ({'; '.join(reasons[:3])}); details in {folder.log}"
        )
    return summary
