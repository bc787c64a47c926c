"""A sweep's study in its storage: made once, found again, joined by workers, put aside."""

import contextlib
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from lrsweep import outputs
from lrsweep.claims import Claims
from lrsweep.config import SweepConfig, flatten
from lrsweep.engines.external import end_left_over
from lrsweep.errors import StorageError
from lrsweep.outputs import SweepFolder, disk_faults
from lrsweep.presence import Presence
from lrsweep.samplers import pruner
from lrsweep.space import Axis, grid
from lrsweep.storage import Storage
from lrsweep.study import Study

# What may change between two runs of one sweep: it decides how far and where, not what is measured.
_FREE = (
    "search.n_trials", "search.storage", "search.extend", "search.replicates", "search.rescue", "search.prior",
    "search.preflight", "search.max_failures", "engine.name", "engine.slots", "engine.compile", "executor.", "tracking.",
    "training.save_adapter", "training.checkpoint_seconds", "resume",
)  # fmt: skip

_DATA = "data fingerprint"


def identity(config: SweepConfig, fingerprint: str) -> dict[str, Any]:
    """What makes two runs the same sweep: the config, less what may change, and the data's fingerprint."""
    flat = flatten(outputs.masked(config))
    return {key: value for key, value in flat.items() if not key.startswith(_FREE)} | {_DATA: fingerprint}


def find_study(config: SweepConfig, axes: Sequence[Axis], folder: Path) -> Study | None:
    """The sweep's study as it stands, or None where there is none yet; writes nothing.

    Raises InputError if the config has changed, StorageError if the storage does not answer, or lacks what was trained.
    """
    where = Storage(config, folder)
    with where.faults():
        study = _stored(config, where)
        if study is None:
            _check_empty(folder, where)
            return None
        found = Study(study, axes, config, where)
        found.check_same(identity(config, json.loads(study.user_attrs["identity"])[_DATA]))
        return found


def method_before(config: SweepConfig, folder: Path) -> str | None:
    """The search of the sweep that is there already; None where there is none yet."""
    where = Storage(config, folder)
    with where.faults():
        study = _stored(config, where)
        return None if study is None else str(json.loads(study.user_attrs["identity"])["search.method"])


def _stored(config: SweepConfig, where: Storage) -> optuna.Study | None:
    """Optuna's study, if it was made to its end."""
    if not where.exists():
        return None
    storage = where.connect()
    if config.name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=config.name, storage=storage, pruner=pruner(config.pruner))
    return study if "identity" in study.user_attrs else None


def _check_empty(folder: Path, where: Storage) -> None:
    """A new study would number its trials from 0, and write over these. Raises StorageError."""
    trials = folder / "trials"
    if trials.is_dir() and any(trials.iterdir()):
        raise StorageError(
            f"{where.shown}: the study is gone, and {trials} has trials of it; put it back, or resume=fresh renames "
            f"{folder} and begins anew"
        )


def join_study(config: SweepConfig, axes: Sequence[Axis], folder: Path, fingerprint: str, presence: Presence) -> Claims:
    """The sweep's study, made by its keeper, for a worker. Raises InputError if its data are others, StorageError."""
    where = Storage(config, folder)
    with where.faults():
        study = _stored(config, where)
        assert study is not None, "the keeper makes the study first"
        joined = Claims(study, axes, config, where, presence)
        joined.check_same(identity(config, fingerprint))
        return joined


def open_study(
    config: SweepConfig, axes: Sequence[Axis], folder: Path, fingerprint: str, first: Mapping[str, Any] | None = None
) -> Study:
    """Opens the sweep's study, or creates it with all its grid points; for one process at a time.

    A search that is no grid begins with `first`: stored values of some axes.

    Raises InputError if the config or the data have changed, StorageError if the storage does not answer.
    """
    where = Storage(config, folder)
    with where.faults():
        study = optuna.create_study(
            storage=where.connect(), study_name=config.name, direction="minimize", load_if_exists=True,
            pruner=pruner(config.pruner),
        )  # fmt: skip
        if "identity" not in study.user_attrs:
            study.set_user_attr("sweep_id", uuid.uuid4().hex)
            study.set_user_attr("identity", json.dumps(identity(config, fingerprint)))
        points = grid(axes)[: config.search.n_trials] if config.search.method == "grid" else []
        enqueued = study.user_attrs.get("enqueued", 0)
        for point in points[enqueued:]:
            study.enqueue_trial(point, skip_if_exists=True)
        if enqueued == 0 and first is not None and not points:
            study.enqueue_trial(dict(first), user_attrs={"point": {"role": "prior"}}, skip_if_exists=True)
        study.set_user_attr("enqueued", max(enqueued, len(points), 1))
        opened = Study(study, axes, config, where)
        opened.check_same(identity(config, fingerprint))
        opened._enqueue_followed()
        return opened


def put_aside(config: SweepConfig, folder: Path) -> Path | None:
    """Renames what there is of the sweep to NAME.1 (or the next number that is free); None where there is nothing.

    Raises StorageError for one that is running.
    """
    where = Storage(config, folder)
    with contextlib.ExitStack() as held:
        if found := folder.exists():
            held.enter_context(SweepFolder(config.name).locked())
            end_left_over(folder)
        with where.faults():
            # A study in the folder moves with it.
            storage = where.connect() if config.search.storage and where.exists() else None
            names = set() if storage is None else set(optuna.get_all_study_names(storage))
            aside = next(
                new
                for i in itertools.count(1)
                if not (new := folder.with_name(f"{folder.name}.{i}")).exists() and new.name not in names
            )
            if storage is not None and config.name in names:
                optuna.copy_study(
                    from_study_name=config.name, from_storage=storage, to_storage=storage, to_study_name=aside.name
                )
                optuna.delete_study(study_name=config.name, storage=storage)
                found = True
        if folder.exists():
            with disk_faults(folder):
                folder.rename(aside)
    return aside if found else None
