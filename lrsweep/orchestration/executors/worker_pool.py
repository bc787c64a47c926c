"""The base of all executors with worker processes: it starts, replaces and stops workers.

An executor derives from WorkerPool and adds `prepare` and `_spawn`. `_spawn` returns a WorkerHandle, the pool's only
access to a worker; `WorkerProcess` is the handle of a process on this machine (`local.py`). To run a worker elsewhere,
start a WorkerProcess there, and write a handle that talks to it (`ray.py`, `slurm_job.py`).
"""

import logging
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from lrsweep.errors import LrsweepError, UnexpectedError, WorkerError
from lrsweep.search.controller_study import ControllerStudy

log = logging.getLogger(__name__)

# The sweep ends once this many workers have died one after another without getting a trial.
_MOST_DEATHS_WITHOUT_TRIAL = 3


@dataclass(frozen=True)
class WorkerResult:
    """How a worker ended, as plain data that can be sent between machines.

    Attributes:
        reason: The reason, as text for the terminal.
        stderr: The end of its stderr, for the log.
        outside: Whether someone else ended it, so that its trials are hardly the cause.
        fault: The error that it reported before it ended; None if it died.
        exit_code: The error's exit code.
        traceback: The error's traceback, if no code expected it.
    """

    reason: str
    stderr: str = ""
    outside: bool = False
    fault: str | None = None
    exit_code: int = 0
    traceback: str = ""

    def check(self) -> None:
        """Raises the error that the worker reported, if it did."""
        if self.fault is not None:
            raise reported(self.fault, self.exit_code, self.traceback)


class WorkerHandle(Protocol):
    """One worker, wherever its process runs. `running` is called about twice a second."""

    @property
    def name(self) -> str:
        """The worker's name in the study; empty as long as it is not known.

        With a name, the pool can record which trials a dead worker had.
        """

    def start(self) -> None:
        """Tells the worker to train. Does not wait."""

    def running(self) -> bool:
        """Returns whether the worker has not ended yet; one that waits for its turn counts as running."""

    def news(self) -> list[str]:
        """Lines for the terminal about what the worker does, if it takes long; empty if that is not known."""

    def result(self) -> WorkerResult:
        """How the worker ended. Called once it does not run any more."""

    def send(self, signum: signal.Signals) -> None:
        """Sends the worker a signal if it runs: SIGTERM asks it to checkpoint and end, SIGKILL ends it at once."""

    def close(self) -> None:
        """Waits until the worker has ended by itself, kills it if it takes too long, and frees its resources."""


class WorkerPool(ABC):
    """The workers of an executor; the base class of executors, which adds all methods of `Executor` but `prepare`.

    `prepare` may put the worker that does the preparing into `_workers`; `start` spawns the others.

    Args:
        count: The number of workers.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[WorkerHandle] = []
        self._stopped = False
        self._deaths_without_trial = 0
        # The number of ended trials at the last death.
        self._ended = 0

    @abstractmethod
    def _spawn(self, index: int) -> WorkerHandle:
        """Creates a worker that is ready for `start`.

        Args:
            index: The worker's index, from 0; a replacement has the index of the dead worker. It can select a GPU.
        """

    def start(self, study: ControllerStudy) -> None:
        """Spawns the missing workers and starts all."""
        self._study = study
        self._workers += [self._spawn(i) for i in range(len(self._workers), self._count)]
        for worker in self._workers:
            worker.start()

    def replace_dead(self) -> list[str]:
        """Replaces dead workers, until `stop` is called.

        Returns:
            Lines for the terminal: about each replaced worker, and what takes long.

        Raises:
            WorkerError: Workers keep dying before they get a trial.
            LrsweepError: A worker reported an error.
        """
        lines: list[str] = []
        for i, worker in enumerate(self._workers):
            if self._stopped or worker.running():
                # Several workers do the same at the same time.
                lines += [line for line in worker.news() if line not in lines]
                continue
            result = worker.result()
            result.check()
            lines.append(f"a worker died{self._record_death(worker.name, result)}; started another")
            worker.close()
            self._workers[i] = self._spawn(i)
            self._workers[i].start()
        return lines

    def _record_death(self, name: str, result: WorkerResult) -> str:
        """Records a death in the log and the study; returns the worker's trials and the reason as text.

        Raises:
            WorkerError: Workers keep dying before they get a trial.
        """
        log.error("a worker died: %s\n%s", result.reason, result.stderr)
        had = [view for view in self._study.trials() if view.claim is not None and view.claim.worker == name != ""]
        running = [str(view.number) for view in had if view.record is None]
        if name:
            self._study.record_death(name, result.reason, killed=result.outside)
        ended = len(self._study.records())
        self._deaths_without_trial = 0 if had or ended > self._ended else self._deaths_without_trial + 1
        self._ended = ended
        if self._deaths_without_trial == _MOST_DEATHS_WITHOUT_TRIAL:
            raise WorkerError(
                f"{_MOST_DEATHS_WITHOUT_TRIAL} workers died before they had a trial; the last one: {result.reason}"
            )
        trials = f" with trial{'s' if len(running) > 1 else ''} {', '.join(running)}" if running else ""
        return f"{trials}: {result.reason}"

    def stop(self) -> None:
        """Asks all workers to checkpoint and end; none is replaced any more."""
        self._stopped = True
        for worker in self._workers:
            worker.send(signal.SIGTERM)

    def running(self) -> bool:
        """Returns whether any worker runs."""
        return any(worker.running() for worker in self._workers)

    def kill(self) -> None:
        """Kills all workers."""
        for worker in self._workers:
            worker.send(signal.SIGKILL)

    def end(self) -> None:
        """Waits until all workers have ended."""
        for worker in self._workers:
            worker.close()


def reported(fault: str, exit_code: int, traceback: str = "") -> LrsweepError:
    """An error that a worker reported, restored from its text, its exit code and, if unexpected, its traceback."""
    error = UnexpectedError(fault, traceback) if traceback else LrsweepError(fault)
    error.exit_code = exit_code
    return error
