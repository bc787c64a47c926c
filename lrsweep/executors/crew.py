"""What all executors with worker processes have in common: workers that die are replaced."""

import logging
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from lrsweep.errors import LrsweepError, WorkerError
from lrsweep.study import Study

log = logging.getLogger(__name__)

# Workers that may die one after another before any of them has got to a trial.
_FRUITLESS = 3


@dataclass(frozen=True)
class Ending:
    """How a worker's process ended, in words that can be sent from one machine to another.

    `said` is the end of its stderr. `outside`: somebody else ended it, and no trial of it comes to that by itself. `fault` is
    one that it has told, with its exit code.
    """

    reason: str
    said: str = ""
    outside: bool = False
    fault: str | None = None
    exit_code: int = 0

    def check(self) -> None:
        """Raises the fault that the worker has told."""
        if self.fault is not None:
            raise told(self.fault, self.exit_code)


class Hand(Protocol):
    """One worker, wherever its process is."""

    @property
    def name(self) -> str:
        """The worker's name in the study; empty where that is not known yet."""

    def go(self) -> None:
        """Has it work."""

    def running(self) -> bool:
        """Whether it has not ended yet."""

    def ending(self) -> Ending:
        """How it ended."""

    def send(self, signum: signal.Signals) -> None:
        """Signals the process, if it runs."""

    def close(self) -> None:
        """Lets it end, which it does by itself; one that does not is made to."""


class Crew(ABC):
    """The workers of an executor, `count` of them; an executor besides knows how to prepare."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._workers: list[Hand] = []
        self._stopped = False
        self._fruitless = 0
        self._ended = 0

    @abstractmethod
    def _spawn(self, index: int) -> Hand:
        """A new worker in the place `index`."""

    def start(self, study: Study) -> None:
        self._study = study
        self._workers += [self._spawn(i) for i in range(len(self._workers), self._count)]
        for worker in self._workers:
            worker.go()

    def tend(self) -> list[str]:
        said = []
        for i, worker in enumerate(self._workers):
            if self._stopped or worker.running():
                continue
            ending = worker.ending()
            ending.check()
            said.append(f"a worker died{self._mourn(worker.name, ending)}; another one goes on")
            worker.close()
            self._workers[i] = self._spawn(i)
            self._workers[i].go()
        return said

    def _mourn(self, name: str, ending: Ending) -> str:
        """Notes a death; answers what it was busy with, and why it died. Raises WorkerError where none stays alive."""
        log.error("a worker died: %s\n%s", ending.reason, ending.said)
        had = [seen for seen in self._study.trials() if seen.claim is not None and seen.claim[0] == name != ""]
        busy = [str(seen.number) for seen in had if seen.record is None]
        # What somebody else kills says nothing of the trials.
        if name and not ending.outside:
            self._study.note_death(name, ending.reason)
        ended = len(self._study.records())
        self._fruitless = 0 if had or ended > self._ended else self._fruitless + 1
        self._ended = ended
        if self._fruitless == _FRUITLESS:
            raise WorkerError(f"{_FRUITLESS} workers died before they had a trial; the last one: {ending.reason}")
        trials = f" with trial{'s' if len(busy) > 1 else ''} {', '.join(busy)}" if busy else ""
        return f"{trials}: {ending.reason}"

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


def told(fault: str, exit_code: int) -> LrsweepError:
    """The fault that a worker has told, as it was before it was sent."""
    error = LrsweepError(fault)
    error.exit_code = exit_code
    return error
