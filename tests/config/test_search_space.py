"""Axes: from the config's `space` to grid points and Optuna's distributions, and back to a trial's config."""

import math
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import axes, grid, trial_config, values
from lrsweep.errors import InputError
from lrsweep.search.distributions import distribution


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(*overrides: str) -> SweepConfig:
    return sweep_config(overrides)


def test_grid_is_every_combination_last_axis_fastest() -> None:
    found = axes(config("space.optimizer.lr=[1e-5,1e-4]", "space.optimizer.betas=[[0.9,0.999],[0.8,0.99]]"))
    points = [values(found, point) for point in grid(found)]
    assert points == [
        {"optimizer.lr": lr, "optimizer.betas": betas} for lr in (1e-5, 1e-4) for betas in ([0.9, 0.999], [0.8, 0.99])
    ]


def test_a_trial_gets_its_values_and_keeps_the_rest() -> None:
    base = config("space.optimizer.lr=[1e-5,1e-4]", "space.optimizer.betas=[[0.8,0.99]]", "optimizer.weight_decay=0.3")
    found = axes(base)
    trial = trial_config(base, found, grid(found)[1])
    assert trial.optimizer.lr == 1e-4
    assert trial.optimizer.betas == (0.8, 0.99)
    assert trial.optimizer.weight_decay == 0.3
    assert base.optimizer.lr != 1e-4 or base.optimizer.betas == (0.9, 0.999)


