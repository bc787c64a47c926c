"""The best config as a Hydra file for lrsweep itself: a sweep's base with the tuned keys in place."""

from lrsweep.config.schema import TRIAL_SECTIONS
from lrsweep.dialects.header import header
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.report.summary import Summary


def export(summary: Summary) -> str:
    """A file for ./sweeps: composes to the winning trial's config; give it a space to sweep on from there."""
    best = summary.verdict.best
    assert best is not None
    tree = best.config.masked()
    groups = {group: tree[group] for group in (*TRIAL_SECTIONS, "origin") if tree.get(group) is not None}
    return "# @package _global_\n" + header(summary) + to_yaml(groups)
