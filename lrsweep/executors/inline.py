"""One worker, a thread of this process: for debuggers, notebooks and tests."""

import threading

from lrsweep import space
from lrsweep.config import SweepConfig
from lrsweep.errors import WorkerError
from lrsweep.outputs import SweepFolder
from lrsweep.prepare import prepare
from lrsweep.presence import Presence, new_worker
from lrsweep.studies import join_study
from lrsweep.study import Study
from lrsweep.tracking import DatasetInfo
from lrsweep.worker import Worker, work


class Inline:
    """The executor `inline`."""

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        self._axes = space.axes(config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lrsweep-worker", daemon=True)
        self._fault: BaseException | None = None

    def prepare(self, look: bool) -> DatasetInfo:
        self._engine, self._dataset = prepare(self._config, self._axes, look=look)
        return self._dataset

    def start(self, study: Study) -> None:
        self._thread.start()

    def _work(self) -> None:
        folder = SweepFolder(self._config.name)
        try:
            presence = Presence(folder.path, new_worker())
            try:
                study = join_study(self._config, self._axes, folder.path, self._dataset.fingerprint, presence)
                work(Worker(self._config, folder, study, self._stop), self._engine)
            finally:
                presence.close()
        except BaseException as fault:  # told to the keeper
            self._fault = fault

    def tend(self) -> list[str]:
        if not self._thread.is_alive():
            raise self._fault or WorkerError("the worker has ended, and trials are left")
        return []

    def stop(self) -> None:
        self._stop.set()

    def running(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        self._stop.set()

    def end(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
