"""The noise of final losses: what evaluation spacing must not change, held against simulation."""

import numpy as np
import pytest

from lrsweep.analysis.diagnosis.curve import Series
from lrsweep.analysis.diagnosis.smoothing import noise
from lrsweep.analysis.noise import estimate, same
from lrsweep.analysis.scatter import scatter


def line(slope: float, steps: list[int]) -> list[tuple[int, float]]:
    return [(step, 3.0 - slope * step) for step in steps]


def test_straight_curves_have_no_noise_whatever_the_steps_between_evaluations() -> None:
    # The last step is evaluated whether or not eval_every divides it: 40, 60, 70.
    curves = [line(slope, [40, 60, 70]) for slope in (0.010, 0.011, 0.012)]
    found = estimate([(curve[-1][1],) for curve in curves], curves)
    assert found is not None
    assert found.deviation == pytest.approx(0, abs=1e-12)
    assert not same(0.05, 1, 1, found, 3)
    assert not same(0.10, 1, 1, found, 3)


@pytest.mark.parametrize("steps", [(10, 20, 30, 40), (10, 40, 50, 100), (40, 60, 70, 71), (0, 1, 2, 50)])
def test_the_deviation_is_that_of_a_point_at_any_spacing(steps: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    curves = [[(step, 2 - 0.01 * step + float(generator.normal(0, 0.03))) for step in steps] for _ in range(4000)]
    found = estimate([(1.0,)], curves)
    assert found is not None
    assert found.deviation == pytest.approx(0.03, rel=0.03)


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
