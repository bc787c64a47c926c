"""submitit's local jobs, as SLURM's stand-in: the same jobs, signals and queueing again, without a cluster."""

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from lrsweep.files.metrics_log import read_metrics
from tests.conftest import lrsweep
from tests.orchestration.executors.sweeps import begun, check_complete, children, cwd, grid, kill_one, start

LOCAL = ["executor=slurm", "executor.cluster=local", "executor.workers=2", "executor.cpus_per_worker=1"]


@pytest.mark.scale
def test_two_jobs_of_which_one_loses_its_worker_half_way(tmp_path: Path) -> None:
    sweep = start(tmp_path, *grid(0.1), *LOCAL)
    sweep.wait_for_trials(8)
    folder = sweep.outputs / ".slurm"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kill_one(sweep)
    code, said = sweep.wait()
    assert code == 0, said
    assert "a worker died" in said
    check_complete(tmp_path)
    assert sorted(begun(tmp_path).values())[:15] == [1] * 15
    assert sweep.workers() == []


@pytest.mark.scale
def test_a_preempted_job_checkpoints_and_is_queued_again(tmp_path: Path) -> None:
    real = [
        "+sweep=lora_lr",
        "name=grid",
        "space.optimizer.lr=[1e-3,3e-3]",
        "training.max_steps=400",
        "training.eval_every=2",
        "data.max_eval_rows=24",
        "search.preflight=false",
        "tracking=none",
    ]
    sweep = start(tmp_path, *real, *LOCAL, "executor.workers=1")
    log = sweep.outputs / "trials" / "0000" / "metrics.jsonl"
    _wait(lambda: log.exists() and len(log.read_text().splitlines()) > 6)
    (job,) = [pid for pid in children("submitit.core._submit") if cwd(pid) == tmp_path]
    (worker,) = sweep.workers()
    os.kill(job, signal.SIGUSR2)
    _wait(lambda: not Path(f"/proc/{worker}").exists())
    reached = read_metrics(log.parent)[-1]["step"]
    assert (log.parent / "checkpoint").is_dir()
    _wait(lambda: read_metrics(log.parent)[-1]["step"] > reached + 2)
    (again,) = sweep.workers()
    assert again != worker
    # The same job: submitit has put it on again, not we another one.
    assert len(list((sweep.outputs / ".slurm").glob("worker-*"))) == 1
    sweep.process.terminate()
    code, said = sweep.wait()
    assert code == 143, said
    steps = [row["step"] for row in read_metrics(log.parent) if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert (log.parent / "checkpoint").is_dir()
    assert sweep.workers() == []


@pytest.mark.scale
def test_in_this_process(tmp_path: Path) -> None:
    sweep = start(tmp_path, *grid(0.01), "executor=slurm", "executor.cluster=debug")
    code, said = sweep.wait()
    assert code == 0, said
    check_complete(tmp_path)


def test_options_that_submitit_does_not_know_are_refused(tmp_path: Path) -> None:
    run = lrsweep(*grid(), *LOCAL, "executor.options.partitoin=gpu", cwd=tmp_path)
    assert run.returncode == 2, run.stdout
    assert "executor.options=" in run.stderr
    assert "'partitoin'" in run.stderr
    assert run.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def _wait(condition, seconds: float = 90) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
