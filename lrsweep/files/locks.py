"""Locks between processes: held by the kernel, and released by it however a process ends."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Seconds between two attempts at a lock that another process holds.
_POLL = 0.01


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file, then holds it. The file stays behind.

    Args:
        path: The lock file, made if it is missing. Its folder must exist.
    """
    with FileLock(path, poll_interval=_POLL, mode=0o644, thread_local=False):
        yield


@contextlib.contextmanager
def exclusive_or_none(path: Path) -> Iterator[bool]:
    """Holds the lock file if no other process does; yields whether it does."""
    lock = FileLock(path, timeout=0, mode=0o644, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file. Any number of processes may ask at once.

    The lock taken to find out is a shared one: two that ask at the same time must not take each other for the holder.
    filelock has exclusive locks only.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
