"""A sweep from its config to its report: checks, the study, the tracker, the controller, and the end."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig, flatten
from lrsweep.config.schema import replace as with_keys
from lrsweep.config.search_method import settle
from lrsweep.config.search_space import Axis
from lrsweep.errors import NoWinnerError
from lrsweep.files.atomic import write_text
from lrsweep.files.logs import logging_to
from lrsweep.files.paths import SweepFolder
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.orchestration.conclusion import conclude, finish_tracking
from lrsweep.orchestration.controller import Controller, next_trials
from lrsweep.orchestration.executors import Executor
from lrsweep.orchestration.executors.factory import build_executor, check_executor
from lrsweep.orchestration.interrupt import Interrupt
from lrsweep.orchestration.liveness import Liveness, new_worker_name, wait_for_earlier_workers
from lrsweep.orchestration.preflight import first_point, rule_of_thumb
from lrsweep.orchestration.worker import start_beating
from lrsweep.report.screen import Screen
from lrsweep.report.summary import About, Links, Summary, read_summary
from lrsweep.report.text import missing_rows
from lrsweep.search import axis_by_axis
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.samplers import check_method, check_search
from lrsweep.search.study_lifecycle import find_study, method_before, open_study, put_aside
from lrsweep.tracking import DatasetInfo, Tracker, check_uri, open_tracker
from lrsweep.tracking.tags import tags
from lrsweep.training.engines.factory import check_engine
from lrsweep.training.engines.left_over import end_left_over
from lrsweep.training.model_folder import own_code

# Seconds that workers of an earlier run may take to end.
_LINGER = 60.0


def run_sweep(config: SweepConfig, screen: Screen, command: str = "") -> Summary:
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
    config, searched = settle(config, method_before(config, folder.path) if automatic else None)
    axes = search_space.axes(config)
    check_search(config)
    existing = None if fresh else find_study(config, axes, folder.path)
    if existing is not None and existing.finished() and folder.concluded(len(existing.records())):
        summary = read_summary(folder)
        refined = axis_by_axis.plan(config, existing.axes, summary.results, (), summary.base_loss, existing.seconds)
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


def _with_winner(summary: Summary, folder: SweepFolder) -> Summary:
    """The summary. Raises NoWinnerError if no trial completed."""
    if summary.verdict.best is None:
        reasons = sorted({f"{result.status}: {result.reason}" for result in summary.results})
        raise NoWinnerError(
            f"no trial completed, so there is no best ({'; '.join(reasons[:3])}); details in {folder.log}"
        )
    return summary
