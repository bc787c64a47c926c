"""Checkpoints: whole or not there; a trial that goes on from one is to the bit the trial that was never stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsweep.files import checkpoint
from lrsweep.files.checkpoint import Checkpoint
from lrsweep.files.metrics_log import MetricsLog, read_metrics
from lrsweep.files.paths import remove_checkpoints
from lrsweep.training.engines import Engine, Stop
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.engines.trainer import TrainerEngine
from tests.recorder import Recorder, tiny, train

STATE: dict[str, Any] = {
    "weights": {"a": torch.randn(3, 4), "b": torch.tensor(7.0, dtype=torch.float64)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "n": 1}}, "betas": (0.9, 0.999)},
    "schedule": {"last": [0.1 + 0.2, None, True, float("inf")], "name": "cosine", "empty": {}},
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert ours == theirs


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, Checkpoint("packed", "a trial", step, {**STATE, "step": step}))


def loaded(folder: Path) -> Checkpoint | None:
    return checkpoint.load(folder, "packed", "a trial")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert loaded(tmp_path) is None
    saved(tmp_path, 10, 20)
    found = loaded(tmp_path)
    assert found is not None
    assert (found.engine, found.step) == ("packed", 20)
    assert_equal(dict(found.state), {**STATE, "step": 20})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "checkpoint.previous"]
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_it_is_code(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".safetensors", ".json"}
    with pytest.raises(TypeError, match="cannot hold a function"):
        checkpoint.save(tmp_path, Checkpoint("packed", "a trial", 1, {"f": test_nothing_in_it_is_code}))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink, lambda path: path.write_text("[]")])
def test_damage_is_seen_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 10, 20)
    damage(tmp_path / "checkpoint" / name)
    found = loaded(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "checkpoint is damaged" in caplog.text
    damage(tmp_path / "checkpoint.previous" / name)
    assert loaded(tmp_path) is None


def test_a_kill_between_the_renames_leaves_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, 10, 20)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.new")
    found = loaded(tmp_path)
    assert found is not None
    assert found.step == 10
    saved(tmp_path, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "checkpoint.previous"]


ENGINES: dict[str, Callable[[], Engine]] = {"packed": lambda: PackedEngine(3, rank=8), "trainer": TrainerEngine}
# An epoch is three steps long, dropout is on, and the trials are unlike.
LONG = (
    "training.max_steps=9",
    "training.eval_every=4",
    "data.max_train_rows=11",
    "finetune.dropout=0.1",
    "training.save_adapter=true",
)
TRIALS = [
    tiny(*LONG),
    tiny(*LONG, "training.seed=3", "scheduler=linear", "optimizer.lr=1e-2", "optimizer.betas=[0.8,0.95]"),
    tiny(*LONG, "finetune.r=4", "scheduler=constant", "training.max_grad_norm=0.1", "finetune.loraplus_lr_ratio=4"),
]


STOPS: tuple[Stop, ...] = ("pruned", "paused", "lost")


def curves(host: Recorder) -> dict[tuple[int, int], dict[str, float]]:
    found: dict[tuple[int, int], dict[str, float]] = {}
    for m in host.heard:
        found.setdefault((m.number, m.step), {}).update(m.metrics)
    return found


def adapters(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*/adapter/adapter_model.safetensors"))]


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize(
    "stop_at", [pytest.param(2, marks=pytest.mark.thorough), 4, pytest.param(7, marks=pytest.mark.thorough)]
)
def test_a_trial_goes_on_to_the_bit(tmp_path: Path, engine: str, stop_at: int) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    one = ENGINES[engine]()  # which measures once how many trials a pass takes
    undisturbed = curves(train(one, whole, *TRIALS))
    first = train(one, parted, *TRIALS, stop_at=stop_at)
    assert {(o.status, o.step) for o in first.outcomes} == {("stopped", stop_at)}
    second = train(ENGINES[engine](), parted, *TRIALS)
    assert {(o.status, o.step) for o in second.outcomes} == {("complete", 9)}
    assert min(m.step for m in second.heard) == stop_at + 1
    assert {**curves(first), **curves(second)} == undisturbed
    assert len(adapters(whole)) == 3
    assert adapters(parted) == adapters(whole)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_only_what_goes_on_later_gets_a_checkpoint(tmp_path: Path, engine: str) -> None:
    """A pruned trial needs none, and one that another worker has taken over has that worker's."""
    often = [tiny(*LONG, "training.checkpoint_seconds=0")]
    for why in STOPS:
        host = Recorder(tmp_path / why, often, stop_at=8, why=why)
        ENGINES[engine]().run(host)
        assert [(o.status, o.step) for o in host.outcomes] == [("stopped", 8)]
    kept = {why: json.loads((tmp_path / why / "0" / "checkpoint" / "state.json").read_text())["step"] for why in STOPS}
    assert kept == {"pruned": 4, "paused": 8, "lost": 4}


