"""Which of a sweep's workers are alive: by locks on the same machine, by heartbeats on other machines.

A worker holds a lock on its own file, which the kernel releases however the process ends. A worker on another machine
increments its heartbeat in the study, and is dead once the heartbeat has not changed for `LEASE` seconds. The observer
measures these seconds with its own clock: clocks of different machines are never compared.
"""

import contextlib
import os
import socket
import time
import uuid
from pathlib import Path

from lrsweep.files.atomic import disk_faults
from lrsweep.files.locks import exclusive, is_locked

# Seconds without a heartbeat after which a worker on another machine is dead, and seconds between two heartbeats.
LEASE, BEAT_EVERY = 60.0, 10.0

_FOLDER = ".workers"


def new_worker_name() -> str:
    """A name that no other worker has or had: the machine's boot id, the process id, and random digits."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Liveness:
    """Shows others that this worker is alive, until `close`, and checks which other workers are.

    Args:
        folder: The sweep's folder.
        worker: This worker's name.

    Attributes:
        worker: This worker's name.

    Raises:
        StorageError: The lock file cannot be created.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.worker = worker
        self._folder = folder / _FOLDER
        # For each worker on another machine: its last heartbeat, and when that was first seen.
        self._beats: dict[str, tuple[int, float]] = {}
        self._lock = contextlib.ExitStack()
        with disk_faults(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(exclusive(self._folder / worker))

    def close(self) -> None:
        """Releases the lock: this worker has ended."""
        with contextlib.suppress(OSError):
            (self._folder / self.worker).unlink(missing_ok=True)
        self._lock.close()

    def is_dead(self, worker: str, beats: int) -> bool:
        """Returns whether a worker has ended.

        Args:
            worker: Its name.
            beats: Its heartbeat in the study now.
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
    """Returns whether a worker ran on this machine since the machine's last boot."""
    return worker.startswith(f"{_machine()}-")


def local_pid(folder: Path, worker: str) -> int | None:
    """The process id of a worker of the sweep in `folder`; None if it has ended, or runs on another machine."""
    if not on_this_machine(worker) or not is_locked(folder / _FOLDER / worker):
        return None
    return int(worker.split("-")[1])


def wait_for_earlier_workers(folder: Path, seconds: float) -> None:
    """Waits at most `seconds` until the workers that an earlier run left on this machine have ended."""
    until = time.monotonic() + seconds
    for path in (folder / _FOLDER).glob(f"{_machine()}-*"):
        while is_locked(path) and time.monotonic() < until:
            time.sleep(0.1)
        if not is_locked(path):
            path.unlink(missing_ok=True)


def _machine() -> str:
    """An id of this machine's last boot, which is the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13].replace("-", "")
    except OSError:
        return socket.gethostname().replace("-", "_")
