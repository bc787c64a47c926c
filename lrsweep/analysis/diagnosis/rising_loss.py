"""Too high: a loss that ends above its start, gives back what it had gained, or stays near it after a blow-up."""

import math

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import CERTAIN, EXPLODED, Curve, Diagnosis, Series, confidence
from lrsweep.analysis.diagnosis.smoothing import DENSE, ERRORS, FEWEST_EVALS, FEWEST_LOSSES, evaluations_fall
from lrsweep.analysis.diagnosis.trend import ROOM, Trend, eval_trend, trend

Evidence = dict[str, float | str]
# The confidence of a sign that often has another reason: it is mentioned, and is no label.
_UNSURE = 0.8
# No overfitting, and no low start, makes a loss end this many times above its start.
_HOPELESS = 30.0


def rises(curve: Curve) -> Diagnosis | None:
    """Too high: the loss ends above its start, or gives back what it had gained, or stays near it after a blow-up."""
    losses, evaluated = trend(curve.loss), eval_trend(curve.eval_loss)
    # Where the training loss is next to nothing beside the evaluations', the rows are known by heart.
    by_heart = losses is not None and evaluated is not None and losses.high < 0.1 * evaluated.low
    # Where evaluations fall while it rises to the end, the training loss is a sum whose weights grow.
    to_the_end = losses is not None and losses.end > 0.9 * losses.high and losses.start < 0.1 * losses.end
    weighted = to_the_end and evaluations_fall(curve)
    found = [None if by_heart or weighted else _rises("loss", curve, curve.loss)]
    # Where the training loss falls, rising evaluations are a matter of overfitting, unless they start untrained.
    evals = curve.eval_loss.finite()
    if losses is None or losses.fall < 0.05 or (len(evals) and evals.steps[0] == 0):
        found.append(_rises("eval_loss", curve, curve.eval_loss))
    found.append(None if by_heart or weighted else _with_its_gradient(curve, losses))
    return max((one for one in found if one is not None), key=lambda one: one.confidence, default=None)


