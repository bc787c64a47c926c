"""Overfitting: evaluations rise for good while the training loss falls."""

import math

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Floats, Series, confidence
from lrsweep.analysis.diagnosis.smoothing import DENSE, ERRORS, FEWEST_EVALS
from lrsweep.analysis.diagnosis.trend import ascending, eval_trend, relative_noise, rises_beyond_noise, trend

Evidence = dict[str, float | str]
# A training loss that has not fallen by this share, from its start, has hardly fallen.
_NO_FALL = 0.05
# From this many evaluations on, their scatter says how much is noise.
_SEVERAL = 8


def overfits(curve: Curve, start: float | None = None) -> Diagnosis | None:
    """Overfitting: the eval loss has risen for good from its lowest point while the training loss falls.

    With several eval sets, the finding counts if most of them show it.

    Args:
        curve: The run.
        start: The untrained model's eval loss, if it is known from elsewhere; None takes an evaluation at step 0.
    """
    sets = [(curve.eval_name, curve.eval_loss), *curve.other_evals.items()]
    judged = [(name, series.finite()) for name, series in sets if len(series.finite()) >= FEWEST_EVALS]
    found = [_overfits(curve, name, series, start) for name, series in judged]
    sure = sorted((one for one in found if one is not None), key=lambda one: -one.confidence)
    if not sure:
        return None
    if 2 * len(sure) > len(judged):
        return sure[0]
    return Diagnosis("overfitting", sure[0].evidence, sure[0].advice, min(sure[0].confidence, 0.8))


def _overfits(curve: Curve, name: str, evals: Series, start: float | None) -> Diagnosis | None:
    lowest = int(evals.values.argmin())
    later = evals.values[lowest + 1 :]
    found = eval_trend(evals)
    assert found is not None
    if len(later) < 2 or found.low <= 0:
        return None
    if start is None and evals.steps[0] == 0:
        start = float(evals.values[0])
    low, step, dense = found.low, found.low_step, len(evals) >= DENSE
    rise = found.end - low
    fell = max(start or 0.0, found.start) - low
    if start is not None and start - low < 0.005 * abs(start) and not _by_heart(curve):
        return None  # it never fell
    rising = rises_beyond_noise(later)
    last = later[-max(len(later) // 3, 1) :]
    # Of a rise that is no noise, single evaluations may be low.
    if float(np.median(last) if rising else last.min()) <= low + rise / 3 or not _training_falls(curve, step, low):
        return None
    moves = np.diff(found.smoothed.values)
    if not rising and (rise < 0.5 * (float(later.max()) - low) or rise < 0.3 * float(moves[moves > 0].sum())):
        return None  # a jump that it recovers from, or one swing of many
    # A tenth of the level; of dense evaluations, some more, and more than their noise. Or half of what it had gained:
    # on few rows this may be noise, so the scatter counts (it holds the bend of the curve as well), and the training
    # loss must fall clearly.
    much = confidence(rise / low, 0.1)
    if len(evals) >= _SEVERAL and not rising:
        # The lowest of several is low by luck as well.
        much = min(much, confidence(rise, (2.5 if len(evals) < 12 else ERRORS) * found.noise * low))
    if dense:
        much = min(confidence(rise / low, 0.15), confidence(rise, ERRORS * found.noise * low))
    sure = much
    if _training_falls(curve, step, low, 0.1):
        half = min(confidence(rise, 0.5 * fell), confidence(rise / low, 0.03))
        sure = max(much, min(half, confidence(rise, (ERRORS if dense else 2.5) * found.noise * low)))
        if rising:
            sure = max(sure, confidence(rise / low, _least_rise(later)))
    if rise < 0.12 * low:
        # Beside all that was learned, so small a rise is the end of learning.
        sure = min(sure, confidence(rise, 0.01 * fell))
    if not _has_losses(curve):
        # No training loss says that it goes on learning.
        clear = len(later) >= 4 or (len(later) == 3 and ascending(later) == 1 and rise > 0.3 * low)
        sure = min(sure, confidence(rise, 0.1 * fell), 1.0 if clear else 0.8)
    title = f"eval_{name}_loss" if name else "eval_loss"
    evidence: Evidence = {
        "lowest": low,
        "step": step,
        "last": found.end,
        "reason": (
            f"{title} is lowest at {curve.place(step)} ({low:.4g}) and ends at {found.end:.4g}"
            + (", while the training loss falls" if _has_losses(curve) else "")
        ),
    }
    return Diagnosis("overfitting", evidence, remedies.against_overfitting(curve, step), sure)


def _has_losses(curve: Curve) -> bool:
    """Whether there are training losses; a table of epochs may repeat one until the next is logged."""
    return len(np.unique(curve.loss.finite().values)) >= 3


def _least_rise(values: Floats) -> float:
    """The share by which values that rise beyond noise must rise to be overfitting: less if they rise evenly."""
    share = ascending(values)
    if len(values) >= 7 and share > 0.9:
        return 0.02
    return 0.05 if share == 1 else 0.07


def _training_falls(curve: Curve, since: float, low: float, by: float = 0.02) -> bool:
    """Whether the training loss falls by a share after a step, or is a part of the eval loss only: known by heart."""
    losses = curve.loss.finite()
    if not _has_losses(curve):
        return True
    before, after = losses.values[losses.steps <= since], losses.values[losses.steps > since]
    if not len(after):
        return False
    end = float(np.median(after[-max(len(after) // 4, 1) :]))
    if end < 0.5 * low:
        return True
    size = max(min(len(before), len(after)) // 4, 1)
    here = float(np.median(before[-size:])) if len(before) else float(np.median(after[:size]))
    found = trend(losses)
    if found is not None and len(before) < len(losses) // 20:
        # Of dense evaluations the lowest level is that of many steps, and so is the training loss beside it.
        here = min(here, float(np.interp(since, found.smoothed.steps, found.smoothed.values)))
    if found is not None and found.fall < _NO_FALL:
        # It has hardly fallen from the start, so it must fall by two deviations of the difference of two medians.
        by = max(by, 2 * 1.25 * math.sqrt(2) * relative_noise(losses) / math.sqrt(max(len(after) // 4, 1)))
    return end < (1 - by) * here


def _by_heart(curve: Curve) -> bool:
    """Whether hardly anything is left of the training loss."""
    found = trend(curve.loss)
    return found is not None and found.end < 0.1 * found.first