def test_log_range_gives_evenly_spaced_logarithms() -> None:
    (axis,) = axes(config("space.optimizer.lr={low: 1e-6, high: 1e-2, log: true, num: 5}"))
    assert axis.points() == (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    assert distribution(axis) == FloatDistribution(1e-6, 1e-2, log=True)


def test_whole_number_keys_get_whole_numbers() -> None:
    (axis,) = axes(config("space.finetune.r={low: 4, high: 64, log: true, num: 5}"))
    assert axis.points() == (4, 8, 16, 32, 64)
    assert distribution(axis) == IntDistribution(4, 64, log=True)
    (axis,) = axes(config("space.optimizer.weight_decay={low: 0, high: 1, num: 3}"))
    assert axis.points() == (0.0, 0.5, 1.0)
    assert distribution(axis) == FloatDistribution(0, 1)


def test_pairs_are_stored_as_text_optuna_takes() -> None:
    (axis,) = axes(config("space.optimizer.betas=[[0.9,0.999],[0.8,0.999]]"))
    assert distribution(axis) == CategoricalDistribution(["[0.9, 0.999]", "[0.8, 0.999]"])
    assert axis.value("[0.8, 0.999]") == [0.8, 0.999]


def test_any_key_can_be_an_axis() -> None:
    base = config("space.scheduler.name=[linear,cosine]", "space.data.max_length=[32,64]", "space.training.seed=[0,1]")
    assert [axis.key for axis in axes(base)] == ["scheduler.name", "data.max_length", "training.seed"]
    found = axes(config("space.scheduler.kwargs.num_cycles=[1,2]", "scheduler.name=cosine_with_restarts"))
    assert trial_config(base, found, {"scheduler.kwargs.num_cycles": 2}).scheduler.kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt", math.sqrt(2)), ("linear", 2.0)])
def test_lr_follows_the_batch_by_the_rule(rule: str, factor: float) -> None:
    base = config("+sweep=batch_lr", f"search.lr_scaling={rule}")
    found = axes(base)
    trial = trial_config(base, found, {"training.batch_size": 16, "optimizer.lr": 1e-3})
    assert trial.optimizer.lr == pytest.approx(1e-3 * factor, rel=1e-12)
    assert trial_config(base, found, {"training.batch_size": 8, "optimizer.lr": 1e-3}).optimizer.lr == 1e-3


def test_packaged_sweeps_all_have_axes() -> None:
    from lrsweep.config.hydra_compose import sweep_names

    assert len(sweep_names()) == 11
    for name in sweep_names():
        assert axes(config(f"+sweep={name}")), name


def test_classic_rates_are_in_the_learning_rate_sweeps() -> None:
    for name in ("lora_lr", "full_lr"):
        (axis,) = axes(config(f"+sweep={name}"))
        assert {1e-5, 3e-5, 1e-4} <= set(axis.points())


def test_values_are_judged_in_their_combinations() -> None:
    # 50 steps alone would lie beyond a horizon of 40; with 60 it does not.
    good = config("space.training.horizon=[60,100]", "space.training.max_steps=[40,50]", "training.max_steps=30")
    assert len(grid(axes(good))) == 4
    with pytest.raises(InputError, match=r"horizon \(60\) is the real run's steps: at least max_steps \(80\)"):
        axes(config("space.training.horizon=[60,100]", "space.training.max_steps=[60,80]"))


def test_trials_that_can_share_a_pack_follow_each_other() -> None:
    found = axes(config("space.optimizer.lr=[1e-4,1e-3]", "space.training.batch_size=[2,4]"))
    assert [point["training.batch_size"] for point in grid(found)] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("space={}", "space is empty"),
        (
            "space={optimizer.lr: [1e-3], optimizer: {lr: [1e-4]}}",
            "space: has optimizer.lr twice, as {optimizer.lr: ...} and as {optimizer: ",
        ),
        ("space.optimizer.lr=[]", "space.optimizer.lr=[]: an axis needs at least one value"),
        ("space.optimizer.lr=[1e-4,1e-4]", "space.optimizer.lr: 0.0001 is listed twice"),
        ("space.optimizer.lr=[1e-4,-1]", "space.optimizer.lr=-1: input should be greater than 0"),
        ("space.optimizer.lr=[1e-4,nan]", "space.optimizer.lr=nan: input should be a finite number"),
        ("space.optimizer.lr=1e-4", "space.optimizer.lr=0.0001: an axis is a list of choices"),
        (
            "space.optimizer=[adamw,sgd]",
            "space.optimizer: is a group, and an axis is one key: write space.optimizer.name=",
        ),
        ("space.optimizer.rl=[1]", "space.optimizer.rl: the config has no such key; did you mean optimizer.lr?"),
        ("space.optimizer.lr={low: 1e-4, high: 1e-3}", "add num: 5"),
        ("space.optimizer.lr={low: 1e-3, high: 1e-4, num: 3}", "low (0.001) must be below high (0.0001)"),
        ("space.optimizer.lr={low: 1e-5, high: 1e-4, lgo: true}", "space.optimizer.lr.lgo: a range has the keys"),
        ("space.optimizer.lr={low: 1e-5, high: abc, num: 3}", "space.optimizer.lr.high='abc': must be a finite number"),
        ("space.optimizer.weight_decay={low: 0, high: 1, log: true, num: 3}", "a log range starts above 0"),
        ("space.optimizer.lr={low: 1e-5, high: 1e-4, num: 1}", "space.optimizer.lr.num=1: must be a whole number"),
        (
            "space.finetune.r={low: 4, high: 8, step: 0.5, num: 2}",
            "space.finetune.r.step=0.5: finetune.r takes whole numbers",
        ),
        (
            "space.search.seed=[1,2]",
            "space.search.seed: changes nothing that a trial measures, so it cannot be searched",
        ),
        ("space.training.seed=[0.5]", "space.training.seed=0.5: input should be a valid integer"),
    ],
)
def test_a_bad_axis_is_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        axes(config(override))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_mapping_takes_keys_of_the_users_own_and_so_does_an_axis() -> None:
    base = config("model.special_tokens.eos_token=end", "space.optimizer.lr_groups.lora_B=[1,4]")
    assert base.model.special_tokens == {"eos_token": "end"}
    found = [axis for axis in axes(base) if axis.key == "optimizer.lr_groups.lora_B"]
    trials = [trial_config(base, found, point) for point in grid(found)]
    assert [trial.optimizer.lr_groups for trial in trials] == [{"lora_B": 1}, {"lora_B": 4}]


def test_a_mappings_keys_may_have_dots() -> None:
    base = config("optimizer.lr_groups={layers.0: 0.1}", "space.optimizer.lr_groups.layers.0=[0.1,1]")
    found = [axis for axis in axes(base) if axis.key == "optimizer.lr_groups.layers.0"]
    trials = [trial_config(base, found, point) for point in grid(found)]
    assert [trial.optimizer.lr_groups for trial in trials] == [{"layers.0": 0.1}, {"layers.0": 1}]
