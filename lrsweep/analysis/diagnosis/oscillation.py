"""Oscillating: a loss that goes up and down again and again."""

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Floats, Series, confidence
from lrsweep.analysis.diagnosis.smoothing import ERRORS, falls
from lrsweep.analysis.diagnosis.trend import relative_noise, running_median, trend

Evidence = dict[str, float | str]


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
    if _rate_restarts(curve):
        # New stages of training bring new data, and jumps with it.
        sure = min(sure, 0.8)
    return Diagnosis("oscillating", evidence, remedies.against_oscillation(curve), sure)


def _rate_restarts(curve: Curve) -> bool:
    """Whether the learning rate has fallen to a tenth of its peak, and then risen to twice that again."""
    rates = curve.learning_rate.finite().values
    if len(rates) < 3:
        return False
    at = int(rates.argmax())
    low = np.flatnonzero(rates[at:] < 0.1 * rates[at])
    return len(low) > 0 and bool(rates[at + int(low[0]) :].max() > 0.2 * rates[at])


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
    sure = confidence(heights[2], max(bound, 2 * ERRORS * noise))
    reason = f"{name} rises {len(heights)} times and falls again, three times by {heights[2]:.0%} or more"
    if name == "eval_loss" and len(heights) > 3 and heights[3] > 0.6 * heights[1]:
        # Four swings of like size are no accident.
        sure = confidence(heights[3], 0.6 * bound)
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
