"""A pack stays in memory for the trials that follow, and leaves it for another pack and with its engine."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from lrsweep.training.engines import packed
from lrsweep.training.engines.pack_loader import load_pack
from lrsweep.training.engines.packed import PackedEngine
from tests.recorder import Recorder, tiny, train


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The model and the pack of each call of `load_pack`, as weak references."""
    found: list[Any] = []

    def remember(*arguments: Any) -> Any:
        assert [reference() for pair in found for reference in pair] == [None] * 2 * len(found)
        one = load_pack(*arguments)
        found.append((weakref.ref(one.pack.model), weakref.ref(one)))
        return one

    monkeypatch.setattr(packed, "load_pack", remember)
    return found


def test_a_pack_leaves_memory_before_another_is_loaded_and_with_its_engine(loaded: list[Any], tmp_path: Path) -> None:
    # They differ in their batches.
    train(PackedEngine(2, 8), tmp_path, tiny(), tiny("training.batch_size=2"))
    gc.collect()
    assert [(model(), pack()) for model, pack in loaded] == [(None, None)] * 2


def test_trials_that_follow_find_their_pack_loaded_and_have_the_same_curves(loaded: list[Any], tmp_path: Path) -> None:
    first, second = tiny("model.dtype=float64"), tiny("model.dtype=float64", "optimizer.lr=3e-3")
    host, engine = Recorder(tmp_path, [first]), PackedEngine(2, 8)
    engine.run(host)
    host.add(second)
    engine.run(host)
    assert len(loaded) == 1
    assert len(host.outcomes) == 2
    del engine
    gc.collect()
    alone = train(PackedEngine(2, 8), tmp_path / "alone", second)
    for name in ("loss", "eval_loss"):
        assert host.curve(name, 1) == alone.curve(name)
