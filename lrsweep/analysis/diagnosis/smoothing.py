"""Levels of a noisy series, and how far noise alone may move them."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis.curve import Curve, Floats, Series

# Fewer points than these say nothing; of evaluations a start and an end are needed.
FEWEST_LOSSES, FEWEST_EVALS = 6, 3
# A level is told from another when they are this many standard errors apart.
ERRORS = 4.0


@dataclass(frozen=True)
class Levels:
    """Where a series starts and ends, how far either may be off by noise alone, and its smoothed course [m]."""

    first: float
    last: float
    error: float
    noise: float
    course: Series

    @property
    def fall(self) -> float:
        return self.first - self.last


def levels(series: Series) -> Levels:
    """Medians over an eighth of the points (three at least, if there are nine) at both ends and along the way."""
    values, n = series.values, len(series)
    width = max(n // 8, 3) if n >= 9 else 1
    spread = noise(values)
    parts = max(n // width, 1)
    bounds = np.linspace(0, n, parts + 1).astype(int)
    middles = [np.median(values[a:b]) for a, b in itertools.pairwise(bounds)]
    steps = [series.steps[b - 1] for b in bounds[1:]]
    # A median is 1.25 times as uncertain as a mean.
    error = 1.25 * spread * math.sqrt(2 / width)
    return Levels(float(middles[0]), float(middles[-1]), error, spread, Series(np.array(steps), np.array(middles)))


def noise(values: Floats) -> float:
    """Standard deviation of a point about its trend, from the second differences' median size.

    A straight trend cancels in them; for white noise their deviation is sqrt(6) times the points'.
    """
    if len(values) < 4:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(values, n=2))) / math.sqrt(6))


def summary(curve: Curve) -> Levels | None:
    """The levels of the eval loss, or of the training loss where evaluations are too few; None where both are."""
    evals, losses = curve.eval_loss.finite(), curve.loss.finite()
    if len(evals) >= FEWEST_EVALS:
        found = levels(evals)
        # The rows are the same each time: the first value and the last are what they are.
        return Levels(float(evals.values[0]), float(evals.values[-1]), 0.0, found.noise, found.course)
    return levels(losses) if len(losses) >= FEWEST_LOSSES else None


def falls(series: Series) -> bool:
    """Whether it ends below its start, by more than noise and by half a percent."""
    if len(series) < FEWEST_LOSSES:
        return False
    found = levels(series)
    return found.fall > max(ERRORS * found.error, 0.005 * abs(found.first))


def ends_above(series: Series, other: Series, errors: float) -> float:
    """How far one series ends above another; 0 with too few points, or where that is within `errors` standard errors.

    Taken over the last quarter of the steps that both have: runs of one seed see the same batches, whose noise cancels.
    """
    series, other = series.finite(), other.finite()
    _, mine, theirs = np.intersect1d(series.steps, other.steps, return_indices=True)
    if len(mine) < FEWEST_EVALS:
        return 0.0
    apart = series.values[mine] - other.values[theirs]
    last = apart[-max(len(apart) // 4, 1) :]
    gap = float(np.median(last))
    return gap if abs(gap) > errors * 1.25 * noise(apart) / math.sqrt(len(last)) else 0.0
