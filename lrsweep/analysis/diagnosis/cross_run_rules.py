"""Rules that compare a curve with the other runs of its sweep. Each returns a diagnosis, or None if it does not fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis
from lrsweep.analysis.diagnosis.smoothing import ERRORS, FEWEST_EVALS, FEWEST_LOSSES, final_gap, loss_endpoints

# Two learning rates count as the same if they differ by less than this share.
SAME = 0.01


@dataclass(frozen=True)
class Comparison:
    """A run compared with the others of its sweep, by how far each loss fell, in nats per token.

    The losses are eval losses, or training losses if some run has too few evaluations.

    Attributes:
        rate: The run's peak learning rate; None if some run's is not known.
        best_rate: The peak learning rate of the run that fell furthest; None if some run's is not known.
        fall: How far the run's loss fell.
        best_fall: How far the loss of the run that fell furthest did, above 0.
        lower_lr_fall: The largest fall among the other runs at lower learning rates (among all others if some rate is
            not known); -inf if there is no such run.
        start: The first eval loss of the run that moved least, which is close to the untrained model's; None without
            evaluations.
    """

    rate: float | None
    best_rate: float | None
    fall: float
    best_fall: float
    lower_lr_fall: float
    start: float | None

    @property
    def share(self) -> float:
        """The run's fall as a share of the best run's."""
        return self.fall / self.best_fall

    @property
    def above_best(self) -> bool | None:
        """Whether its learning rate is above the best run's; None if some run's is not known."""
        return None if self.rate is None or self.best_rate is None else self.rate > self.best_rate


def compare(curve: Curve, other_runs: Sequence[Curve]) -> Comparison | None:
    """Compares a run with the others; None if nothing can be compared, or if no run fell by more than noise."""
    runs = [run for run in (curve, *other_runs) if _ends_finite(run) and loss_endpoints(run) is not None]
    if not any(run is curve for run in runs) or len(runs) < 2:
        return None
    by_evals = all(len(run.eval_loss) >= FEWEST_EVALS for run in runs)
    rates_known = all(run.peak_lr is not None for run in runs)
    # Every fall is measured against the run that moved least: its own fall, plus how far the other ended below it.
    slowest = min(runs, key=_rate if rates_known else _movement)
    start = loss_endpoints(slowest)
    assert start is not None
    own = start.fall if start.fall > ERRORS * start.error else 0.0

    def fall(run: Curve) -> float:
        return own + _gap(slowest, run, by_evals)

    best = max(runs, key=fall)
    if fall(best) <= max(ERRORS * start.error, 0.01 * abs(start.first)):
        return None
    lower = [run for run in runs if run is not curve and (not rates_known or _rate(run) < _rate(curve) * (1 - SAME))]
    return Comparison(
        rate=_rate(curve) if rates_known else None,
        best_rate=_rate(best) if rates_known else None,
        fall=fall(curve),
        best_fall=fall(best),
        lower_lr_fall=max(map(fall, lower), default=-math.inf),
        start=float(slowest.eval_loss.values[0]) if by_evals else None,
    )


def _movement(run: Curve) -> float:
    found = loss_endpoints(run)
    return math.inf if found is None else abs(found.fall)


def _gap(run: Curve, other: Curve, by_evals: bool) -> float:
    """How far `run` ends above `other`."""
    if by_evals:
        return final_gap(run.eval_loss, other.eval_loss, errors=0.0)
    return final_gap(run.loss, other.loss, errors=ERRORS)


def _rate(run: Curve) -> float:
    assert run.peak_lr is not None
    return run.peak_lr


def _ends_finite(run: Curve) -> bool:
    return all(not len(series) or bool(np.isfinite(series.values[-1])) for series in (run.loss, run.eval_loss))


def same_losses(curve: Curve, other_runs: Sequence[Curve]) -> Diagnosis | None:
    """Inert: another run has the same losses although its learning rate differs by a factor of three or more."""
    for other in other_runs:
        if curve.peak_lr is None or other.peak_lr is None or not _far_apart(curve.peak_lr, other.peak_lr):
            continue
        _, mine, theirs = np.intersect1d(curve.loss.steps, other.loss.steps, return_indices=True)
        losses = curve.loss.values[mine]
        if len(losses) >= FEWEST_LOSSES and np.allclose(losses, other.loss.values[theirs], rtol=1e-6, atol=0):
            reason = f"its losses equal those of another run at lr {other.peak_lr:.3g} to six digits"
            return Diagnosis("inert", {"sibling_lr": other.peak_lr, "reason": reason}, remedies.CHECK)
    return None


def _far_apart(rate: float, other: float) -> bool:
    return max(rate, other) > 3 * min(rate, other) * (1 - SAME)


def over_regularised(curve: Curve, other_runs: Sequence[Curve]) -> Diagnosis | None:
    """Over-regularised: a run with less weight decay and the same learning rate ends lower.

    Both the training loss and the eval loss must end lower.
    """
    decay, rate, mine = curve.weight_decay, curve.peak_lr, loss_endpoints(curve)
    if not decay or mine is None:
        return None
    for other in other_runs:
        theirs = loss_endpoints(other)
        same_rate = rate is None or other.peak_lr is None or math.isclose(rate, other.peak_lr, rel_tol=SAME)
        if theirs is None or other.weight_decay is None or other.weight_decay >= decay or not same_rate:
            continue
        loss_gap, enough = final_gap(curve.loss, other.loss, errors=ERRORS), 0.1 * theirs.fall
        has_evals = min(len(curve.eval_loss), len(other.eval_loss)) >= FEWEST_EVALS
        eval_gap = final_gap(curve.eval_loss, other.eval_loss, errors=0.0) if has_evals else loss_gap
        if min(loss_gap, eval_gap) > max(enough, 0.0):
            evidence: dict[str, float | str] = {
                "weight_decay": decay,
                "sibling_weight_decay": other.weight_decay,
                "eval_gap": eval_gap,
                "loss_gap": loss_gap,
                "reason": f"another run with weight decay {other.weight_decay:g} ends lower by {eval_gap:.4g}",
            }
            return Diagnosis("over_regularised", evidence, remedies.LESS_DECAY)
    return None


def too_low(curve: Curve, comparison: Comparison) -> Diagnosis | None:
    """Too low: another run, at a higher rate if rates are known, fell twice as far. The last rule to apply."""
    if comparison.share >= 0.5 or comparison.above_best:
        return None
    return Diagnosis("too_low", _evidence(comparison), remedies.higher_lr(curve))


def too_high(curve: Curve, comparison: Comparison) -> Diagnosis | None:
    """Too high: another run at a lower learning rate fell twice as far."""
    if comparison.share >= 0.5 or not comparison.above_best:
        return None
    return Diagnosis("too_high", _evidence(comparison), remedies.lower_lr(curve))


def _evidence(comparison: Comparison) -> dict[str, float | str]:
    evidence: dict[str, float | str] = {"fall": comparison.fall, "sibling_fall": comparison.best_fall}
    at = ""
    if comparison.best_rate is not None:
        evidence["sibling_lr"], at = comparison.best_rate, f" at lr {comparison.best_rate:.3g}"
    reason = f"it falls by {comparison.fall:.4g}, another run{at} by {comparison.best_fall:.4g}"
    return evidence | {"reason": reason}
