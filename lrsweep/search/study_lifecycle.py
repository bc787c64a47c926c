"""A sweep's study in its storage: it is created once, found again, joined by workers, and renamed."""

import contextlib
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from lrsweep.config.schema import SweepConfig, current_value, default_values, flatten, key_facts
from lrsweep.config.search_method import starts
from lrsweep.config.search_space import Axis
from lrsweep.errors import InputError, StorageError
from lrsweep.files.atomic import disk_faults
from lrsweep.files.paths import SweepFolder
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.refine import pause_at
from lrsweep.search.samplers import pruner
from lrsweep.search.storage import Storage
from lrsweep.search.study_store import StudyStore
from lrsweep.search.worker_study import Liveness, WorkerStudy
from lrsweep.training.engines.left_over import end_left_over

# The identity's key for the data's fingerprint.
_DATA = "data fingerprint"
# The most changed keys that a message lists.
_SHOWN = 5


def identity(config: SweepConfig, fingerprint: str) -> dict[str, Any]:
    """The keys and values that two runs of one sweep share: the data, and all keys but those of scope `run`."""
    flat = flatten(config.masked())
    return {key: value for key, value in flat.items() if key_facts(key).scope != "run"} | {_DATA: fingerprint}


def find_study(config: SweepConfig, axes: Sequence[Axis], folder: Path) -> ControllerStudy | None:
    """Finds the sweep's study, without writing anything.

    Args:
        config: The sweep's config.
        axes: Its axes.
        folder: The sweep's folder.

    Returns:
        The study; None if there is none yet.

    Raises:
        InputError: The config has changed.
        StorageError: The storage does not answer, or there are trials without their study.
    """
    storage = Storage(config, folder)
    with storage.faults():
        study = _stored(config, storage)
        if study is None:
            _check_empty(folder, storage)
            return None
        _check_same(study, identity(config, json.loads(study.user_attrs["identity"])[_DATA]))
        return ControllerStudy(StudyStore(study, axes, config, storage))


def method_before(config: SweepConfig, folder: Path) -> str | None:
    """The search method of an existing sweep; None if there is none."""
    storage = Storage(config, folder)
    with storage.faults():
        study = _stored(config, storage)
        return None if study is None else str(json.loads(study.user_attrs["identity"])["search.method"])


def _stored(config: SweepConfig, storage: Storage) -> optuna.Study | None:
    """Optuna's study; None if it does not exist, or was not created completely."""
    if not storage.exists():
        return None
    connected = storage.connect()
    if config.name not in optuna.get_all_study_names(connected):
        return None
    study = optuna.load_study(study_name=config.name, storage=connected, pruner=pruner(config.pruner))
    return study if "identity" in study.user_attrs else None


def _check_empty(folder: Path, storage: Storage) -> None:
    """Raises StorageError if there are trials: a new study would number its trials from 0 and overwrite them."""
    trials = folder / "trials"
    if trials.is_dir() and any(trials.iterdir()):
        raise StorageError(
            f"{storage.shown}: the study is gone, but {trials} has trials of it; restore it, or set resume=fresh to "
            f"rename {folder} and start over"
        )


