"""What all executors with worker processes have in common: workers that die are replaced."""

import logging
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from lrsweep.errors import LrsweepError, WorkerError
from lrsweep.search.controller_study import ControllerStudy

log = logging.getLogger(__name__)

# So many workers may die one after another before any of them has a trial.
_FRUITLESS = 3


@dataclass(frozen=True)
class WorkerResult:
    """How a worker's process ended, as plain data that can be sent from one machine to another.

    Attributes:
        reason: In words.
        stderr: The end of its stderr.
        outside: Whether someone else ended it: no trial of it caused that.
        fault: An error that it reported itself.
        exit_code: That error's exit code.
    """

    reason: str
    stderr: str = ""
    outside: bool = False
    fault: str | None = None
    exit_code: int = 0

    def check(self) -> None:
        """Raises the error that the worker reported."""
        if self.fault is not None:
            raise reported(self.fault, self.exit_code)


class WorkerHandle(Protocol):
    """One worker, wherever its process is."""

    @property
    def name(self) -> str:
        """The worker's name in the study; empty where that is not known yet."""

    def start(self) -> None:
        """Has it work."""

    def running(self) -> bool:
        """Whether it has not ended yet."""

    def result(self) -> WorkerResult:
        """How it ended."""

    def send(self, signum: signal.Signals) -> None:
        """Signals the process, if it runs."""

    def close(self) -> None:
        """Waits for it to end, which it does by itself; one that does not is killed."""


class WorkerPool(ABC):
    """An executor's workers. An executor adds how to prepare, and how to start one.

    Args:
        count: How many workers.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[WorkerHandle] = []
        self._stopped = False
        self._fruitless = 0
        self._ended = 0

    @abstractmethod
    def _spawn(self, index: int) -> WorkerHandle:
        """A new worker in the place `index`."""

    def start(self, study: ControllerStudy) -> None:
        self._study = study
        self._workers += [self._spawn(i) for i in range(len(self._workers), self._count)]
        for worker in self._workers:
            worker.start()

    def replace_dead(self) -> list[str]:
        lines = []
        for i, worker in enumerate(self._workers):
            if self._stopped or worker.running():
                continue
            result = worker.result()
            result.check()
            lines.append(f"a worker died{self._record_death(worker.name, result)}; started another")
            worker.close()
            self._workers[i] = self._spawn(i)
            self._workers[i].start()
        return lines

    def _record_death(self, name: str, result: WorkerResult) -> str:
        """Notes a death; returns its trials and the reason. Raises WorkerError where no worker stays alive."""
        log.error("a worker died: %s\n%s", result.reason, result.stderr)
        had = [view for view in self._study.trials() if view.claim is not None and view.claim.worker == name != ""]
        running = [str(view.number) for view in had if view.record is None]
        # What someone else kills says nothing about the trials.
        if name and not result.outside:
            self._study.record_death(name, result.reason)
        ended = len(self._study.records())
        self._fruitless = 0 if had or ended > self._ended else self._fruitless + 1
        self._ended = ended
        if self._fruitless == _FRUITLESS:
            raise WorkerError(f"{_FRUITLESS} workers died before they had a trial; the last one: {result.reason}")
        trials = f" with trial{'s' if len(running) > 1 else ''} {', '.join(running)}" if running else ""
        return f"{trials}: {result.reason}"

    def stop(self) -> None:
        self._stopped = True
        for worker in self._workers:
            worker.send(signal.SIGTERM)

    def running(self) -> bool:
        return any(worker.running() for worker in self._workers)

    def kill(self) -> None:
        for worker in self._workers:
            worker.send(signal.SIGKILL)

    def end(self) -> None:
        for worker in self._workers:
            worker.close()


def reported(fault: str, exit_code: int) -> LrsweepError:
    """The error that a worker reported, as it was before it was sent."""
    error = LrsweepError(fault)
    error.exit_code = exit_code
    return error
