"""Checkpoints that a thread writes: whole before anybody may claim their trial, and never at any price."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lrsweep.errors import StorageError
from lrsweep.files import checkpoint
from lrsweep.files.checkpoint import Checkpoint
from lrsweep.training.engines import Measurement, Outcome, Stop
from lrsweep.training.engines.checkpoint_writer import CheckpointWriter
from lrsweep.training.engines.checkpointing import is_due
from lrsweep.training.engines.packed import PackedEngine
from tests.recorder import Recorder, tiny


class SlowDisk:
    """`checkpoint.save`, which begins to write only when it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_write, self.begun = threading.Event(), threading.Event()
        self._save = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", self)

    def __call__(self, folder: Path, kept: Checkpoint) -> None:
        self.begun.set()
        assert self.may_write.wait(30)
        self._save(folder, kept)


def state(step: int) -> Checkpoint:
    return Checkpoint("packed", "a trial", step, {"weights": torch.full((3,), float(step))})


def step_of(folder: Path) -> int | None:
    found = checkpoint.load(folder, "packed", "a trial")
    return None if found is None else found.step


def test_a_newer_one_takes_the_place_of_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, writer = SlowDisk(monkeypatch), CheckpointWriter()
    writer.write(tmp_path / "other", state(1))
    for step in (1, 2, 3):
        writer.write(tmp_path / "one", state(step))
    disk.may_write.set()
    writer.wait()
    assert step_of(tmp_path / "other") == 1
    assert step_of(tmp_path / "one") == 3
    assert not (tmp_path / "one" / "checkpoint.previous").exists()


def test_what_is_dropped_is_not_written_and_what_is_being_written_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, writer = SlowDisk(monkeypatch), CheckpointWriter()
    writer.write(tmp_path / "one", state(1))
    assert disk.begun.wait(30)
    writer.write(tmp_path / "one", state(2))
    threading.Timer(0.1, disk.may_write.set).start()
    writer.drop(tmp_path / "one")
    assert step_of(tmp_path / "one") == 1


def test_a_full_disk_is_told_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    writer = CheckpointWriter()
    writer.write(tmp_path / "file" / "trial", state(1))
    with pytest.raises(StorageError, match="file"):
        writer.wait()


def write_all(writer: CheckpointWriter, folder: Path, fault: Exception | None) -> None:
    with writer.all_written():
        writer.write(folder, state(1))
        if fault is not None:
            raise fault


def test_at_the_end_all_is_written_and_the_first_error_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    write_all(CheckpointWriter(), tmp_path / "one", None)
    assert step_of(tmp_path / "one") == 1
    with pytest.raises(KeyError, match="the block's own"):
        write_all(CheckpointWriter(), tmp_path / "two", KeyError("the block's own"))
    assert step_of(tmp_path / "two") == 1
    with pytest.raises(KeyError, match="the block's own"):
        write_all(CheckpointWriter(), tmp_path / "file" / "trial", KeyError("the block's own"))
    with pytest.raises(StorageError):
        write_all(CheckpointWriter(), tmp_path / "file" / "trial", None)


@pytest.mark.parametrize("why", ["paused", "pruned", "lost"])
def test_a_trial_ends_only_when_nothing_of_it_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: Stop
) -> None:
    """From `finish` on, another worker may claim the trial: a Ctrl-C, too, has to wait for its checkpoint."""
    disk = SlowDisk(monkeypatch)
    found: list[int | None] = []

    class Host(Recorder):
        def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
            stop = super().report(measurements)
            if stop:
                threading.Timer(0.2, disk.may_write.set).start()
            return stop

        def finish(self, outcome: Outcome) -> None:
            new = tmp_path / "0" / "checkpoint.new"
            assert not new.exists()
            kept = checkpoint._read(tmp_path / "0" / "checkpoint")
            found.append(kept.step)
            super().finish(outcome)

    trial = tiny("training.checkpoint_seconds=0", "training.eval_every=2", "data.max_eval_rows=2")
    # Step 2 is being written, step 4 is waiting, and at step 5 the trial is stopped.
    host = Host(tmp_path, [trial], stop_at=5, why=why)
    PackedEngine(1, rank=8).run(host)
    assert found == [5 if why == "paused" else 2]
    assert checkpoint._read(tmp_path / "0" / "checkpoint").step == found[0]


def test_writing_may_take_a_tenth_of_the_time() -> None:
    training: Any = tiny("training.checkpoint_seconds=60").training
    now = time.monotonic()
    assert not is_due(training, now - 59, 0)
    assert is_due(training, now - 61, 6)
    assert not is_due(training, now - 61, 35)  # 32 trials of 0.1 GB on a slow disk
    assert is_due(training, now - 351, 35)
    assert is_due(tiny("training.checkpoint_seconds=0").training, now, 35), "0 is at every evaluation"
    assert not is_due(tiny("training.checkpoint_seconds=null").training, now - 999, 0)
