"""`lrsweep sync NAME`: sends MLflow the trials that it lacks, from a sweep's files."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.config import search_space, yaml_safety
from lrsweep.config.schema import SweepConfig, flatten, replace, validate
from lrsweep.errors import InputError, LrsweepError, StorageError
from lrsweep.files.logs import logging_to
from lrsweep.files.paths import SweepFolder, existing_sweep
from lrsweep.libraries import quiet
from lrsweep.report.screen import Screen


def run(argv: Sequence[str]) -> int:
    """Syncs, and prints the result. Raises LrsweepError."""
    parser = ArgumentParser("sync", "send MLflow the trials that it missed because of an outage or a kill")
    parser.add_sweep_name()
    parser.add_argument("--uri", help="the tracking store (default: the sweep's own)")
    parser.add_argument("--storage", metavar="URL", help="the study's database, if its URL has a password")
    arguments = parser.parse_args(argv)

    from lrsweep.report.screen import open_screen
    from lrsweep.report.terminal import Terminal

    quiet()
    print(sync(arguments.name, arguments.uri, arguments.storage, open_screen(Terminal())))
    return 0


def sync(name: str, uri: str | None, storage: str | None, screen: Screen) -> str:
    """Sends MLflow the trials that it lacks, from the sweep's files.

    Args:
        name: The sweep.
        uri: The tracking store; None is the sweep's own.
        storage: The study's database; None is the sweep's own.
        screen: Shows notes.

    Returns:
        One line about the result.

    Raises:
        InputError: There is no such sweep, or it is not tracked.
        StorageError: The sweep is running, its files are damaged, or a store does not answer.
    """
    from lrsweep.orchestration.conclusion import finish_tracking
    from lrsweep.orchestration.monitor import Monitor
    from lrsweep.report.summary import read_summary
    from lrsweep.search.study_lifecycle import find_study
    from lrsweep.tracking import DatasetInfo, open_tracker
    from lrsweep.tracking.tags import tags

    folder = existing_sweep(name)
    config = _config(folder)
    if uri is not None:
        config = replace(config, {"tracking.uri": uri, "tracking.name": "mlflow"})
    if storage is not None:
        config = replace(config, {"search.storage": storage})
    if config.tracking.name == "none":
        raise InputError(f"{name}: the sweep has tracking=none; name a store with --uri")
    axes = search_space.axes(config)
    study = find_study(config, axes, folder.path)
    if study is None:
        raise StorageError(f"{folder.study}: does not exist, but only the study records how the trials ended")
    tracker = open_tracker(config.tracking, Path.cwd(), config.name)
    with folder.locked(), logging_to(folder, config.redactor):
        dataset = DatasetInfo(**study.dataset)
        tracker.start(config.name, study.sweep_id, flatten(config.masked()), tags(), dataset)
        try:
            sent = Monitor(config, folder, study, tracker, screen).catch_up()
            ended = study.finished() and folder.summary.exists()
            if ended:
                finish_tracking(tracker, read_summary(folder), folder)
            else:
                tracker.finish("interrupted", {}, [])
        except BaseException:
            tracker.finish("interrupted", {}, [])
            raise
        if tracker.unsent:
            raise StorageError(
                f"tracking.uri={tracker.uri}: {tracker.unsent} points are still unsent; see {folder.log}"
            )
    rest = "" if ended else "; the sweep is not complete: the same lrsweep +sweep command resumes it"
    return f"{name}: sent {sent} trials, {tracker.uri} has all ended trials{rest}"


def _config(folder: SweepFolder) -> SweepConfig:
    """The sweep's config. Raises StorageError if its file is damaged."""
    try:
        text = folder.config.read_text(encoding="utf-8")
        yaml_safety.check(text, str(folder.config))
        tree = yaml.safe_load(text)
        if not isinstance(tree, dict):
            raise InputError("not a mapping")
        return validate(tree)
    except LrsweepError as fault:
        cause = str(fault)
    except (OSError, *yaml_safety.YAML_FAULTS) as fault:
        cause = " ".join(str(fault).split())[:200]
    raise StorageError(f"{folder.config}: damaged ({cause}); run the sweep again to rebuild it")
