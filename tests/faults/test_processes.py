"""Processes that die: because of a trial, by the kernel, by a user. The sweep goes on, and reports what happened."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lrsweep.files.metrics_log import read_metrics
from tests.conftest import SMALL, command_line, lrsweep
from tests.faults import inject
from tests.orchestration.test_controller import mlflow_statuses, trials_of

QUICK = (*SMALL, "training.checkpoint_seconds=0", "search.preflight=false", "training.save_adapter=false")
COMPLETE, FAILED = "COMPLETE", "FAIL"


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in trials_of(folder)]


def workers_of(keeper: int) -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process(keeper).children()
        if "lrsweep.orchestration.executors.worker_main" in " ".join(p.cmdline())
    ]


def wait_for_steps(folder: Path, steps: int) -> None:
    until = time.monotonic() + 120
    trials = folder / "outputs" / "lora_lr" / "trials"
    while time.monotonic() < until:
        if any(row["step"] >= steps for path in trials.glob("*") for row in read_metrics(path)):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no trial came to step {steps}")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command_line(*QUICK),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_a_trial_that_segfaults_fails_alone(tmp_path: Path) -> None:
    fault = inject.at_step(tmp_path / "site", trial=1, step=3, fault="os.kill(os.getpid(), signal.SIGSEGV)")
    small = ("training.max_steps=6", "training.eval_every=2", "training.batch_size=2", "data.max_eval_rows=8")
    run = lrsweep(*QUICK, *small, cwd=tmp_path, env=fault)
    assert run.returncode == 0, run.stderr
    assert states(tmp_path) == [COMPLETE, FAILED, COMPLETE, COMPLETE]
    assert "a worker died with trials 0, 1, 2, 3: killed by SIGSEGV; started another" in run.stdout
    assert "the process that trained it died 2 times: killed by SIGSEGV" in run.stdout
    assert "Segmentation fault" in (tmp_path / "outputs" / "lora_lr" / "lrsweep.log").read_text()
    assert mlflow_statuses(tmp_path) == ["FAILED", *["FINISHED"] * 4]


@pytest.mark.faults
def test_memory_that_runs_out_in_a_trial_is_its_failure(tmp_path: Path) -> None:
    fault = inject.at_step(tmp_path / "site", trial=3, step=2, fault="raise MemoryError()")
    run = lrsweep(*QUICK, "engine.slots=1", cwd=tmp_path, env=fault)
    assert run.returncode == 0, run.stderr
    assert states(tmp_path) == [COMPLETE, COMPLETE, COMPLETE, FAILED]
    assert "out of host memory" in run.stdout


@pytest.mark.faults
def test_an_error_in_a_pack_fails_the_trial_that_makes_it_and_no_other(tmp_path: Path) -> None:
    fault = inject.at_step(tmp_path / "site", trial=2, step=6, fault="raise ValueError('mine alone')")
    run = lrsweep(*QUICK, cwd=tmp_path, env=fault)
    assert run.returncode == 0, run.stderr
    assert states(tmp_path) == [COMPLETE, COMPLETE, FAILED, COMPLETE]
    assert "trial 2 lr=0.003: failed (ValueError: mine alone)" in run.stdout


@pytest.mark.faults
def test_max_failures_ends_the_sweep(tmp_path: Path) -> None:
    fault = inject.at_step(tmp_path / "site", trial=0, step=2, fault="raise ValueError('a bad day')")
    run = lrsweep(*QUICK, "engine.slots=1", "search.max_failures=1", cwd=tmp_path, env=fault)
    assert run.returncode == 3, run.stderr
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("lrsweep: search.max_failures=1: 1 trials failed (ValueError: a bad day)")


@pytest.mark.faults
def test_a_worker_killed_from_outside_is_replaced_and_its_trials_go_on(
    started: subprocess.Popen[str], tmp_path: Path
) -> None:
    wait_for_steps(tmp_path, 6)
    (worker,) = workers_of(started.pid)
    worker.kill()
    stdout, stderr = started.communicate(timeout=240)
    assert started.returncode == 0, stderr
    assert "a worker died with trials 0, 1, 2, 3: killed by SIGKILL; started another" in stdout
    assert states(tmp_path) == [COMPLETE] * 4
    assert mlflow_statuses(tmp_path) == ["FINISHED"] * 5
    for number in range(4):
        rows = read_metrics(tmp_path / "outputs" / "lora_lr" / "trials" / f"{number:04d}")
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 17))


@pytest.mark.faults
def test_without_its_keeper_a_worker_checkpoints_and_goes(started: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for_steps(tmp_path, 6)
    (worker,) = workers_of(started.pid)
    started.kill()
    worker.wait(60)
    kept = sorted((tmp_path / "outputs" / "lora_lr" / "trials").glob("*/checkpoint/manifest.json"))
    assert len(kept) == 4
    again = lrsweep(*QUICK, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert states(tmp_path) == [COMPLETE] * 4
    assert mlflow_statuses(tmp_path) == ["FINISHED"] * 5


@pytest.mark.faults
def test_a_refined_sweep_that_is_killed_twice_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    found = {}
    for name, kills in (("whole", ()), ("killed", (2, 8))):
        folder = tmp_path / name
        folder.mkdir()
        for steps in kills:
            process = subprocess.Popen(
                command_line(*QUICK, "search=refine"), cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True
            )
            wait_for_steps(folder, steps)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        run = lrsweep(*QUICK, "search=refine", cwd=folder)
        assert run.returncode == 0, run.stderr
        summary = json.loads((folder / "outputs" / "lora_lr" / "summary.json").read_text())
        trials = [
            {key: trial[key] for key in ("values", "status", "role", "evals", "eval_loss")}
            for trial in summary["trials"]
        ]
        found[name] = [trials, summary["best"], summary["ties"], summary["edges"]]
    assert found["killed"] == found["whole"]


@pytest.mark.faults
def test_a_second_signal_ends_everything_at_once(started: subprocess.Popen[str], tmp_path: Path) -> None:
    wait_for_steps(tmp_path, 1)
    workers = workers_of(started.pid)
    for worker in workers:
        worker.suspend()  # in the middle of a step that takes for ever
    started.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert started.poll() is None
    started.send_signal(signal.SIGTERM)
    assert started.wait(10) == 128 + signal.SIGTERM
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)
