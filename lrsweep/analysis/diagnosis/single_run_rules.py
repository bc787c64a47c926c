"""Rules that judge a curve by itself. Each returns a diagnosis, or None if it does not fit.

One curve shows less than a sweep, so a rule here accuses only what noise, a hard batch or a flat data set do not look
like. Changes are shares of the level; noise is estimated from neighbouring points, also as a share of the level.
"""

import numpy as np

from lrsweep.analysis.diagnosis import preference_rules, remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Floats, Label, Series, confidence
from lrsweep.analysis.diagnosis.smoothing import ERRORS, FEWEST_EVALS, FEWEST_LOSSES, falls, loss_endpoints
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import Trend, eval_trend, relative_noise, running_median, trend

Evidence = dict[str, float | str]
# A loss at this level, a perplexity of 33, leaves much of a text unpredicted: there is room to learn.
_ROOM = 3.5
# From this many evaluations on, their scatter about the trend can be told from the trend.
_DENSE = 20
# No cross-entropy is this large.
_HUGE = 1e3
# A change of the level by a smaller share is none.
_FLAT = 0.02


def too_short(curve: Curve) -> Diagnosis | None:
    """Unknown: too few points to judge."""
    losses, evals = len(curve.loss.finite()), len(curve.eval_loss.finite())
    if losses >= FEWEST_LOSSES or evals >= FEWEST_EVALS:
        return None
    reason = (
        f"{losses} losses and {evals} evaluations are too few: "
        f"{FEWEST_LOSSES} losses or {FEWEST_EVALS} evaluations are needed"
    )
    return Diagnosis("unknown", {"losses": losses, "evaluations": evals, "reason": reason})


def too_coarse(curve: Curve) -> Diagnosis | None:
    """Unknown: the log has so few digits that its losses are two or three numbers."""
    losses = curve.loss.finite().values
    distinct = np.unique(losses)
    if len(losses) < 10 or len(distinct) > 3 or len(curve.eval_loss) or np.ptp(losses) > 0.1 * abs(losses).max():
        return None
    reason = (
        f"the {len(losses)} losses are {len(distinct)} numbers, {distinct[0]:g} to {distinct[-1]:g}: too few digits"
    )
    return Diagnosis("unknown", {"reason": reason})


