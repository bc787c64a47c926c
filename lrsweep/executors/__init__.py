"""Where a sweep's workers run. Each is a process, or a thread, running `worker.work` on the shared study."""

from typing import Protocol

from lrsweep.study import Study
from lrsweep.tracking import DatasetInfo


class Executor(Protocol):
    """A sweep's workers, for the process that keeps the sweep."""

    def prepare(self, look: bool) -> DatasetInfo:
        """Looks at everything that trials will need, before anything is created; `look` has gradients looked at too.

        Raises InputError.
        """

    def start(self, study: Study) -> None:
        """Starts the workers on the study, which is there by now."""

    def tend(self) -> list[str]:
        """Puts new workers in the place of those that died; answers what there is to say of it.

        Raises the fault that ended a worker, where another one would have it too.
        """

    def stop(self) -> None:
        """Asks the workers to finish their step, checkpoint and end."""

    def running(self) -> bool:
        """Whether any worker runs."""

    def kill(self) -> None:
        """Ends them at once."""

    def end(self) -> None:
        """Returns when no worker is left; also where none was ever started."""


__all__ = ["Executor"]
