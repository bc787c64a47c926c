"""Worker processes on this machine. One that dies is replaced; what it was training goes on from its checkpoints."""

import os

from lrsweep import machine
from lrsweep.config import SweepConfig
from lrsweep.executors.crew import Crew
from lrsweep.executors.process import Process, order
from lrsweep.tracking import DatasetInfo


class Local(Crew):
    """The executor `local`.

    The first worker does the preparing: the process that keeps the sweep never loads a model.
    """

    def __init__(self, config: SweepConfig) -> None:
        devices = machine.gpus() if config.engine.name != "external" else []
        wanted = config.executor.workers
        super().__init__((len(devices) or 1) if wanted == "auto" else wanted)
        self._config = config
        self._devices = devices if self._count > 1 else []

    def prepare(self, look: bool) -> DatasetInfo:
        first = self._spawn(0, look)
        self._workers.append(first)
        return first.prepared()

    def _spawn(self, index: int, look: bool = False) -> Process:
        environment = dict(os.environ)
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[index % len(self._devices)]
        elif self._count > 1 and not machine.gpus():
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._count)))
        return Process(order(self._config, look), environment)
