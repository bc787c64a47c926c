"""Which search method suits a sweep's axes, and the points that it starts with."""

import math
from collections.abc import Sequence
from typing import Any

from lrsweep.config.schema import SweepConfig, flatten, replace
from lrsweep.config.search_space import GRIDS, LR, Axis, Range, declared, grid, refinable, to_stored

# The most trials and the most ranges for which `auto` picks a Gaussian process: its cost grows with both.
_GP_TRIALS, _GP_AXES = 24, 2
# The most trials of a grid, and the trials of another search, that `auto` takes if search.n_trials does not say.
_TRIALS = 16


def settle(config: SweepConfig, before: str | None = None) -> tuple[SweepConfig, str]:
    """Replaces `search.method: auto` by a method that suits the axes and the budget.

    Args:
        config: The sweep's config.
        before: The method of the sweep's existing trials, which stays; None if there are none.

    Returns:
        The config, and a line that gives the method and the reason; empty if the method was not `auto`.

    Raises:
        InputError: An axis is invalid.
    """
    search = config.search
    if search.method != "auto":
        return config, ""
    found = declared(config)
    most = search.n_trials or _TRIALS
    ranges = [axis for axis in found if isinstance(axis, Range)]
    points = None if any(axis.num is None for axis in ranges) else math.prod(len(axis.points()) for axis in found)
    method: str
    if before is not None and (before not in GRIDS or points is not None):
        method, why = before, "as it began"
    # The user's own trainer cannot pause, so `refine` would train its trials twice.
    elif refinable(found) and config.engine.name != "external":
        others = ", ".join(axis.key for axis in found if axis.key != LR)
        method, why = "refine", f"the learning rate, then {others}" if others else "the learning rate alone"
    elif points is not None and points <= most:
        method, why = "grid", f"all {points} points fit"
    elif len(ranges) == len(found) <= _GP_AXES and most <= _GP_TRIALS:
        method, why = "gp", f"{most} trials over {len(found)} range{'s' * (len(found) > 1)}"
    else:
        method, why = "tpe", f"{most} trials over {len(found)} axes"
    changes: dict[str, Any] = {"search.method": method}
    if method not in GRIDS:
        changes["search.n_trials"] = most
    if method != "grid" and search.extend:
        changes["search.extend"] = False  # only a grid can be extended; `refine` grows by itself
    return replace(config, changes), f"search.method=auto: {method} ({why})"


def starts(config: SweepConfig, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """The points that a sweep starts with, as Optuna stores them: a whole grid, or the rates of `refine`; else none."""
    if config.search.method == "grid":
        return grid(axes)
    if config.search.method != "refine":
        return []
    rates = next(axis.points() for axis in axes if axis.key == LR)
    others = base_values(config, axes)
    return [{axis.key: {**others, LR: rate}[axis.key] for axis in axes} for rate in rates]


def base_values(config: SweepConfig, axes: Sequence[Axis]) -> dict[str, Any]:
    """For each axis but the learning rate the config's own value, or the nearest on the axis, as Optuna stores it."""
    own = flatten(config.model_dump())
    return {axis.key: _nearest(axis, own.get(axis.key)) for axis in axes if axis.key != LR}


def _nearest(axis: Axis, value: Any) -> Any:
    points = [to_stored(point) for point in axis.points()]
    wanted = to_stored(list(value) if isinstance(value, tuple) else value)
    if wanted in points or not all(_is_number(point) for point in [*points, wanted]):
        return wanted if wanted in points else points[0]
    return min(points, key=lambda point: abs(point - wanted))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
