"""A pack and its base leave memory when the pack ends."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from lrsweep.training.engines import packed
from lrsweep.training.engines.pack_loader import load_pack
from lrsweep.training.engines.packed import PackedEngine
from tests.recorder import tiny, train


def test_a_pack_that_has_ended_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def remember(*arguments: Any) -> Any:
        found = load_pack(*arguments)
        loaded.append((weakref.ref(found.pack.model), weakref.ref(found)))
        return found

    monkeypatch.setattr(packed, "load_pack", remember)
    # Two packs, one after the other: they differ in their batches.
    train(PackedEngine(2, 8), tmp_path, tiny(), tiny("training.batch_size=2"))
    gc.collect()
    assert len(loaded) == 2
    assert [(model(), pack()) for model, pack in loaded] == [(None, None)] * 2
