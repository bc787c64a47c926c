"""Several worker processes on this machine: each grid point once, whoever dies."""

import json
from pathlib import Path

import pytest

from tests.conftest import lrsweep
from tests.orchestration.executors.sweeps import begun, check_complete, grid, kill_one, start

# Sixteen points of the embedded model, so short that they take seconds, with settings that give any number of workers
# the same results.
REAL = [
    "+sweep=lora_lr",
    "name=real",
    "space.optimizer.lr=[1e-5,1e-4,1e-3,3e-3]",
    "space.optimizer.weight_decay=[0.0,0.01,0.1,0.3]",
    "training.max_steps=8",
    "training.eval_every=4",
    "data.max_eval_rows=24",
    "training.save_adapter=false",
    "search.preflight=false",
    "engine=trainer",
    "tracking=none",
]


def test_two_workers_of_which_one_is_killed_half_way(tmp_path: Path) -> None:
    sweep = start(tmp_path, *grid(0.1), "executor.workers=2")
    sweep.wait_for_trials(8)
    kill_one(sweep)
    code, said = sweep.wait()
    assert code == 0, said
    assert "a worker died" in said
    check_complete(tmp_path)
    # The one that was killed was in one trial at most, and only that has begun twice.
    assert sorted(begun(tmp_path).values())[:15] == [1] * 15
    assert sweep.workers() == []


@pytest.mark.scale
@pytest.mark.parametrize(
    "executor",
    [
        ["executor=local", "executor.workers=2"],
        ["executor=ray", "executor.workers=2"],
        ["executor=slurm", "executor.cluster=local", "executor.workers=2", "executor.cpus_per_worker=1"],
    ],
    ids=["local", "ray", "slurm"],
)
def test_real_training_on_two_workers_gives_what_one_gives(
    alone: dict[str, float], executor: list[str], tmp_path: Path
) -> None:
    if executor[0] == "executor=ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'lrsweep[ray]'")
    sweep = start(tmp_path, *REAL, *executor)
    sweep.name = "real"
    sweep.wait_for_trials(8)
    kill_one(sweep)
    code, said = sweep.wait()
    assert code == 0, said
    assert losses(tmp_path) == alone


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What one worker measures."""
    folder = tmp_path_factory.mktemp("alone")
    run = lrsweep(*REAL, cwd=folder)
    assert run.returncode == 0, run.stderr
    return losses(folder)


def losses(folder: Path) -> dict[str, float]:
    """Every trial's loss by its values, and which is the best."""
    summary = json.loads((folder / "outputs" / "real" / "summary.json").read_text())
    found = {json.dumps(trial["values"]): trial["eval_loss"] for trial in summary["trials"]}
    assert len(found) == len(summary["trials"]) == 16
    return {**found, "best": found[json.dumps(summary["best"]["values"])]}
