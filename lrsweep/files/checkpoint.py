"""A trial's checkpoint: on disk whole or not at all, known to be what was written, and never code.

A folder of three files: tensors.safetensors, state.json (everything else, with a reference where a tensor was), and, last,
manifest.json with the sha256 of both. The one before is kept beside it.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lrsweep.files.atomic import disk_faults
from lrsweep.files.paths import CHECKPOINTS

log = logging.getLogger(__name__)

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """All that the rest of a trial depends on after `step` optimizer steps; `engine` is the one that can go on with it.

    `trial` is a digest of all that decides what the trial measures: another trial must not go on from here.
    """

    engine: str
    trial: str
    step: int
    state: Mapping[str, Any]


def save(trial_folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `trial_folder`/checkpoint; the one that was there becomes checkpoint.previous. Raises StorageError.

    The state may hold mappings, lists, tuples, tensors, numbers, strings, booleans and None.
    """
    current, previous, new = _places(trial_folder)
    tensors: dict[str, torch.Tensor] = {}
    tree = {**vars(checkpoint), "state": _plain(checkpoint.state, tensors)}
    with disk_faults(current):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(tensors, new / _TENSORS)
        (new / _STATE).write_text(json.dumps(tree), encoding="utf-8")
        sums = {name: _sha256(new / name) for name in (_TENSORS, _STATE)}
        (new / _MANIFEST).write_text(json.dumps(sums), encoding="utf-8")
        for path in (*(new / name for name in (_TENSORS, _STATE, _MANIFEST)), new):
            _to_disk(path)
        # A kill between these lines leaves the previous one, which is whole.
        if current.exists():
            shutil.rmtree(previous, ignore_errors=True)
            current.rename(previous)
        new.rename(current)
        _to_disk(trial_folder)


def load(trial_folder: Path, engine: str, trial: str) -> Checkpoint | None:
    """The last checkpoint that is whole, if `engine` made it of this trial; None where there is none.

    One that is damaged is told to the log and passed over for the one before.
    """
    for folder in _places(trial_folder)[:2]:
        if not folder.is_dir():
            continue
        try:
            found = _read(folder)
        except (OSError, ValueError, KeyError, TypeError) as fault:
            log.warning("%s is damaged (%s); the one before it is used, if there is one", folder, fault)
            continue
        if (found.engine, found.trial) == (engine, trial):
            return found
        log.warning("%s is another engine's or another trial's: the trial begins anew", folder)
        return None
    return None


def _places(trial_folder: Path) -> tuple[Path, Path, Path]:
    """Where the last checkpoint is, the one before it, and the one being written."""
    last, previous, new = (trial_folder / name for name in CHECKPOINTS)
    return last, previous, new


def _read(folder: Path) -> Checkpoint:
    sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    for name in (_TENSORS, _STATE):
        if sums[name] != _sha256(folder / name):
            raise ValueError(f"{name} is not what was written")
    tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return Checkpoint(tree["engine"], tree["trial"], tree["step"], _full(tree["state"], load_file(folder / _TENSORS)))


def _plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON can say it, its tensors put into `tensors`. What JSON has no word for is a pair [kind, content]."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy of its own: safetensors refuses two names for one memory.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return ["tensor", name]
    if isinstance(value, Mapping):
        return ["mapping", [[_plain(key, tensors), _plain(item, tensors)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_plain(item, tensors) for item in value]]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _full(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {_full(key, tensors): _full(item, tensors) for key, item in content}
    items = [_full(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Returns when a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
