"""The executor `inline`: one worker, in a thread of this process. For debuggers, notebooks and tests."""

import threading
from collections.abc import Callable

from lrsweep.config import search_space
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import WorkerError
from lrsweep.files.paths import SweepFolder
from lrsweep.orchestration.executors.phases import PhaseHandler, Phases
from lrsweep.orchestration.liveness import Liveness, new_worker_name
from lrsweep.orchestration.preflight import prepare
from lrsweep.orchestration.worker import Worker, work
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.study_lifecycle import join_study
from lrsweep.tracking import DatasetInfo


class InlineExecutor:
    """One worker in a thread of this process. It cannot be replaced: its error ends the sweep.

    Args:
        config: The sweep's config.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._axes = search_space.axes(config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lrsweep-worker", daemon=True)
        self._fault: BaseException | None = None
        self._phases = Phases()

    def prepare(self, look: bool, note: Callable[[str], None]) -> DatasetInfo:
        """Checks everything in this process, and builds the engine."""
        self._engine, self._dataset = prepare(self._config, self._axes, look=look)
        return self._dataset

    def start(self, study: ControllerStudy) -> None:
        """Starts the thread."""
        self._thread.start()

    def _work(self) -> None:
        folder = SweepFolder(self._config.name)
        try:
            liveness = Liveness(folder.path, new_worker_name())
            try:
                study = join_study(self._config, self._axes, folder.path, self._dataset.fingerprint, liveness)
                with PhaseHandler(self._phases.begin):
                    work(Worker(self._config, folder, study, self._stop), self._engine)
            finally:
                liveness.close()
        except BaseException as fault:  # raised again in the controller's thread
            self._fault = fault

    def replace_dead(self) -> list[str]:
        """What takes long. Raises the thread's error if it has ended; there is nothing to replace."""
        if not self._thread.is_alive():
            raise self._fault or WorkerError("the worker has ended, but trials are left")
        return self._phases.news()

    def stop(self) -> None:
        """Asks the thread to finish its step, checkpoint and end."""
        self._stop.set()

    def running(self) -> bool:
        """Returns whether the thread runs."""
        return self._thread.is_alive()

    def kill(self) -> None:
        """Does the same as `stop`: a thread cannot be killed, but ends with the process."""
        self._stop.set()

    def end(self) -> None:
        """Stops the thread and waits for its end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
