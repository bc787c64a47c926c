"""`search.method=refine` over several axes: the learning rate first, then the others at the best rate, one by one.

`refine.py` searches the rate, with the other axes at the config's values. Then each value of the next axis is tried at
the best rate, with the same seed and the same rows. The best one is taken over if it is better by more than another
choice of eval rows could explain. In the end the rate is refined again, with what was taken over.

Like `refine.py`'s, the plan is made anew from the results each time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lrsweep.analysis.ranking import Result
from lrsweep.analysis.row_noise import row_noise
from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_method import base_values
from lrsweep.config.search_space import LR, Axis, to_stored
from lrsweep.formatting import format_value
from lrsweep.search import refine
from lrsweep.search.records import TrialSpec
from lrsweep.search.refine import Plan

# A difference of this many standard deviations, as the eval rows give them, is not due to the rows.
_SURE = 2.0
# With other values of the other axes, the rate is tried this factor below and above.
_BESIDE = 10**0.25


def plan(
    config: SweepConfig,
    axes: Sequence[Axis],
    results: Sequence[Result],
    paused: Collection[int],
    base_loss: float | None,
    seconds: float = 0.0,
) -> Plan:
    """What comes next.

    Args:
        config: The sweep's config.
        axes: Its axes.
        results: The finished trials, and the paused ones with what they have measured.
        paused: The numbers of the paused trials.
        base_loss: The eval loss before training, in nats per token; None if it is not known.
        seconds: Seconds spent training so far.
    """
    if config.search.method != "refine":
        return Plan()
    own = [result for result in results if result.role not in ("replicate", "rescue")]
    chosen = base_values(config, axes)
    found = _rate(config, own, results, paused, base_loss, seconds, chosen)
    best = _lowest(_with(chosen, own))
    if found.goes_on or best is None:
        return found
    others = [axis for axis in axes if axis.key != LR]
    for axis in others:
        beside = [r for r in own if r.lr == best.lr and _same_but(axis.key, chosen, r)]
        tried = [to_stored(result.values[axis.key]) for result in beside]
        values = [value for value in axis.points() if to_stored(value) not in tried]
        if values:
            new = [TrialSpec({**chosen, LR: best.values[LR], axis.key: to_stored(value)}) for value in values]
            named = ", ".join(map(format_value, values))
            why = f"refine: trying {axis.key} {named} at learning rate {format_value(best.lr)}"
            return _within_limits(config, results, Plan(tuple(new), why=why), seconds)
        lowest = _lowest(beside)
        if lowest is not None and _better(lowest, best, base_loss, config.search.tolerance):
            best, chosen = lowest, {**chosen, axis.key: to_stored(lowest.values[axis.key])}
    if chosen == base_values(config, axes):
        return found
    if len(_with(chosen, own)) == 1:
        rates = [float(f"{best.values[LR] * factor:.2g}") for factor in (1 / _BESIDE, _BESIDE)]
        named = ", ".join(f"{key} {format_value(best.values[key])}" for key in chosen)
        why = f"refine: trying learning rates {rates[0]:g} and {rates[1]:g} with {named}"
        specs = tuple(TrialSpec({**chosen, LR: rate}, "fit") for rate in rates)
        return _within_limits(config, results, Plan(specs, why=why), seconds)
    return _rate(config, own, results, paused, base_loss, seconds, chosen)


def _rate(
    config: SweepConfig,
    own: Sequence[Result],
    results: Sequence[Result],
    paused: Collection[int],
    base_loss: float | None,
    seconds: float,
    chosen: Mapping[str, Any],
) -> Plan:
    """The plan for the learning rate, with these values of the other axes."""
    found = refine.plan(config, _with(chosen, own), paused, base_loss)
    specs = tuple(replace(spec, params={**chosen, **spec.params}) for spec in found.new)
    found = replace(found, new=specs)
    # Without one complete trial there is no answer, so the limits count from the first one on.
    complete = any(result.status == "complete" for result in own)
    return _within_limits(config, results, found, seconds) if complete else found


def _within_limits(config: SweepConfig, results: Sequence[Result], found: Plan, seconds: float) -> Plan:
    used_up = refine.limit(config, results, found, seconds) if found.goes_on else ""
    return Plan(why=f"refine: {used_up} is used up") if used_up else found


def _with(chosen: Mapping[str, Any], results: Sequence[Result]) -> list[Result]:
    """The results that have these values, as Optuna stores them."""
    return [r for r in results if all(to_stored(r.values[key]) == value for key, value in chosen.items())]


def _same_but(axis: str, chosen: Mapping[str, Any], result: Result) -> bool:
    return all(to_stored(result.values[key]) == value for key, value in chosen.items() if key != axis)


def _lowest(results: Sequence[Result]) -> Result | None:
    complete = [result for result in results if result.status == "complete" and result.eval_loss is not None]
    return min(complete, key=lambda result: (result.eval_loss, result.lr), default=None)


def _better(one: Result, other: Result, base_loss: float | None, tolerance: float) -> bool:
    """Whether a trial is better than another by more than the eval rows, or if they are not known the tolerance."""
    assert one.eval_loss is not None
    assert other.eval_loss is not None
    gain = other.eval_loss - one.eval_loss
    rows = row_noise(one.rows, other.rows)
    if rows is not None:
        return gain > _SURE * rows.deviation
    return gain > 0 and (base_loss is None or gain > tolerance * (base_loss - other.eval_loss))