def broken_evaluations(curve: Curve) -> Diagnosis | None:
    """Unknown: all evaluations are NaN while training is fine. A single one among others is left out by every rule."""
    evals = curve.eval_loss.values
    if not len(evals) or np.isfinite(evals).any():
        return None
    found = trend(curve.loss)
    if found is None or len(curve.loss.finite()) < FEWEST_LOSSES or found.fall < 0:
        return None
    reason = (
        f"all {len(evals)} evaluations are NaN, while the training loss goes from {found.start:.4g} to {found.end:.4g}"
    )
    return Diagnosis("unknown", {"evaluations": len(evals), "reason": reason}, remedies.AFTER_NAN_EVALS)


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
    low, step, dense = found.low, found.low_step, len(evals) >= _DENSE
    rise = found.end - low
    fell = max(start or 0.0, found.start) - low
    if start is not None and start - low < 0.005 * abs(start):
        return None  # it never fell
    if float(later[-max(len(later) // 3, 1) :].min()) <= low + rise / 3 or not _training_falls(curve, step, low):
        return None
    moves = np.diff(found.smoothed.values)
    if rise < 0.5 * (float(later.max()) - low) or rise < 0.3 * float(moves[moves > 0].sum()):
        return None  # a jump that it recovers from, or one swing of many
    # A tenth of the level, and more than the noise of dense evaluations. Or half of what it had gained: on few rows
    # this may be noise, so the scatter counts (it holds the bend of the curve as well), and the training loss must
    # fall clearly.
    much = min(confidence(rise / low, 0.1), confidence(rise, ERRORS * found.noise * low if dense else 0.0))
    sure = much
    if _training_falls(curve, step, low, 0.1):
        half = min(confidence(rise, 0.5 * fell), confidence(rise / low, 0.03))
        sure = max(much, min(half, confidence(rise, (ERRORS if dense else 2.5) * found.noise * low)))
    if not len(curve.loss):
        sure = min(sure, 0.8)
    title = f"eval_{name}_loss" if name else "eval_loss"
    evidence: Evidence = {
        "lowest": low,
        "step": step,
        "last": found.end,
        "reason": (
            f"{title} is lowest at {curve.place(step)} ({low:.4g}) and ends at {found.end:.4g}, "
            "while the training loss falls"
        ),
    }
    return Diagnosis("overfitting", evidence, remedies.against_overfitting(curve, step), sure)


def _training_falls(curve: Curve, since: float, low: float, by: float = 0.02) -> bool:
    """Whether the training loss falls by a share after a step, or is a part of the eval loss only: known by heart."""
    losses = curve.loss.finite()
    if not len(losses):
        return True
    before, after = losses.values[losses.steps <= since], losses.values[losses.steps > since]
    if not len(after):
        return False
    end = float(np.median(after[-max(len(after) // 4, 1) :]))
    if end < 0.5 * low:
        return True
    size = max(min(len(before), len(after)) // 4, 1)
    here = float(np.median(before[-size:])) if len(before) else float(np.median(after[:size]))
    return end < (1 - by) * here


def rises(curve: Curve) -> Diagnosis | None:
    """Too high: the loss ends above its start, or gives back what it had gained, or stays near it after a blow-up."""
    found = [_rises("loss", curve, curve.loss)]
    losses = trend(curve.loss)
    # Where the training loss falls, rising evaluations are a matter of overfitting, unless they start untrained.
    evals = curve.eval_loss.finite()
    if losses is None or losses.fall < 0.05 or (len(evals) and evals.steps[0] == 0):
        found.append(_rises("eval_loss", curve, curve.eval_loss))
    return max((one for one in found if one is not None), key=lambda one: one.confidence, default=None)


def _rises(name: str, curve: Curve, series: Series) -> Diagnosis | None:
    evals = name == "eval_loss"
    found = eval_trend(series) if evals else trend(series)
    enough = FEWEST_EVALS + 1 if evals else FEWEST_LOSSES
    if found is None or len(series.finite()) < enough or min(found.first, found.low) <= 0:
        return None
    untrained = evals and series.steps[0] == 0
    # Where there is room to learn, a run that ends where it began has failed, and a smaller rise on the way says why.
    room = found.first > _ROOM
    failed = room and found.end > 0.97 * found.first
    evidence: Evidence = {"first": found.first, "highest": found.high, "step": found.high_step, "last": found.end}
    few = evals and len(series) < _DENSE
    noise = 0.0 if few else ERRORS * found.noise
    waves = 0.0 if evals else (ERRORS - failed) * max(found.point_noise, 0.0 if room else found.waves)
    bounds = _bounds(room, failed, evals, untrained)
    # Where a log does not show the start, its first point is no measure.
    shown = 1.0 if curve.begins else 0.0
    at, low_at = curve.place(found.high_step), curve.place(found.low_step)
    candidates = [
        (
            shown * _sure(-found.fall, bounds[0], max(noise, waves / 2)),
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
    sure, reason = max(candidates)
    return Diagnosis("too_high", evidence | {"reason": reason}, remedies.lower_lr(curve), sure) if sure >= 0.5 else None


def _bounds(room: bool, failed: bool, evals: bool, untrained: bool) -> tuple[float, float, float]:
    """How far a loss ends above its start, ends above its lowest, or goes above its first point, if a rate is too high.

    Near the end of what can be learned, evaluations of a good run move by a few percent, or by a tenth if the eval set
    is small. Where there is room, they fall; above the untrained model's they are a sign.
    """
    if not room:
        return 0.08, 0.2, 0.3 if evals else 0.15
    return (
        0.03 if untrained or failed else 0.08,
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


def _blows_up(found: Trend, bound: float, noise: float) -> float:
    """It was above its first point by more than noise, and ends less than a tenth below it."""
    if found.end < 0.9 * found.first:
        return 0.0
    return _sure(found.high / found.first - 1, bound, noise)


def oscillates(curve: Curve) -> Diagnosis | None:
    """Oscillating: the loss goes up and down again and again, by a large part of its level."""
    losses, evals = _humps("loss", curve.loss.after(curve.warmed_up)), _humps("eval_loss", curve.eval_loss)
    if evals is not None and falls(curve.loss):
        # Training goes well, so it is the eval set that is small or far away.
        evals = min(evals[0], 0.8), evals[1]
    found = [one for one in (losses, evals, _spikes(curve)) if one is not None]
    if not found:
        return None
    sure, evidence = max(found, key=lambda one: one[0])
    if curve.counted and not len(curve.epoch):
        # Without steps and epochs, a loss that jumps back may be that of a new run in the same log.
        sure = min(sure, 0.8)
    return Diagnosis("oscillating", evidence, remedies.against_oscillation(curve), sure)


def _humps(name: str, series: Series) -> tuple[float, Evidence] | None:
    """Rises of the smoothed loss that it loses again. The third largest counts: one is a bump, two may be chance."""
    series = series.finite()
    n = len(series)
    if n < (20 if name == "loss" else 6) or series.values.min() <= 0:
        return None
    size = (max(n // 40, 5) | 1) if name == "loss" else 1
    smoothed = running_median(series.values, size) if size > 1 else series.values
    heights = sorted(_hump_heights(smoothed, float(smoothed[0])), reverse=True)
    if len(heights) < 3:
        return None
    late = _hump_heights(smoothed[-(n // 2) :], float(smoothed[0]))
    if max(late, default=0.0) < 0.5 * heights[2]:
        return None  # it has settled
    noise = 1.25 * relative_noise(series) / np.sqrt(size) if name == "loss" else 0.0
    bound = 0.4 if name == "loss" else 0.25
    sure = _sure(heights[2], bound, 2 * ERRORS * noise)
    reason = f"{name} rises {len(heights)} times and falls again, three times by {heights[2]:.0%} or more"
    if name == "eval_loss" and len(heights) > 3 and heights[3] > 0.6 * heights[1]:
        # Four swings of like size are no accident.
        sure = _sure(heights[3], 0.6 * bound, 0.0)
        reason = f"{name} rises {len(heights)} times and falls again, four times by {heights[3]:.0%} or more"
    return sure, {"turns": len(heights), "height": heights[2], "reason": reason}


def _hump_heights(values: Floats, first: float) -> list[float]:
    """The heights of the rises after which at least half is lost again, as shares of the level that they start from.

    Below half of the run's first level, they are shares of that: 0.02 after 0.01 is no swing of a run that began at 2.
    """
    heights: list[float] = []
    least = 0.5 * first
    low = top = float(values[0])
    for value in map(float, values[1:]):
        if value > top:
            top = value
        elif value < top - 0.5 * (top - low) and top > 1.05 * low:
            heights.append((top - low) / max(low, least))
            low = top = value
        if value < low:
            low = top = value
    return heights


def _spikes(curve: Curve) -> tuple[float, Evidence] | None:
    """Points far above where the run began. Lower ones are hard batches, which every run has."""
    losses = curve.loss.after(curve.warmed_up).finite()
    found = trend(curve.loss)
    if found is None or len(losses) < 20 or found.start <= 0:
        return None
    usual = np.maximum(running_median(losses.values, 5), 1e-12)
    ratios = np.log(np.maximum(losses.values, 1e-12) / usual)
    # Eight deviations of the ratios, which have a long upper tail, and well above the level where the run began.
    scatter = 1.4826 * float(np.median(np.abs(ratios)))
    high = (losses.values - usual > 0.5 * found.start) & (losses.values > 2 * found.start)
    spikes = high & (ratios > 8 * scatter)
    if spikes.sum() < 2:
        return None
    step = float(losses.steps[spikes.argmax()])
    reason = f"the loss has {spikes.sum()} spikes above its start, the first at {curve.place(step)}"
    expected = max(2.9, 0.01 * len(losses))
    return confidence(float(spikes.sum()), expected), {"spikes": int(spikes.sum()), "step": step, "reason": reason}


def hardly_falls(curve: Curve) -> Diagnosis | None:
    """Too low: the loss hardly falls, does not rise, and is so high that there is room.

    A flat curve at a low loss may be a model that knows its task; only another rate could tell.
    """
    found = loss_endpoints(curve)
    if not curve.begins:
        return None  # much may have been learned before
    # So noisy a loss may have fallen, and no evaluations say otherwise.
    if (
        len(curve.eval_loss) < 2
        and found is not None
        and found.fall + ERRORS * found.error / 2 > 0.1 * abs(found.first)
    ):
        return None
    if found is None or found.first <= 0 or not -0.05 < found.fall / found.first < 0.1:
        return None
    losses = trend(curve.loss)
    if losses is not None and losses.fall > max(0.05, ERRORS * losses.noise):
        return None
    evals = curve.eval_loss.finite()
    if len(evals) > 1 and evals.steps[0] == 0 and evals.values[-1] > evals.values[0]:
        return None  # it is worse than the untrained model
    if _wobbles(curve, losses):
        return None
    flat = max(ERRORS * found.error / 2, _FLAT * abs(found.first))
    if found.fall > flat and not _falls_evenly(curve):
        return None
    sure = min(confidence(found.last, _ROOM), 0.99)
    reason = f"it goes only from {found.first:.4g} to {found.last:.4g}"
    evidence: Evidence = {"first": found.first, "last": found.last, "reason": reason}
    return Diagnosis("too_low", evidence, remedies.higher_lr(curve), sure)


def _falls_evenly(curve: Curve) -> bool:
    """Whether the evaluations fall as fast in the second half of the steps as in the first: the rate is the limit."""
    evals = curve.eval_loss.finite()
    if len(evals) < FEWEST_EVALS + 1:
        return False
    middle = float(np.interp((evals.steps[0] + evals.steps[-1]) / 2, evals.steps, evals.values))
    return float(evals.values[0]) - middle < 0.6 * float(evals.values[0] - evals.values[-1])


def _wobbles(curve: Curve, losses: Trend | None) -> bool:
    """Whether a flat curve goes up on its way: then its rate is not too low."""
    evals = curve.eval_loss.finite().values
    if len(evals) >= FEWEST_EVALS and np.diff(evals).max() > max(0.001 * evals[0], 0.2 * float(evals[0] - evals.min())):
        return True
    return losses is not None and losses.high > losses.first * (1 + max(0.05, ERRORS * losses.point_noise / 2))


def healthy(curve: Curve, seen: Diagnosis | None = None) -> Diagnosis:
    """Healthy: the default if no other rule applies; `unknown` if too few losses are finite.

    Args:
        curve: The run.
        seen: A fault that is not certain enough for a label, to be mentioned.
    """
    name, series = ("eval_loss", curve.eval_loss.finite())
    if curve.eval_name:
        name = f"eval_{curve.eval_name}_loss"
    if len(series) < FEWEST_EVALS:
        name, series = "loss", curve.loss.finite()
    found = eval_trend(series) if name.startswith("eval") else trend(series)
    if found is None:
        return Diagnosis("unknown", {"reason": "too few finite losses"})
    verb = "falls" if found.end < found.start else "goes"
    span = f"{curve.place(float(series.steps[0]))} to {curve.number(float(series.steps[-1]))}"
    reason = f"{name} {verb} from {found.first:.4g} to {found.end:.4g} ({span})"
    if training_kind(curve) == "preference":
        reason += preference_rules.ends_of_margins(curve)
    if seen is not None:
        reason += f"; seen as well, but not clear enough for {seen.label}: {seen.evidence['reason']}"
    if name == "loss":
        reason += "; without evaluations, overfitting would not be seen"
    # What ends clearly above its start has not trained well, whatever the reason.
    too_high_seen = seen is not None and seen.label == "too_high"
    label: Label = "unknown" if found.fall < (-_FLAT if too_high_seen else -0.1) else "healthy"
    if found.end > _HUGE and not curve.begins and not falls(curve.loss):
        label = "unknown"
        reason += "; this is far above any cross-entropy, and the log does not show how it began"
    return Diagnosis(label, {"first": found.first, "last": found.end, "reason": reason})
