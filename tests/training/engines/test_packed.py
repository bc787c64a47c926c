"""The packed engine against the trainer engine: the same trials, the same curves, whoever else is in the pack."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lrsweep.training.engines.pack_loader as loader_module
import lrsweep.training.engines.trainer as trainer_module
from lrsweep.config.schema import SweepConfig
from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.engines import Outcome
from lrsweep.training.engines.factory import Workload, build_engine
from lrsweep.training.engines.pack_loader import pack_key
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.model import load_model
from lrsweep.training.packing import eval_pass, train_pass
from tests.conftest import DEVICE
from tests.recorder import Recorder, tiny, train

# Trials as unlike as one pack allows: rate, betas, decay, schedule, warm-up, clipping, rank, seed, length of the run.
UNLIKE = (
    (),
    ("optimizer.lr=1e-2", "optimizer.betas=[0.8,0.95]", "optimizer.weight_decay=0.3"),
    ("scheduler=linear", "training.max_grad_norm=0.1", "optimizer.eps=1e-4"),
    ("scheduler=constant", "finetune.r=4", "finetune.alpha=32", "training.seed=1"),
    ("training.max_steps=9", "optimizer.lr=3e-4"),
    ("training.horizon=50", "scheduler.warmup_ratio=null", "scheduler.warmup_steps=2"),
    ("optimizer=sgd", "optimizer.lr=0.1", "training.max_grad_norm=0"),
    ("finetune.rslora=true", "training.seed=2", "training.eval_every=2"),
    ("finetune.loraplus_lr_ratio=16", "optimizer.weight_decay=0.3", "optimizer.lr=3e-4"),
    ("optimizer.lr_groups={q_proj: 0.1, lora_B: 4}", "optimizer.weight_decay=0.3"),
)


@pytest.fixture
def exact_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer sums what it logs in float32; this has it tell its losses as its training_step returned them."""
    steps: list[float] = []
    stock_step, stock_log = trainer_module._Trainer.training_step, trainer_module._Reporter.on_log

    def training_step(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = stock_step(self, *args, **kwargs)
        steps.append(loss.item())
        return loss

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> Any:
        if "loss" in logs:
            logs = {**logs, "loss": sum(steps)}
            steps.clear()
        return stock_log(self, args, state, control, logs, **kwargs)

    monkeypatch.setattr(trainer_module._Trainer, "training_step", training_step)
    monkeypatch.setattr(trainer_module._Reporter, "on_log", on_log)


def assert_same(packed: Recorder, solo: Recorder, trials: int, tolerance: float) -> None:
    assert sorted(packed.outcomes, key=lambda outcome: outcome.number) == solo.outcomes
    for number in range(trials):
        for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
            ours, stock = packed.curve(name, number), solo.curve(name, number)
            assert ours.keys() == stock.keys(), (number, name)
            assert ours == pytest.approx(stock, rel=tolerance, abs=tolerance), (number, name)
        for ours_rows, stock_rows in zip(rows(packed, number), rows(solo, number), strict=True):
            assert ours_rows.tokens == stock_rows.tokens
            assert ours_rows.sums == pytest.approx(stock_rows.sums, rel=10 * tolerance, abs=10 * tolerance)


def rows(host: Recorder, number: int) -> list[RowLosses]:
    """A trial's losses on the eval rows, by evaluation."""
    return [m.row_losses for m in host.heard if m.number == number and m.row_losses is not None]


@pytest.mark.usefixtures("exact_losses")
def test_unlike_trials_have_the_curves_of_stock_trainer_and_peft(tmp_path: Path) -> None:
    """More trials than slots at 1 and 4: slots are refilled while their neighbours are half way."""
    trials = [tiny("model.dtype=float64", *overrides) for overrides in UNLIKE]
    stock = train(TrainerEngine(), tmp_path / "stock", *trials)
    for slots in (1, 4, 8):
        packed = train(PackedEngine(slots, rank=8), tmp_path / str(slots), *trials)
        assert_same(packed, stock, len(trials), 1e-10)


@pytest.mark.usefixtures("exact_losses")
@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune.loraplus_lr_ratio=8", "optimizer.name=adafactor", "optimizer.lr=1e-2"),
        pytest.param(("finetune=full", "optimizer.lr=1e-4", "optimizer.weight_decay=0.3"), marks=pytest.mark.thorough),
        ("finetune.init_lora_weights=pissa", "optimizer.weight_decay=0.3"),
        pytest.param(
            ("finetune.init_lora_weights=pissa_niter_4", "finetune.rslora=true", "finetune.alpha=4"),
            marks=pytest.mark.thorough,
        ),
        pytest.param(("finetune.init_lora_weights=olora",), marks=pytest.mark.thorough),
        pytest.param(("finetune.init_lora_weights=orthogonal",), marks=pytest.mark.thorough),
        ("finetune=full", "optimizer.lr_groups={embed_tokens: 0.1, norm: 2}", "optimizer.weight_decay=0.3"),
        pytest.param(
            ("optimizer.lr_groups={lora_B: 4}", "optimizer.name=adafactor", "optimizer.lr=1e-2"),
            marks=pytest.mark.thorough,
        ),
        ("finetune=freeze", "optimizer.weight_decay=0.3"),
        pytest.param(("training.gradient_accumulation_steps=3",), marks=pytest.mark.thorough),
        ("training.gradient_accumulation_steps=3", "training.mean_over=batches"),
        ("training.loss=dft", "training.gradient_accumulation_steps=2"),
        pytest.param(("training.loss=eaft", "training.eaft_alpha=0.5", "finetune=full"), marks=pytest.mark.thorough),
        ("data.max_train_rows=10", "training.max_steps=8"),
        pytest.param(("training.gradient_checkpointing=true",), marks=pytest.mark.thorough),
        ("data.packing=true",),
        pytest.param(("finetune.target_modules=[q_proj,v_proj]",), marks=pytest.mark.thorough),
        pytest.param(("finetune=full", "optimizer.name=adafactor", "optimizer.lr=1e-2"), marks=pytest.mark.thorough),
        (
            "scheduler.name=reduce_lr_on_plateau",
            "scheduler.warmup_ratio=null",
            "scheduler.kwargs={patience: 0}",
            "optimizer.lr=3e-2",
            "training.eval_every=1",
        ),
    ],
    ids=lambda overrides: " ".join(overrides[:2]),
)
def test_every_mode_has_the_curves_of_stock(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    base = ("model.dtype=float64", *overrides)
    trials = [
        tiny(*base),
        tiny(*base, "training.seed=1"),
        tiny(*base, "scheduler.kwargs={}", "training.max_grad_norm=0.5"),
    ]
    packed = train(PackedEngine(3, rank=8), tmp_path, *trials)
    assert_same(packed, train(TrainerEngine(), tmp_path, *trials), len(trials), 1e-10)


def test_trials_that_take_from_the_base_may_differ_in_dropout(tmp_path: Path) -> None:
    pissa = ("finetune.init_lora_weights=pissa", "training.max_steps=2")
    host = train(PackedEngine(2, rank=8), tmp_path, tiny(*pissa), tiny(*pissa, "finetune.dropout=0.1"))
    assert [outcome.status for outcome in host.outcomes] == ["complete", "complete"]


def test_float32_stays_within_1e_4(tmp_path: Path) -> None:
    trials = [tiny(*overrides) for overrides in UNLIKE[:4]]
    packed = train(PackedEngine(4, rank=8), tmp_path, *trials)
    assert_same(packed, train(TrainerEngine(), tmp_path, *trials), len(trials), 1e-4)


def test_bfloat16_on_a_cpu_stays_near_stock(tmp_path: Path) -> None:
    """A bf16 base has three digits, and rounds in another order alone than in a pack."""
    trials = [tiny("model.dtype=bfloat16", "training.max_steps=3", *overrides) for overrides in UNLIKE[:2]]
    packed = train(PackedEngine(2, rank=8), tmp_path, *trials)
    solo = train(TrainerEngine(), tmp_path, *trials)
    for number in range(len(trials)):
        for name in ("loss", "eval_loss"):
            assert packed.curve(name, number) == pytest.approx(solo.curve(name, number), abs=0.03), (number, name)


def test_neighbours_change_nothing_with_dropout_too(tmp_path: Path) -> None:
    one = tiny("model.dtype=float64", "finetune.dropout=0.2", "training.seed=5")
    others = [tiny("model.dtype=float64", f"finetune.dropout={p}") for p in (0.0, 0.5)]
    alone = train(PackedEngine(1, rank=8), tmp_path, one).curve("loss")
    assert train(PackedEngine(3, rank=8), tmp_path, *others, one).curve("loss", 2) == pytest.approx(alone, abs=1e-12)
    # Half the slots: it enters late, into a slot that another has left.
    assert train(PackedEngine(2, rank=8), tmp_path, *others, one).curve("loss", 2) == pytest.approx(alone, abs=1e-12)
    undropped = train(PackedEngine(1, rank=8), tmp_path, tiny("model.dtype=float64", "training.seed=5")).curve("loss")
    assert undropped != pytest.approx(alone, abs=1e-6)


def test_a_diverged_neighbour_leaves_the_others_bitwise_as_they_were(tmp_path: Path) -> None:
    explodes = ("optimizer=sgd", "optimizer.lr=1e30", "training.max_grad_norm=0", "scheduler=constant")
    calm = ("optimizer=sgd", "optimizer.lr=1e-3", "training.max_grad_norm=0", "scheduler=constant")
    healthy = tiny()
    beside_nan = train(PackedEngine(2, rank=8), tmp_path, tiny(*explodes), healthy)
    beside_calm = train(PackedEngine(2, rank=8), tmp_path, tiny(*calm, "training.max_steps=2"), healthy)
    diverged = next(outcome for outcome in beside_nan.outcomes if outcome.number == 0)
    assert diverged.status == "diverged"
    assert any(
        not math.isfinite(value) for value in {**beside_nan.curve("loss"), **beside_nan.curve("eval_loss")}.values()
    )
    shared = range(1, min(diverged.step, 2) + 1)
    assert [beside_nan.curve("loss", 1)[step] for step in shared] == [
        beside_calm.curve("loss", 1)[step] for step in shared
    ]
    assert beside_nan.curve("loss", 1) == pytest.approx(beside_calm.curve("loss", 1), rel=1e-5)
    assert next(outcome for outcome in beside_nan.outcomes if outcome.number == 1) == Outcome(1, 6, "complete")


def test_a_freed_slot_is_refilled_in_the_same_step(tmp_path: Path) -> None:
    """Two slots; trial 0 ends after 2 steps, and trial 2 takes its place while trial 1 is at step 2."""
    trials = [tiny("training.max_steps=2"), tiny(), tiny()]
    host = train(PackedEngine(2, rank=8), tmp_path, *trials)
    told = [(m.number, m.step) for m in host.heard if "loss" in m.metrics]
    assert told.index((2, 1)) < told.index((1, 4))
    assert [outcome.number for outcome in host.outcomes] == [0, 1, 2]


def test_stopped_trials_leave_at_once(tmp_path: Path) -> None:
    host = train(PackedEngine(2, rank=8), tmp_path, tiny(), tiny(), tiny(), stop_at=3)
    assert host.outcomes == [Outcome(number, 3, "stopped") for number in range(3)]


def test_trials_that_cannot_share_a_base_get_packs_of_their_own(tmp_path: Path) -> None:
    trials = [tiny(), tiny("training.batch_size=4"), tiny("training.batch_size=4", "optimizer.lr=1e-2"), tiny()]
    assert len({pack_key(trial) for trial in trials}) == 2
    host = train(PackedEngine(4, rank=8), tmp_path, *trials)
    assert sorted(host.outcomes, key=lambda o: o.number) == [Outcome(number, 6, "complete") for number in range(4)]
    assert host.curve("loss", 0) == pytest.approx(host.curve("loss", 3), abs=1e-5)


@pytest.mark.parametrize(("override", "why"), [("finetune.dora=true", "DoRA"), ("training.loss=asft", "asft")])
def test_what_cannot_be_packed_is_refused_or_trained_alone(tmp_path: Path, override: str, why: str) -> None:
    single = tiny(override)
    refused = train(PackedEngine(2, rank=8), tmp_path, single, tiny())
    assert [outcome.status for outcome in refused.outcomes] == ["failed", "complete"]
    assert why in refused.outcomes[0].reason
    alone = train(PackedEngine(2, rank=8, fallback=TrainerEngine), tmp_path, single, tiny())
    assert [outcome.status for outcome in alone.outcomes] == ["complete", "complete"]
    assert [outcome.engine for outcome in alone.outcomes] == ["trainer", "packed"]
    with pytest.raises(InputError, match=f"engine=packed: .*{why}.*use engine=trainer"):
        build_engine(Workload(tiny(override, "engine=packed"), 8, 1))


def test_a_model_that_mixes_rows_is_seen_before_any_trial_is_in_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gathering(torch.nn.Module):
        """Its inner layers get some of the rows only."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:1], self.inner(x[1:])])

    def gathering(*arguments: Any) -> Any:
        model = load_model(*arguments)
        model.model.layers[0].mlp = Gathering(model.model.layers[0].mlp)
        return model

    monkeypatch.setattr(loader_module, "load_model", gathering)
    with pytest.raises(InputError, match=r"engine=packed: .*whose they are is unknown"):
        build_engine(Workload(tiny("engine=packed"), 8, 1))
    alone = train(PackedEngine(2, rank=8, fallback=TrainerEngine), tmp_path, tiny())
    assert [(outcome.status, outcome.engine) for outcome in alone.outcomes] == [("complete", "trainer")]


def test_an_error_ends_its_trial_and_no_other(tmp_path: Path) -> None:
    host = train(PackedEngine(2, rank=8), tmp_path, tiny("scheduler.name=cosine_with_min_lr"), tiny(), tiny())
    assert sorted((outcome.number, outcome.status) for outcome in host.outcomes) == [
        (0, "failed"),
        (1, "complete"),
        (2, "complete"),
    ]


def test_a_saved_adapter_is_pefts_and_gives_the_same_loss(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from lrsweep.training.evaluation import evaluate
    from lrsweep.training.inputs import inputs

    trials = [
        tiny("training.save_adapter=true"),
        tiny("training.save_adapter=true", "finetune.r=4", "optimizer.lr=1e-2"),
    ]
    host = train(PackedEngine(2, rank=8), tmp_path, *trials)
    for number, trial in enumerate(trials):
        tokenizer, data = inputs(trial.model, trial.data)
        base = LlamaForCausalLM.from_pretrained(BASE).to(DEVICE)
        loaded = PeftModel.from_pretrained(base, tmp_path / str(number) / "adapter")
        loss = evaluate(loaded, data.evaluation, 16, tokenizer.pad_token_id).mean
        assert loss == pytest.approx(host.curve("eval_loss", number)[6], abs=1e-6)


def test_out_of_memory_halves_the_passes_and_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over more than two trials runs out of memory, after half of its gradients are written."""
    import lrsweep.training.packing.graphs as packed_module

    trials: list[SweepConfig] = [
        tiny("model.dtype=float64", "finetune.dropout=0.1", f"training.seed={i}") for i in range(4)
    ]
    undisturbed = train(PackedEngine(4, rank=8), tmp_path, *trials)
    stock = train_pass
    widest: list[int] = []

    def small_memory(pack: Any, start: int, stop: int, *rest: Any) -> torch.Tensor:
        losses = stock(pack, start, stop, *rest)
        if stop - start > 2:
            raise torch.OutOfMemoryError("a fault of the test's")
        widest.append(stop - start)
        return losses

    monkeypatch.setattr(packed_module, "train_pass", small_memory)
    host = train(PackedEngine(4, rank=8), tmp_path, *trials)
    assert max(widest) == 2
    for number in range(4):
        assert host.curve("loss", number) == pytest.approx(undisturbed.curve("loss", number), abs=1e-12)


def test_out_of_memory_in_evaluation_halves_its_passes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lrsweep.training.engines.pack_evaluation as packed_module

    trials: list[SweepConfig] = [
        tiny("model.dtype=float64", "training.eval_batch_size=2", f"training.seed={i}") for i in range(4)
    ]
    undisturbed = train(PackedEngine(4, rank=8), tmp_path, *trials)
    stock = eval_pass
    tried: list[int] = []

    def small_memory(pack: Any, start: int, stop: int, *rest: Any) -> Any:
        tried.append(stop - start)
        if stop - start > 1:
            raise torch.OutOfMemoryError("a fault of the test's")
        return stock(pack, start, stop, *rest)

    monkeypatch.setattr(packed_module, "eval_pass", small_memory)
    monkeypatch.setattr("lrsweep.training.packing.pass_size.PassSizes.current", lambda *_: 4)
    host = train(PackedEngine(4, rank=8), tmp_path, *trials)
    assert [width for width in tried if width > 1] == [4, 2]
    assert tried[-1] == 1
    for number in range(4):
        assert host.curve("eval_loss", number) == pytest.approx(undisturbed.curve("eval_loss", number), abs=1e-12)


@pytest.mark.parametrize(("rows", "width"), [(2, 4), (4, 2), (64, 1)])
def test_an_evaluations_pass_has_as_many_rows_as_a_training_pass(
    rows: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lrsweep.training.engines.pack_evaluation as packed_module

    stock = eval_pass
    widths: list[int] = []

    def counted(pack: Any, start: int, stop: int, *rest: Any) -> Any:
        widths.append(stop - start)
        return stock(pack, start, stop, *rest)

    monkeypatch.setattr(packed_module, "eval_pass", counted)
    monkeypatch.setattr("lrsweep.training.packing.pass_size.PassSizes.current", lambda *_: 4)
    train(PackedEngine(4, rank=8), tmp_path, *[tiny(f"training.eval_batch_size={rows}") for _ in range(4)])
    assert max(widths) == width


def test_a_trial_that_fits_in_no_memory_fails_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lrsweep.training.packing.graphs as packed_module

    def no_memory(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("a fault of the test's")

    monkeypatch.setattr(packed_module, "train_pass", no_memory)
    host = train(PackedEngine(2, rank=8), tmp_path, tiny(), tiny())
    assert [outcome.reason for outcome in host.outcomes] == ["out of GPU memory: a fault of the test's"] * 2
