"""A pack's memory: kept for the trials that follow, freed before another pack is loaded, and smaller if it must be."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import lrsweep.training.engines.pack_loader as loader_module
from lrsweep.training.engines import packed
from lrsweep.training.engines.pack_loader import load_pack
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.model import load_model
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
    train(PackedEngine(2, 8), tmp_path, tiny(), tiny("training.batch_size=4"))
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


def test_a_base_that_cannot_be_packed_leaves_memory_before_the_fallback_loads_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lrsweep.training.engines.trainer as trainer_module

    bases: list[Any] = []

    def remember(*arguments: Any) -> Any:
        assert [base() for base in bases] == [None] * len(bases)
        model = load_model(*arguments)
        bases.append(weakref.ref(model))
        return model

    monkeypatch.setattr(loader_module, "load_model", remember)
    monkeypatch.setattr(trainer_module, "load_model", remember)
    short = ("training.max_steps=1", "training.eval_every=1", "data.max_eval_rows=2")
    dora = tiny("finetune.dora=true", *short)
    train(PackedEngine(1, 8, fallback=TrainerEngine), tmp_path, tiny(*short), dora, tiny(*short))
    assert len(bases) == 4  # the second is loaded twice


class Budget(torch.nn.Module):
    """A layer on a device with room for two slots and one trial's rows, which is full in some of the passes."""

    def __init__(self, inner: torch.nn.Module, full_in: str) -> None:
        super().__init__()
        self.inner, self.full_in = inner, full_in
        self.packs: list[Any] = []
        self.has_trained = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        training = torch.is_grad_enabled()
        self.has_trained |= training
        full = {"training": training, "evaluation": not training, "later": not training and self.has_trained}
        if self.packs and full[self.full_in]:
            context = self.packs[0].context
            if self.packs[0].arena.weights.shape[0] + context.stop - context.start > 3:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        found: torch.Tensor = self.inner(x)
        return found


SHORT = ("model.dtype=float64", "training.max_steps=4", "training.eval_every=2", "data.max_eval_rows=4")
TRIALS = [
    tiny(*SHORT, "finetune.dropout=0.1"),
    tiny(*SHORT, "optimizer.lr=1e-2", "finetune.r=4", "scheduler=linear"),
    tiny(*SHORT, "training.seed=1", "training.max_grad_norm=0.1"),
    tiny(*SHORT, "optimizer=sgd"),
    tiny(*SHORT, "training.max_steps=3"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """The trials in a pack that has memory enough."""
    return train(PackedEngine(4, rank=8), tmp_path_factory.mktemp("whole"), *TRIALS)


@pytest.mark.xdist_group("undisturbed_pack")
@pytest.mark.parametrize("full_in", ["training", "evaluation", "later"])
def test_a_pack_shrinks_until_a_trial_fits_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_in: str, undisturbed: Recorder
) -> None:
    budgets: list[Budget] = []
    memory: list[Any] = []

    def small(*arguments: Any) -> Any:
        model = load_model(*arguments)
        mlp = model.model.layers[0].mlp
        mlp.down_proj = Budget(mlp.down_proj, full_in)
        budgets.append(mlp.down_proj)
        return model

    def loaded(*arguments: Any) -> Any:
        one = load_pack(*arguments)
        budgets[0].packs.append(one.pack)
        memory.extend([weakref.ref(one.pack.arena.weights), weakref.ref(one.pack.arena.grads)])
        return one

    monkeypatch.setattr(loader_module, "load_model", small)
    monkeypatch.setattr(packed, "load_pack", loaded)
    engine = PackedEngine(4, rank=8)
    host = train(engine, tmp_path, *TRIALS)
    assert budgets[0].packs[0].arena.slots == 2
    assert [reference() for reference in memory] == [None, None], "a view keeps the memory of all slots"
    assert sorted(host.outcomes, key=lambda o: o.number) == sorted(undisturbed.outcomes, key=lambda o: o.number)
    for number in range(len(TRIALS)):
        for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
            ours = [(m.step, m.metrics[name]) for m in host.heard if m.number == number and name in m.metrics]
            assert [step for step, _ in ours] == list(undisturbed.curve(name, number)), "each step once"
            assert dict(ours) == pytest.approx(undisturbed.curve(name, number), rel=1e-10)
