"""Logs that cannot be judged: too short, too coarse, or without a measure. Each rule returns `unknown`, or None."""

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES
from lrsweep.analysis.diagnosis.trend import trend


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
