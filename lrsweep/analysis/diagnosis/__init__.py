"""Diagnosis of a loss curve: one label, the evidence in numbers, and remedies as text and as config overrides.

A curve is judged by itself and, if the other runs of its sweep are known, by comparison with them: oscillation or an
early rise is no fault if no run at a lower learning rate ended lower, and only other runs show how far a run should
have fallen. Every difference is compared with the curve's own noise: the scatter of neighbouring points, which a slow
trend hardly changes. `benchmarks/diagnosis.py` measures how often the labels are right.
"""

from collections.abc import Sequence

import numpy as np

from lrsweep.analysis.diagnosis import cross_run_rules, single_run_rules
from lrsweep.analysis.diagnosis.cross_run_rules import Comparison
from lrsweep.analysis.diagnosis.curve import Advice, Curve, Diagnosis, Label, Series, curve
from lrsweep.analysis.diagnosis.remedies import TWICE_THE_BATCH, rung

__all__ = ["TWICE_THE_BATCH", "Advice", "Curve", "Diagnosis", "Label", "Series", "curve", "diagnose", "rung"]


def diagnose(curve: Curve, other_runs: Sequence[Curve] = ()) -> Diagnosis:
    """Diagnoses one run. Never raises: a curve that cannot be judged is labelled `unknown`.

    Args:
        curve: The run's curve.
        other_runs: The other runs of the same sweep, without this one; empty if there are none or they are not known.
    """
    with np.errstate(all="ignore"):
        certain = (
            single_run_rules.not_finite(curve) or single_run_rules.too_short(curve) or single_run_rules.inert(curve)
        )
        if certain is not None:
            return certain
        found = cross_run_rules.same_losses(curve, other_runs) or cross_run_rules.over_regularised(curve, other_runs)
        if found is not None:
            return found
        comparison = cross_run_rules.compare(curve, other_runs)
        found = _judge_by_itself(curve) if comparison is None else _judge_in_sweep(curve, comparison)
        return found or single_run_rules.healthy(curve)


def _judge_by_itself(curve: Curve) -> Diagnosis | None:
    return (
        single_run_rules.overfits(curve)
        or single_run_rules.rises(curve)
        or single_run_rules.oscillates(curve)
        or single_run_rules.hardly_falls(curve)
    )


def _judge_in_sweep(curve: Curve, comparison: Comparison) -> Diagnosis | None:
    # A learning rate that is not above the best run's is not too high.
    may_be_too_high = comparison.above_best is not False
    lower_was_better = comparison.lower_lr_fall > comparison.fall + 0.05 * comparison.best_fall
    return (
        single_run_rules.overfits(curve, comparison.start)
        or (single_run_rules.rises(curve, comparison.start) if may_be_too_high and comparison.share < 0.8 else None)
        or (single_run_rules.oscillates(curve) if may_be_too_high and lower_was_better else None)
        or cross_run_rules.too_high(curve, comparison)
        or cross_run_rules.too_low(curve, comparison)
    )
