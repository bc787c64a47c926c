"""The main job, end to end, as a user's processes: run, look, run again, kill, interrupt, fail."""

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import optuna
import pytest

from lrsweep.files.metrics_log import read_metrics
from lrsweep.files.row_losses import read_row_losses
from tests.conftest import SMALL, FinishedSweep, command_line, lrsweep, lrsweep_here

pytestmark = pytest.mark.xdist_group("finished_sweep")
TRIALS = 4


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder}/outputs/lora_lr/study.db"
    return optuna.load_study(study_name="lora_lr", storage=storage).trials


def mlflow_statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("select status from runs where lifecycle_stage = 'active'").fetchall()
    return sorted(status for (status,) in rows)


def engine_tags(folder: Path) -> set[str]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return {value for (value,) in database.execute("select value from tags where key = 'engine'")}


def test_each_complete_trial_keeps_its_loss_on_each_eval_row(finished_sweep: FinishedSweep) -> None:
    trials = json.loads((finished_sweep.outputs / "summary.json").read_text())["trials"]
    for trial in trials:
        losses = read_row_losses(finished_sweep.outputs / "trials" / f"{trial['number']:04d}")
        assert losses is not None
        assert len(losses.sums) == 48
        assert losses.mean == pytest.approx(trial["eval_loss"], abs=1e-5)


def test_the_sweep_finds_the_inside_of_the_u(finished_sweep: FinishedSweep) -> None:
    summary = json.loads((finished_sweep.outputs / "summary.json").read_text())
    losses = {trial["values"]["optimizer.lr"]: trial["eval_loss"] for trial in summary["trials"]}
    assert summary["best"]["values"] == {"optimizer.lr": 3e-3}
    assert losses[1e-5] > losses[1e-3] > losses[3e-3] < losses[1e-1]
    # Too low hardly moves; too high ends above where it began.
    assert summary["base_loss"] - losses[1e-5] < 0.02
    assert losses[1e-1] > summary["base_loss"] + 1
    assert summary["edges"] == []


def test_every_file_of_the_design_is_there(finished_sweep: FinishedSweep) -> None:
    expected = [
        "config.yaml",
        "study.db",
        "summary.json",
        "report.html",
        "lrsweep.log",
        "best/recommended.yaml",
        "best/transformers.yaml",
        "best/adapter/adapter_model.safetensors",
        "trials/0002/metrics.jsonl",
        "trials/0002/config.yaml",
        "trials/0002/adapter/adapter_config.json",
    ]
    assert [name for name in expected if not (finished_sweep.outputs / name).is_file()] == []


def test_nothing_but_the_sweeps_own_files_is_made(finished_sweep: FinishedSweep) -> None:
    made = {path.name for path in finished_sweep.folder.iterdir() if not path.name.startswith(".")}
    assert made == {"outputs", "mlflow.db", "mlruns"}


def test_the_other_engine_comes_to_the_same_answer(finished_sweep: FinishedSweep, tmp_path: Path) -> None:
    run = lrsweep_here(*SMALL, "engine=trainer", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    packed, alone = (
        json.loads((folder / "outputs" / "lora_lr" / "summary.json").read_text())
        for folder in (finished_sweep.folder, tmp_path)
    )
    assert packed["best"]["values"] == alone["best"]["values"]
    losses = [
        {trial["values"]["optimizer.lr"]: trial["eval_loss"] for trial in summary["trials"]}
        for summary in (packed, alone)
    ]
    for lr in (1e-5, 1e-3, 3e-3):  # at 1e-1 training is chaotic: rounding decides where it ends
        assert losses[0][lr] == pytest.approx(losses[1][lr], abs=1e-3)
    assert engine_tags(finished_sweep.folder) == {"packed"}
    assert engine_tags(tmp_path) == {"trainer"}


def test_every_trial_carries_its_diagnosis(finished_sweep: FinishedSweep) -> None:
    summary = json.loads((finished_sweep.outputs / "summary.json").read_text())
    labels = {str(trial["number"]): trial["diagnosis"]["label"] for trial in summary["trials"]}
    # The second falls half as far as the best: either word is right for it.
    assert (labels["0"], labels["2"], labels["3"]) == ("too_low", "healthy", "too_high")
    with sqlite3.connect(finished_sweep.folder / "mlflow.db") as database:
        tags = database.execute("select run_uuid, key, value from tags where key in ('trial', 'diagnosis')").fetchall()
    by_run: dict[str, dict[str, str]] = {}
    for run, key, value in tags:
        by_run.setdefault(run, {})[key] = value
    assert {tags["trial"]: tags["diagnosis"] for tags in by_run.values()} == labels
    page = (finished_sweep.outputs / "report.html").read_text()
    assert "mathdefault" not in page  # a formula's source instead of a number
    assert "raise the learning rate, step by step: <code>optimizer.lr=3e-05</code>" in page


def test_metrics_on_disk_are_complete(finished_sweep: FinishedSweep) -> None:
    for number in range(TRIALS):
        rows = read_metrics(finished_sweep.outputs / "trials" / f"{number:04d}")
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 17))
        assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4, 8, 12, 16]
        assert all({"loss", "grad_norm", "learning_rate"} <= row.keys() for row in rows if "loss" in row)


