"""Healthy: what no rule accuses."""

import math

import numpy as np

from lrsweep.analysis.diagnosis import preference_rules
from lrsweep.analysis.diagnosis.collapse import accuracies_of
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Label
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, falls
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import FLAT, ROOM, Trend, eval_trend, trend

# No mean cross-entropy stays as large as this, over the largest vocabulary.
_HUGE = 12.5
# A run that falls by a smaller share has not moved; a loss below the other is low from the start.
_FLAT_RUN, _LOW = 0.02, 0.1
# Accuracies that go up by less may be noise.
_GAINED = 0.05


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
    verb = "falls" if found.end < min(found.first, found.start) else "goes"
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
    label: Label = "unknown" if found.fall < (-FLAT if too_high_seen else -0.1) else "healthy"
    if too_high_seen and found.end > found.first > ROOM:
        label = "unknown"
    swings = seen is not None and seen.label == "oscillating"
    if swings and found.end > 0.8 * found.first and found.end > 1.1 * found.low:
        label = "unknown"
    if seen is not None and seen.label in ("overfitting", "too_high") and not len(curve.loss):
        label = "unknown"
        reason += "; without training losses, overfitting and a rate that is too high look alike"
    if label == "healthy" and (doubt := _doubt(curve, found, evaluations=0 if name == "loss" else len(series))):
        label = "unknown"
        reason += f"; {doubt}"
    if found.end > _HUGE and not curve.begins and not falls(curve.loss):
        label = "unknown"
        reason += "; this is far above any cross-entropy, and the log does not show how it began"
    return Diagnosis(label, {"first": found.first, "last": found.end, "reason": reason})


def _doubt(curve: Curve, found: Trend, evaluations: int) -> str:
    """Why a run that no rule accuses is not called healthy; empty if it is."""
    if evaluations and _guesses(curve, found):
        return "the accuracy is that of a guess at every evaluation"
    if not _moves(curve, found):
        return "it hardly moves: there is little to learn, or nothing is learned"
    if curve.begins and (chance := _leaves_no_chance(found)):
        return f"it never leaves {chance}, the loss of a guess"
    if evaluations >= 5 and _learns_by_heart(curve, found):
        return "the training loss falls, and the evaluations never did: what is learned does not show on their rows"
    if evaluations and _rises_in_training(curve, found):
        return "the training loss rises, and the evaluations are no longer at their lowest"
    if _loses_again(curve):
        return "the accuracy has lost more than half of what it had gained"
    return ""


def _leaves_no_chance(found: Trend) -> str:
    """The number of classes at whose logarithm a loss starts, stays and ends, as `ln 2`; empty if there is none."""
    for classes in (2, 3):  # the losses of texts are near to those of more
        chance = math.log(classes)
        if max(abs(level / chance - 1) for level in (found.first, found.end)) < 0.01 and found.low > 0.975 * chance:
            return f"ln {classes}"
    return ""


def _learns_by_heart(curve: Curve, evals: Trend) -> bool:
    """Whether the training loss falls by a fifth, and the evaluations by less than a hundredth."""
    losses, accuracies = trend(curve.loss), accuracies_of(curve)
    if accuracies is not None and len(accuracies) and accuracies.values[-1] > accuracies.values[0] + 0.02:
        return False
    return losses is not None and losses.fall > 0.2 and evals.fall < 0.01 and evals.end > losses.end


def _guesses(curve: Curve, found: Trend) -> bool:
    """Whether every accuracy is one over the number of classes, and the loss is no lower than its logarithm."""
    accuracies = accuracies_of(curve)
    if accuracies is None or len(accuracies) < 5 or not 0 < accuracies.values[0] < 0.75:
        return False
    classes = round(1 / float(accuracies.values[0]))
    return bool((abs(accuracies.values * classes - 1) < 0.001).all()) and found.end > 0.99 * math.log(classes)


def _rises_in_training(curve: Curve, evals: Trend) -> bool:
    losses = trend(curve.loss)
    return losses is not None and losses.fall < -0.5 and evals.end > 1.2 * evals.low


def _loses_again(curve: Curve) -> bool:
    """Whether an accuracy ends nearer to its start than to its best."""
    accuracies = accuracies_of(curve)
    if accuracies is None or len(accuracies) < 2 * FEWEST_EVALS:
        return False
    values = accuracies.values
    gained = float(values.max() - values[0])
    last = float(np.median(values[-max(len(values) // 8, 2) :]))
    return gained > _GAINED and values.max() - last > 0.5 * gained


def _moves(curve: Curve, found: Trend) -> bool:
    """Whether a run that the log shows from its start has learned anything: its loss falls, or it was low already."""
    losses = trend(curve.loss)
    if not curve.begins or found.first < _LOW:
        return True
    fall = max(found.fall, losses.fall if losses is not None else 0.0)
    worse = found.fall < -0.01 and fall < 0.1
    return not worse and fall >= _FLAT_RUN
