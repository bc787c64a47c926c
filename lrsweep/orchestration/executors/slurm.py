"""The executor `slurm`: workers as the jobs of a SLURM array, by submitit, or as its local jobs without SLURM.

submitit pickles the name of a class and JSON text. The text has the whole config, with the database's password, so the
files are in a folder that only its owner can read.
"""

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
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

# Seconds between two queries of SLURM's accounting, once jobs are some minutes old.
_ASK_EVERY = 30
# submitit's parameters that apply to every kind of cluster; all others are SLURM's.
_GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
# How often submitit may requeue a job that reaches its time limit: enough for any sweep.
_TIMEOUTS = 1000


class SlurmExecutor(WorkerPool):
    """Workers as jobs of SLURM, or of submitit's local kinds.

    A process on the controller's machine does the preparing, and ends before the jobs are submitted.

    Args:
        config: The sweep's config.
        cluster: submitit's cluster.
    """

    def __init__(self, config: SweepConfig, cluster: Literal["slurm", "local", "debug"]) -> None:
        wanted = config.executor
        # The cluster `debug` runs jobs in this process, whose environment submitit changes, so there can be only one.
        super().__init__(1 if wanted.workers == "auto" or cluster == "debug" else wanted.workers)
        self._config = config
        self._cluster = cluster
        self._request = worker_request(config, look=False)
        # Jobs that an earlier run of this sweep submitted may still run.
        self._folder = jobs_folder(config.name)
        self._known: list[str] = []
        self._job_class: Any = None

    def prepare(self, look: bool, note: Callable[[str], None]) -> DatasetInfo:
        """Checks submitit's parameters, and everything else in a process that ends afterwards."""
        try:
            import submitit
        except ImportError:
            raise InputError("executor=slurm: submitit is not installed; pip install 'lrsweep[slurm]'") from None
        self._submitit = submitit
        with tempfile.TemporaryDirectory() as folder:
            self._executor(Path(folder))
        process = WorkerProcess(worker_request(self._config, look), os.environ)
        try:
            dataset = process.prepared(note)
        finally:
            process.close()
        return dataset

    def start(self, study: ControllerStudy) -> None:
        """Takes over the jobs of an earlier run, and submits the missing ones."""
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
        """The executor of submitit. Raises InputError for invalid parameters."""
        executor = self._submitit.AutoExecutor(
            folder=folder, cluster=self._cluster, slurm_max_num_timeout=_TIMEOUTS, local_max_num_timeout=_TIMEOUTS
        )
        try:
            executor.update_parameters(**self._parameters())
        except (NameError, ValueError, TypeError, AssertionError) as fault:
            cause = (str(fault).splitlines() or [type(fault).__name__])[0]
            raise InputError(f"executor.options={self._config.executor.options}: {cause}") from None
        return executor

    def _submit(self, places: Sequence[int]) -> list[SubmittedJob]:
        """Submits new jobs; several at once are an array.

        Args:
            places: The indices of the workers.

        Raises:
            InputError: SLURM rejected the jobs.
        """
        executor = self._executor(self._folder)
        work = [WorkerJob() for _ in places]
        try:
            with _ignoring_ctrl_c(), executor.batch():
                jobs = [
                    executor.submit(job, str(Path.cwd()), self._request, self._devices(place))
                    for job, place in zip(work, places, strict=True)
                ]
        except self._submitit.core.utils.FailedJobError as fault:
            cause = " ".join(str(fault).split())[:300]
            raise InputError(f"executor=slurm: SLURM rejected the jobs: {cause}") from None
        # submitit also creates symlinks to its scripts, but a sweep's folder must not contain symlinks.
        for path in self._folder.iterdir():
            if path.is_symlink():
                path.unlink()
        self._known += [job.job_id for job in jobs]
        digest = hashlib.sha256(self._request.encode()).hexdigest()
        # "order" is the name that files on disk have for the digest of the request.
        write_text(self._folder / "jobs.json", json.dumps({"order": digest, "jobs": self._known}))
        if self._job_class is not None:
            jobs = [self._job_class(self._folder, job.job_id) for job in jobs]
        return [SubmittedJob(job, self._folder, self._cluster, here) for job, here in zip(jobs, work, strict=True)]

    def _gpus(self) -> int:
        """The number of GPUs for each worker."""
        wanted = self._config.executor.gpus_per_worker
        if wanted == "auto":
            return 1 if self._cluster == "slurm" or hardware.gpus() else 0
        return wanted

    def _devices(self, place: int) -> str | None:
        """The CUDA_VISIBLE_DEVICES of a worker on this machine; None on SLURM, which sets it itself."""
        first, count = place * self._gpus(), self._gpus()
        return None if self._cluster == "slurm" else ",".join(hardware.gpus()[first : first + count])

    def _parameters(self) -> dict[str, Any]:
        """The parameters for submitit; `executor.options` override lrsweep's own."""
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
        """The jobs that an earlier run submitted and that still run; cancels them if their config has changed."""
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
        """Asks the workers to checkpoint and end; cancels pending jobs."""
        self._stopped = True
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the workers and cancels pending jobs."""
        self._send(signal.SIGKILL)

    def _send(self, signum: signal.Signals) -> None:
        if self._cluster == "slurm":
            scancel(self._workers, signum)
        else:
            for worker in self._workers:
                worker.send(signum)

    def end(self) -> None:
        """Cancels pending jobs, waits for the others, and removes the files with the config."""
        if self._cluster == "slurm":
            # Pending jobs would find nothing to do.
            scancel(self._workers, None)
        super().end()
        # They hold the config with its password, and nobody needs them any more.
        for path in self._folder.glob("*_submitted.pkl"):
            path.unlink(missing_ok=True)


def _frequently_watched_job() -> Any:
    """A class like SlurmJob of submitit, which queries SLURM's accounting more often than every ten minutes."""
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class FrequentlyWatchedJob(SlurmJob):  # type: ignore[misc]
        """A SlurmJob with its own watcher."""

        watcher = SlurmInfoWatcher(delay_s=_ASK_EVERY)

    return FrequentlyWatchedJob


@contextlib.contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Makes processes that are started in this block ignore Ctrl-C: the controller stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
