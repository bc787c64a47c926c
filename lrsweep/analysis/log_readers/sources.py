"""What the user named: files, MLflow runs, and folders with logs in them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lrsweep.analysis.log_readers.tensorboard import PREFIX
from lrsweep.errors import InputError

_RUN_ID = re.compile(r"[0-9a-f]{32}")
# Logs by name, and other files that may hold lines with a loss.
_NAMES = ("trainer_state.json", "trainer_log.jsonl", "metrics.jsonl", "running_log.txt")
_EXTENSIONS = (".log", ".out", ".err", ".txt", ".jsonl", ".csv", ".json")
# A log has a loss near its start; a data set next to it may be too large to look through.
_SNIFFED = 1 << 18
# Files that are looked at below a folder.
_MOST = 20_000


def is_run_id(source: str) -> bool:
    """Returns whether this is what an MLflow run id looks like: 32 hex digits."""
    return _RUN_ID.fullmatch(source) is not None


def logs_in(folder: Path) -> list[str]:
    """Returns the files below a folder that may be logs, by path; `log_readers` says which are.

    Raises:
        InputError: There is none, or there are too many files.
    """
    found = sorted(str(path) for path in _candidates(folder))
    if not found:
        raise InputError(f"{folder}: is a folder without a log in it (looked for {', '.join(_NAMES)}, {PREFIX}*, ...)")
    return found


def _candidates(folder: Path) -> Iterator[Path]:
    seen = 0
    for parent, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > _MOST:
            raise InputError(f"{folder}: has more than {_MOST} files below it; name a folder nearer to the logs")
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if not os.path.isfile(path):
                continue  # a pipe would block
            if name in _NAMES or name.startswith(PREFIX) or (name.endswith(_EXTENSIONS) and _mentions_loss(path)):
                yield path


def _mentions_loss(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_SNIFFED)
    except OSError:
        return False
    return re.search(rb"""["'](?:[\w/]*[_/])?loss["']""", head) is not None or (
        path.suffix == ".csv" and b"loss" in head.split(b"\n", 1)[0]
    )
