"""Workers as Ray actors, on a Ray started here or on an existing cluster. Each actor has one process.

What goes to an actor and comes back is text: only the actor class's name is pickled.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrsweep import hardware
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError, LrsweepError, StorageError, WorkerError
from lrsweep.files.paths import SweepFolder
from lrsweep.orchestration.executors.worker_pool import WorkerPool, WorkerResult
from lrsweep.orchestration.executors.worker_process import FAREWELL, WorkerProcess, worker_request
from lrsweep.tracking import DatasetInfo

log = logging.getLogger(__name__)

# Older ones let whoever reaches their ports run what they like (CVE-2026-27482).
_OLDEST = (2, 54)
# Seconds until a folder made on one machine is seen on another.
_VISIBLE_AFTER = 30.0


class RayExecutor(WorkerPool):
    """The executor `ray`. The first actor does the preparing: this machine may have no GPU.

    A node that is lost takes its actors with it; new ones are placed wherever there is room.
    """

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(1)
        self._config = config
        self._ray: Any = None
        self._actor: Any = None
        self._environment = contextlib.ExitStack()

    def prepare(self, look: bool) -> DatasetInfo:
        self._connect()
        first = self._spawn(0, look)
        self._workers.append(first)
        return first.prepared()

    def _connect(self) -> None:
        """Connects to the cluster, or starts one. Raises InputError."""
        wanted = self._config.executor
        # Before Ray is imported: it reads them then.
        options = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        if wanted.address is None:
            # A token of its own, and ports that only this machine reaches. Ray named the variable after the systems where it
            # does so anyway.
            options["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options = {name: value for name, value in options.items() if name not in os.environ}
        if wanted.address is None:
            options["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        self._environment.enter_context(_environment(options))
        try:
            import ray
        except ImportError:
            raise InputError("executor=ray: Ray is not installed; pip install 'lrsweep[ray]'") from None
        if tuple(int(part) for part in ray.__version__.split(".")[:2]) < _OLDEST:
            raise InputError(f"executor=ray: Ray {ray.__version__} is not safe; pip install -U 'lrsweep[ray]'")
        count = 1 if wanted.workers == "auto" else wanted.workers
        own = {"num_cpus": max(hardware.cpu_count(), count * wanted.cpus_per_worker), "include_dashboard": False}
        init = own if wanted.address is None else {}
        try:
            with _without_stderr():
                ray.init(wanted.address or "local", log_to_driver=False, logging_level=logging.ERROR, **init)
        except (ConnectionError, RuntimeError, ValueError, TypeError, ray.exceptions.RayError) as fault:
            log.exception("no Ray")
            raise InputError(_unreachable(wanted.address, fault)) from None
        self._ray = ray
        self._set_resources(ray)

    def _set_resources(self, ray: Any) -> None:
        """How many workers, and what each gets. Raises InputError for what no node has."""
        wanted = self._config.executor
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        each = (1 if gpus else 0) if wanted.gpus_per_worker == "auto" else wanted.gpus_per_worker
        for key, name, amount in (("gpus", "GPU", each), ("cpus", "CPU", wanted.cpus_per_worker)):
            most = max((int(node.get(name, 0)) for node in nodes), default=0)
            if amount > most:
                raise InputError(f"executor.{key}_per_worker={amount}: no node of the cluster has more than {most}")
        self._count = max(1, gpus // each if each else 1) if wanted.workers == "auto" else wanted.workers
        self._actor = ray.remote(
            num_cpus=wanted.cpus_per_worker,
            num_gpus=each,
            max_restarts=0,
            max_concurrency=4,
            scheduling_strategy="SPREAD",
        )(WorkerActor)

    def _spawn(self, index: int, look: bool = False) -> "_ActorHandle":
        request = worker_request(self._config, look)
        return _ActorHandle(self._ray, self._actor.remote(str(Path.cwd()), request, self._config.name))

    def end(self) -> None:
        super().end()
        if self._ray is not None:
            self._ray.shutdown()
        self._environment.close()


class WorkerActor:
    """What runs on a node: an actor around a worker's process, which answers whatever becomes of the process.

    Args:
        folder: The working folder.
        request: See `worker_request`.
        name: The sweep's name.
    """

    def __init__(self, folder: str, request: str, name: str) -> None:
        self._started = threading.Event()
        self._fault: LrsweepError | None = None
        self._name = name
        try:
            os.chdir(folder)
        except OSError as fault:
            self._fault = InputError(
                f"executor=ray: the node {socket.gethostname()} has no {folder} ({fault.strerror}): every worker needs the "
                "folder that lrsweep runs in; run it in a folder that all nodes share"
            )
            return
        self._process = WorkerProcess(request, os.environ)

    def name(self) -> str:
        """The worker's name in the study."""
        return self._process.name if self._fault is None else ""

    def prepared(self) -> str:
        """The dataset, or a fault, as JSON."""
        try:
            if self._fault is not None:
                raise self._fault
            return json.dumps({"dataset": asdict(self._process.prepared())})
        except LrsweepError as fault:
            return json.dumps({"fault": str(fault), "exit_code": fault.exit_code})

    def start(self) -> None:
        """Has the worker work."""
        self._started.set()

    def result(self) -> str:
        """How the worker ended, as JSON; waits for it."""
        while self._fault is None and self._process.running():
            if self._started.wait(0.1):
                self._begin()
                break
        while self._fault is None and self._process.running():
            time.sleep(0.1)
        if self._fault is not None:
            return json.dumps(asdict(WorkerResult("", fault=str(self._fault), exit_code=self._fault.exit_code)))
        return json.dumps(asdict(self._process.result()))

    def _begin(self) -> None:
        until = time.monotonic() + _VISIBLE_AFTER
        while not SweepFolder(self._name).path.is_dir():
            if time.monotonic() > until:
                self._fault = StorageError(
                    f"executor=ray: the node {socket.gethostname()} does not see {SweepFolder(self._name).path.absolute()}, "
                    "which lrsweep has created; run it in a folder that all nodes share"
                )
                return
            time.sleep(0.2)
        self._process.start()

    def send(self, signum: int) -> None:
        """Signals the worker's process."""
        if self._fault is None:
            self._process.send(signal.Signals(signum))

    def close(self) -> None:
        """Returns when the worker's process has ended."""
        if hasattr(self, "_process"):
            self._process.close()


