"""The files of a sweep: where they are, and how they are written so that a kill leaves each whole or absent."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml
from safetensors import SafetensorError

from lrsweep import masking
from lrsweep.config import NAME, SweepConfig
from lrsweep.errors import InputError, StorageError
from lrsweep.links import check_place

OUTPUTS = Path("outputs")


class SweepFolder:
    """`outputs/NAME`: the paths of one sweep. Nothing is created until `create`."""

    def __init__(self, name: str) -> None:
        self.path = OUTPUTS / name
        self.study = self.path / "study.db"
        self.config = self.path / "config.yaml"
        self.best = self.path / "best"
        self.report = self.path / "report.html"
        self.summary = self.path / "summary.json"
        self.log = self.path / "lrsweep.log"

    def trial(self, number: int) -> Path:
        """A trial's own folder."""
        return self.path / "trials" / f"{number:04d}"

    def conclude(self, trials: int) -> None:
        """Marks the sweep as done with `trials` trials: report, best config and tracking are complete."""
        write(self.path / ".concluded", f"{trials}\n")

    def concluded(self, trials: int) -> bool:
        """Whether the sweep was marked as done with that many trials."""
        mark = self.path / ".concluded"
        return mark.is_file() and mark.read_text() == f"{trials}\n"

    def create(self) -> None:
        """Makes the folder. Raises StorageError if the disk refuses."""
        with disk_faults(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the sweep for this process; the kernel lets go of it however the process ends."""
        with disk_faults(self.path), open(self.path / ".lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(
                    f"{self.path}: another process is running this sweep; wait for it, or stop it"
                ) from None
            yield


class MetricsLog:
    """A trial's metrics.jsonl: one JSON object a measurement, append-only, on disk once `sync` returns.

    `time` in a row is when it was written, in milliseconds since the epoch. Of an earlier attempt at the trial, what it
    measured before the step `first` is kept, as `kept`; the rest it measures anew.
    """

    def __init__(self, trial_folder: Path, first: int = 0) -> None:
        self.path = trial_folder / "metrics.jsonl"
        self.kept = [row for row in read_rows(self.path) if row["step"] < first]
        write(self.path, "".join(json.dumps(row) + "\n" for row in self.kept))
        with disk_faults(self.path):
            self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. A value that is not finite is written as a word (NaN, Infinity), as Python's json reads it."""
        with disk_faults(self.path):
            self._file.write(json.dumps({"step": step, **metrics, "time": time.time_ns() // 1_000_000}) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Returns when all lines are on disk."""
        with disk_faults(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes."""
        self.sync()
        self._file.close()


# A trial's last checkpoint, the one before it, and the one being written; `checkpoint.py` fills them.
CHECKPOINTS = ("checkpoint", "checkpoint.previous", "checkpoint.new")


def remove_checkpoints(trial_folder: Path) -> None:
    """The trial has ended."""
    for name in CHECKPOINTS:
        shutil.rmtree(trial_folder / name, ignore_errors=True)


def read_metrics(trial_folder: Path) -> list[dict[str, float]]:
    """What a trial measured, from its metrics.jsonl; a torn last line is left out. Empty where there is no file."""
    return [
        {key: value for key, value in row.items() if key != "time"} for row in read_rows(trial_folder / "metrics.jsonl")
    ]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl as they are, without a torn last one. Empty where there is no file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            # A line torn after its first digits is JSON too.
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def write(path: Path, text: str) -> None:
    """Writes a whole file or nothing: temporary file, fsync, rename."""
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class _PlainDumper(yaml.SafeDumper):
    """YAML whose floats read as numbers everywhere: 1.0e-05, where PyYAML itself would read 1e-05 as a string."""


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _sequence(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_PlainDumper.add_representer(float, _float)
_PlainDumper.add_representer(list, _sequence)
_PlainDumper.add_representer(tuple, _sequence)


def to_yaml(tree: Mapping[str, Any]) -> str:
    """The tree as YAML, keys in their order, lists on one line, floats that every YAML reader takes as numbers."""
    return yaml.dump(dict(tree), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


def masked(config: SweepConfig) -> dict[str, Any]:
    """The config as a plain tree, passwords and tokens masked."""
    tree: dict[str, Any] = masking.masked(config.model_dump())
    return tree


def mask_url(text: str) -> str:
    """The text without passwords and tokens."""
    return masking.mask(text)


def sweep_folder(name: str) -> SweepFolder:
    """The folder of a finished or running sweep. Raises InputError listing those there are, and for links in it."""
    folder = SweepFolder(name)
    if not re.fullmatch(NAME, name) or not folder.config.is_file():
        there = sorted(path.parent.name for path in OUTPUTS.glob("*/config.yaml"))
        raise InputError(f"{name}: no such sweep under {OUTPUTS}/ (there: {', '.join(there) or 'none'})")
    check_place(folder.path)
    return folder


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Names the path when the disk is full or refuses, as a StorageError."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"disk full: {path}; make room, then run the same command to go on") from None
        raise StorageError(f"{path}: {fault.strerror or fault}") from None
    except SafetensorError as fault:
        # It has no errno, only words, those of the system with its number.
        full = re.search(r"os error (\d+)", str(fault))
        if full and int(full[1]) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"disk full: {path}; make room, then run the same command to go on") from None
        raise StorageError(f"{path}: {fault}") from None


@contextlib.contextmanager
def logging_to(folder: SweepFolder) -> Iterator[None]:
    """Sends warnings and the libraries' chatter to lrsweep.log instead of the terminal."""
    with disk_faults(folder.log):
        handler = logging.FileHandler(folder.log)
    handler.setFormatter(masking.MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
