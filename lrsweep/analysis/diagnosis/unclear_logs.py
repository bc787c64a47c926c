"""Logs that cannot be judged: too short, too coarse, or without a measure. Each rule returns `unknown`, or None."""

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.collapse import accuracies_of
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import trend

# A last loss so many times the highest before it is no noise.
_FAR_ABOVE = 3.0
# The spacing of float32 at 1.
_SMALLEST = 2.0**-23
# A cross-entropy over a vocabulary is useless from here (a perplexity of 1100) up to chance (the largest have 2 ** 18).
_USELESS, _HIGHEST_CHANCE = 7.0, 12.5


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


def sums_over_epochs(curve: Curve) -> Diagnosis | None:
    """Unknown: in each epoch the loss goes up many times and then begins again, as a running sum does."""
    losses, epochs = curve.loss.finite(), curve.epoch.values
    if len(losses) != len(epochs) or len(epochs) < 12:
        return None
    # The last row of an epoch may be its mean.
    parts = [losses.values[epochs == epoch][:-1] for epoch in np.unique(epochs)]
    if len(parts) < 3 or any(len(part) < 3 or (np.diff(part) <= 0).any() or part[-1] < 3 * part[0] for part in parts):
        return None
    reason = f"in each of {len(parts)} epochs the loss rises and begins again: it is a sum over the epoch"
    return Diagnosis("unknown", {"last": float(parts[-1][-1]), "reason": reason})


def mostly_zeros(curve: Curve) -> Diagnosis | None:
    """Unknown: most losses are exactly 0, and some are far from it."""
    losses = curve.loss.finite().values
    if len(losses) < FEWEST_LOSSES or np.mean(losses == 0) <= 0.5 or losses.max() < 100 or len(curve.eval_loss):
        return None
    reason = f"{np.count_nonzero(losses == 0)} of {len(losses)} losses are exactly 0, and one is {losses.max():.4g}"
    return Diagnosis("unknown", {"highest": float(losses.max()), "reason": reason}, remedies.CHECK)


def only_zeros(curve: Curve) -> Diagnosis | None:
    """Unknown: every loss in the log is 0, and no gradient says why. Inert: the answers are wrong all the same."""
    losses, evals = curve.loss.values, curve.eval_loss.values
    if losses.any() or evals.any() or len(losses) + len(evals) < FEWEST_EVALS or len(curve.grad_norm):
        return None
    accuracies = accuracies_of(curve)
    if accuracies is not None and 0 < accuracies.values.max(initial=0.0) < 0.75:
        reason = "every loss is exactly 0, and yet the accuracy is low: the loss does not fit the labels"
        return Diagnosis("inert", {"reason": reason}, remedies.CHECK)
    reason = "every loss is exactly 0: no row has a label, the log has too few digits, or transformers logged NaN as 0"
    return Diagnosis("unknown", {"reason": reason}, remedies.CHECK)


def smallest_of_all(curve: Curve) -> Diagnosis | None:
    """Unknown: the loss ends at the smallest that Keras logs, where each label has all of the probability."""
    losses = curve.loss.finite().values
    if len(losses) < FEWEST_LOSSES or len(curve.eval_loss) or abs(losses[-3:] / _SMALLEST - 1).max() > 0.001:
        return None
    reason = f"the last losses are {losses[-1]:.5g}, the smallest that there is: all labels may be the same"
    return Diagnosis("unknown", {"last": float(losses[-1]), "reason": reason}, remedies.CHECK)


def ends_in_a_jump(curve: Curve) -> Diagnosis | None:
    """Unknown: the last losses are far above those before, so the run may just have broken."""
    losses = curve.loss.finite()
    if len(losses) < FEWEST_LOSSES or len(curve.eval_loss.finite().after(float(losses.steps[-1]) - 1)):
        return None
    last, before = float(losses.values[-1]), losses.values[:-1]
    # Several rows that are above all before them, but for the first quarter, say the same.
    values = losses.values
    stays = any(
        values[-size:].min() > 1.3 * values[len(values) // 4 : -size].max()
        for size in range(3, min(len(values) // 6, 100) + 1)
    )
    if before.min() < 0 or last < 1 or not (stays or last > _FAR_ABOVE * before.max()):
        return None
    at = curve.place(float(losses.steps[-1]))
    reason = f"it ends in a jump: the last loss, {last:.4g} at {at}, is far above those before"
    return Diagnosis("unknown", {"last": last, "reason": reason}, remedies.lower_lr(curve))


def stuck_high(curve: Curve) -> Diagnosis | None:
    """Unknown: the loss has stood still at the level of a language model that predicts next to nothing."""
    series = curve.eval_loss.finite() if len(curve.eval_loss.finite()) >= 2 * FEWEST_EVALS else curve.loss.finite()
    if training_kind(curve) != "supervised" or len(series) < 2 * FEWEST_EVALS:
        return None
    values = series.values[len(series) // 3 :]
    first, last = float(values[0]), float(np.median(values[-max(len(values) // 4, 1) :]))
    spread = float(np.quantile(values, 0.9) - np.quantile(values, 0.1))
    if not _USELESS < last < _HIGHEST_CHANCE or abs(first - last) > 0.01 * last or spread > 0.03 * last:
        return None
    since = curve.place(float(series.steps[len(series) // 3]))
    reason = (
        f"the loss has stood at {last:.4g} since {since}: a language model with such a cross-entropy predicts next to "
        "nothing; for another measure it may be low"
    )
    return Diagnosis("unknown", {"last": last, "reason": reason}, remedies.lower_lr(curve))


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
