"""Rules that judge a curve by itself. Each returns a diagnosis, or None if it does not fit."""

from dataclasses import replace

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Floats, Series
from lrsweep.analysis.diagnosis.smoothing import (
    ERRORS,
    FEWEST_EVALS,
    FEWEST_LOSSES,
    endpoints,
    falls,
    loss_endpoints,
    noise,
)

Evidence = dict[str, float | str]


def not_finite(curve: Curve) -> Diagnosis | None:
    """Diverged: a loss is not finite at some step, or the gradient norm is not finite at the end."""
    for name, series in (("loss", curve.loss), ("eval_loss", curve.eval_loss), ("grad_norm", curve.grad_norm)):
        bad = ~np.isfinite(series.values)
        if not bad.any():
            continue
        # A loss scaler that looks for its scale makes some gradient norms infinite.
        if name == "grad_norm" and not bad[-1]:
            continue
        step = float(series.steps[bad.argmax()])
        reason = f"{name} is {series.values[bad.argmax()]} at step {step:g}"
        return Diagnosis("diverged", {"step": step, "reason": reason}, remedies.lower_lr(curve))
    return None


def too_short(curve: Curve) -> Diagnosis | None:
    """Unknown: too few points to judge."""
    if len(curve.loss) >= FEWEST_LOSSES or len(curve.eval_loss) >= FEWEST_EVALS:
        return None
    reason = (
        f"{len(curve.loss)} losses and {len(curve.eval_loss)} evaluations are too few: "
        f"{FEWEST_LOSSES} losses or {FEWEST_EVALS} evaluations are needed"
    )
    return Diagnosis("unknown", {"losses": len(curve.loss), "evaluations": len(curve.eval_loss), "reason": reason})


def inert(curve: Curve) -> Diagnosis | None:
    """Inert: all gradients are zero, or a loss never changes."""
    norms = curve.grad_norm.values
    if len(norms) >= FEWEST_LOSSES and not norms.any():
        return Diagnosis("inert", {"grad_norm": 0.0, "reason": "every gradient is zero"}, remedies.CHECK)
    for name, series, fewest in (
        ("eval_loss", curve.eval_loss, FEWEST_EVALS),
        ("loss", curve.loss, FEWEST_LOSSES),
    ):
        values = series.values
        if len(values) >= fewest and np.ptp(values) <= 1e-6 * abs(values).max():
            reason = f"{name} is {values[0]:.6g} from step {series.steps[0]:g} to step {series.steps[-1]:g}"
            return Diagnosis("inert", {name: float(values[0]), "reason": reason}, remedies.CHECK)
    return None


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


def overfits(curve: Curve, start: float | None = None) -> Diagnosis | None:
    """Overfitting: the eval loss has risen for good from its lowest point while the training loss still falls.

    Args:
        curve: The run.
        start: The untrained model's eval loss, if it is known from elsewhere; None takes an evaluation at step 0.
    """
    evals = curve.eval_loss
    if len(evals) < 4:
        return None
    lowest = int(evals.values.argmin())
    later = evals.values[lowest + 1 :]
    if len(later) < 2:
        return None
    low, last = float(evals.values[lowest]), float(evals.values[-1])
    if start is None and evals.steps[0] == 0:
        start = float(evals.values[0])
    if start is not None and start - low < 0.005 * abs(start):
        return None  # it never fell
    rise, fall = last - low, max(start or 0.0, float(evals.values[0])) - low
    # Evaluations use the same rows each time, so they have little noise; small moves near a schedule's end are normal.
    if rise <= max(0.01 * abs(low), 0.1 * fall, 2 * noise(evals)) or float(np.median(later)) <= low + rise / 4:
        return None
    moves = np.diff(evals.values)
    if rise < 0.5 * (float(later.max()) - low) or rise < 0.5 * float(moves[moves > 0].sum()):
        return None  # a jump that it recovers from, or one oscillation of many
    rest = curve.loss.after(evals.steps[lowest]).values
    if len(rest) >= FEWEST_LOSSES:
        half = len(rest) // 2
        # No test against noise: when a run overfits, its training loss falls by about as much as the eval loss rises.
        if np.mean(rest[half:]) > np.mean(rest[:half]) - 0.1 * rise:
            return None
    elif len(curve.loss) >= FEWEST_LOSSES and not falls(curve.loss):
        return None
    step = float(evals.steps[lowest])
    evidence: Evidence = {
        "lowest": low,
        "step": step,
        "last": last,
        "reason": (
            f"eval_loss is lowest at step {step:g} ({low:.4g}) and ends at {last:.4g}, while the training loss falls"
        ),
    }
    return Diagnosis("overfitting", evidence, remedies.against_overfitting(curve, step))


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
    above = values - _running_median(values, 5)
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


def hardly_falls(curve: Curve) -> Diagnosis | None:
    """Too low: the loss hardly falls, and no rule for a rate that is too high applied."""
    found = loss_endpoints(curve)
    if found is None or found.fall > max(ERRORS * found.error / 2, 0.02 * abs(found.first)):
        return None
    reason = f"it falls only from {found.first:.4g} to {found.last:.4g} and never rises"
    return Diagnosis("too_low", {"first": found.first, "last": found.last, "reason": reason}, remedies.higher_lr(curve))


def healthy(curve: Curve) -> Diagnosis:
    """Healthy: the default if no other rule applies; `unknown` if too few losses are finite."""
    found = loss_endpoints(curve)
    if found is None:
        return Diagnosis("unknown", {"reason": "too few finite losses"})
    reason = f"it falls from {found.first:.4g} to {found.last:.4g}"
    return Diagnosis("healthy", {"first": found.first, "last": found.last, "reason": reason})


def _running_median(values: Floats, size: int) -> Floats:
    padded = np.pad(values, size // 2, mode="edge")
    found: Floats = np.median(np.lib.stride_tricks.sliding_window_view(padded, size), axis=1)
    return found
