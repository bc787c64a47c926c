"""Locks between processes, which the kernel releases however a process ends."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Seconds between two attempts at a lock that another process holds.
_POLL = 0.01


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock, then holds it. The file remains afterwards.

    Args:
        path: The lock file, created if it is missing. Its folder must exist.
    """
    with FileLock(path, poll_interval=_POLL, mode=0o644, thread_local=False):
        yield


@contextlib.contextmanager
def exclusive_or_none(path: Path) -> Iterator[bool]:
    """Holds the lock if no other process does; yields whether it is held."""
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
    """Returns whether another process holds the lock. Any number of processes may call this at once.

    It tries a shared lock, so that two callers do not mistake each other for the holder; filelock has exclusive locks
    only.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
