"""Workers as the jobs of a SLURM array, by submitit; or as its local jobs, where there is no SLURM.

What submitit pickles is the name of a class and text. It lies in a folder that only its owner reads: the text holds the
config as it is, with the database's password.
"""

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lrsweep import hardware
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.orchestration.executors.slurm_job import SubmittedJob, WorkerJob, jobs_folder, scancel
from lrsweep.orchestration.executors.worker_pool import WorkerHandle, WorkerPool
from lrsweep.orchestration.executors.worker_process import WorkerProcess, worker_request
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.tracking import DatasetInfo

# Seconds between two questions to SLURM's accounting, once jobs are some minutes old.
_ASK_EVERY = 30
# submitit's parameters that are the same for every cluster; all others are SLURM's own.
_GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
# A job that runs into its time limit is queued again, until the sweep is done.
_TIMEOUTS = 1000


class SlurmExecutor(WorkerPool):
    """The executor `slurm`. One process on the controller's machine prepares, and ends."""

    def __init__(self, config: SweepConfig, cluster: Literal["slurm", "local", "debug"]) -> None:
        wanted = config.executor
        # In this process there is room for one, as submitit changes its environment.
        super().__init__(1 if wanted.workers == "auto" or cluster == "debug" else wanted.workers)
        self._config = config
        self._cluster = cluster
        self._request = worker_request(config, look=False)
        # Jobs that an earlier run of this sweep has submitted go on working.
        self._folder = jobs_folder(config.name)
        self._known: list[str] = []
        self._job_class: Any = None

    def prepare(self, look: bool) -> DatasetInfo:
        try:
            import submitit
        except ImportError:
            raise InputError("executor=slurm: submitit is not installed; pip install 'lrsweep[slurm]'") from None
        self._submitit = submitit
        with tempfile.TemporaryDirectory() as nowhere:
            self._executor(Path(nowhere))
        process = WorkerProcess(worker_request(self._config, look), os.environ)
        try:
            dataset = process.prepared()
        finally:
            process.close()
        return dataset

    def start(self, study: ControllerStudy) -> None:
        self._study = study
        with disk_faults(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder.chmod(0o700)
        if self._cluster == "slurm":
            self._job_class = _frequently_watched_job()
        self._workers += self._earlier()[: self._count]
        self._workers += self._submit(range(len(self._workers), self._count))

    def _spawn(self, index: int) -> WorkerHandle:
        return self._submit([index])[0]

    def _executor(self, folder: Path) -> Any:
        """submitit's executor. Raises InputError for parameters that do not exist."""
        executor = self._submitit.AutoExecutor(
            folder=folder, cluster=self._cluster, slurm_max_num_timeout=_TIMEOUTS, local_max_num_timeout=_TIMEOUTS
        )
        try:
            executor.update_parameters(**self._parameters())
        except (NameError, ValueError, TypeError, AssertionError) as fault:
            said = (str(fault).splitlines() or [type(fault).__name__])[0]
            raise InputError(f"executor.options={self._config.executor.options}: {said}") from None
        return executor

    def _submit(self, places: Sequence[int]) -> list[SubmittedJob]:
        """New jobs; several at once are an array."""
        executor = self._executor(self._folder)
        work = [WorkerJob() for _ in places]
        try:
            # Several in one batch are an array; the terminal's Ctrl-C is not for them.
            with _undisturbed(), executor.batch():
                jobs = [
                    executor.submit(job, str(Path.cwd()), self._request, self._devices(place))
                    for job, place in zip(work, places, strict=True)
                ]
        except self._submitit.core.utils.FailedJobError as fault:
            said = " ".join(str(fault).split())[:300]
            raise InputError(f"executor=slurm: the jobs were not taken: {said}") from None
        # submitit keeps scripts under their earlier names too; a sweep's folder has no links in it.
        for path in self._folder.iterdir():
            if path.is_symlink():
                path.unlink()
        self._known += [job.job_id for job in jobs]
        digest = hashlib.sha256(self._request.encode()).hexdigest()
        write_text(self._folder / "jobs.json", json.dumps({"order": digest, "jobs": self._known}))
        if self._job_class is not None:
            jobs = [self._job_class(self._folder, job.job_id) for job in jobs]
        return [SubmittedJob(job, self._folder, self._cluster, here) for job, here in zip(jobs, work, strict=True)]

    def _gpus(self) -> int:
        wanted = self._config.executor.gpus_per_worker
        if wanted == "auto":
            return 1 if self._cluster == "slurm" or hardware.gpus() else 0
        return wanted

    def _devices(self, place: int) -> str | None:
        """The GPUs of a worker here, as CUDA_VISIBLE_DEVICES; SLURM hands them out itself."""
        first, count = place * self._gpus(), self._gpus()
        return None if self._cluster == "slurm" else ",".join(hardware.gpus()[first : first + count])

    def _parameters(self) -> dict[str, Any]:
        wanted = self._config.executor
        options = {
            (key if key in _GENERAL or key.startswith(("slurm_", "local_")) else f"slurm_{key}"): value
            for key, value in wanted.options.items()
        }
        return {
            "name": f"lrsweep-{self._config.name}",
            "cpus_per_task": wanted.cpus_per_worker,
            "gpus_per_node": self._gpus() or None,
            "slurm_array_parallelism": self._count,
            **options,
        }

    def _earlier(self) -> list[SubmittedJob]:
        """Jobs that an earlier run submitted with the same config, and that SLURM still has; its other jobs are ended."""
        try:
            found = json.loads((self._folder / "jobs.json").read_text())
        except (FileNotFoundError, ValueError):
            return []
        if self._cluster != "slurm":
            return []
        jobs = [SubmittedJob(self._job_class(self._folder, job), self._folder, self._cluster) for job in found["jobs"]]
        jobs = [job for job in jobs if job.running()]
        if found["order"] != hashlib.sha256(self._request.encode()).hexdigest():
            scancel(jobs, signal.SIGTERM)
            return []
        self._known += [job.id for job in jobs]
        return jobs

    def stop(self) -> None:
        self._stopped = True
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, signum: signal.Signals) -> None:
        if self._cluster == "slurm":
            scancel(self._workers, signum)
        else:
            for worker in self._workers:
                worker.send(signum)

    def end(self) -> None:
        if self._cluster == "slurm":
            # What waits in the queue has nothing to do any more.
            scancel(self._workers, None)
        super().end()
        # There is a password in them, and nobody reads them any more.
        for path in self._folder.glob("*_submitted.pkl"):
            path.unlink(missing_ok=True)


def _frequently_watched_job() -> Any:
    """submitit's job, asking SLURM's accounting more often than its ten minutes."""
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class FrequentlyWatchedJob(SlurmJob):  # type: ignore[misc]
        watcher = SlurmInfoWatcher(delay_s=_ASK_EVERY)

    return FrequentlyWatchedJob


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What is started inside does not get the terminal's Ctrl-C: the controller passes it on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
