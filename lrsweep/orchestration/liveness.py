"""Who is alive among a sweep's workers: on this machine the kernel says, elsewhere their signs of life do; never a clock.

A worker holds a lock on a file of its own, which the kernel releases however the process ends. Workers on other machines
count their signs of life in the study: one is dead once its count has not grown for `LEASE` seconds of the observer's own
time.
"""

import contextlib
import os
import socket
import time
import uuid
from pathlib import Path

from lrsweep.files.atomic import disk_faults
from lrsweep.files.locks import exclusive, is_locked

# Seconds without a sign of life after which a worker elsewhere is dead, and between two signs.
LEASE, BEAT_EVERY = 60.0, 10.0

_FOLDER = ".workers"


def new_worker_name() -> str:
    """A name that no other worker has or had: machine (since its start), process, chance."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Liveness:
    """This process as a worker of a sweep, until `close`, and what it knows of the others.

    Args:
        folder: The sweep's folder.
        worker: This worker's name.

    Raises:
        StorageError: The disk refuses the lock file.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.worker = worker
        self._folder = folder / _FOLDER
        # For each worker elsewhere: its count of signs of life, and when that last grew.
        self._beats: dict[str, tuple[int, float]] = {}
        self._lock = contextlib.ExitStack()
        with disk_faults(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(exclusive(self._folder / worker))

    def close(self) -> None:
        """The worker has ended."""
        with contextlib.suppress(OSError):
            (self._folder / self.worker).unlink(missing_ok=True)
        self._lock.close()

    def is_dead(self, worker: str, beats: int) -> bool:
        """Whether a worker has ended.

        Args:
            worker: Its name.
            beats: Its count of signs of life in the study now.
        """
        if on_this_machine(worker):
            return not is_locked(self._folder / worker)
        last, since = self._beats.get(worker, (-1, 0.0))
        now = time.monotonic()
        if beats != last:
            self._beats[worker] = (beats, now)
            return False
        return now - since > LEASE


def on_this_machine(worker: str) -> bool:
    """Whether a worker of that name ran on this machine since the machine's last start."""
    return worker.startswith(f"{_machine()}-")


def local_pid(folder: Path, worker: str) -> int | None:
    """The process id of a worker of the sweep in `folder`; None if it has ended, or runs elsewhere."""
    if not on_this_machine(worker) or not is_locked(folder / _FOLDER / worker):
        return None
    return int(worker.split("-")[1])


def wait_for_earlier_workers(folder: Path, seconds: float) -> None:
    """Waits until an earlier run's workers on this machine have finished their step, `seconds` at most."""
    until = time.monotonic() + seconds
    for path in (folder / _FOLDER).glob(f"{_machine()}-*"):
        while is_locked(path) and time.monotonic() < until:
            time.sleep(0.1)
        if not is_locked(path):
            path.unlink(missing_ok=True)


def _machine() -> str:
    """This machine since its last start, as every process on it sees it, in whatever container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13].replace("-", "")
    except OSError:
        return socket.gethostname().replace("-", "_")
