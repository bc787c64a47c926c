"""The executor `ray`: workers in Ray actors, on an existing cluster or on a Ray that is started here.

Each actor has one worker process. Requests and results are sent as JSON: only the actor class's name is pickled.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrsweep import hardware
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError, LrsweepError, StorageError, WorkerError
from lrsweep.files.paths import SweepFolder
from lrsweep.libraries import environment
from lrsweep.orchestration.executors.worker_pool import WorkerPool, WorkerResult
from lrsweep.orchestration.executors.worker_process import END_TIMEOUT, WorkerProcess, worker_request
from lrsweep.tracking import DatasetInfo

log = logging.getLogger(__name__)

# In older versions, everyone who reaches Ray's ports can run code (CVE-2026-27482).
_OLDEST = (2, 54)
# Seconds until a folder that one machine has created is visible on another, on a shared filesystem.
_VISIBLE_AFTER = 30.0


class RayExecutor(WorkerPool):
    """Workers in Ray actors.

    The first actor does the preparing, because this machine may have no GPU. If a node is lost, its actors die, and Ray
    places their replacements on other nodes.

    Args:
        config: The sweep's config.
    """

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(1)
        self._config = config
        self._ray: Any = None
        self._actor: Any = None
        self._environment = contextlib.ExitStack()

    def prepare(self, look: bool, note: Callable[[str], None]) -> DatasetInfo:
        """Connects to Ray, starts the first actor and waits until it has checked everything."""
        self._connect()
        first = self._spawn(0, look)
        self._workers.append(first)
        return first.prepared()

    def _connect(self) -> None:
        """Connects to the cluster, or starts one. Raises InputError."""
        wanted = self._config.executor
        # Ray reads these variables when it is imported.
        options = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        if wanted.address is None:
            # This Ray gets its own token, and ports that only this machine reaches. The variable is named after the
            # systems where Ray does so by default.
            options["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        options = {name: value for name, value in options.items() if name not in os.environ}
        if wanted.address is None:
            options["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        self._environment.enter_context(environment(options))
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
        """Sets the number of workers and the resources of each. Raises InputError if no node has enough."""
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
        """Waits until all workers have ended, and disconnects from Ray or shuts it down."""
        super().end()
        if self._ray is not None:
            self._ray.shutdown()
        self._environment.close()


class WorkerActor:
    """The actor's class: it owns a worker's process on a node, and still answers after the process has died.

    Args:
        folder: The working folder.
        request: The worker's first request, made by `worker_request`.
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
                f"executor=ray: the node {socket.gethostname()} has no {folder} ({fault.strerror}): every worker needs "
                "the folder that lrsweep runs in; run it in a folder that all nodes share"
            )
            return
        self._process = WorkerProcess(request, os.environ)

    def name(self) -> str:
        """The worker's name in the study; empty if there is no process."""
        return self._process.name if self._fault is None else ""

    def prepared(self) -> str:
        """Waits until the worker has checked everything. Returns the facts about the data, or an error, as JSON."""
        try:
            if self._fault is not None:
                raise self._fault
            return json.dumps({"dataset": asdict(self._process.prepared(lambda line: None))})
        except LrsweepError as fault:
            return json.dumps({"fault": str(fault), "exit_code": fault.exit_code})

    def start(self) -> None:
        """Tells the worker to train."""
        self._started.set()

    def result(self) -> str:
        """Waits until the worker has ended; returns its WorkerResult as JSON."""
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
        """Lets the worker train once the node sees the sweep's folder."""
        until = time.monotonic() + _VISIBLE_AFTER
        while not SweepFolder(self._name).path.is_dir():
            if time.monotonic() > until:
                self._fault = StorageError(
                    f"executor=ray: the node {socket.gethostname()} does not see "
                    f"{SweepFolder(self._name).path.absolute()}, which lrsweep has created; run it in a folder that "
                    "all nodes share"
                )
                return
            time.sleep(0.2)
        self._process.start()

    def send(self, signum: int) -> None:
        """Sends the worker's process a signal."""
        if self._fault is None:
            self._process.send(signal.Signals(signum))

    def close(self) -> None:
        """Waits until the worker's process has ended."""
        if hasattr(self, "_process"):
            self._process.close()


class _ActorHandle:
    """The WorkerHandle of a worker in an actor.

    Args:
        ray: The module ray.
        actor: Ray's handle of a WorkerActor.
    """

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray = ray
        self._actor = actor
        self._name = actor.name.remote()
        self._result = actor.result.remote()

    @property
    def name(self) -> str:
        """The worker's name; empty until the actor has been placed on a node."""
        return str(self._answer(self._name, 0.0) or "")

    def prepared(self) -> DatasetInfo:
        """Waits until the actor is placed and the worker has checked everything.

        Raises:
            LrsweepError: The worker found an error.
            WorkerError: The actor died.
        """
        text = self._answer(self._actor.prepared.remote(), None)
        if text is None:
            raise WorkerError(f"the actor that checks model and data died: {self.result().reason}")
        answer = json.loads(text)
        if "fault" in answer:
            WorkerResult("", fault=answer["fault"], exit_code=answer["exit_code"]).check()
        return DatasetInfo(**answer["dataset"])

    def start(self) -> None:
        """Tells the worker to train."""
        self._actor.start.remote()

    def running(self) -> bool:
        """Returns whether the worker has not ended yet."""
        ready, _ = self._ray.wait([self._result], timeout=0)
        return not ready

    def news(self) -> list[str]:
        """Nothing: what a worker does elsewhere is in its log."""
        return []

    def result(self) -> WorkerResult:
        """How the worker ended."""
        try:
            return WorkerResult(**json.loads(self._ray.get(self._result)))
        except self._ray.exceptions.RayError as fault:
            text = str(fault)
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            reason = lines[0] if lines else type(fault).__name__
            # The worker may be the cause if memory runs out, but not if a node is lost.
            return WorkerResult(reason, text, outside="memory" not in text.lower())

    def send(self, signum: signal.Signals) -> None:
        """Sends the worker's process a signal; kills an actor that has not been placed."""
        # An actor without a name waits to be placed, perhaps forever.
        if signum == signal.SIGKILL or not self.name:
            self._ray.kill(self._actor)
        else:
            self._actor.send.remote(int(signum))

    def close(self) -> None:
        """Waits until the worker has ended, then removes the actor."""
        # Ray kills an actor with all its processes, so wait for the worker; an actor without a name has none yet.
        if self.name:
            self._answer(self._actor.close.remote(), END_TIMEOUT)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)

    def _answer(self, reference: Any, seconds: float | None) -> Any:
        """The result of a remote call; None if the actor is dead, or does not answer within `seconds`."""
        try:
            return self._ray.get(reference, timeout=seconds)
        except self._ray.exceptions.RayError:
            return None


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Silences stderr: Ray's core writes to it directly, but its errors are raised as exceptions too."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _unreachable(address: str | None, fault: BaseException) -> str:
    """The message for a Ray that cannot be reached or started."""
    cause = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
    if address is None:
        return f"executor=ray: Ray cannot be started here: {cause}"
    chain = [fault, *(link for link in (fault.__cause__, fault.__context__) if link is not None)]
    if any("authenti" in f"{type(link).__name__} {link}".lower() for link in chain):
        return (
            f"executor.address={address}: the cluster does not accept this token; put the cluster's token into "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token, or set RAY_AUTH_MODE=disabled if the cluster has none (then everyone "
            "who reaches it can run code)"
        )
    return f"executor.address={address}: no Ray cluster answers there: {cause}"