def _with_its_gradient(curve: Curve, losses: Trend | None) -> Diagnosis | None:
    """The loss ends well above its lowest, and the gradient's norm has grown tenfold with it."""
    norms = curve.grad_norm.finite().values
    if losses is None or len(norms) < FEWEST_LOSSES or losses.low <= 0:
        return None
    part = max(len(norms) // 4, 2)
    first, last = float(np.median(norms[:part])), float(np.median(norms[-part:]))
    later = curve.loss.finite().after(losses.low_step).values
    if first <= 0 or len(later) < 4 or float(later[-4:].min()) < 1.1 * losses.low:
        return None
    sure = min(confidence(losses.end / losses.low - 1, 0.3), confidence(last / first, 10.0))
    reason = (
        f"loss rises for good from {losses.low:.4g}, its lowest, at {curve.place(losses.low_step)}, to "
        f"{losses.end:.4g}, and the gradient's norm grows from {first:.3g} to {last:.3g}"
    )
    evidence: Evidence = {"first": losses.first, "step": losses.low_step, "last": losses.end, "reason": reason}
    return Diagnosis("too_high", evidence, remedies.lower_lr(curve), sure) if sure >= 0.5 else None


def _rises(name: str, curve: Curve, series: Series) -> Diagnosis | None:
    evals = name == "eval_loss"
    found = eval_trend(series) if evals else trend(series)
    enough = FEWEST_EVALS + 1 if evals else FEWEST_LOSSES
    if found is None or len(series.finite()) < enough or min(found.first, found.low) <= 0:
        return None
    untrained = evals and series.steps[0] == 0
    # Where there is room to learn, a run that ends where it began has failed, and a smaller rise on the way says why.
    room = found.first > ROOM
    failed = room and found.end > 0.97 * found.first
    evidence: Evidence = {"first": found.first, "highest": found.high, "step": found.high_step, "last": found.end}
    few = evals and len(series) < DENSE
    noise = 0.0 if few else ERRORS * found.noise
    of_rise = 0.0 if few else ERRORS * math.hypot(found.noise, found.start_noise)
    waves = 0.0 if evals else (ERRORS - failed) * max(found.point_noise, 0.0 if room else found.waves)
    bounds = _bounds(room, failed, evals, untrained)
    # Where a log does not show the start, its first point is no measure.
    shown = 1.0 if curve.begins else 0.0
    at, low_at = curve.place(found.high_step), curve.place(found.low_step)
    candidates = [
        (
            shown * _sure(-found.fall, bounds[0], max(of_rise, waves / 2)),
            f"{name} rises from {found.start:.4g} to {found.end:.4g}",
        ),
        (
            # The lowest of many levels is low by luck as well.
            (shown if found.low_step == series.finite().steps[0] else 1.0) * _gives_back(found, bounds[1], 1.5 * noise),
            f"{name} rises for good from {found.low:.4g}, its lowest, at {low_at}, to {found.end:.4g}",
        ),
        (
            shown * _blows_up(found, bounds[2], waves),
            f"{name} rises from {found.first:.4g} to {found.high:.4g} at {at}, and ends at {found.end:.4g}",
        ),
    ]
    if not untrained and (evals or (not room and found.high < EXPLODED * found.first)):
        start = found.first, found.smoothed.steps[0]
        candidates = [
            (min(sure, _UNSURE) if _comes_back(found, *base) else sure, reason)
            for base, (sure, reason) in zip((start, (found.low, found.low_step), start), candidates, strict=True)
        ]
    sure, reason = max(candidates)
    if evals and not untrained and len(np.unique(curve.loss.finite().values)) < 3:
        # Without training losses, overfitting looks the same.
        sure = min(sure, _UNSURE)
    rise = shown * found.end / max(found.first, found.start)
    if sure >= CERTAIN and (rise > _HOPELESS or (not evals and room and rise > EXPLODED)):
        return Diagnosis("diverged", evidence | {"reason": reason}, remedies.lower_lr(curve), sure)
    return Diagnosis("too_high", evidence | {"reason": reason}, remedies.lower_lr(curve), sure) if sure >= 0.5 else None


def _bounds(room: bool, failed: bool, evals: bool, untrained: bool) -> tuple[float, float, float]:
    """How far a loss ends above its start, ends above its lowest, or goes above its first point, if a rate is too high.

    Near the end of what can be learned, evaluations of a good run move by a few percent, or by a tenth if the eval set
    is small. Where there is room, they fall; above the untrained model's they are a sign.
    """
    if not room:
        return 0.08, 0.2, 0.3 if evals else 0.15
    return (
        0.03 if untrained or (failed and not evals) else 0.08,
        0.04 if evals else 0.2,
        0.02 if untrained else 0.05 if failed else 0.15,
    )


def _sure(size: float, bound: float, noise: float) -> float:
    return confidence(size, max(bound, noise))


def _gives_back(found: Trend, bound: float, noise: float) -> float:
    """The end is well above the lowest level, by much or by half of what had been gained; and it stays there."""
    rise, gained = found.end - found.low, max(found.start, found.first) - found.low
    smoothed = found.smoothed.values
    last = smoothed[-max(len(smoothed) // 6, 2) :]
    if found.low_step > found.smoothed.steps[int(0.75 * (len(smoothed) - 1))] or last.min() < found.low + rise / 2:
        return 0.0
    level = max(found.low, 0.2 * max(found.start, found.first))
    # Twice the bound is much, whatever had been gained before.
    return max(
        _sure(rise / level, 2 * bound, noise), min(_sure(rise / level, bound, noise), confidence(rise, 0.5 * gained))
    )


def _comes_back(found: Trend, base: float, step: float) -> bool:
    """From its highest level after a step, it has lost again more than a fifth of the way up from a base.

    It may heal, or was a hard part of the data: of published runs that ended so, half had another fault than their
    rate, or none.
    """
    high = float(found.smoothed.values[found.smoothed.steps >= step].max())
    return high - found.end > 0.2 * (high - base)


def _blows_up(found: Trend, bound: float, noise: float) -> float:
    """It was above its first point by more than noise, and ends less than a tenth below it."""
    # Of noisy losses, a single first one may be low by luck.
    first = max(found.first, found.start) if found.point_noise > 0.05 else found.first
    if found.end < 0.9 * first:
        return 0.0
    return _sure(found.high / first - 1, bound, noise)