class _ActorHandle:
    """A worker in an actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor
        self._name = actor.name.remote()
        self._result = actor.result.remote()

    @property
    def name(self) -> str:
        return str(self._answer(self._name, 0.0) or "")

    def prepared(self) -> DatasetInfo:
        """Waits until the actor has a place and the worker has looked at everything. Raises what it found."""
        text = self._answer(self._actor.prepared.remote(), None)
        if text is None:
            raise WorkerError(f"the actor that checks model and data died: {self.result().reason}")
        answer = json.loads(text)
        if "fault" in answer:
            WorkerResult("", fault=answer["fault"], exit_code=answer["exit_code"]).check()
        return DatasetInfo(**answer["dataset"])

    def start(self) -> None:
        self._actor.start.remote()

    def running(self) -> bool:
        ready, _ = self._ray.wait([self._result], timeout=0)
        return not ready

    def result(self) -> WorkerResult:
        try:
            return WorkerResult(**json.loads(self._ray.get(self._result)))
        except self._ray.exceptions.RayError as fault:
            text = str(fault)
            said = [line.strip() for line in text.splitlines() if line.strip()]
            # Memory that runs out is the worker's own doing; a node that is lost is not.
            return WorkerResult(said[0] if said else type(fault).__name__, text, outside="memory" not in text.lower())

    def send(self, signum: signal.Signals) -> None:
        # An actor without a name waits for a place, which may never come.
        if signum == signal.SIGKILL or not self.name:
            self._ray.kill(self._actor)
        else:
            self._actor.send.remote(int(signum))

    def close(self) -> None:
        # Ray kills an actor with all its children, whatever they are at; one without a name has no place yet.
        if self.name:
            self._answer(self._actor.close.remote(), FAREWELL)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)

    def _answer(self, reference: Any, seconds: float | None) -> Any:
        """What a call answers; None where the actor is dead, or has no answer within `seconds`."""
        try:
            return self._ray.get(reference, timeout=seconds)
        except self._ray.exceptions.RayError:
            return None


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables; on leaving, they are as before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Ray's core writes there by itself; what it has to say comes as an exception too."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _unreachable(address: str | None, fault: BaseException) -> str:
    said = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
    if address is None:
        return f"executor=ray: no Ray could be started here: {said}"
    chain = [fault, *(cause for cause in (fault.__cause__, fault.__context__) if cause is not None)]
    if any("authenti" in f"{type(link).__name__} {link}".lower() for link in chain):
        return (
            f"executor.address={address}: the cluster does not take this token; put its own into RAY_AUTH_TOKEN or "
            "~/.ray/auth_token (a cluster without one lets anybody who reaches it run code: RAY_AUTH_MODE=disabled if it is "
            "to be so)"
        )
    return f"executor.address={address}: no Ray cluster answers there: {said}"
