"""Export of the best config as a Hydra file for lrsweep itself: the sweep's base with the tuned values."""

from lrsweep.config.schema import TRIAL_SECTIONS
from lrsweep.dialects.header import header
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.report.summary import Summary


def export(summary: Summary) -> str:
    """Returns a file for ./sweeps that composes to the best trial's config, as the base of another sweep.

    Args:
        summary: The summary of a sweep with a best trial.
    """
    best = summary.verdict.best
    assert best is not None
    tree = best.config.masked()
    groups = {group: tree[group] for group in (*TRIAL_SECTIONS, "origin") if tree.get(group) is not None}
    return "# @package _global_\n" + header(summary) + to_yaml(groups)
