"""A trial's metrics.jsonl: its metrics, one JSON object per line, on disk before the study gets them."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from lrsweep.errors import StorageError
from lrsweep.files.atomic import disk_faults, write_text


class MetricsLog:
    """A trial's metrics.jsonl: append-only, and on disk once `sync` returns.

    A row's `time` is when it was written, in milliseconds since the epoch.

    Args:
        trial_folder: The trial's folder.
        first: The first step that this attempt reports. A previous attempt's earlier rows stay; its later ones are
            removed, because the trial measures them again.

    Attributes:
        path: The file.
        kept: The rows of a previous attempt that stay.

    Raises:
        StorageError: The disk is full or fails.
    """

    def __init__(self, trial_folder: Path, first: int = 0) -> None:
        self.path = trial_folder / "metrics.jsonl"
        self.kept = [row for row in read_rows(self.path) if row["step"] < first]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.kept))
        with disk_faults(self.path):
            self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. Non-finite values are written as NaN or Infinity, which Python's json reads."""
        with disk_faults(self.path):
            self._file.write(json.dumps({"step": step, **metrics, "time": time.time_ns() // 1_000_000}) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Flushes all lines to the disk."""
        with disk_faults(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes all lines to the disk and closes the file."""
        self.sync()
        self._file.close()


def read_metrics(trial_folder: Path) -> list[dict[str, float]]:
    """A trial's metrics without the rows' `time`. Empty if there is no file; an incomplete last line is left out."""
    return [
        {key: value for key, value in row.items() if key != "time"} for row in read_rows(trial_folder / "metrics.jsonl")
    ]


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl. Empty if there is no file; lines that are no rows are left out.

    Raises:
        StorageError: There is something else in the file's place, or it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise StorageError(f"{path}: is not a file; move it away, and the trial is measured again")
    with disk_faults(path):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
    return [row for row in map(parse_row, lines) if row is not None]


def parse_row(line: str | bytes) -> dict[str, float] | None:
    """A line's row; None for a line that is cut off or damaged. Values that are no numbers are left out."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # A line cut off after its first digits is valid JSON too.
    if not isinstance(row, dict) or not _is_number(row.get("step")) or not isinstance(row["step"], int):
        return None
    return {key: value for key, value in row.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    """Whether a value is a number that fits a float."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float)
