"""Preference learning (DPO, KTO and their like) by its own signs: margins and accuracies of the rewards."""

from dataclasses import replace

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import CERTAIN, Curve, Diagnosis, Series, confidence
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES
from lrsweep.analysis.diagnosis.trend import trend

# Margins and distances from an accuracy of 0.5 below this are those of a model that prefers neither answer.
_NO_MARGIN, _NO_PREFERENCE = 0.02, 0.05
# DPO is trained with rates down to this; below, a model that has not moved has an obvious reason.
_LOW_RATE = 1e-6


def prefers_nothing(curve: Curve) -> Diagnosis | None:
    """Too low, or unknown: the model's preferences have not moved, so its loss is still that of the start."""
    margins, accuracies = _series(curve, "margins"), _series(curve, "accuracies")
    losses = trend(curve.loss)
    if losses is None or len(margins) < FEWEST_LOSSES or abs(losses.fall) > 0.02:
        return None
    margin = float(np.median(margins.values[-max(len(margins) // 4, 3) :]))
    accuracy = float(np.median(accuracies.values[-max(len(accuracies) // 4, 3) :])) if len(accuracies) else 0.5
    if abs(margin) > _NO_MARGIN or abs(accuracy - 0.5) > _NO_PREFERENCE:
        return None
    reason = f"margins end at {margin:.3g} and accuracies at {accuracy:.3g}: the model prefers neither answer"
    low = curve.peak_lr is not None and curve.peak_lr <= _LOW_RATE
    evidence: dict[str, float | str] = {"margin": margin, "accuracy": accuracy, "reason": reason}
    return Diagnosis("too_low" if low else "unknown", evidence, remedies.higher_lr(curve) if low else ())


def weighed(curve: Curve, found: Diagnosis) -> Diagnosis:
    """A finding on the loss, weighed by the accuracies: a rising loss whose order of answers holds is not certain."""
    accuracies = _series(curve, "accuracies", "eval_") if found.label == "overfitting" else _series(curve, "accuracies")
    if found.label not in ("overfitting", "too_high") or len(accuracies) < FEWEST_EVALS:
        return found
    best, last = float(accuracies.values.max()), float(np.median(accuracies.values[-max(len(accuracies) // 8, 1) :]))
    sure = min(found.confidence, confidence(best - last, 0.1))
    return replace(found, confidence=max(sure, 0.5)) if sure < CERTAIN else found


def ends_of_margins(curve: Curve) -> str:
    """How margins and accuracies went, to follow a sentence on the loss."""
    parts = []
    for name in ("margins", "accuracies"):
        series = _series(curve, name)
        if len(series) >= FEWEST_LOSSES:
            size = max(len(series) // 8, 1)
            ends = (float(np.median(series.values[:size])), float(np.median(series.values[-size:])))
            parts.append(f"{name} go from {ends[0]:.3g} to {ends[1]:.3g}")
    return "".join(f", {part}" for part in parts)


def _series(curve: Curve, name: str, prefix: str = "") -> Series:
    for key in (f"{prefix}rewards/{name}", f"rewards/{name}", f"eval_rewards/{name}"):
        if key in curve.measures:
            return curve.measures[key].finite()
    return Series(np.empty(0), np.empty(0))
