"""A job of SLURM, or of submitit's local kinds: what runs in it, and how the controller sees it."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrsweep.files.atomic import write_text
from lrsweep.files.paths import SweepFolder
from lrsweep.orchestration import liveness
from lrsweep.orchestration.executors.worker_pool import WorkerHandle, WorkerResult
from lrsweep.orchestration.executors.worker_process import END_TIMEOUT, WorkerProcess


class WorkerJob:
    """The callable that a job runs: it starts a worker's process, and handles submitit's and SLURM's signals.

    Attributes:
        process: The worker's process; None before the job runs.
    """

    process: WorkerProcess | None = None

    def __call__(self, folder: str, request: str, devices: str | None) -> str:
        """Runs a worker to its end.

        Args:
            folder: The working folder.
            request: The worker's first request, made by `worker_request`.
            devices: The worker's CUDA_VISIBLE_DEVICES; None keeps the job's.

        Returns:
            The WorkerResult as JSON.
        """
        os.chdir(folder)
        config = json.loads(request)["config"]
        environment = {"OMP_NUM_THREADS": str(config["executor"]["cpus_per_worker"]), **os.environ}
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        process = self.process = WorkerProcess(request, environment)
        if threading.current_thread() is threading.main_thread():
            # SIGTERM comes from scancel. submitit's handler would only log it.
            signal.signal(signal.SIGTERM, lambda *_: process.checkpoint_and_end())
        from submitit import JobEnvironment

        write_text(jobs_folder(config["name"]) / f"worker-{JobEnvironment().job_id}", process.name)
        process.start()
        try:
            # Not wait(): it holds a lock that the signal handler would wait for.
            while process.running():
                time.sleep(0.2)
            return json.dumps(asdict(process.result()))
        finally:
            process.close()

    def checkpoint(self, folder: str, request: str, devices: str | None) -> Any:
        """Called by submitit at a time limit or a preemption; returns what to run when the job is requeued."""
        from submitit.helpers import DelayedSubmission

        assert self.process is not None
        self.process.checkpoint_and_end()
        return DelayedSubmission(WorkerJob(), folder, request, devices)


class SubmittedJob:
    """The WorkerHandle of a worker in a job.

    Args:
        job: The job of submitit.
        folder: The folder of the sweep's jobs.
        cluster: submitit's cluster.
        here: The callable itself, if it runs in this process (cluster `debug`).

    Attributes:
        id: The job's id.
        cancelled: Whether the job was cancelled while it may have been pending.
    """

    def __init__(self, job: Any, folder: Path, cluster: str, here: WorkerJob | None = None) -> None:
        self.id = str(job.job_id)
        self._job = job
        self._here = here
        self._folder = folder
        self._named = folder / f"worker-{self.id}"
        self._cluster = cluster
        self.cancelled = False
        self._thread = threading.Thread(target=job.results, daemon=True) if cluster == "debug" else None
        if self._thread is not None:
            self._thread.start()

    @property
    def name(self) -> str:
        """The worker's name; empty until the job has started."""
        try:
            return self._named.read_text()
        except FileNotFoundError:
            return ""

    def start(self) -> None:
        """Does nothing: SLURM starts the job."""

    def running(self) -> bool:
        """Returns whether the job has not ended yet; a pending job counts as running."""
        if self._thread is not None:
            return self._thread.is_alive()
        # SLURM's accounting may be slow to report that a cancelled job will never start.
        return not (self._job.done() or (self.cancelled and not self.name))

    def news(self) -> list[str]:
        """Nothing: what a worker does elsewhere is in its log."""
        return []

    def result(self) -> WorkerResult:
        """How the worker, or its job, ended."""
        if self._thread is None and not self._job.paths.result_pickle.exists():
            state = str(self._job.state)
            return WorkerResult(f"its job {self.id} is {state}", outside=state != "OUT_OF_MEMORY")
        try:
            return WorkerResult(**json.loads(self._job.result()))
        except Exception as fault:  # submitit raises any error of the job
            return WorkerResult(
                f"its job {self.id} failed: {(str(fault).strip().splitlines() or [''])[-1]}", str(fault)
            )

    def send(self, signum: signal.Signals) -> None:
        """Sends the worker a signal."""
        if self._cluster == "slurm":
            scancel([self], signum)
        elif self._cluster == "local":
            self._signal_here(signum)
        elif self._here is not None and self._here.process is not None:
            self._here.process.send(signum)

    def _signal_here(self, signum: signal.Signals) -> None:
        """Signals a local job. Its id is that of a process, which forwards SIGTERM to the worker, but not SIGKILL."""
        processes = [int(self.id)]
        # Only while the worker is alive: its process id may belong to another program afterwards.
        worker = liveness.local_pid(self._folder.parent, self.name)
        if signum == signal.SIGKILL and worker is not None:
            processes.append(worker)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signum)

    def close(self) -> None:
        """Waits until the job has ended; a job that takes too long is ended."""
        until = time.monotonic() + END_TIMEOUT
        while self.running() and time.monotonic() < until:
            time.sleep(0.2)
        if self.running():
            self.send(signal.SIGTERM if self._cluster == "local" else signal.SIGKILL)


def scancel(jobs: Sequence[WorkerHandle], signum: signal.Signals | None) -> None:
    """Cancels jobs that are pending, and signals the others.

    Args:
        jobs: The jobs.
        signum: The signal; None signals no job. SIGKILL makes SLURM end the jobs, after a grace period of some seconds.
    """
    ours = [job for job in jobs if isinstance(job, SubmittedJob)]
    if not ours:
        return
    calls = [["--state=PENDING"]]
    if signum is not None:
        calls.append([] if signum == signal.SIGKILL else [f"--signal={signum.name}"])
    for flags in calls:
        # scancel fails for a job that has ended by now, which is fine.
        subprocess.run(
            ["scancel", *flags, *(job.id for job in ours)],  # noqa: S607 - wherever the cluster has installed it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    for job in ours:
        job.cancelled = True


def jobs_folder(name: str) -> Path:
    """The folder where submitit stores a sweep's jobs."""
    return SweepFolder(name).path / ".slurm"
