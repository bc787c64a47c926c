"""The command that would make an unclear answer clear: a wider space, longer trials, further seeds."""

import shlex
from typing import Any

from lrsweep.analysis.edges import Edge
from lrsweep.config.schema import SweepConfig
from lrsweep.config.schema import replace as with_keys
from lrsweep.config.search_space import LR, reach
from lrsweep.errors import InputError
from lrsweep.formatting import format_value
from lrsweep.report.summary import Summary

# How many values a wider list has beyond the best one, and how far they are apart if no other gap is known.
_BEYOND, _STEP = 3, 3.0


def next_command(summary: Summary) -> str:
    """The command to run next; empty if the answer is clear, or the sweep's own command is not known."""
    about, search = summary.about, summary.config.search
    if not about.command or summary.verdict.recommended is None:
        return ""
    if summary.verdict.edges:
        added = _wider(summary, summary.verdict.edges[0])
    elif summary.verdict.inconclusive:
        steps = 2 * summary.config.training.max_steps
        added = [f"name={summary.config.name}-longer", f"training.max_steps={steps}"]
    elif summary.verdict.noise is None and search.replicates == 1 and summary.verdict.rivals:
        added = ["search.replicates=auto"]
    else:
        added = []
    return shlex.join([*shlex.split(about.command), *added]) if added else ""


def _wider(summary: Summary, edge: Edge) -> list[str]:
    """The overrides that extend the axis of an edge; none if nothing valid lies beyond."""
    config, search = summary.config, summary.config.search
    ends = reach(config, edge.key)
    if ends is not None and (ends[0] < edge.value if edge.side == "lowest" else ends[1] > edge.value):
        return [f"search.n_trials={2 * len(summary.results)}"]  # the space has more values
    if edge.key == LR and search.method == "grid" and not search.extend:
        return ["search.extend=true"]  # the same sweep goes on
    values = _beyond(summary, edge)
    if len(values) < 2:
        return []
    name = f"name={config.name}-wider"
    if _is_range(config.space, edge.key):
        end = "low" if edge.side == "lowest" else "high"
        return [name, f"space.{edge.key}.{end}={format_value(values[-1])}"]
    return [name, f"space.{edge.key}=[{','.join(map(format_value, sorted(values)))}]"]


def _beyond(summary: Summary, edge: Edge) -> list[float]:
    """The best value and those beyond it, in the steps of the values tried, as far as they are valid."""
    tried = sorted({result.values[edge.key] for result in summary.results} - {0})
    at = tried.index(edge.value)
    neighbour = tried[at + (1 if edge.side == "lowest" else -1)] if len(tried) > 1 else None
    ratio = _STEP if neighbour is None else max(edge.value / neighbour, neighbour / edge.value)
    found = [edge.value]
    for _ in range(_BEYOND):
        value = found[-1] / ratio if edge.side == "lowest" else found[-1] * ratio
        value = round(value) if isinstance(edge.value, int) else float(f"{value:.2g}")
        if value == found[-1] or not _is_valid(summary.config, edge.key, value):
            break
        found.append(value)
    return found


def _is_valid(config: SweepConfig, key: str, value: float) -> bool:
    try:
        with_keys(config, {key: value})
    except InputError:
        return False
    return True


def _is_range(space: Any, key: str) -> bool:
    """Whether the space gives a key as a range instead of a list of choices."""
    for part in key.split("."):
        space = space[part]
    return not isinstance(space, list | tuple)
