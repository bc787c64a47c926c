"""Inert: nothing is trained."""

import math

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.collapse import accuracies_of, one_answer
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Floats, Series
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES, falls
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import ROOM, rises_beyond_noise

# Numbers of classes, or of places in a text, that are common.
_CLASSES = (*range(2, 11), 100, 128, 256, 384, 512, 1000)
# So many losses that differ by less than this share are the same: those of different batches differ by more.
_MANY, _SAME = 30, 0.01
# No loss that is worth minimising is this large.
_ANY_LOSS = 1e9


def inert(curve: Curve) -> Diagnosis | None:
    """Inert: all gradients are zero, a loss never changes, or the losses of each epoch are those of the first."""
    norms, losses = curve.grad_norm.values, curve.loss.values
    # Losses of exactly 0 beside them leave no doubt.
    if len(norms) >= (FEWEST_LOSSES if losses.any() else 3) and not norms.any():
        return Diagnosis("inert", {"grad_norm": 0.0, "reason": "every gradient is zero"}, remedies.CHECK)
    for name, series, fewest in (("eval_loss", curve.eval_loss, FEWEST_EVALS), ("loss", curve.loss, FEWEST_LOSSES)):
        values = series.finite().values
        # What one step may have changed: a little, or all that a run of nine rows more then never changes again.
        small = len(values) > 2 * fewest and abs(values[0] - values[1]) < 0.01 * abs(values[0])
        frozen = len(values) > 9 and values[1] > 0.01 and np.ptp(values[1:]) == 0
        if small or frozen:
            values = values[1:]
        if len(values) >= fewest and np.ptp(values) <= 1e-6 * abs(values).max():
            if name == "eval_loss" and falls(curve.loss):
                continue  # it learns: the evaluation is what does not change
            evals = curve.eval_loss.finite().values
            if name == "loss" and len(evals) >= FEWEST_EVALS and np.ptp(evals) > 0.02 * abs(evals).min():
                continue  # it moves: a table of epochs repeats the loss that was logged last
            reason = f"{name} is {values[0]:.6g} from step {series.steps[0]:g} to step {series.steps[-1]:g}"
            if values[0] > _ANY_LOSS:
                return Diagnosis("diverged", {name: float(values[0]), "reason": reason}, remedies.lower_lr(curve))
            accuracies = accuracies_of(curve)
            if accuracies is not None and len(accuracies) >= 3 and _is_constant(accuracies.values):
                reason += f", with an accuracy of {accuracies.values[-1]:.3g}: every input gets the same answer"
                return one_answer(curve, float(values[0]), float(accuracies.values[-1]), reason)
            classes = next((k for k in _CLASSES if abs(values[0] / math.log(k) - 1) < 0.002), None)
            if classes is not None and training_kind(curve) == "supervised":
                reason += f", which is ln {classes}: {classes} classes have the same chance"
                return Diagnosis(
                    "collapsed", {"last": float(values[0]), "reason": reason}, remedies.after_collapse(curve)
                )
            return Diagnosis("inert", {name: float(values[0]), "reason": reason}, remedies.CHECK)
    period = _period(curve.loss.finite().values)
    if period:
        reason = f"the losses repeat to the digit every {period} rows: nothing that is trained changes them"
        return Diagnosis("inert", {"period": float(period), "reason": reason}, remedies.CHECK)
    return None


def stays_put(curve: Curve) -> Diagnosis | None:
    """Inert: many losses, from the start on, are the same to a percent and do not fall, though there is room to learn.

    Beside runs that learn, such a run may as well have too low a rate.
    """
    losses, evals = curve.loss.values, curve.eval_loss.finite().values
    if len(losses) < _MANY or not np.isfinite(losses).all() or not curve.begins:
        return None
    # Evaluations have no noise of batches: if they fall, something is learned.
    if len(evals) > 1 and (evals[-1] < 0.998 * evals[0] or rises_beyond_noise(-evals)):
        return None
    low, high = float(losses.min()), float(losses.max())
    if training_kind(curve) != "supervised" or low <= ROOM or high - low > _SAME * low or rises_beyond_noise(-losses):
        return None
    reason = f"all {len(losses)} losses are between {low:.4g} and {high:.4g}: nothing is learned"
    return Diagnosis("inert", {"lowest": low, "highest": high, "reason": reason}, remedies.CHECK)


def _period(losses: Floats) -> int:
    """The number of rows after which all losses repeat exactly, at least six of them; 0 if they do not."""
    n = len(losses)
    for period in (np.flatnonzero(losses[2 : n - FEWEST_LOSSES + 1] == losses[:1]) + 2).tolist():
        same = losses[period:] == losses[:-period]
        # Six losses that repeat in order are no coincidence.
        if not same.all() or n - period < FEWEST_LOSSES or len(np.unique(losses[period:])) < min(period, 4):
            continue
        # A seeded run that was started again repeats itself as well; it had learned before.
        first = Series(np.arange(period, dtype=np.float64), losses[:period])
        if 2 * period <= n or not falls(first):
            return int(period)
    return 0


def _is_constant(accuracies: Floats) -> bool:
    """Whether a low accuracy never changes, but perhaps after its first value."""
    return float(np.ptp(accuracies[1:])) < 1e-3 and float(accuracies[-1]) < 0.75