def _check_same(study: optuna.Study, now: Mapping[str, Any]) -> None:
    """Raises InputError with the changed keys if the study was created with another identity."""
    before = {key: current_value(key, value) for key, value in json.loads(study.user_attrs["identity"]).items()}
    defaults = json.loads(json.dumps(default_values()))
    now = json.loads(json.dumps(now))
    # An earlier version did not have all keys: a trial that it trained had what is the default now.
    before |= {key: defaults[key] for key in now.keys() - before.keys() if key in defaults}
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        shown = [f"{key}: was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed[:_SHOWN]]
        more = f"; and {len(changed) - _SHOWN} more keys" if len(changed) > _SHOWN else ""
        raise InputError(
            f"{'; '.join(shown)}{more}; but the sweep {study.study_name} already has trials: set name=... for a new "
            "sweep, or resume=fresh to rename the old one and start over"
        )


def join_study(
    config: SweepConfig, axes: Sequence[Axis], folder: Path, fingerprint: str, liveness: Liveness
) -> WorkerStudy:
    """Opens the study for a worker; its controller has created it.

    Args:
        config: The sweep's config.
        axes: Its axes.
        folder: The sweep's folder.
        fingerprint: The fingerprint of the data that the worker sees.
        liveness: The worker's view of the other workers.

    Raises:
        InputError: The worker sees other data than the controller.
        StorageError: The storage does not answer.
    """
    storage = Storage(config, folder)
    with storage.faults():
        study = _stored(config, storage)
        assert study is not None, "the controller creates the study first"
        _check_same(study, identity(config, fingerprint))
        return WorkerStudy(StudyStore(study, axes, config, storage), liveness)


def open_study(
    config: SweepConfig, axes: Sequence[Axis], folder: Path, fingerprint: str, first: Mapping[str, Any] | None = None
) -> ControllerStudy:
    """Opens the sweep's study, or creates it with all its grid points. Only one process may do so at a time.

    Args:
        config: The sweep's config.
        axes: Its axes.
        folder: The sweep's folder.
        fingerprint: The data's fingerprint.
        first: Values of some axes, as Optuna stores them, for the first trial of a search that is not a grid.

    Raises:
        InputError: The config or the data have changed.
        StorageError: The storage does not answer.
    """
    storage = Storage(config, folder)
    with storage.faults():
        study = optuna.create_study(
            storage=storage.connect(),
            study_name=config.name,
            direction="minimize",
            load_if_exists=True,
            pruner=pruner(config.pruner),
        )
        if "identity" not in study.user_attrs:
            study.set_user_attr("sweep_id", uuid.uuid4().hex)
            study.set_user_attr("identity", json.dumps(identity(config, fingerprint)))
        points = starts(config, axes)[: config.search.n_trials]
        pause = pause_at(config)
        attributes = None if pause is None else {"point": {"pause_at": pause}}
        enqueued = study.user_attrs.get("enqueued", 0)
        for point in points[enqueued:]:
            study.enqueue_trial(point, user_attrs=attributes, skip_if_exists=True)
        if enqueued == 0 and first is not None and not points:
            study.enqueue_trial(dict(first), user_attrs={"point": {"role": "prior"}}, skip_if_exists=True)
        study.set_user_attr("enqueued", max(enqueued, len(points), 1))
        _check_same(study, identity(config, fingerprint))
        store = StudyStore(study, axes, config, storage)
        store.enqueue_followups()
        return ControllerStudy(store)


def put_aside(config: SweepConfig, folder: Path) -> Path | None:
    """Renames an existing sweep, and its study on a server, to NAME.1, or to the next free number.

    Args:
        config: The sweep's config.
        folder: The sweep's folder.

    Returns:
        The new folder; None if there was no sweep.

    Raises:
        StorageError: The sweep is running, or the storage or the disk fails.
    """
    storage = Storage(config, folder)
    with contextlib.ExitStack() as held:
        if found := folder.exists():
            held.enter_context(SweepFolder(config.name).locked())
            end_left_over(folder)
        with storage.faults():
            # A study inside the folder is renamed with it.
            connected = storage.connect() if config.search.storage and storage.exists() else None
            names = set() if connected is None else set(optuna.get_all_study_names(connected))
            aside = next(
                new
                for i in itertools.count(1)
                if not (new := folder.with_name(f"{folder.name}.{i}")).exists() and new.name not in names
            )
            if connected is not None and config.name in names:
                optuna.copy_study(
                    from_study_name=config.name, from_storage=connected, to_storage=connected, to_study_name=aside.name
                )
                optuna.delete_study(study_name=config.name, storage=connected)
                found = True
        if folder.exists():
            with disk_faults(folder):
                folder.rename(aside)
    return aside if found else None
