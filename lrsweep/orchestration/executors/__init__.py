"""Executors: where a sweep's workers run. Each worker is a process, or a thread, that runs `worker.work` on the study.

To add an executor, write a class with the methods of `Executor` and add it to `factory.EXECUTORS` under the name that
`executor.name` gives it. If its workers are processes, derive the class from `WorkerPool` (`worker_pool.py`), which
replaces dead workers: the class then adds only `prepare` and `_spawn`.
"""

from collections.abc import Callable
from typing import Protocol

from lrsweep.search.controller_study import ControllerStudy
from lrsweep.tracking import DatasetInfo


class Executor(Protocol):
    """A sweep's workers, as the controller sees them.

    The controller calls `prepare` once, then `start` once, then `replace_dead` about twice a second until the sweep is
    complete, and `end` last. If the sweep is interrupted or fails, it calls `stop` and waits until `running` is False
    before `end`. Workers end by themselves once the study is closed. Errors are LrsweepErrors; their text is one line.
    """

    def prepare(self, look: bool, note: Callable[[str], None]) -> DatasetInfo:
        """Checks everything that the trials need. Called before anything is created; creates no files.

        Args:
            look: Also check the gradients, which loads the model.
            note: Shows a line on the terminal: what takes long.

        Returns:
            The facts about the data. Every worker has to see the same data.

        Raises:
            InputError: The config, the model or the data are invalid.
            WorkerError: The process that checks them died.
        """

    def start(self, study: ControllerStudy) -> None:
        """Starts the workers, which join the study. Does not wait for them.

        Args:
            study: The sweep's study, which exists by now. The executor records the deaths of workers in it.
        """

    def replace_dead(self) -> list[str]:
        """Starts a new worker in place of each one that died. Does not wait.

        Returns:
            Lines for the terminal: about each replaced worker, and what takes long.

        Raises:
            LrsweepError: A worker reported an error that other workers would meet too, or workers keep dying.
        """

    def stop(self) -> None:
        """Asks the workers to finish their step, checkpoint and end. Does not wait for them."""

    def running(self) -> bool:
        """Returns whether any worker runs."""

    def kill(self) -> None:
        """Ends the workers at once. Called from a signal handler, so it must not wait for them."""

    def end(self) -> None:
        """Waits until all workers have ended, and frees their resources. Also called if `prepare` or `start` failed."""


__all__ = ["Executor"]
