"""Where a sweep's workers run. Each is a process, or a thread, running `worker.work` on the same study."""

from typing import Protocol

from lrsweep.search.controller_study import ControllerStudy
from lrsweep.tracking import DatasetInfo


class Executor(Protocol):
    """A sweep's workers, for the process that runs the sweep."""

    def prepare(self, look: bool) -> DatasetInfo:
        """Checks everything that trials will need, before anything is created.

        Args:
            look: Whether to check the gradients too.

        Raises:
            InputError: Something is wrong with config, model or data.
        """

    def start(self, study: ControllerStudy) -> None:
        """Starts the workers on the study, which exists by now."""

    def replace_dead(self) -> list[str]:
        """Starts new workers in place of those that died; returns a line about each.

        Raises:
            LrsweepError: What ended a worker, where another one would meet it too.
        """

    def stop(self) -> None:
        """Asks the workers to finish their step, checkpoint and end."""

    def running(self) -> bool:
        """Whether any worker runs."""

    def kill(self) -> None:
        """Ends the workers at once."""

    def end(self) -> None:
        """Returns when no worker is left; also where none was ever started."""


__all__ = ["Executor"]