def test_the_terminal_tells_the_result_and_where_it_is(finished_sweep: FinishedSweep) -> None:
    said = finished_sweep.stdout
    assert "Best: optimizer.lr=0.003" in said
    assert "outputs/lora_lr/report.html" in said
    assert "mlflow ui --backend-store-uri sqlite:///" in said
    assert "its best learning rate says nothing about yours" in said
    assert "\x1b[" not in said


def test_running_it_again_does_nothing_new(finished_sweep: FinishedSweep) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_sweep.folder.rglob("*") if path.is_file()}
    again = lrsweep_here(*SMALL, cwd=finished_sweep.folder)
    assert again.returncode == 0, again.stderr
    assert "is already complete: 4 trials" in again.stdout
    assert "Best: optimizer.lr=0.003" in again.stdout
    after = {path: path.stat().st_mtime_ns for path in finished_sweep.folder.rglob("*") if path.is_file()}
    assert after == before


def test_what_a_kill_left_undone_at_the_end_is_done_by_the_next_run(
    finished_sweep: FinishedSweep, tmp_path: Path
) -> None:
    shutil.copytree(finished_sweep.folder, tmp_path, dirs_exist_ok=True)
    ours = tmp_path / "outputs" / "lora_lr"
    for name in (".concluded", "report.html", "summary.json"):
        (ours / name).unlink()
    again = lrsweep(*SMALL, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Best: optimizer.lr=0.003" in again.stdout
    assert (ours / "report.html").is_file()
    assert len(trials_of(tmp_path)) == TRIALS


def test_a_changed_config_under_the_same_name_is_refused(finished_sweep: FinishedSweep) -> None:
    refused = lrsweep_here(*SMALL, "optimizer.weight_decay=0.5", cwd=finished_sweep.folder)
    assert refused.returncode == 2
    assert refused.stderr.startswith("lrsweep: optimizer.weight_decay: was 0.0 and is now 0.5")


def test_what_is_refused_puts_nothing_aside(finished_sweep: FinishedSweep) -> None:
    before = sorted(finished_sweep.folder.rglob("*"))
    refused = lrsweep_here(*SMALL, "resume=fresh", "data.path=none.jsonl", cwd=finished_sweep.folder)
    assert refused.returncode == 2
    assert refused.stderr.startswith("lrsweep: data.path=none.jsonl")
    assert sorted(finished_sweep.folder.rglob("*")) == before


def test_report_is_one_page_with_everything_in_it(finished_sweep: FinishedSweep) -> None:
    page = (finished_sweep.outputs / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "prefers-color-scheme: dark" in page
    assert "src=" not in page
    assert re.search(r"<link|@import|url\((?!#)|<script [^>]*src", page) is None, "it needs no network"
    assert len(page) < 1_500_000
    assert 'class="best"' in page
    shown = lrsweep_here("report", "lora_lr", cwd=finished_sweep.folder)
    assert shown.returncode == 0
    assert "Best: optimizer.lr=0.003" in shown.stdout
    assert (finished_sweep.outputs / "report.html").read_text() == page


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """The same sweep, begun in `folder` and left running."""
    return subprocess.Popen(
        command_line(*SMALL, *overrides),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "160"},
    )


def wait_for_step(folder: Path, number: int, step: int) -> None:
    """Returns once a trial has an evaluation at `step` on disk."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        rows = read_metrics(folder / "outputs" / "lora_lr" / "trials" / f"{number:04d}")
        if any(row["step"] >= step and "eval_loss" in row for row in rows):
            return
        time.sleep(0.05)
    raise AssertionError(f"trial {number} never came to step {step}")


@pytest.mark.parametrize(
    ("engine", "done"), [pytest.param("engine=trainer", 1, marks=pytest.mark.faults), ("engine.slots=2", 2)]
)
def test_killed_half_way_it_ends_with_the_same_trials(
    finished_sweep: FinishedSweep, tmp_path: Path, engine: str, done: int
) -> None:
    process = start(tmp_path, engine, "training.checkpoint_seconds=0")
    wait_for_step(tmp_path, done, 8)
    process.kill()
    process.communicate()
    before = read_metrics(tmp_path / "outputs" / "lora_lr" / "trials" / f"{done:04d}")
    states = [trial.state.name for trial in trials_of(tmp_path)]
    assert states[: done + 1] == ["COMPLETE"] * done + ["RUNNING"]
    resumed = lrsweep(*SMALL, engine, "training.checkpoint_seconds=0", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    evaluations = [line.split(",")[0] for line in resumed.stdout.splitlines() if ": step " in line]
    assert len(evaluations) == len(set(evaluations))
    after = read_metrics(tmp_path / "outputs" / "lora_lr" / "trials" / f"{done:04d}")
    # What was before the checkpoint at step 4 is not measured again.
    kept = [row for row in before if row["step"] <= 4]
    assert after[: len(kept)] == kept
    assert [row["step"] for row in after if "loss" in row] == list(range(1, 17))
    assert not list(tmp_path.rglob("checkpoint*"))
    ours, undisturbed = trials_of(tmp_path), trials_of(finished_sweep.folder)
    assert [(t.number, t.params, t.state) for t in ours] == [(t.number, t.params, t.state) for t in undisturbed]
    # The undisturbed run had passes of other widths, which round otherwise; the highest rate is chaotic.
    assert [t.value for t in ours[:3]] == pytest.approx([t.value for t in undisturbed[:3]], abs=1e-4)
    assert mlflow_statuses(tmp_path) == ["FINISHED"] * (TRIALS + 1)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.faults)]
)
def test_a_signal_ends_it_resumably(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    process = start(tmp_path, "resume=fresh")
    wait_for_step(tmp_path, 0, 4)
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "trial 0 lr=1e-05: interrupted\n" in stdout
    # Fresh again would begin anew.
    assert stderr == f"lrsweep: interrupted; resume with: {shlex.join(['lrsweep', *command_line(*SMALL)[3:]])}\n"
    reported = lrsweep("report", "lora_lr", cwd=tmp_path)
    assert reported.stderr == "lrsweep: lora_lr: no trial has ended yet; resume the sweep\n"
    assert "RUNNING" not in mlflow_statuses(tmp_path)
    assert "KILLED" in mlflow_statuses(tmp_path)


def test_no_winner_is_exit_3_and_says_why(tmp_path: Path) -> None:
    overrides = (
        "optimizer=sgd",
        "space.optimizer.lr=[1e30,1e31]",
        "training.max_grad_norm=0",
        "scheduler=constant",
        "tracking=none",
    )
    run = lrsweep_here(*SMALL, *overrides, "finetune=full", cwd=tmp_path)
    assert run.returncode == 3
    assert run.stderr.startswith("lrsweep: no trial completed, so there is no best (diverged: ")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "outputs" / "lora_lr" / "best").exists()
    assert len(trials_of(tmp_path)) == 2
    again = lrsweep_here(*SMALL, *overrides, "finetune=full", cwd=tmp_path)
    assert again.returncode == 3
    assert len(trials_of(tmp_path)) == 2


def test_a_search_with_pruning_on_own_model_and_data(tmp_path: Path) -> None:
    """TPE, a pruner, a local model folder, a JSONL file, no tracking: the other side of most switches."""
    from lrsweep.embedded import BASE

    rows = [{"instruction": f"Add {i} and {i + 1}", "input": "", "output": str(2 * i + 1)} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /search: tpe}, {override /pruner: median}, {override /tracking: none}, "
        "{override /model: local}, {override /data: local}]\n"
        f"model: {{path: {BASE}}}\ndata: {{path: rows.jsonl, format: alpaca, max_length: 64}}\n"
        "pruner: {kwargs: {n_startup_trials: 1, n_warmup_steps: 0}}\nsearch: {n_trials: 4}\n"
        "training: {max_steps: 8, eval_every: 2}\n"
        "space: {optimizer: {lr: {low: 1.0e-6, high: 1.0e-1, log: true}}}\n"
    )
    run = lrsweep_here("+sweep=mine", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "outputs" / "mine" / "summary.json").read_text())
    statuses = [trial["status"] for trial in summary["trials"]]
    assert len(statuses) == 4
    assert "complete" in statuses
    assert summary["dataset"]["train_rows"] == 72
    assert not (tmp_path / "mlflow.db").exists()
    grown = lrsweep_here("+sweep=mine", "search.n_trials=5", cwd=tmp_path)
    assert grown.returncode == 0, grown.stderr
    assert len(json.loads((tmp_path / "outputs" / "mine" / "summary.json").read_text())["trials"]) == 5
