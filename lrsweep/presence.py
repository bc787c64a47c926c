"""Who is alive among a sweep's workers: by the kernel's word on this machine, by their beats elsewhere; never by a clock.

A worker holds a lock on a file of its own, which the kernel lets go of however the process ends. Of a worker on another
machine only its beats are seen, a number in the study that grows: it counts as dead once that has not grown for `LEASE`
seconds of the looker's own time.
"""

import contextlib
import fcntl
import os
import socket
import time
import uuid
from pathlib import Path

from lrsweep.outputs import disk_faults

# Seconds without a beat after which a worker elsewhere is dead, and between two beats.
LEASE, BEAT_EVERY = 60.0, 10.0


def new_worker() -> str:
    """A name that no other worker has or had: machine (since its start), process, chance."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Presence:
    """This process as the worker `worker` of the sweep in `folder`, until `close`."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.worker = worker
        self._folder = folder / ".workers"
        self._seen: dict[str, tuple[int, float]] = {}
        with disk_faults(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._held(self._folder / worker)

    def _held(self, path: Path) -> int:
        while True:
            # A bare handle: nothing but `close` or the kernel lets go of it.
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Somebody who clears up may have taken the file between those two lines.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == path.stat().st_ino:
                    return lock
            os.close(lock)

    def close(self) -> None:
        """The worker has ended."""
        with contextlib.suppress(OSError):
            (self._folder / self.worker).unlink(missing_ok=True)
        os.close(self._lock)

    def dead(self, worker: str, beat: int) -> bool:
        """Whether a worker has ended; `beat` is its number in the study now."""
        if worker.startswith(f"{_machine()}-"):
            return not _locked(self._folder / worker)
        last, since = self._seen.get(worker, (-1, 0.0))
        now = time.monotonic()
        if beat != last:
            self._seen[worker] = (beat, now)
            return False
        return now - since > LEASE


def wait_for_the_dead(folder: Path, seconds: float) -> None:
    """Waits until the workers of an earlier run on this machine have ended (they finish their step), at most so long."""
    until = time.monotonic() + seconds
    for path in (folder / ".workers").glob(f"{_machine()}-*"):
        while _locked(path) and time.monotonic() < until:
            time.sleep(0.1)
        if not _locked(path):
            path.unlink(missing_ok=True)


def _locked(path: Path) -> bool:
    try:
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _machine() -> str:
    """This machine since its last start, as every process on it sees it, in whatever container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13].replace("-", "")
    except OSError:
        return socket.gethostname().replace("-", "_")
