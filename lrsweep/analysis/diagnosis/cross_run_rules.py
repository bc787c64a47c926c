"""What a curve shows beside its siblings, the other runs of its sweep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis
from lrsweep.analysis.diagnosis.smoothing import ERRORS, FEWEST_EVALS, FEWEST_LOSSES, ends_above, summary

# Two runs have the same rate, or decay, when they differ by less than this share.
SAME = 0.01


@dataclass(frozen=True)
class Standing:
    """Where a run stands among its siblings, by how far each fell: in evaluations, or else in training losses.

    Rates are None where some are not known. `calmer_fall` is the largest fall among siblings at lower rates (at any, where
    not known), -inf where there is none. `start` is the eval loss of the run that has moved least, at its first evaluation;
    None without evaluations.
    """

    rate: float | None
    best_rate: float | None
    fall: float
    best_fall: float
    calmer_fall: float
    start: float | None

    @property
    def share(self) -> float:
        """Of the best run's fall, how much this one has."""
        return self.fall / self.best_fall

    @property
    def above_best(self) -> bool | None:
        """Whether its rate is above the best run's; None where that is not known."""
        return None if self.rate is None or self.best_rate is None else self.rate > self.best_rate


def standing(curve: Curve, siblings: Sequence[Curve]) -> Standing | None:
    """None where nothing can be compared, or no run has fallen beyond its noise."""
    runs = [run for run in (curve, *siblings) if _ended(run) and summary(run) is not None]
    if not any(run is curve for run in runs) or len(runs) < 2:
        return None
    by_evals = all(len(run.eval_loss) >= FEWEST_EVALS for run in runs)
    rated = all(run.peak_lr is not None for run in runs)
    # The slowest run has hardly moved: how far it fell itself, and how far the others ended below it.
    slowest = min(runs, key=_rate if rated else _moved)
    start = summary(slowest)
    assert start is not None
    own = start.fall if start.fall > ERRORS * start.error else 0.0

    def fall(run: Curve) -> float:
        return own + _above(slowest, run, by_evals)

    best = max(runs, key=fall)
    if fall(best) <= max(ERRORS * start.error, 0.01 * abs(start.first)):
        return None
    calmer = [run for run in runs if run is not curve and (not rated or _rate(run) < _rate(curve) * (1 - SAME))]
    return Standing(
        rate=_rate(curve) if rated else None,
        best_rate=_rate(best) if rated else None,
        fall=fall(curve),
        best_fall=fall(best),
        calmer_fall=max(map(fall, calmer), default=-math.inf),
        start=float(slowest.eval_loss.values[0]) if by_evals else None,
    )


def _moved(run: Curve) -> float:
    found = summary(run)
    return math.inf if found is None else abs(found.fall)


def _above(run: Curve, other: Curve, by_evals: bool) -> float:
    if by_evals:
        return ends_above(run.eval_loss, other.eval_loss, errors=0.0)
    return ends_above(run.loss, other.loss, errors=ERRORS)


def _rate(run: Curve) -> float:
    assert run.peak_lr is not None
    return run.peak_lr


def _ended(run: Curve) -> bool:
    return all(not len(series) or bool(np.isfinite(series.values[-1])) for series in (run.loss, run.eval_loss))


def same_losses(curve: Curve, siblings: Sequence[Curve]) -> Diagnosis | None:
    """Inert: a sibling at quite another rate has the same losses."""
    for other in siblings:
        if curve.peak_lr is None or other.peak_lr is None or not _differ(curve.peak_lr, other.peak_lr):
            continue
        _, mine, theirs = np.intersect1d(curve.loss.steps, other.loss.steps, return_indices=True)
        losses = curve.loss.values[mine]
        if len(losses) >= FEWEST_LOSSES and np.allclose(losses, other.loss.values[theirs], rtol=1e-6, atol=0):
            reason = f"its losses are those of a sibling at {other.peak_lr:.3g}, to six digits"
            return Diagnosis("inert", {"sibling_lr": other.peak_lr, "reason": reason}, remedies.CHECK)
    return None


def _differ(rate: float, other: float) -> bool:
    return max(rate, other) > 3 * min(rate, other) * (1 - SAME)


def held_back(curve: Curve, siblings: Sequence[Curve]) -> Diagnosis | None:
    """Over-regularised: a sibling with less decay and the same rate ends lower, in training and in evaluations."""
    decay, rate, mine = curve.weight_decay, curve.peak_lr, summary(curve)
    if not decay or mine is None:
        return None
    for other in siblings:
        theirs = summary(other)
        same_rate = rate is None or other.peak_lr is None or math.isclose(rate, other.peak_lr, rel_tol=SAME)
        if theirs is None or other.weight_decay is None or other.weight_decay >= decay or not same_rate:
            continue
        loss_gap, enough = ends_above(curve.loss, other.loss, errors=ERRORS), 0.1 * theirs.fall
        has_evals = min(len(curve.eval_loss), len(other.eval_loss)) >= FEWEST_EVALS
        eval_gap = ends_above(curve.eval_loss, other.eval_loss, errors=0.0) if has_evals else loss_gap
        if min(loss_gap, eval_gap) > max(enough, 0.0):
            evidence: dict[str, float | str] = {
                "weight_decay": decay,
                "sibling_weight_decay": other.weight_decay,
                "eval_gap": eval_gap,
                "loss_gap": loss_gap,
                "reason": f"with weight decay {other.weight_decay:g} the losses end lower, by {eval_gap:.4g}",
            }
            return Diagnosis("over_regularised", evidence, remedies.LESS_DECAY)
    return None


def too_low(curve: Curve, among: Standing) -> Diagnosis | None:
    """Too low: a sibling, at a higher rate if rates are known, fell twice as far. To be asked when it is nothing else."""
    if among.share >= 0.5 or among.above_best:
        return None
    return Diagnosis("too_low", _compared(among), remedies.higher(curve))


def too_high(curve: Curve, among: Standing) -> Diagnosis | None:
    """Too high: at a lower rate a sibling fell twice as far."""
    if among.share >= 0.5 or not among.above_best:
        return None
    return Diagnosis("too_high", _compared(among), remedies.lower(curve))


def _compared(among: Standing) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {"fall": among.fall, "sibling_fall": among.best_fall}
    at = ""
    if among.best_rate is not None:
        evidence["sibling_lr"], at = among.best_rate, f" at {among.best_rate:.3g}"
    return evidence | {"reason": f"it falls by {among.fall:.4g}, a sibling{at} by {among.best_fall:.4g}"}
