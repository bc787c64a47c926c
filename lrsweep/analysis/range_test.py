"""Reading a learning-rate range test: one trial in which the lr rises at every step says where to sweep.

Finders differ in what they call steepest: by the step, by the lr, or by the log of the lr. Here it is the log: rates are
searched on a log scale, and a rise from 1e-5 to 3e-5 is one from 1e-3 to 3e-3. Every difference is held against noise, and
what lies past the minimum counts for nothing but the blow-up.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrsweep.analysis.diagnosis import rung
from lrsweep.analysis.diagnosis.smoothing import noise
from lrsweep.errors import InputError, NoWinnerError

Floats = NDArray[np.float64]

FROM, TO, STEPS = 1e-7, 10.0, 100
FEWEST_STEPS, MOST_STEPS = 20, 100_000

# Weight of the past in the moving average: five steps or so, at the default ramp under half a decade.
_SMOOTHING = 0.8
# Steps until the average has enough in it to be taken for a minimum.
_SETTLED = 5
# The ramp is over when the smoothed loss is this many times its best, as in fastai; a language model's loss seldom comes to
# that before it is as bad as guessing, so also when it is this many times the untouched model's.
_OVER_BEST, _OVER_BASE = 4.0, 1.25
# The loss falls if it does by that many standard errors, and by this share of what it was.
_ERRORS, _LEAST_FALL = 4.0, 0.005
# Where it never falls, it blows up when it lies by this share above what it was.
_LEAST_RISE = 0.02
# It has begun to fall at this share of the whole fall, and blows up when this share is lost again.
_BEGUN, _LOST = 0.1, 0.5
# The range's low end lies this many times below the minimum: each rate had one step, and a whole run wants less.
_NEAREST, _FARTHEST = 30.0, 100.0
# And its high end at most this many times above it.
_ABOVE = 10.0


class NoRangeError(NoWinnerError):
    """The range test shows no range."""


@dataclass(frozen=True)
class RangeTest:
    """What a ramp shows. Arrays are [n], a point a step; losses in nats a token.

    `smooth` is `loss` averaged and `smooth_lr` the rates averaged alike on the log scale, so that the average does not lag
    behind. Rates are None where there is none. `lrs` is the range to sweep, rungs of 1e-5, 3e-5, 1e-4 ...; it is empty where
    no range was found. `reason` says why in either case. `error` is the standard error of a smoothed loss.
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
    """The ramp [steps]: every rate the same factor above the last. Raises InputError."""
    if not (0 < low < high < math.inf):
        raise InputError(f"--from {low:g} --to {high:g}: two rates are needed, 0 < from < to")
    if steps < FEWEST_STEPS:
        raise InputError(
            f"--steps {steps}: at least {FEWEST_STEPS}, a dozen for each factor of ten between --from and --to"
        )
    if steps > MOST_STEPS:
        raise InputError(f"--steps {steps}: at most {MOST_STEPS}; a hundred are enough")
    return np.geomspace(low, high, steps)


def blown_up(loss: Floats, base_loss: float) -> bool:
    """Whether losses [n] have come so far up, or out of all numbers, that no higher rate need be tried."""
    if not np.isfinite(loss).all():
        return True
    course = smoothed(loss)
    return bool(course[-1] > _OVER_BEST * course.min() or course[-1] > _OVER_BASE * base_loss)


def smoothed(values: Floats) -> Floats:
    """The exponential moving average [n], without the pull to zero that its start would have (Adam's bias correction)."""
    average, found = 0.0, np.empty(len(values))
    for i, value in enumerate(values):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * value
        found[i] = average / (1 - _SMOOTHING ** (i + 1))
    return found


