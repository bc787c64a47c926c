"""The learning rate for a longer run."""

import math

import numpy as np
import pytest

from lrsweep.analysis.horizon import LongerRun, Optimum, extrapolated, longer_run, optimum
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import judge
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.errors import InputError

LRS = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
BASE_LOSS = 4.0


def loss(lr: float, best: float) -> float:
    """A bowl over log lr, a decade from whose lowest point the loss is 0.3 higher."""
    return 2.0 + 0.3 * math.log10(lr / best) ** 2


def swept(*overrides: str) -> SweepConfig:
    return sweep_config(
        ["+sweep=horizon", "space.training.max_steps=[25,50,100]", f"space.optimizer.lr={LRS}", *overrides]
    )


def answer(config: SweepConfig, exponent: float, at_100: float = 2e-3) -> LongerRun | None:
    """The rate that follows from a grid whose best rates obey a power law exactly."""
    axes, results = search_space.axes(config), []
    for number, point in enumerate(search_space.grid(axes)):
        trial = search_space.trial_config(config, axes, point)
        steps = trial.training.max_steps
        measured = loss(trial.optimizer.lr, at_100 * (steps / 100) ** exponent)
        results.append(Result(number, search_space.values(axes, point), trial, "complete", steps, measured, ""))
    return longer_run(config, results, judge(results, BASE_LOSS), BASE_LOSS)


@pytest.mark.parametrize("exponent", [-0.1, -0.32, -0.5])
def test_an_exact_power_law_is_continued(exponent: float) -> None:
    found = answer(swept("training.horizon=800"), exponent)
    assert found is not None
    assert (found.steps, found.lengths) == (800, (25, 50, 100))
    assert found.low < 2e-3 * 8**exponent < found.high
    # Three lengths within a factor of 4 do not outweigh what is known of other models.
    assert min(exponent, -0.32) - 0.01 <= found.exponent <= max(exponent, -0.32) + 0.01


def test_lengths_far_apart_outweigh_the_rule_of_thumb() -> None:
    found = extrapolated([Optimum(s, 2e-3 * (s / 1000) ** -0.1, 0.03) for s in (10, 100, 1000)], 8000)
    assert found is not None
    assert found.exponent == pytest.approx(-0.1, abs=0.06)
    assert found.lr == pytest.approx(2e-3 * 8**-0.1, rel=0.25)


def test_without_a_length_it_is_for_eight_times_the_longest() -> None:
    found = answer(swept(), -0.32)
    assert found is not None
    assert found.steps == 800


def test_nothing_is_said_for_a_run_no_longer_than_the_trials() -> None:
    assert answer(swept("training.horizon=100"), -0.32) is None


def test_a_best_rate_at_an_end_is_no_optimum() -> None:
    assert optimum(50, {lr: loss(lr, 3e-1) for lr in LRS}, BASE_LOSS) is None
    assert optimum(50, {lr: loss(lr, 3e-3) for lr in LRS[:3]}, BASE_LOSS) is None
    assert answer(swept("training.horizon=800"), -0.32, at_100=1e-1) is None


def test_one_length_moves_by_the_rule_of_thumb_and_is_less_certain() -> None:
    one = extrapolated([Optimum(100, 2e-3, 0.05)], 800)
    three = extrapolated([Optimum(s, 2e-3 * (s / 100) ** -0.32, 0.05) for s in (25, 50, 100)], 800)
    assert one is not None
    assert three is not None
    assert one.lr == pytest.approx(2e-3 * 8**-0.32, rel=0.01)
    assert one.high / one.low > three.high / three.low
    assert extrapolated([], 800) is None


def test_the_interval_holds_what_its_model_says() -> None:
    """Draws from the prior and the noise that it assumes: the true rate lies inside in 95 % of them."""
    random, inside = np.random.default_rng(0), []
    for _ in range(2000):
        exponent = random.normal(-0.32, 0.15)
        optima = [
            Optimum(
                steps, 10 ** (-3 + exponent * math.log10(steps / 800) + random.normal(0, math.hypot(0.1, 0.1))), 0.1
            )
            for steps in (25, 50, 100)
        ]
        found = extrapolated(optima, 800)
        assert found is not None
        inside.append(found.low <= 10 ** (-3 + random.normal(0, 0.1)) <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.97


def test_searched_lengths_are_whole_runs_of_their_own() -> None:
    config = swept("training.horizon=3000", "scheduler.warmup_ratio=0.1")
    axes = search_space.axes(config)
    trials = [search_space.trial_config(config, axes, point).training for point in search_space.grid(axes)]
    assert {(t.max_steps, t.horizon, t.schedule_steps) for t in trials} == {(s, None, s) for s in (25, 50, 100)}
    # A horizon that is searched, too, is each trial's own.
    both = replace(swept(), {"space": {"training": {"max_steps": [40, 50], "horizon": [60, 100]}}})
    axes = search_space.axes(both)
    horizons = {search_space.trial_config(both, axes, point).training.horizon for point in search_space.grid(axes)}
    assert horizons == {60, 100}
    with pytest.raises(InputError, match="too few for horizon"):
        sweep_config(["+sweep=lora_lr", "training.horizon=3000"])
