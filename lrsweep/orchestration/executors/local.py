"""The executor `local`: worker processes on this machine."""

import os
from collections.abc import Callable

from lrsweep import hardware
from lrsweep.config.schema import SweepConfig
from lrsweep.orchestration.executors.worker_pool import WorkerPool
from lrsweep.orchestration.executors.worker_process import WorkerProcess, worker_request
from lrsweep.orchestration.preflight import check_files
from lrsweep.tracking import DatasetInfo, import_client


class LocalExecutor(WorkerPool):
    """Worker processes on this machine, one for each GPU by default.

    The first worker does the preparing, so that the controller never loads a model.

    Args:
        config: The sweep's config.
    """

    def __init__(self, config: SweepConfig) -> None:
        devices = hardware.gpus() if config.engine.name != "external" else []
        wanted = config.executor.workers
        super().__init__((len(devices) or 1) if wanted == "auto" else wanted)
        self._config = config
        self._devices = devices if self._count > 1 else []

    def prepare(self, look: bool, note: Callable[[str], None]) -> DatasetInfo:
        """Starts the first worker and waits until it has checked everything."""
        check_files(self._config)
        first = self._spawn(0, look)
        self._workers.append(first)
        import_client(self._config.tracking)  # while the worker imports torch
        return first.prepared(note)

    def _spawn(self, index: int, look: bool = False) -> WorkerProcess:
        environment = dict(os.environ)
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[index % len(self._devices)]
        elif self._count > 1 and not hardware.gpus():
            environment.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cpu_count() // self._count)))
        return WorkerProcess(worker_request(self._config, look), environment)