def analyse(lr: Floats, loss: Floats, base_loss: float | None = None) -> RangeTest:
    """What losses [n] at rising rates [n] show. What cannot be told is a `reason` without `lrs`.

    `base_loss` is the untouched model's on the same rows; where it is not known it is read from the ramp's first tenth.
    """
    bad = ~np.isfinite(loss)
    n = int(bad.argmax()) if bad.any() else len(loss)
    not_finite_lr = float(lr[n]) if n < len(loss) else None
    usable = loss[:n]
    course, places = smoothed(usable), 10 ** smoothed(np.log10(lr[:n]))
    head = usable[: max(n // 10, 3)]
    base = base_loss if base_loss is not None else float(np.median(head)) if n else math.nan

    def answer(reason: str, error: float = 0.0, **found: Any) -> RangeTest:
        return RangeTest(lr, loss, places, course, base, error, reason, **found)

    if n < 2 * _SETTLED:
        return answer(f"it blows up within {n + 1} steps of lr {lr[0]:.2g}; lower --from", blow_up_lr=not_finite_lr)
    low = _SETTLED + int(course[_SETTLED:].argmin())
    error_of_one = _noise(usable[: max(low + 1, FEWEST_STEPS)])
    error = error_of_one * math.sqrt(_variance(low))
    # A base loss read from the ramp is uncertain itself; a median is 1.25 times as uncertain as a mean.
    doubt = error if base_loss is not None else math.hypot(error, 1.25 * error_of_one / math.sqrt(len(head)))
    fall = base - float(course[low])
    needed = max(_ERRORS * doubt, _LEAST_FALL * abs(base))
    falls = fall > needed
    lost = float(course[low]) + max(_LOST * fall, 2 * doubt) if falls else base + max(needed, _LEAST_RISE * abs(base))
    rises = course[low:] > lost
    blow_up = float(places[low + rises.argmax()]) if rises.any() else not_finite_lr
    if not falls:
        up = f"; it blows up at lr {blow_up:.2g}" if blow_up else ""
        return answer(
            f"the loss falls from {base:.4g} by {max(round(fall, 6), 0):.2g}, and less than {needed:.2g} may be noise{up}",
            error,
            blow_up_lr=blow_up,
        )
    # Behind the last point above the mark: noise may dip under it before.
    above = course[: low + 1] > base - max(_BEGUN * fall, 2 * doubt)
    start = low - int(above[::-1].argmax()) if above.any() else 0
    # A slope is noisier than a level: averaged once more.
    twice, where = smoothed(course), smoothed(np.log10(places))
    slope = np.gradient(twice[start : low + 1], where[start : low + 1])
    steepest = float(10 ** where[start + slope.argmin()])
    begun, minimum = float(places[start]), float(places[low])
    lrs = _range(begun, minimum, blow_up or float(lr[-1]))
    end = "about where it blows up" if blow_up and blow_up <= _ABOVE * minimum else "well past the lowest loss"
    reason = f"from where the loss falls to {end}"
    if blow_up is None and low >= n - _SETTLED:
        reason = f"though the loss still falls at the last rate, {lr[-1]:.2g}: raise --to to see where it blows up"
    return answer(
        reason,
        error,
        lrs=lrs,
        begun_lr=begun,
        steepest_lr=steepest,
        minimum_lr=minimum,
        minimum_loss=float(course[low]),
        blow_up_lr=blow_up,
    )


def _variance(i: int) -> float:
    """Of the average's i-th value, for points of variance 1: less and less, down to (1 - s) / (1 + s)."""
    past = _SMOOTHING ** (i + 1)
    return (1 - _SMOOTHING) / (1 + _SMOOTHING) * (1 + past) / (1 - past)


def _noise(values: Floats) -> float:
    """Standard deviation of a point about its trend in the loudest third.

    While the lr is too small to matter, a loss that is compared with the untouched model's has hardly any.
    """
    return max(noise(part) for part in ([values] if len(values) < 12 else np.array_split(values, 3)))


def _range(begun: float, minimum: float, highest: float) -> tuple[float, ...]:
    low = _at_or_below(min(max(begun, minimum / _FARTHEST), minimum / _NEAREST))
    high = max(_at_or_below(min(highest, minimum * _ABOVE)), rung(low, 1))
    found = [low]
    while found[-1] < high:
        found.append(rung(found[-1], 1))
    return tuple(found)


def _at_or_below(lr: float) -> float:
    """The rung 1e-5, 3e-5, 1e-4 ... at or below, where a tenth above counts as at."""
    return rung(1.21 * lr, -1)
