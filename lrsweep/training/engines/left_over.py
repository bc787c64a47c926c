"""Ends the commands of `engine=external` that would outlive their worker.

A worker that is killed cannot end its commands, so a process beside it does, whose program this file is too. It
reads from a pipe that ends with the worker, whatever ends that.
"""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

# Environment variables that hold a trial's folder and its engine's name; a command and its subprocesses inherit them.
TRIAL, ENGINE = "LRSWEEP_TRIAL", "LRSWEEP_ENGINE"
# Seconds that a killed process may take to vanish, and seconds between two looks.
_GRACE, _POLL_EVERY = 10.0, 0.02


class Guard:
    """A process that kills an engine's commands, with all their subprocesses, once the engine's process has ended.

    Attributes:
        environment: What the commands' environment must hold.
    """

    def __init__(self) -> None:
        name = f"{os.getpid()}-{uuid.uuid4().hex}"
        self.environment = {ENGINE: name}
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Has a command ended that may hide its environment: the process and its group."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # somebody has killed it
            self._process.stdin.write(f"{pid}\n".encode())
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends it. The commands have ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def end_left_over(folder: Path) -> list[int]:
    """Kills the commands on this machine that outlived their workers, with all their subprocesses.

    They are recognised by their environment: a record on disk would come too late for a worker that is killed just
    after it has started one.

    Args:
        folder: A trial's folder, or a sweep's for all its trials.

    Returns:
        The ids of those that still run: another user's, or the kernel's wait for a disk keeps them.
    """
    inside = str(folder.resolve())
    return _kill_all(TRIAL, lambda own: own == inside or own.startswith(f"{inside}{os.sep}"))


def _kill_all(variable: str, ours: Callable[[str], bool]) -> list[int]:
    """Kills the processes whose environment has such a value, and those that they start meanwhile."""
    until = time.monotonic() + _GRACE
    while True:
        alive = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                # A zombie is as good as gone, and its parent may never collect it.
                if ours(process.environ().get(variable, "")) and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process.pid)
                    process.kill()
        # A process that is still alive could write into the logs of the next attempt.
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(_POLL_EVERY)


def _guard(name: str) -> None:
    commands = []
    for line in sys.stdin:
        # Found now, the process is not mistaken for a later one with its id.
        with contextlib.suppress(psutil.Error):
            commands.append(psutil.Process(int(line)))
    for command in commands:
        with contextlib.suppress(psutil.Error, OSError):
            if command.is_running():
                for process in command.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                os.killpg(command.pid, 9)
    _kill_all(ENGINE, lambda own: own == name)


if __name__ == "__main__":
    _guard(sys.argv[1])
