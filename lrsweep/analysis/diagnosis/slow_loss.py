"""Too low: a loss that hardly falls though there is room."""

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, confidence
from lrsweep.analysis.diagnosis.smoothing import ERRORS, FEWEST_EVALS, loss_endpoints
from lrsweep.analysis.diagnosis.trend import FLAT, ROOM, Trend, trend

Evidence = dict[str, float | str]
# So few losses without an evaluation of the untrained model may be a warm-up, or a table of a few epochs on a plateau:
# then it is mentioned, and is no label.
_MANY, _UNSURE = 16, 0.8


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
    untrained = len(evals) > 1 and evals.steps[0] == 0
    if untrained and evals.values[-1] > evals.values[0]:
        return None  # it is worse than the untrained model
    if _wobbles(curve, losses):
        return None
    flat = max(ERRORS * found.error / 2, FLAT * abs(found.first))
    if found.fall > flat and not _falls_evenly(curve):
        return None
    shown = (untrained or len(curve.loss.finite()) >= _MANY) and found.fall >= -FLAT * found.first
    sure = min(confidence(found.last, ROOM), 0.99 if shown else _UNSURE)
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
