"""Diagnosis of a loss curve: one label, the evidence in numbers, and remedies as text and as config overrides.

A curve is judged by itself and, if the other runs of its sweep are known, by comparison with them: oscillation or an
early rise is no fault if no run at a lower learning rate ended lower, and only other runs show how far a run should
have fallen. Every difference is compared with the curve's own noise: the scatter of neighbouring points, which a slow
trend hardly changes. A fault that is not certain is mentioned, and is no label. `benchmarks/diagnosis.py` and
`benchmarks/published.py` measure how often the labels are right.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lrsweep.analysis.diagnosis import (
    broken_runs,
    collapse,
    cross_run_rules,
    inert_runs,
    no_fault,
    oscillation,
    overfitting,
    preference_rules,
    rising_loss,
    signs_in_sweep,
    slow_loss,
    unclear_logs,
)
from lrsweep.analysis.diagnosis.cross_run_rules import Comparison
from lrsweep.analysis.diagnosis.curve import CERTAIN, Advice, Curve, Diagnosis, Label, Series, curve
from lrsweep.analysis.diagnosis.remedies import TWICE_THE_BATCH, rung
from lrsweep.analysis.diagnosis.training_kind import negative_loss, reinforcement, training_kind

__all__ = ["TWICE_THE_BATCH", "Advice", "Curve", "Diagnosis", "Label", "Series", "curve", "diagnose", "rung"]


def diagnose(curve: Curve, other_runs: Sequence[Curve] = ()) -> Diagnosis:
    """Diagnoses one run. Never raises: a curve that cannot be judged is labelled `unknown`.

    Args:
        curve: The run's curve.
        other_runs: The other runs of the same sweep, without this one; empty if there are none or they are not known.
    """
    with np.errstate(all="ignore"):
        certain = (
            reinforcement(curve)
            or broken_runs.not_finite(curve)
            or broken_runs.runs_off(curve)
            or negative_loss(curve)
            or unclear_logs.only_zeros(curve)
            or broken_runs.zero(curve)
            or inert_runs.inert(curve)
            or (inert_runs.stays_put(curve) if not other_runs else None)
            or collapse.nothing_right(curve)
            or collapse.collapsed(curve)
            or broken_runs.jumps(curve)
            or broken_runs.exploded(curve)
            or broken_runs.runs_away(curve)
            or unclear_logs.too_short(curve)
            or unclear_logs.broken_evaluations(curve)
            or unclear_logs.too_coarse(curve)
            or unclear_logs.sums_over_epochs(curve)
            or unclear_logs.mostly_zeros(curve)
            or unclear_logs.smallest_of_all(curve)
            or unclear_logs.ends_in_a_jump(curve)
        )
        if certain is not None:
            return certain
        found = cross_run_rules.same_losses(curve, other_runs) or cross_run_rules.over_regularised(curve, other_runs)
        if found is not None:
            return found
        comparison = cross_run_rules.compare(curve, other_runs)
        if comparison is None:
            return _judge_by_itself(curve)
        return _judge_in_sweep(curve, comparison) or no_fault.healthy(curve)


def _judge_by_itself(curve: Curve) -> Diagnosis:
    preference = training_kind(curve) == "preference"
    found = [
        preference_rules.weighed(curve, one) if preference else one
        for one in (
            preference_rules.prefers_nothing(curve) if preference else None,
            overfitting.overfits(curve),
            rising_loss.rises(curve),
            oscillation.oscillates(curve),
            slow_loss.hardly_falls(curve),
        )
        if one is not None
    ]
    clear = next((one for one in found if one.confidence >= CERTAIN), None)
    rising = next((one for one in found if one.label == "too_high" and one.confidence >= _UNSURE), None)
    if clear is not None and clear.label == "oscillating" and rising is not None:
        # It swings, and has not come back: one sign confirms the other.
        clear = replace(rising, confidence=clear.confidence)
    if curve.peak_lr is None and any(one.label == "too_high" for one in found):
        # Whatever the rate was, a run that breaks is broken.
        broken = broken_runs.breaks(curve)
        if broken is not None:
            return broken
    if clear is not None and clear.label in _OF_THE_RATE and curve.peak_lr is None:
        reason = f"{clear.evidence['reason']}; the log does not say its learning rate, so this may have another cause"
        return replace(clear, label="unknown", evidence={**clear.evidence, "reason": reason})
    seen = max(found, key=lambda one: one.confidence, default=None)
    return (
        clear
        or unclear_logs.stuck_high(curve)
        or no_fault.healthy(curve, seen if seen is not None and seen.confidence >= _SEEN else None)
    )


# A fault of less confidence is not mentioned.
_SEEN = 0.5
# The confidence of a sign that needs another beside it.
_UNSURE = 0.8
# What a log without its learning rate is not accused of: of published ones, half had another fault.
_OF_THE_RATE = ("too_high", "too_low", "oscillating")


def _judge_in_sweep(curve: Curve, comparison: Comparison) -> Diagnosis | None:
    # A learning rate that is not above the best run's is not too high.
    may_be_too_high = comparison.above_best is not False
    lower_was_better = comparison.lower_lr_fall > comparison.fall + 0.05 * comparison.best_fall
    overfits = overfitting.overfits(curve, comparison.start)
    return (
        # The other runs say where the untrained model was, so less is certain enough.
        (overfits if overfits is not None and overfits.confidence >= _SEEN else None)
        or (signs_in_sweep.rises(curve, comparison.start) if may_be_too_high and comparison.share < 0.8 else None)
        or (signs_in_sweep.oscillates(curve) if may_be_too_high and lower_was_better else None)
        or cross_run_rules.too_high(curve, comparison)
        or cross_run_rules.too_low(curve, comparison)
    )
