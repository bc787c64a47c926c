"""A trial's checkpoint: written atomically, verified when it is read, and never executed as code.

A checkpoint is a folder with three files: tensors.safetensors, state.json (everything else, with references to the
tensors), and manifest.json with the sha256 of both, which is written last. The previous checkpoint is kept too.
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
    """The state of a trial after some optimizer steps: everything that the rest of the trial depends on.

    Attributes:
        engine: The engine that made it, which alone can resume it.
        trial: A digest of all keys that change what the trial measures: no other trial may resume from it.
        step: Optimizer steps done.
        state: The engine's state: mappings, lists, tuples, tensors, numbers, strings, booleans and None.
    """

    engine: str
    trial: str
    step: int
    state: Mapping[str, Any]


def save(trial_folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `trial_folder`/checkpoint; an existing one becomes checkpoint.previous.

    Args:
        trial_folder: The trial's folder.
        checkpoint: The checkpoint.

    Raises:
        StorageError: The disk is full or fails.
        TypeError: The state holds something that a checkpoint cannot store.
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
        # A kill between these lines leaves checkpoint.previous, which is complete.
        if current.exists():
            shutil.rmtree(previous, ignore_errors=True)
            current.rename(previous)
        new.rename(current)
        _to_disk(trial_folder)


def load(trial_folder: Path, engine: str, trial: str) -> Checkpoint | None:
    """The last complete checkpoint. A damaged one is logged, and the previous one is used instead.

    Args:
        trial_folder: The trial's folder.
        engine: The engine that wants to resume.
        trial: The digest of the trial that wants to resume.

    Returns:
        The checkpoint; None if there is none, or if another engine or another trial made it.
    """
    for folder in _places(trial_folder)[:2]:
        if not folder.is_dir():
            continue
        try:
            found = _read(folder)
        except (OSError, ValueError, KeyError, TypeError) as fault:
            log.warning("%s is damaged (%s); using the previous one, if there is one", folder, fault)
            continue
        if (found.engine, found.trial) == (engine, trial):
            return found
        log.warning("%s is from another engine or another trial: the trial starts again", folder)
        return None
    return None


def last_step(trial_folder: Path) -> int:
    """Optimizer steps done at the last checkpoint, which is not verified; 0 without one."""
    folder = _places(trial_folder)[0]
    try:
        tree = json.loads((folder / _STATE).read_text(encoding="utf-8")) if (folder / _MANIFEST).is_file() else {}
        return int(tree.get("step", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


def _places(trial_folder: Path) -> tuple[Path, Path, Path]:
    """The folders of the last checkpoint, of the previous one, and of the one being written."""
    last, previous, new = (trial_folder / name for name in CHECKPOINTS)
    return last, previous, new


def _read(folder: Path) -> Checkpoint:
    """Reads and verifies a checkpoint. Raises OSError, ValueError, KeyError or TypeError for a damaged one."""
    sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    for name in (_TENSORS, _STATE):
        if sums[name] != _sha256(folder / name):
            raise ValueError(f"{name} does not match its checksum")
    tree = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return Checkpoint(tree["engine"], tree["trial"], tree["step"], _full(tree["state"], load_file(folder / _TENSORS)))


def _plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON, with its tensors moved into `tensors`. Types that JSON lacks are pairs [type, content]."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory.
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
    """The inverse of `_plain`."""
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
    """Flushes a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
