"""Analysis of a learning-rate range test: a trial whose learning rate rises at every step shows where to sweep.

Range tests differ in how they measure the slope: per step, over the learning rate, or over its logarithm. Here it is
the logarithm, since learning rates are searched on a log scale: a rise from 1e-5 to 3e-5 counts as much as one from
1e-3 to 3e-3. Every difference is compared with the noise, and points past the minimum are used only to find the
blow-up.

The test was proposed in L. N. Smith, Cyclical Learning Rates for Training Neural Networks, 2017 (arXiv:1506.01186).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsweep.analysis.diagnosis import Series, rung
from lrsweep.analysis.diagnosis.smoothing import noise
from lrsweep.errors import InputError, NoWinnerError

Floats = NDArray[np.float64]

FROM, TO, STEPS = 1e-7, 10.0, 100
FEWEST_STEPS, MOST_STEPS = 20, 100_000

# Weight of the past in the moving average: it covers about five steps, less than half a decade of the default ramp.
_SMOOTHING = 0.8
# Before this many steps the average is too uncertain to count as a minimum.
_SETTLED = 5
# The ramp ends when the smoothed loss is 4 times its minimum, as in fastai. A language model's loss is usually as bad
# as guessing before that, so the ramp also ends at 1.25 times the untrained model's loss.
_OVER_BEST, _OVER_BASE = 4.0, 1.25
# The loss counts as falling if it falls by this many standard errors and by this share of the base loss.
_ERRORS, _LEAST_FALL = 4.0, 0.005
# A loss that never falls blows up when it exceeds the base loss by this share.
_LEAST_RISE = 0.02
# The fall begins at this share of the whole fall; the loss blows up when it has lost this share of it again.
_BEGUN, _LOST = 0.1, 0.5
# The range starts between these factors below the minimum: each rate had one step, and a whole run needs a lower one.
_NEAREST, _FARTHEST = 30.0, 100.0
# The range ends at most this factor above the minimum.
_ABOVE = 10.0


class NoRangeError(NoWinnerError):
    """The range test did not find a range to sweep."""


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test over n steps. Losses are in nats per token.

    Attributes:
        lr: The learning rate of each step [n].
        loss: The loss of each step [n]; not finite after a blow-up.
        smooth_lr: The rates of the usable steps [m], averaged like the losses on the log scale, so that the smoothed
            curve does not lag behind.
        smooth: The moving average of the usable losses [m].
        base_loss: The untrained model's loss.
        error: Standard error of the smoothed loss at its minimum; 0 if there were too few usable steps.
        reason: Why this range was chosen, or why there is none.
        lrs: The range to sweep, on the ladder 1e-5, 3e-5, 1e-4, ...; empty if no range was found.
        begun_lr: Where the loss begins to fall; None if it does not.
        steepest_lr: Where it falls most steeply; None if it does not fall.
        minimum_lr: Where it is lowest; None if it does not fall.
        minimum_loss: The smoothed loss there; None if it does not fall.
        blow_up_lr: Where it blows up; None if it does not.
    """

    lr: Floats
    loss: Floats
    smooth_lr: Floats
    smooth: Floats
    base_loss: float
    error: float
    reason: str
    lrs: tuple[float, ...] = ()
    begun_lr: float | None = None
    steepest_lr: float | None = None
    minimum_lr: float | None = None
    minimum_loss: float | None = None
    blow_up_lr: float | None = None


def rates(low: float, high: float, steps: int) -> Floats:
    """Returns a geometric ramp of learning rates [steps].

    Args:
        low: The first rate.
        high: The last rate.
        steps: Number of steps, 20 to 100000.

    Raises:
        InputError: The rates are not 0 < low < high < infinity, or there are too few or too many steps.
    """
    if not (0 < low < high < math.inf):
        raise InputError(f"--from {low:g} --to {high:g}: must be two learning rates with 0 < from < to; correct them")
    if steps < FEWEST_STEPS:
        raise InputError(
            f"--steps {steps}: at least {FEWEST_STEPS}; use about 12 per factor of ten between --from and --to"
        )
    if steps > MOST_STEPS:
        raise InputError(f"--steps {steps}: at most {MOST_STEPS} are allowed; 100 are enough")
    return np.geomspace(low, high, steps)


def blown_up(loss: Floats, base_loss: float) -> bool:
    """Returns whether the loss has blown up, so that no higher rate needs to be tried.

    Args:
        loss: The losses so far [n].
        base_loss: The untrained model's loss.
    """
    if not np.isfinite(loss).all():
        return True
    smooth = smoothed(loss)
    return bool(smooth[-1] > _OVER_BEST * smooth.min() or smooth[-1] > _OVER_BASE * base_loss)


def smoothed(values: Floats) -> Floats:
    """Returns the exponential moving average of values [n], with Adam's bias correction for its start at zero."""
    average, found = 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        found[i] = average / (1 - _SMOOTHING ** (i + 1))
    return found


