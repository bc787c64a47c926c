"""What a loss curve says: one label, its evidence in numbers, and a remedy in words and as config overrides.

A curve is judged by itself and, where its siblings are known (the other trials of a sweep), beside them: a swing or an
early rise is no fault if nothing calmer ended lower, and how far a run should have fallen only siblings can say. Every
difference is held against the curve's own noise: the spread of neighbouring points, which a slow trend hardly touches.
`benchmarks/diagnosis.py` says how often the labels are right.
"""

from collections.abc import Sequence

import numpy as np

from lrsweep.analysis.diagnosis import cross_run_rules as beside
from lrsweep.analysis.diagnosis import single_run_rules
from lrsweep.analysis.diagnosis.curve import Advice, Curve, Diagnosis, Label, Series, curve
from lrsweep.analysis.diagnosis.remedies import TWICE_THE_BATCH, rung

__all__ = ["TWICE_THE_BATCH", "Advice", "Curve", "Diagnosis", "Label", "Series", "curve", "diagnose", "rung"]


def diagnose(curve: Curve, siblings: Sequence[Curve] = ()) -> Diagnosis:
    """The curve's label; `siblings` are the other runs of the same sweep. Never raises: what cannot be told is `unknown`."""
    with np.errstate(all="ignore"):
        certain = (
            single_run_rules.not_finite(curve) or single_run_rules.too_short(curve) or single_run_rules.inert(curve)
        )
        if certain is not None:
            return certain
        compared = beside.same_losses(curve, siblings) or beside.held_back(curve, siblings)
        if compared is not None:
            return compared
        among = beside.standing(curve, siblings)
        if among is None:
            by_itself = (
                single_run_rules.overfits(curve) or single_run_rules.rises(curve) or single_run_rules.oscillates(curve)
            )
            return by_itself or single_run_rules.hardly_falls(curve) or single_run_rules.healthy(curve)
        return _beside(curve, among) or single_run_rules.healthy(curve)


def _beside(curve: Curve, among: beside.Standing) -> Diagnosis | None:
    """What is wrong with it, if anything."""
    # A rate that is no higher than the best one's is not too high.
    above = among.above_best is not False
    rises = single_run_rules.rises(curve, among.start) if above and among.share < 0.8 else None
    swings = (
        single_run_rules.oscillates(curve)
        if above and among.calmer_fall > among.fall + 0.05 * among.best_fall
        else None
    )
    return (
        single_run_rules.overfits(curve, among.start)
        or rises
        or swings
        or beside.too_high(curve, among)
        or beside.too_low(curve, among)
    )
