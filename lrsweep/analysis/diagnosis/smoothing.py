"""The start and end of a noisy series, its smoothed values, and how far noise alone may move them."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis.curve import Curve, Series
from lrsweep.analysis.scatter import scatter

# Fewer points than these are too few to judge; evaluations need at least a start, a middle and an end.
FEWEST_LOSSES, FEWEST_EVALS = 6, 3
# From this many evaluations on, their scatter about the trend can be told from the trend.
DENSE = 20
# Two values count as different if they are this many standard errors apart.
ERRORS = 4.0


@dataclass(frozen=True)
class Endpoints:
    """Where a series starts and ends.

    Attributes:
        first: Value at the start.
        last: Value at the end.
        error: Standard error of `last - first` that noise alone causes.
        noise: Standard deviation of one point about its trend.
        smoothed: The smoothed series [m].
    """

    first: float
    last: float
    error: float
    noise: float
    smoothed: Series

    @property
    def fall(self) -> float:
        """How far the series falls from start to end; negative if it rises."""
        return self.first - self.last


def endpoints(series: Series) -> Endpoints:
    """Returns the endpoints of a series, as medians of blocks of points.

    A block holds an eighth of the points, at least three if the series has nine or more, else one.
    """
    values, n = series.values, len(series)
    block = max(n // 8, 3) if n >= 9 else 1
    spread = noise(series)
    parts = max(n // block, 1)
    bounds = np.linspace(0, n, parts + 1).astype(int)
    middles = [np.median(values[a:b]) for a, b in itertools.pairwise(bounds)]
    steps = [series.steps[b - 1] for b in bounds[1:]]
    # The standard error of a median is 1.25 times that of a mean (sqrt(pi / 2), for normal noise).
    error = 1.25 * spread * math.sqrt(2 / block)
    return Endpoints(float(middles[0]), float(middles[-1]), error, spread, Series(np.array(steps), np.array(middles)))


def noise(series: Series) -> float:
    """Standard deviation of a point about its trend, from the median size of its scatter.

    1.4826 turns a median absolute deviation into a standard deviation, for normal noise.

    Returns:
        The deviation, in the values' unit; 0 with fewer than four points.
    """
    if len(series) < 4:
        return 0.0
    return float(1.4826 * np.median(np.abs(scatter(series.steps, series.values))))


def loss_endpoints(curve: Curve) -> Endpoints | None:
    """Returns the endpoints of the eval loss, or of the training loss if there are too few evaluations.

    None if there are too few of both.
    """
    evals, losses = curve.eval_loss.finite(), curve.loss.finite()
    if len(evals) >= FEWEST_EVALS:
        found = endpoints(evals)
        # Every evaluation uses the same rows, so the first and last values need no smoothing and have no error.
        return Endpoints(float(evals.values[0]), float(evals.values[-1]), 0.0, found.noise, found.smoothed)
    return endpoints(losses) if len(losses) >= FEWEST_LOSSES else None


def falls(series: Series) -> bool:
    """Returns whether a series ends below its start, by more than noise and by more than half a percent."""
    if len(series) < FEWEST_LOSSES:
        return False
    found = endpoints(series)
    return found.fall > max(ERRORS * found.error, 0.005 * abs(found.first))


def evaluations_fall(curve: Curve) -> bool:
    """Whether the evaluations go on to the end, and are there near their lowest, a tenth or more below the first."""
    series, steps = curve.eval_loss.finite(), curve.loss.steps
    evals = series.values
    if len(evals) < FEWEST_EVALS or (len(steps) and series.steps[-1] < steps[-max(len(steps) // 10, 1)]):
        return False  # what came after the last one may have been an explosion
    return bool(0 < evals[-1] < min(0.9 * evals[0], 1.1 * evals.min()))


def final_gap(series: Series, other: Series, errors: float) -> float:
    """Returns how far one series ends above another, as the median over the last quarter of the steps that both have.

    Runs with one seed see the same batches, so most of the batch noise cancels in the difference.

    Args:
        series: The series in question.
        other: The series to compare it with.
        errors: Number of standard errors below which the gap counts as 0.

    Returns:
        The gap; negative if `series` ends lower, 0 if too few steps are common to both or the gap may be noise.
    """
    series, other = series.finite(), other.finite()
    _, mine, theirs = np.intersect1d(series.steps, other.steps, return_indices=True)
    if len(mine) < FEWEST_EVALS:
        return 0.0
    apart = Series(series.steps[mine], series.values[mine] - other.values[theirs])
    last = apart.values[-max(len(apart) // 4, 1) :]
    gap = float(np.median(last))
    return gap if abs(gap) > errors * 1.25 * noise(apart) / math.sqrt(len(last)) else 0.0