def analyse(lr: Floats, loss: Floats, base_loss: float | None = None) -> RangeTest:
    """Analyses a range test.

    Args:
        lr: The rates [n], rising.
        loss: The loss of each step [n].
        base_loss: The untrained model's loss on the same rows; None takes the median over the ramp's first tenth.

    Returns:
        The result; without a range, `lrs` is empty and `reason` gives the cause.
    """
    bad = ~np.isfinite(loss)
    n = int(bad.argmax()) if bad.any() else len(loss)
    not_finite_lr = float(lr[n]) if n < len(loss) else None
    usable = loss[:n]
    smooth, smooth_lr = smoothed(usable), 10 ** smoothed(np.log10(lr[:n]))
    head = usable[: max(n // 10, 3)]
    base = base_loss if base_loss is not None else float(np.median(head)) if n else math.nan

    def result(reason: str, error: float = 0.0, **found: Any) -> RangeTest:
        return RangeTest(lr, loss, smooth_lr, smooth, base, error, reason, **found)

    if n < 2 * _SETTLED:
        return result(f"it blows up within {n + 1} steps of lr {lr[0]:.2g}; lower --from", blow_up_lr=not_finite_lr)
    low = _SETTLED + int(smooth[_SETTLED:].argmin())
    point_error = _noise(usable[: max(low + 1, FEWEST_STEPS)])
    error = point_error * math.sqrt(_variance(low))
    # A base loss from the ramp has an error of its own: that of a median, which is 1.25 times that of a mean.
    fall_error = error if base_loss is not None else math.hypot(error, 1.25 * point_error / math.sqrt(len(head)))
    fall = base - float(smooth[low])
    needed = max(_ERRORS * fall_error, _LEAST_FALL * abs(base))
    falls = fall > needed
    lost = (
        float(smooth[low]) + max(_LOST * fall, 2 * fall_error) if falls else base + max(needed, _LEAST_RISE * abs(base))
    )
    rises = smooth[low:] > lost
    blow_up = float(smooth_lr[low + rises.argmax()]) if rises.any() else not_finite_lr
    if not falls:
        up = f"; it blows up at lr {blow_up:.2g}" if blow_up else ""
        return result(
            f"the loss falls from {base:.4g} by {max(round(fall, 6), 0):.2g}, but less than {needed:.2g} may be noise"
            + up,
            error,
            blow_up_lr=blow_up,
        )
    # The last point above the threshold counts: noise may fall below it earlier.
    above = smooth[: low + 1] > base - max(_BEGUN * fall, 2 * fall_error)
    start = low - int(above[::-1].argmax()) if above.any() else 0
    # A slope is noisier than a value, so it is taken from a curve that is smoothed twice.
    twice, where = smoothed(smooth), smoothed(np.log10(smooth_lr))
    slope = np.gradient(twice[start : low + 1], where[start : low + 1])
    steepest = float(10 ** where[start + slope.argmin()])
    begun, minimum = float(smooth_lr[start]), float(smooth_lr[low])
    lrs = _range(begun, minimum, blow_up or float(lr[-1]))
    end = "about where it blows up" if blow_up and blow_up <= _ABOVE * minimum else "well past its minimum"
    reason = f"from where the loss begins to fall to {end}"
    if blow_up is None and low >= n - _SETTLED:
        reason = f"but the loss still falls at the last rate, {lr[-1]:.2g}; raise --to to see where it blows up"
    return result(
        reason,
        error,
        lrs=lrs,
        begun_lr=begun,
        steepest_lr=steepest,
        minimum_lr=minimum,
        minimum_loss=float(smooth[low]),
        blow_up_lr=blow_up,
    )


def _variance(i: int) -> float:
    """Variance of the average's i-th value, for points of variance 1: it decreases to (1 - s) / (1 + s)."""
    past = _SMOOTHING ** (i + 1)
    return (1 - _SMOOTHING) / (1 + _SMOOTHING) * (1 + past) / (1 - past)


def _noise(values: Floats) -> float:
    """Standard deviation of a point about its trend in the noisiest third.

    While the learning rate is too low to matter, the loss relative to the untrained model's has hardly any noise.
    """
    parts = [values] if len(values) < 12 else np.array_split(values, 3)
    return max(noise(Series(np.arange(len(part), dtype=np.float64), part)) for part in parts)


def _range(begun: float, minimum: float, highest: float) -> tuple[float, ...]:
    low = _at_or_below(min(max(begun, minimum / _FARTHEST), minimum / _NEAREST))
    high = max(_at_or_below(min(highest, minimum * _ABOVE)), rung(low, 1))
    found = [low]
    while found[-1] < high:
        found.append(rung(found[-1], 1))
    return tuple(found)


def _at_or_below(lr: float) -> float:
    """The rung of 1e-5, 3e-5, 1e-4, ... at or below `lr`; up to ten percent above `lr` counts as at."""
    return rung(1.21 * lr, -1)
