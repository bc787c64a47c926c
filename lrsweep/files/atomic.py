"""Writes files atomically, and turns disk errors into one line that names the path."""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from lrsweep.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: temporary file, fsync, rename.

    Args:
        path: The file. Its folder is created if it is missing.
        text: The content, written as UTF-8.

    Raises:
        StorageError: The disk is full or fails.
    """
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Random, because process ids are not unique among machines that share a filesystem.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
        try:
            with open(temporary, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turns the errors of a full or failing disk into one line that names `path`.

    Raises:
        StorageError: The block raised an OSError or a SafetensorError.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno in _FULL:
            raise _disk_full(path) from None
        raise StorageError(f"{path}: {fault.strerror or fault}") from None
    except SafetensorError as fault:
        # Only its text has the system's error number.
        found = re.search(r"os error (\d+)", str(fault))
        if found and int(found[1]) in _FULL:
            raise _disk_full(path) from None
        raise StorageError(f"{path}: {fault}") from None


def _disk_full(path: Path) -> StorageError:
    return StorageError(f"disk full: {path}; free some space, then run the same command to resume")
