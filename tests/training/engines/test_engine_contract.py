"""What every engine in ENGINES has to do, on real trials, held against the trainer engine."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.training.engines import Engine
from lrsweep.training.engines.factory import ENGINES, Workload, build_engine
from lrsweep.training.engines.trainer import TrainerEngine
from tests.recorder import Recorder, tiny, train


def engine(name: str, trial: SweepConfig) -> Engine:
    return build_engine(
        Workload(trial.model_copy(update={"engine": trial.engine.model_copy(update={"name": name})}), 8, 2)
    )


@pytest.mark.parametrize("name", ENGINES)
def test_it_trains_each_trial_to_its_end_with_the_reference_losses(name: str, tmp_path: Path) -> None:
    trials = [tiny(), tiny("optimizer.lr=1e-2", "training.seed=1")]
    host = train(engine(name, trials[0]), tmp_path / name, *trials)
    stock = train(TrainerEngine(), tmp_path / "trainer", *trials)
    assert sorted((o.number, o.status, o.step) for o in host.outcomes) == [(0, "complete", 6), (1, "complete", 6)]
    for number in (0, 1):
        for metric in ("loss", "eval_loss", "learning_rate", "grad_norm"):
            assert host.curve(metric, number) == pytest.approx(stock.curve(metric, number), rel=2e-3), metric
        assert sorted(host.curve("eval_loss", number)) == [0, 3, 6]
        assert not (tmp_path / name / str(number) / "adapter").exists()  # as training.save_adapter=false says


# Keys that an engine might not know: ignoring any of them changes a metric by more than the tolerance.
SHARED = (
    "training.gradient_accumulation_steps=2",
    "training.horizon=12",
    "finetune.target_modules=[q_proj,v_proj]",
    "training.save_adapter=true",
)
UNLIKE = (
    tiny(*SHARED, "scheduler.name=cosine_with_min_lr", "scheduler.kwargs={min_lr_rate: 0.5}", "training.seed=5"),
    tiny(*SHARED, "optimizer.lr=1e-2", "optimizer.weight_decay=3", "optimizer.betas=[0.5,0.9]", "optimizer.eps=1e-3"),
    tiny(*SHARED, "optimizer=sgd", "optimizer.lr=1", "optimizer.kwargs={momentum: 0.5}", "training.max_grad_norm=0.1"),
    tiny(*SHARED, "finetune.r=4", "finetune.alpha=64", "finetune.rslora=true", "scheduler.warmup_ratio=0.2"),
)
# Engines that keep no adapters. An engine is added here only if it cannot, and says so in docs/engines-and-speed.md.
WITHOUT_ADAPTERS: set[str] = set()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    """UNLIKE as the trainer engine trains them, and the folder with their adapters."""
    folder = tmp_path_factory.mktemp("stock")
    return train(TrainerEngine(), folder, *UNLIKE), folder


def adapter(folder: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(folder / str(number) / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ENGINES)
def test_every_key_has_its_effect_as_in_the_reference(name: str, stock: tuple[Recorder, Path], tmp_path: Path) -> None:
    reference, folder = stock
    host = train(engine(name, UNLIKE[0]), tmp_path, *UNLIKE)
    for number in range(len(UNLIKE)):
        for metric in ("loss", "eval_loss", "learning_rate", "grad_norm"):
            expected = pytest.approx(reference.curve(metric, number), rel=2e-3)
            assert host.curve(metric, number) == expected, (number, metric)
        if name not in WITHOUT_ADAPTERS:
            torch.testing.assert_close(adapter(tmp_path, number), adapter(folder, number), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_it_stops_a_trial_when_the_host_asks_and_trains_it_later(name: str, tmp_path: Path) -> None:
    trial = tiny("training.checkpoint_seconds=0")
    paused = train(engine(name, trial), tmp_path, trial, stop_at=3)
    assert [(o.status, o.step) for o in paused.outcomes] == [("stopped", 3)]
    resumed = train(engine(name, trial), tmp_path, trial)
    assert [(o.status, o.step) for o in resumed.outcomes] == [("complete", 6)]
    # From its checkpoint, or from the start where an engine keeps none.
    assert sorted(resumed.curve("loss")) in ([4, 5, 6], [1, 2, 3, 4, 5, 6])
    whole = train(engine(name, trial), tmp_path / "whole", trial)
    assert resumed.curve("eval_loss")[6] == pytest.approx(whole.curve("eval_loss")[6], abs=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_an_error_ends_its_trial_and_a_diverged_one_is_no_error(name: str, tmp_path: Path) -> None:
    trials = [tiny("finetune.target_modules=[no_such_module]"), tiny("optimizer.lr=1e30"), tiny()]
    host = Recorder(tmp_path, trials)
    engine(name, trials[2]).run(host)
    outcomes = {outcome.number: outcome for outcome in host.outcomes}
    assert {number: outcome.status for number, outcome in outcomes.items()} == {
        0: "failed",
        1: "diverged",
        2: "complete",
    }
    assert "no_such_module" in outcomes[0].reason
    assert "nan" in outcomes[1].reason or "inf" in outcomes[1].reason


@pytest.mark.parametrize("name", ENGINES)
def test_it_evaluates_after_the_last_step_whatever_eval_every_is(name: str, tmp_path: Path) -> None:
    trial = tiny("training.max_steps=5", "training.eval_every=3")
    host = train(engine(name, trial), tmp_path, trial)
    assert sorted(host.curve("eval_loss")) == [0, 3, 5]


@pytest.mark.parametrize("name", ENGINES)
def test_it_can_be_chosen_by_name(name: str) -> None:
    assert sweep_config(["+sweep=lora_lr", f"engine={name}"]).engine.name == name
