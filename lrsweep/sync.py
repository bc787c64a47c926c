"""MLflow's view of a sweep, made whole again from the sweep's files."""

from pathlib import Path

import yaml

from lrsweep import machine, outputs, space
from lrsweep.config import flatten, replace, validate
from lrsweep.errors import InputError, StorageError
from lrsweep.outputs import logging_to
from lrsweep.report.screen import Screen
from lrsweep.report.summary import read_summary
from lrsweep.studies import find_study
from lrsweep.sweep import finish_tracking
from lrsweep.tracking import DatasetInfo, open_tracker
from lrsweep.watch import Watch


def sync(name: str, uri: str | None, storage: str | None, screen: Screen) -> str:
    """Sends MLflow what the sweep's files have and it has not; says what came of it.

    Raises InputError where there is no such sweep, or it is tracked nowhere; StorageError where it runs, where its files are
    damaged, and where the store does not answer.
    """
    folder = outputs.sweep_folder(name)
    config = validate(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    if uri is not None:
        config = replace(config, {"tracking.uri": uri, "tracking.name": "mlflow"})
    if storage is not None:
        config = replace(config, {"search.storage": storage})
    if config.tracking.name == "none":
        raise InputError(f"{name}: its tracking is none; name a store with --uri")
    axes = space.axes(config)
    study = find_study(config, axes, folder.path)
    if study is None:
        raise StorageError(f"{folder.study}: not there, and without it nobody knows how the trials ended")
    tracker = open_tracker(config.tracking, Path.cwd(), config.name)
    with folder.locked(), logging_to(folder):
        dataset = DatasetInfo(**study.dataset)
        tracker.start(config.name, study.sweep_id, flatten(outputs.masked(config)), machine.tags(), dataset)
        try:
            told = Watch(config, folder, study, tracker, screen).catch_up()
            ended = study.finished() and folder.summary.exists()
            if ended:
                finish_tracking(tracker, read_summary(folder), folder)
            else:
                tracker.finish("interrupted", {}, [])
        except BaseException:
            tracker.finish("interrupted", {}, [])
            raise
        if tracker.unsent:
            raise StorageError(f"tracking.uri={tracker.uri}: {tracker.unsent} points still wait; see {folder.log}")
    rest = "" if ended else "; the sweep is not at its end: the same lrsweep +sweep command goes on with it"
    return f"{name}: {told} trials sent, {tracker.uri} has all that has ended{rest}"
