"""What all executors with worker processes have in common: the first one prepares, and one that dies is replaced."""

import logging
import signal
from abc import ABC, abstractmethod
from typing import Protocol

from lrsweep.errors import LrsweepError, WorkerError
from lrsweep.study import Study
from lrsweep.tracking import DatasetInfo

log = logging.getLogger(__name__)

# Workers that may die one after another before any of them has got to a trial.
_FRUITLESS = 3


class Hand(Protocol):
    """One worker, wherever its process is."""

    name: str
    seen_off: bool

    def prepared(self) -> DatasetInfo:
        """Waits until the worker has looked at everything. Raises what it found, or WorkerError."""

    def go(self) -> None:
        """Has it work."""

    def running(self) -> bool:
        """Whether it has not ended yet."""

    def fault(self) -> LrsweepError | None:
        """The fault that it has ended with, if it has said one."""

    def reason(self) -> str:
        """Why it died."""

    def said(self) -> str:
        """The end of what it wrote to stderr."""

    def killed_from_outside(self) -> bool:
        """Whether somebody else ended it: no trial of it comes to that by itself."""

    def send(self, signum: signal.Signals) -> None:
        """Signals the process, if it runs."""

    def close(self) -> None:
        """Lets it end, which it does by itself; one that does not is made to."""


class Crew(ABC):
    """An executor of `count` workers.

    The first of them does the preparing: the process that keeps the sweep never loads a model.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[Hand] = []
        self._stopped = False
        self._fruitless = 0
        self._ended = 0

    @abstractmethod
    def _spawn(self, index: int, look: bool) -> Hand:
        """A new worker in the place `index`."""

    def prepare(self, look: bool) -> DatasetInfo:
        first = self._spawn(0, look)
        self._workers.append(first)
        return first.prepared()

    def start(self, study: Study) -> None:
        self._study = study
        self._workers += [self._spawn(i, look=False) for i in range(len(self._workers), self._count)]
        for worker in self._workers:
            worker.go()

    def tend(self) -> list[str]:
        said = []
        for i, worker in enumerate(self._workers):
            if worker.running() or worker.seen_off:
                continue
            worker.seen_off = True
            fault = worker.fault()
            if fault is not None:
                raise fault
            if self._stopped:
                continue
            said.append(f"a worker died{self._mourn(worker)}; another one goes on")
            worker.close()
            self._workers[i] = self._spawn(i, look=False)
            self._workers[i].go()
        return said

    def _mourn(self, worker: Hand) -> str:
        """Notes a death; answers what it was busy with, and why it died. Raises WorkerError where none stays alive."""
        reason = worker.reason()
        log.error("a worker died: %s\n%s", reason, worker.said())
        had = [seen for seen in self._study.trials() if seen.claim is not None and seen.claim[0] == worker.name]
        busy = [seen.number for seen in had if seen.record is None]
        # What somebody else kills says nothing of the trials.
        if not worker.killed_from_outside():
            self._study.note_death(worker.name, reason)
        ended = len(self._study.records())
        self._fruitless = 0 if had or ended > self._ended else self._fruitless + 1
        self._ended = ended
        if self._fruitless == _FRUITLESS:
            raise WorkerError(f"{_FRUITLESS} workers died before they had a trial; the last one: {reason}")
        plural = "s" if len(busy) > 1 else ""
        return f" with trial{plural} {', '.join(map(str, busy))}: {reason}" if busy else f": {reason}"

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
