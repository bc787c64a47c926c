"""Where a series starts, is lowest and ends, and how large its noise is for its level.

The noise of a training loss grows with the loss: from 2 to 0.2 it falls tenfold as well. So it is a share of the level,
estimated from neighbouring points.
"""

import math
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis.curve import Floats, Series
from lrsweep.analysis.scatter import scatter

# A loss at this level, a perplexity of 33, leaves much of a text unpredicted: there is room to learn.
ROOM = 3.5
# A change of the level by a smaller share is none.
FLAT = 0.02
# All pairs of so many values show whether they rise; of more, every k-th is taken.
_ENOUGH = 200
# The levels of a series with fewer points than this are its points.
_FEW = 9


@dataclass(frozen=True)
class Trend:
    """The levels of a series.

    Attributes:
        first: The first point.
        start: The level at the start: the median of the first three points, or of a thirtieth of them.
        end: The level at the end: the median of the last tenth of the points.
        low: The lowest level on the way.
        low_step: The step at which it is lowest.
        high: The highest level after the first point.
        high_step: The step at which it is highest.
        point_noise: The standard deviation of a point that noise alone causes, as a share of the level.
        waves: The standard deviation of a point about the straight line through the run, as a share of the level. It is
            larger than the noise where batches differ in a pattern, as with rows sorted by length.
        noise: The standard deviation of a level that noise alone causes, as a share of the level.
        start_noise: The same of the level at the start, which is of fewer points.
        smoothed: The levels on the way.
    """

    first: float
    start: float
    end: float
    low: float
    low_step: float
    high: float
    high_step: float
    point_noise: float
    waves: float
    noise: float
    start_noise: float
    smoothed: Series

    @property
    def fall(self) -> float:
        """How far it falls from start to end, as a share of the start; negative if it rises."""
        start = max(self.first, self.start)
        return 1 - self.end / start if start > 0 else 0.0


def trend(series: Series) -> Trend | None:
    """Returns the levels of a training loss's finite points; None with fewer than three."""
    n = len(series.finite())
    few = n < _FEW
    return _trend(series.finite(), 1 if few else max(n // 10, 3) | 1, 1 if few else max(n // 30, 3))


def eval_trend(series: Series) -> Trend | None:
    """Returns the levels of an eval loss. Its points have no noise of batches, so only dense ones are smoothed."""
    return _trend(series.finite(), max(len(series.finite()) // 10, 1) | 1, 1)


def _trend(series: Series, size: int, starting: int) -> Trend | None:
    values, steps = series.values, series.steps
    if len(values) < 3:
        return None
    smoothed = values if size == 1 else running_median(values, size)
    low, high = int(smoothed.argmin()), 1 + int(smoothed[1:].argmax())
    noise = relative_noise(series)
    return Trend(
        first=float(values[0]),
        start=float(np.median(values[:starting])),
        end=float(np.median(values[-size:])),
        low=float(smoothed[low]),
        low_step=float(steps[low]),
        high=float(smoothed[high]),
        high_step=float(steps[high]),
        point_noise=noise,
        waves=_about_a_line(values),
        # The standard error of a median is 1.25 times that of a mean, for normal noise.
        noise=noise if size == 1 else 1.25 * noise / math.sqrt(size),
        start_noise=noise if starting == 1 else 1.25 * noise / math.sqrt(starting),
        smoothed=Series(steps, smoothed),
    )


def relative_noise(series: Series) -> float:
    """Returns the standard deviation of a point about its trend, as a share of the level; 0 with under four points."""
    series = series.finite()
    if len(series) < 4:
        return 0.0
    level = np.maximum(running_median(np.abs(series.values), 5), 1e-12)
    # 1.4826 turns a median absolute deviation into a standard deviation, for normal noise.
    found = float(1.4826 * np.median(np.abs(scatter(series.steps, series.values)) / level[1:-1]))
    # Of few points, the estimate may be too low by chance.
    return found * (1 + 4 / len(series))


def _about_a_line(values: Floats) -> float:
    at = np.arange(len(values))
    slope, level = np.polyfit(at, values, 1)
    middle = max(float(np.median(np.abs(values))), 1e-12)
    return float(1.4826 * np.median(np.abs(values - slope * at - level))) / middle


def running_median(values: Floats, size: int) -> Floats:
    """Returns the median of the points around each point, of `size` points (odd), mirrored at the ends."""
    padded = np.pad(values, size // 2, mode="symmetric")
    if size <= 9 or len(values) <= 2000:
        found: Floats = np.median(np.lib.stride_tricks.sliding_window_view(padded, size), axis=1)
        return found
    # Of a long series, every k-th median, and straight lines between them: the rest costs memory and shows no more.
    at = np.unique(np.linspace(0, len(values) - 1, 400).astype(int))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(padded, size)[at], axis=1)
    between: Floats = np.interp(np.arange(len(values)), at, medians)
    return between


def rises_beyond_noise(values: Floats) -> bool:
    """Whether values rise by Kendall's test at 3 deviations; of fewer than seven, at least four all in order.

    See Kendall, "Rank Correlation Methods": under chance, tau has the variance 2 (2 n + 5) / (9 n (n - 1)).
    """
    values = values[:: -(-len(values) // _ENOUGH) or 1]
    n = len(values)
    if n < 7:
        return n >= 4 and ascending(values) == 1
    return (2 * ascending(values) - 1) * math.sqrt(9 * n * (n - 1) / (2 * (2 * n + 5))) > 3


def ascending(values: Floats) -> float:
    """The share of the pairs of values of which the later one is higher; Kendall's tau is twice that less one."""
    values = values[:: -(-len(values) // _ENOUGH) or 1]
    higher = np.triu(values[None, :] > values[:, None], 1)
    return float(higher.sum()) / (len(values) * (len(values) - 1) / 2)
