"""The best config as a Hydra file for lrsweep itself: a sweep's base with the tuned keys in place."""

from lrsweep import outputs
from lrsweep.interop import scalars
from lrsweep.interop.header import header
from lrsweep.report.summary import Summary

_WHAT_IS_TRAINED = ("model", "data", "finetune", "optimizer", "scheduler", "training")


def export(summary: Summary) -> str:
    """A file for ./sweeps: composes to the winning trial's config; give it a space to sweep on from there."""
    best = summary.verdict.best
    assert best is not None
    tree = outputs.masked(best.config)
    groups = {group: tree[group] for group in (*_WHAT_IS_TRAINED, "origin") if tree.get(group) is not None}
    return "# @package _global_\n" + header(summary) + scalars.dump(groups)