def test_the_packed_engine_checkpoints_at_evaluations(tmp_path: Path) -> None:
    """A kill comes without warning: what it leaves is the last evaluation's checkpoint."""
    undisturbed = curves(train(PackedEngine(3, rank=8), tmp_path / "whole", *TRIALS))
    often = [tiny(*LONG, "training.checkpoint_seconds=0"), *TRIALS[1:]]

    class Killed(BaseException):
        pass

    class Host(Recorder):
        def report(self, measurements: Any) -> Any:
            if any(m.step > 6 for m in measurements):
                raise Killed
            return super().report(measurements)

    with pytest.raises(Killed):
        PackedEngine(3, rank=8).run(Host(tmp_path / "killed", often))
    second = train(PackedEngine(3, rank=8), tmp_path / "killed", *often)
    assert min(m.step for m in second.heard if m.number == 0) == 5
    assert min(m.step for m in second.heard if m.number == 1) == 0
    alike = {key: value for key, value in curves(second).items() if key[0] == 0}
    # The others begin anew beside it: the same numbers, though not in the same passes.
    for key, metrics in alike.items():
        assert metrics == pytest.approx(undisturbed[key], rel=1e-4)


def test_the_checkpoint_of_another_engine_or_trial_is_passed_over(tmp_path: Path) -> None:
    train(PackedEngine(3, rank=8), tmp_path, *TRIALS, stop_at=2)
    others = [tiny(*LONG, "optimizer.lr=2e-3"), tiny(*LONG, "data.max_train_rows=12"), tiny(*LONG, "training.seed=9")]
    assert min(m.step for m in train(TrainerEngine(), tmp_path, *TRIALS, stop_at=0).heard) == 0
    for number in range(3):
        assert loaded(tmp_path / str(number)) is None
    heard = train(PackedEngine(3, rank=8), tmp_path, *others).heard
    assert {min(m.step for m in heard if m.number == number) for number in range(3)} == {0}


def test_the_log_keeps_what_came_before(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(5):
        log.append(step, {"loss": float(step)})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    again = MetricsLog(tmp_path, first=3)
    assert [row["step"] for row in again.kept] == [0, 1, 2]
    again.append(3, {"loss": 9.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 9.0)]
    anew = MetricsLog(tmp_path)
    anew.close()
    assert anew.kept == read_metrics(tmp_path) == []


def test_a_log_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    """At every byte of its last 4 KB."""
    rows = [{"step": i, "loss": 1.5 - i / 100, "eval_loss": 2.0} for i in range(120)]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert len(whole) > 4096
    for cut in range(4097):
        left = whole[: len(whole) - cut]
        (tmp_path / "metrics.jsonl").write_bytes(left)
        complete = sum(line.endswith(b"}") for line in left.split(b"\n"))
        assert read_metrics(tmp_path) == rows[:complete], cut
