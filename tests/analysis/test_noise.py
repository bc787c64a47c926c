"""The noise of final losses, measured over seeds: against scipy, and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lrsweep.analysis.diagnosis.curve import Series
from lrsweep.analysis.diagnosis.smoothing import noise
from lrsweep.analysis.noise import fit_seeds
from lrsweep.analysis.row_noise import row_noise
from lrsweep.analysis.scatter import scatter
from lrsweep.files.row_losses import RowLosses


def by_seed(*losses: float) -> dict[int, float]:
    return dict(enumerate(losses))


def test_two_trials_with_the_same_seeds_are_a_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        seeds = draw.normal(0, 1, 3)  # what a seed adds to both
        one, other = 2 + seeds + draw.normal(0, 0.01, 3), 2.02 + seeds + draw.normal(0, 0.01, 3)
        model = fit_seeds([by_seed(*one), by_seed(*other)])
        assert model is not None
        assert model.noise.degrees == 2
        test = stats.ttest_rel(other, one)
        low, high = test.confidence_interval(0.95)
        assert model.margin(0, 1, 2, 0.95) == pytest.approx((high - low) / 2, rel=1e-6)
        assert model.means[1] - model.means[0] == pytest.approx((low + high) / 2, abs=1e-9)


def test_several_trials_are_the_anova_of_a_randomized_block_design() -> None:
    draw = np.random.default_rng(1)
    losses = draw.normal(0, 1, (4, 3)) + draw.normal(0, 5, 3)
    model = fit_seeds([by_seed(*row) for row in losses])
    assert model is not None
    residuals = losses - losses.mean(1)[:, None] - losses.mean(0) + losses.mean()
    assert model.noise.degrees == 6
    assert model.noise.deviation == pytest.approx(math.sqrt((residuals**2).sum() / 6))
    np.testing.assert_allclose(np.diff(model.means), np.diff(losses.mean(1)))


def test_a_trial_with_one_seed_is_compared_on_that_seed() -> None:
    model = fit_seeds([by_seed(1.0, 2.0), by_seed(1.1, 2.1), {0: 1.5}])
    assert model is not None
    assert model.noise.deviation == pytest.approx(0, abs=1e-12)
    assert model.means[2] - model.means[0] == pytest.approx(0.5)


def test_without_shared_seeds_it_is_tukeys_test() -> None:
    draw = np.random.default_rng(2)
    groups = [list(draw.normal(mean, 0.1, 3)) for mean in (1.0, 1.2, 1.5)]
    model = fit_seeds([dict(enumerate(group, start=10 * i)) for i, group in enumerate(groups)])
    assert model is not None
    assert model.noise.degrees == 6
    interval = stats.tukey_hsd(*groups).confidence_interval(0.95)
    assert model.margin(0, 1, 3, 0.95) == pytest.approx((interval.high[0, 1] - interval.low[0, 1]) / 2, rel=1e-6)


def test_one_trials_seeds_have_their_plain_deviation() -> None:
    model = fit_seeds([by_seed(1.0, 1.2, 1.1), {0: 2.0}])
    assert model is not None
    assert model.noise.deviation == pytest.approx(0.1)
    assert model.noise.degrees == 2


def test_one_seed_each_says_nothing() -> None:
    assert fit_seeds([{0: 1.0}, {0: 2.0}]) is None
    assert fit_seeds([]) is None


@pytest.mark.parametrize("shared", [0.0, 0.05])
def test_of_equal_trials_few_are_told_apart(shared: float) -> None:
    draw = np.random.default_rng(3)
    wrong = 0
    for _ in range(1000):
        losses = draw.normal(0, 0.01, (3, 3)) + draw.normal(0, shared, 3)
        model = fit_seeds([by_seed(*row) for row in losses])
        assert model is not None
        low, high = int(np.argmin(model.means)), int(np.argmax(model.means))
        wrong += model.means[high] - model.means[low] > model.margin(low, high, 3, 0.95)
    assert wrong / 1000 == pytest.approx(0.05, abs=0.02)


def test_a_row_that_is_hard_for_both_trials_is_no_noise() -> None:
    draw = np.random.default_rng(4)
    tokens = tuple(int(n) for n in draw.integers(5, 30, 64))
    hard = draw.normal(3, 1, 64) * tokens
    gaps = draw.normal(0.05, 0.2, 64) * tokens
    one, other = RowLosses(tuple(hard), tokens), RowLosses(tuple(hard + gaps), tokens)
    found = row_noise(other, one)
    assert found is not None
    # The delta method's error of a ratio estimator: Cochran, "Sampling Techniques", section 2.11.
    weights = np.array(tokens) / np.mean(tokens)
    error = np.std(gaps / np.mean(tokens) - weights * gaps.sum() / sum(tokens), ddof=1) / math.sqrt(64)
    assert found.deviation == pytest.approx(error, rel=0.1)
    same = row_noise(one, one)
    assert same is not None
    assert same.deviation == 0
    assert row_noise(one, RowLosses(one.sums[:9], tokens[:9])) is None
    assert row_noise(one, None) is None


def test_a_curves_own_noise_does_not_depend_on_the_spacing_either() -> None:
    generator = np.random.default_rng(1)
    steps = np.cumsum(generator.integers(1, 30, 4000)).astype(np.float64)
    values = 5 - 1e-4 * steps + generator.normal(0, 0.2, 4000)
    assert noise(Series(steps, values)) == pytest.approx(0.2, rel=0.05)
    assert noise(Series(steps, 5 - 1e-4 * steps)) == pytest.approx(0, abs=1e-10)


def test_with_equal_steps_it_is_the_second_difference() -> None:
    values = np.random.default_rng(2).normal(size=50)
    found = scatter(np.arange(50.0), values)
    np.testing.assert_allclose(np.abs(found), np.abs(np.diff(values, n=2)) / np.sqrt(6), rtol=1e-12)
