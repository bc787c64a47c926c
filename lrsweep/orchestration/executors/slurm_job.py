"""One job of SLURM's, or of submitit's local kind: what runs in it, and how the controller sees it."""

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
from lrsweep.orchestration.executors.worker_process import FAREWELL, WorkerProcess


class WorkerJob:
    """What a job runs: a worker's process, and around it what submitit and SLURM need."""

    process: WorkerProcess | None = None

    def __call__(self, folder: str, request: str, devices: str | None) -> str:
        """Runs a worker to its end, on `devices` or what it is given; answers how that was, as JSON."""
        os.chdir(folder)
        config = json.loads(request)["config"]
        environment = {"OMP_NUM_THREADS": str(config["executor"]["cpus_per_worker"]), **os.environ}
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        process = self.process = WorkerProcess(request, environment)
        if threading.current_thread() is threading.main_thread():
            # scancel's. submitit itself would only note it.
            signal.signal(signal.SIGTERM, lambda *_: process.checkpoint_and_end())
        from submitit import JobEnvironment

        write_text(jobs_folder(config["name"]) / f"worker-{JobEnvironment().job_id}", process.name)
        process.start()
        try:
            # Not wait(), whose lock a signal handler would wait for.
            while process.running():
                time.sleep(0.2)
            return json.dumps(asdict(process.result()))
        finally:
            process.close()

    def checkpoint(self, folder: str, request: str, devices: str | None) -> Any:
        """submitit's: the time is up, or somebody more important comes. What is to run once the job has its turn again."""
        from submitit.helpers import DelayedSubmission

        assert self.process is not None
        self.process.checkpoint_and_end()
        return DelayedSubmission(WorkerJob(), folder, request, devices)


class SubmittedJob:
    """A worker in a job."""

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
        try:
            return self._named.read_text()
        except FileNotFoundError:
            return ""

    def start(self) -> None:
        """The job starts by itself, once it has its turn."""

    def running(self) -> bool:
        if self._thread is not None:
            return self._thread.is_alive()
        # SLURM's accounting may take its time to tell that a job will never begin.
        return not (self._job.done() or (self.cancelled and not self.name))

    def result(self) -> WorkerResult:
        if self._thread is None and not self._job.paths.result_pickle.exists():
            state = str(self._job.state)
            return WorkerResult(f"its job {self.id} is {state}", outside=state != "OUT_OF_MEMORY")
        try:
            return WorkerResult(**json.loads(self._job.result()))
        except Exception as fault:  # whatever submitit, or our own code under it, has met there
            return WorkerResult(
                f"its job {self.id} failed: {(str(fault).strip().splitlines() or [''])[-1]}", str(fault)
            )

    def send(self, signum: signal.Signals) -> None:
        if self._cluster == "slurm":
            scancel([self], signum)
        elif self._cluster == "local":
            self._signal_here(signum)
        elif self._here is not None and self._here.process is not None:
            self._here.process.send(signum)

    def _signal_here(self, signum: signal.Signals) -> None:
        """submitit's local job: its id is that of a process, which passes SIGTERM on; what is killed passes on nothing."""
        processes = [int(self.id)]
        # Only while the worker lives: its process id may belong to another program by now.
        worker = liveness.local_pid(self._folder.parent, self.name)
        if signum == signal.SIGKILL and worker is not None:
            processes.append(worker)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signum)

    def close(self) -> None:
        until = time.monotonic() + FAREWELL
        while self.running() and time.monotonic() < until:
            time.sleep(0.2)
        if self.running():
            self.send(signal.SIGTERM if self._cluster == "local" else signal.SIGKILL)


def scancel(jobs: Sequence[WorkerHandle], signum: signal.Signals | None) -> None:
    """Takes back the jobs that have not begun, and signals the others; for SIGKILL, SLURM gives them some seconds more."""
    ours = [job for job in jobs if isinstance(job, SubmittedJob)]
    if not ours:
        return
    calls = [["--state=PENDING"]]
    if signum is not None:
        calls.append([] if signum == signal.SIGKILL else [f"--signal={signum.name}"])
    for flags in calls:
        # A job that has ended meanwhile is no fault.
        subprocess.run(
            ["scancel", *flags, *(job.id for job in ours)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    for job in ours:
        job.cancelled = True


def jobs_folder(name: str) -> Path:
    """Where submitit keeps a sweep's jobs."""
    return SweepFolder(name).path / ".slurm"
