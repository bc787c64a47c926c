"""What every engine in ENGINES has to do, on real trials, held against the trainer engine."""

from pathlib import Path

import pytest

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
