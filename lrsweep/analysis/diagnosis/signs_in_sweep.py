"""Signs of a rate that is too high that count only beside runs at lower rates, which show that they do harm.

Each returns a diagnosis, or None if it does not fit.
"""

from dataclasses import replace

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Series
from lrsweep.analysis.diagnosis.smoothing import ERRORS, FEWEST_EVALS, endpoints, noise
from lrsweep.analysis.diagnosis.trend import running_median

Evidence = dict[str, float | str]


def rises(curve: Curve, start: float | None = None) -> Diagnosis | None:
    """Too high: an evaluation, or the smoothed training loss, rises above the curve's start.

    Args:
        curve: The run.
        start: The untrained model's eval loss, if it is known from elsewhere; None takes the first evaluation.
    """
    for name, series in (("eval_loss", curve.eval_loss), ("loss", curve.loss)):
        if len(series) < FEWEST_EVALS:
            continue
        found = endpoints(series)
        if name == "eval_loss":
            # Every evaluation uses the same rows, so one above the untrained model's is enough.
            first = float(series.values[0]) if start is None else start
            found = replace(found, first=first, last=float(series.values[-1]), error=0.0, smoothed=series)
        top = int(found.smoothed.values.argmax())
        rise = float(found.smoothed.values[top]) - found.first
        if rise <= max(ERRORS * found.error, 0.02 * abs(found.first), 0.15 * found.fall):
            continue
        evidence: Evidence = {
            "first": found.first,
            "highest": found.first + rise,
            "step": float(found.smoothed.steps[top]),
            "last": found.last,
            "reason": f"{name} rises from {found.first:.4g} to {found.first + rise:.4g}",
        }
        return Diagnosis("too_high", evidence, remedies.lower_lr(curve))
    return None


def oscillates(curve: Curve) -> Diagnosis | None:
    """Oscillating: the eval loss goes up and down, the training loss has spikes, or the gradient has bursts."""
    loss = curve.loss.after(curve.warmed_up)
    evidence = _eval_reversals(curve)
    if evidence is None and len(loss) >= 20:
        evidence = _spikes(loss) or _loss_reversals(loss) or _bursts(curve.grad_norm.after(curve.warmed_up))
    return None if evidence is None else Diagnosis("oscillating", evidence, remedies.against_oscillation(curve))


def _eval_reversals(curve: Curve) -> Evidence | None:
    """Reversals of the eval loss that lose a noticeable part of its fall."""
    evals = curve.eval_loss.after(curve.warmed_up / 2) if len(curve.eval_loss) > 6 else curve.eval_loss
    if len(evals) < 4:
        return None
    moves = np.diff(evals.values)
    back = float(moves[moves > 0].sum())
    turns = int((moves[1:] * moves[:-1] < 0).sum())
    span = float(curve.eval_loss.values[0] - curve.eval_loss.values.min())
    if turns < 2 or back <= max(0.25 * span, 0.01 * abs(float(evals.values[-1]))):
        return None
    reason = f"eval_loss changes direction {turns} times, and its rises add up to {back:.4g}"
    return {"turns": turns, "back": back, "reason": reason}


def _spikes(loss: Series) -> Evidence | None:
    """Points that lie further above their neighbours than noise explains."""
    values = loss.values
    above = values - running_median(values, 5)
    spikes = above > max(8 * noise(loss), 0.1 * abs(float(np.median(values))))
    if spikes.sum() < 2:
        return None
    step = float(loss.steps[spikes.argmax()])
    reason = f"the loss has {spikes.sum()} spikes, the first at step {step:g}"
    return {"spikes": int(spikes.sum()), "step": step, "reason": reason}


def _loss_reversals(loss: Series) -> Evidence | None:
    """Reversals of the smoothed training loss, by more than noise explains."""
    found = endpoints(loss)
    smoothed = found.smoothed.values
    if len(smoothed) < 6:
        return None
    moves = np.diff(smoothed)
    back, turns = float(moves[moves > 0].sum()), int((moves[1:] * moves[:-1] < 0).sum())
    if turns < 3 or back <= max(
        0.5 * float(np.ptp(smoothed)), 2 * ERRORS * found.error, 0.03 * abs(float(smoothed[-1]))
    ):
        return None
    reason = f"the smoothed loss changes direction {turns} times, and its rises add up to {back:.4g}"
    return {"turns": turns, "back": back, "reason": reason}


def _bursts(norms: Series) -> Evidence | None:
    values = norms.finite().values
    if len(values) < 20:
        return None
    usual = float(np.median(values))
    bursts = values > 20 * usual
    if usual <= 0 or bursts.sum() < 2:
        return None
    step = float(norms.finite().steps[bursts.argmax()])
    return {
        "bursts": int(bursts.sum()),
        "usual": usual,
        "highest": float(values.max()),
        "step": step,
        "reason": f"grad_norm exceeds 20 times its median {bursts.sum()} times, first at step {step:g}",
    }
