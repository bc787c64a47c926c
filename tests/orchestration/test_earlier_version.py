"""A sweep that version 0.1.0 started is reported, resumed and exported by this version."""

import json
import shutil
from pathlib import Path

import optuna
import pytest
import yaml

from lrsweep.files.metrics_log import read_rows
from tests.conftest import lrsweep_here

FIXTURE = Path(__file__).parents[1] / "fixtures" / "sweep_0_1_0"
COMMAND = (
    "+sweep=lora_lr",
    "name=boxes",
    "data=local",
    "data.path=rows.jsonl",
    "data.format=prompt_completion",
    "data.max_length=48",
    "space.optimizer.lr=[1e-4,1e-3,1e-2,3e-2]",
    "training.max_steps=96",
    "training.eval_every=8",
    "training.batch_size=4",
    "finetune.r=1",
    "finetune.target_modules=[q_proj,v_proj]",
    "training.save_adapter=false",
    "training.checkpoint_seconds=0",
    "tracking=none",
    "engine.slots=2",
    "executor=local",
)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The sweep's folder, in a working folder of its own."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    return tmp_path / "outputs" / "boxes"


def test_it_is_reported_resumed_and_exported(sweep: Path, tmp_path: Path) -> None:
    before = {number: read_rows(sweep / "trials" / f"{number:04d}" / "metrics.jsonl") for number in range(4)}
    reported = lrsweep_here("report", "boxes", cwd=tmp_path)
    assert reported.returncode == 0, reported.stderr
    assert "optimizer.lr=0.001" in reported.stdout, "the best of the two that are complete"

    resumed = lrsweep_here(*COMMAND, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((sweep / "summary.json").read_text())
    assert [trial["status"] for trial in summary["trials"]] == ["complete"] * 4
    assert summary["best"]["trial"] == 2
    losses = [trial["eval_loss"] for trial in summary["trials"]]
    # What 0.1.0 itself came to; the resumed half was trained on another machine, maybe.
    assert losses[:2] == [5.768769729969113, 2.7823230832122094]
    assert losses[2:] == pytest.approx([1.245145043661428, 1.6609585784202399], abs=0.1)
    for number in range(4):
        rows = read_rows(sweep / "trials" / f"{number:04d}" / "metrics.jsonl")
        # Rows carry the time they were written: these were not measured again.
        kept = len(before[number]) if number < 2 else sum(row["step"] <= 24 for row in before[number])
        assert rows[:kept] == before[number][:kept]
        assert rows[-1]["step"] == 96

    exported = lrsweep_here("export", "boxes", "--to", "transformers", cwd=tmp_path)
    assert yaml.safe_load(exported.stdout)["learning_rate"] == 0.01
    again = lrsweep_here(*COMMAND, cwd=tmp_path)
    assert "already complete: 4 trials" in again.stdout


def test_the_pruners_earlier_name_is_the_same_pruner(sweep: Path, tmp_path: Path) -> None:
    study = optuna.load_study(study_name="boxes", storage=f"sqlite:///{sweep / 'study.db'}")
    identity = json.loads(study.user_attrs["identity"]) | {"pruner.name": "lockstep"}
    study.set_user_attr("identity", json.dumps(identity))
    for name in ("lockstep", "sync_halving"):
        run = lrsweep_here(*COMMAND, f"pruner.name={name}", "search.n_trials=2", cwd=tmp_path)
        assert "was 'lockstep'" not in run.stderr
        assert run.returncode == 0, run.stderr
    other = lrsweep_here(*COMMAND, "pruner.name=median", cwd=tmp_path)
    assert other.returncode == 2
    assert "pruner.name: was 'sync_halving' and is now 'median'" in other.stderr
