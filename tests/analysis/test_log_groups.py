"""Files that belong together: the same run in several files, and the runs of a sweep."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrsweep.analysis.diagnosis.remedies import in_training_arguments
from lrsweep.analysis.log_groups import distinct, groups, other_runs
from lrsweep.analysis.log_readers import Log, read_logs
from lrsweep.dialects import TRAINERS
from tests.conftest import lrsweep_here


def write(path: Path, lr: float, end: float, start: float = 4.0, steps: int = 40, **state: Any) -> str:
    """A trainer_state.json of a run that falls from `start` to `end`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.02 * np.random.default_rng(0).normal(size=steps)
    losses = end + (start - end) * np.exp(-np.arange(steps) / 8) + noise
    history = [{"step": 10 * i + 10, "loss": float(v), "learning_rate": lr} for i, v in enumerate(losses)]
    history += [{"step": 100 * i, "eval_loss": end + 0.1 + (start - end) * 0.3**i} for i in range(1, steps // 10 + 1)]
    path.write_text(json.dumps({"log_history": history, "global_step": 10 * steps} | state))
    return str(path)


def logs(*paths: str) -> list[Log]:
    return [log for path in paths for log in read_logs(path, lambda run_id: [])]


RUNS = {3e-6: 3.6, 3e-4: 2.0, 1e-4: 2.2}


def test_runs_of_one_sweep_are_compared_whatever_their_folders_are_called(tmp_path: Path) -> None:
    def answer(names: str, backwards: bool = False) -> str:
        """What is said of the three runs in folders with these names, with numbers for the names."""
        named = list(zip(names, RUNS.items(), strict=True))
        paths = [write(tmp_path / name / "trainer_state.json", lr, end) for name, (lr, end) in named]
        result = lrsweep_here("diagnose", *(reversed(paths) if backwards else paths), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        for number, name in enumerate(names):
            result.stdout = result.stdout.replace(f"{tmp_path}/{name}/", f"{number}/")
        return str(result.stdout)

    told = answer("abc")
    assert answer("zyx") == told
    table = told.split("best first:\n")[1]
    assert answer("abc", backwards=True).split("best first:\n")[1] == table
    assert "0/trainer_state.json: too_low" in told
    assert "1/trainer_state.json: healthy" in told
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["learning_rate", "final", "eval_loss", "curve", "file"]
    assert [row[0] for row in rows[1:]] == ["0.0003", "0.0001", "3e-06"]


def test_only_like_runs_are_compared(tmp_path: Path) -> None:
    paths = {
        "a": write(tmp_path / "a.json", 1e-4, 2.0),
        "lr": write(tmp_path / "lr.json", 3e-4, 2.1),
        "another task": write(tmp_path / "task.json", 3e-4, 0.2, start=1.0),
        "longer": write(tmp_path / "longer.json", 3e-4, 1.5, steps=400),
    }
    (a, lr, task, longer) = found = logs(*paths.values())
    assert other_runs(a, found) == [lr.curve]
    assert other_runs(task, found) == []
    assert other_runs(longer, found) == []
    assert [{log.source for log in group.logs} for group in groups(found)] == [{paths["a"], paths["lr"]}]


def test_what_differs_besides_the_rate_is_shown_and_is_no_reason_to_blame_the_rate(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{batch}/trainer_state.json", lr, end, train_batch_size=batch)
        for batch, lr, end in ((8, 1e-4, 2.0), (32, 1e-5, 3.6))
    ]
    found = logs(*paths)
    assert other_runs(found[1], found) == []
    (group,) = groups(found)
    assert [one["batch size"] for one in group.differing] == [8, 32]
    (tmp_path / "8/adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "tiny"}')
    (tmp_path / "32/adapter_config.json").write_text('{"r": 64, "base_model_name_or_path": "tiny"}')
    (group,) = groups(logs(*paths))
    assert [one["rank"] for one in group.differing] == [8, 64]
    (tmp_path / "32/adapter_config.json").write_text('{"r": 64, "base_model_name_or_path": "large"}')
    assert groups(logs(*paths)) == []


def test_one_run_in_several_files_is_one_run(tmp_path: Path) -> None:
    whole = write(tmp_path / "trainer_state.json", 1e-4, 2.0)
    history = json.loads(Path(whole).read_text())["log_history"]
    (tmp_path / "checkpoint-200").mkdir()
    part = tmp_path / "checkpoint-200" / "trainer_state.json"
    part.write_text(json.dumps({"log_history": [row for row in history if row["step"] <= 200]}))
    lines = [json.dumps({"current_steps": r["step"], "loss": round(r["loss"], 4)}) for r in history if "loss" in r]
    (tmp_path / "trainer_log.jsonl").write_text("\n".join(lines))
    ((longest, others),) = distinct(logs(str(part), whole, str(tmp_path / "trainer_log.jsonl")))
    assert longest.source == whole
    assert sorted(log.source for log in others) == sorted([str(part), str(tmp_path / "trainer_log.jsonl")])
    result = lrsweep_here("diagnose", ".", cwd=tmp_path)
    assert result.stdout.count(": healthy: ") == 1
    assert "the same run: " in result.stdout
    assert "best first" not in result.stdout


def test_the_same_losses_at_another_rate_are_another_run_that_does_not_train(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{lr}.json", lr, 2.0) for lr in (1e-5, 1e-3)]
    assert len(distinct(logs(*paths))) == 2
    assert lrsweep_here("diagnose", *paths, cwd=tmp_path).stdout.count(": inert: its losses equal those") == 2


@pytest.mark.parametrize("trainer", ["transformers", "llamafactory", "trl"])
def test_remedies_have_the_keys_that_the_trainers_have(trainer: str) -> None:
    """The table of a dialect says what a key of ours is called there."""
    overrides = {
        "optimizer.lr": 1e-4,
        "optimizer.betas": [0.8, 0.999],
        "optimizer.weight_decay": 0.1,
        "training.max_steps": 100,
        "scheduler.warmup_ratio": 0.1,
        "scheduler.warmup_steps": None,
    }
    dialect = TRAINERS[trainer]
    rows = dialect.rows((5, 0) if trainer == "transformers" else None)
    for ours, value in overrides.items():
        theirs = {key for row in rows if ours in row.ours for key in row.theirs}
        assert set(in_training_arguments({ours: value})) <= theirs, ours


def test_remedies_are_in_the_words_of_the_log(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "fixtures/curves/07_three_epoch_overfit.json", tmp_path / "log.json")
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(json.dumps(row) for row in json.loads((tmp_path / "log.json").read_text())["log_history"])
    )
    assert ": max_steps=1000" in lrsweep_here("diagnose", "log.json", cwd=tmp_path).stdout
    assert ": training.max_steps=1000" in lrsweep_here("diagnose", "metrics.jsonl", cwd=tmp_path).stdout
