"""`search.method=refine`: the best learning rate, coarse to fine.

All rates start on the real schedule and pause at about a quarter. The lowest one and its neighbours are trained to the
end, unless a neighbour has lost half of the improvement by then: that one cannot win. From then on it is Brent's method
over log lr (R. P. Brent, "Algorithms for Minimization without Derivatives", chapter 5): the minimum of the parabola
through the best rate and its neighbours is trained next, or else the middle of the wider side, until neither promises a
gain that matters. While the lowest rate is at an end of what was tried, the next rate beyond joins.

The plan is made anew from the results each time, so a killed sweep continues with the same plan.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.ranking import Result
from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import LR
from lrsweep.formatting import format_value
from lrsweep.search.growth import beyond
from lrsweep.search.records import TrialSpec

# The share of the steps at which trials pause. Measured on four tasks (benchmarks/refine.py): the best rate at a
# quarter of the steps is within a third of a decade of the final one.
_PAUSE_AT = 0.25
# A rate that has lost this share of the improvement at the pause is not trained to the end.
_CANNOT_WIN = 0.5
# The parabola must promise this share of search.tolerance: it knows the loss between rates less well than at them.
_WORTH_TRYING = 0.5
# Rates closer than this, in decades, are the same rate.
_SAME = 0.04
# A parabola is blind to a narrow valley. While both neighbours are this far above the best, as a share of the
# improvement, and one is this many decades away, the middle of the wider side is tried too.
_VALLEY, _WIDE = 0.03, 0.3


@dataclass(frozen=True)
class Plan:
    """What a refined sweep does next.

    Attributes:
        new: Trials to add.
        resumed: Numbers of paused trials to go on with.
        why: The reason, for the terminal; with neither new nor resumed trials, why the search is over.
    """

    new: tuple[TrialSpec, ...] = ()
    resumed: tuple[int, ...] = ()
    why: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.new or self.resumed)


@dataclass(frozen=True)
class _Point:
    """A rate that was tried.

    Attributes:
        lr: The learning rate, as its axis has it.
        number: The trial's number.
        early: Its eval loss at the pause; None if it diverged before.
        final: Its eval loss at the end; None if it is not complete.
        paused: Whether it can go on.
    """

    lr: float
    number: int
    early: float | None
    final: float | None
    paused: bool


@dataclass(frozen=True)
class _Sweep:
    """What is known when a plan is made.

    Attributes:
        config: The sweep's config.
        points: The rates with a result, from the lowest to the highest; those that failed have none.
        base_loss: The eval loss before training, in nats per token; None if it is not known.
        rates: All rates that were tried, from the lowest to the highest.
        added: How many of them lie beyond the range that the sweep started with.
    """

    config: SweepConfig
    points: tuple[_Point, ...]
    base_loss: float | None
    rates: tuple[float, ...]
    added: int


def pause_at(config: SweepConfig) -> int | None:
    """The step after which a trial pauses at its next evaluation, always past the warm-up.

    Returns:
        The step; None if the search is not `refine`.
    """
    if config.search.method != "refine":
        return None
    training = config.training
    warmup = config.scheduler.warmup(training.schedule_steps)
    return min(max(math.ceil(_PAUSE_AT * training.max_steps), warmup + 1), training.max_steps)


def plan(config: SweepConfig, results: Sequence[Result], paused: Collection[int], base_loss: float | None) -> Plan:
    """What comes next, whatever it costs.

    Args:
        config: The sweep's config.
        results: The finished trials, and the paused ones with what they have measured; of several axes, those that
            differ by the learning rate alone.
        paused: The numbers of the paused trials.
        base_loss: The eval loss before training, in nats per token; None if it is not known.
    """
    pause = pause_at(config)
    if pause is None:
        return Plan()
    own = [result for result in results if result.role not in ("replicate", "rescue")]
    points = sorted(_points(own, paused, pause), key=lambda point: point.lr)
    rates = sorted(float(result.values[LR]) for result in own)
    added = sum(result.role == "extension" for result in own)
    sweep = _Sweep(config, tuple(points), base_loss, tuple(rates), added)
    return _refined(sweep) if any(point.final is not None for point in points) else _coarse(sweep)


def _points(results: Sequence[Result], paused: Collection[int], pause: int) -> Iterator[_Point]:
    for result in results:
        if result.status == "failed":
            continue
        early = next((loss for step, loss in result.evals if step >= pause and math.isfinite(loss)), None)
        final = result.eval_loss if result.status == "complete" else None
        if result.status == "diverged":
            early = None
        yield _Point(float(result.values[LR]), result.number, early, final, result.number in paused)


def _coarse(sweep: _Sweep) -> Plan:
    """The lowest at the pause and its neighbours go on, once the lowest is inside the range."""
    points = sweep.points
    alive = [point for point in points if point.early is not None]
    if not alive:
        return Plan(why="refine: every rate diverged or failed")
    lowest = min(alive, key=lambda point: (point.early, point.lr))
    at = points.index(lowest)
    if at in (0, len(points) - 1) and (grown := _grown(sweep, up=at > 0)):
        return grown
    beside = [points[i] for i in (at - 1, at + 1) if 0 <= i < len(points)]
    going = [lowest, *(point for point in beside if point.paused and not _cannot_win(point, lowest, sweep.base_loss))]
    rates = ", ".join(format_value(point.lr) for point in sorted(going, key=lambda point: point.lr))
    return Plan(resumed=tuple(sorted(point.number for point in going)), why=f"refine: training {rates} to the end")


def _refined(sweep: _Sweep) -> Plan:
    """The neighbours of the best complete rate, then a rate between them."""
    points, base_loss = sweep.points, sweep.base_loss
    best = min((point for point in points if point.final is not None), key=lambda point: (point.final, point.lr))
    assert best.final is not None
    improvement = None if base_loss is None or base_loss <= best.final else base_loss - best.final
    at = points.index(best)
    beside = [points[i] for i in (at - 1, at + 1) if 0 <= i < len(points)]
    for point in beside:
        if point.paused and not _cannot_win(point, best, base_loss):
            return Plan(resumed=(point.number,), why=f"refine: training {format_value(point.lr)} to the end")
    if at in (0, len(points) - 1):
        return _grown(sweep, up=at > 0) or Plan(
            why=f"refine: {format_value(best.lr)} is at the end of the range, which cannot grow further"
        )
    left, right = ((math.log10(point.lr), _expected(point, best, base_loss)) for point in beside)
    return _between(sweep, (left, (math.log10(best.lr), best.final), right), improvement)


def _between(
    sweep: _Sweep,
    three: tuple[tuple[float, float], tuple[float, float], tuple[float, float]],
    improvement: float | None,
) -> Plan:
    """A rate between the best one and its neighbours, if it promises a gain.

    Args:
        sweep: What is known.
        three: log10 of the rate, and the final loss, of the lower neighbour, the best one, and the higher neighbour.
        improvement: The loss before training minus the best loss, in nats per token; None if it is not known.
    """
    (x0, y0), (x1, y1), (x2, y2) = three
    lr, lowest = _vertex(*three)
    new, gain = float(f"{10**lr:.2g}"), y1 - lowest
    share = f", {100 * gain / improvement:.2g} % of the improvement" if improvement else ""
    worth_it = gain > _WORTH_TRYING * sweep.config.search.tolerance * (improvement or 0.0)
    if worth_it and not _tried(new, sweep):
        text = f"trying {format_value(new)}, where a parabola over log lr is lowest (by {gain:.4f}{share})"
        return Plan((TrialSpec({LR: new}, "fit"),), why=f"refine: {text}")
    middle = (x0 + x1) / 2 if x1 - x0 > x2 - x1 else (x1 + x2) / 2
    new = float(f"{10**middle:.2g}")
    narrow = min(y0, y2) - y1 > _VALLEY * (improvement or math.inf) and max(x1 - x0, x2 - x1) > _WIDE
    if narrow and not _tried(new, sweep):
        text = f"trying {format_value(new)}, because the loss rises fast on both sides of {format_value(10**x1)}"
        return Plan((TrialSpec({LR: new}, "fit"),), why=f"refine: {text}")
    return Plan(why=f"refine: no rate is expected to be better than {format_value(10**x1)} by an amount that matters")


def _tried(lr: float, sweep: _Sweep) -> bool:
    return any(same_rate(lr, other) for other in sweep.rates)


def same_rate(one: float, other: float) -> bool:
    """Whether two rates are so close that trying both tells nothing."""
    return abs(math.log10(one / other)) < _SAME


def _cannot_win(point: _Point, best: _Point, base_loss: float | None) -> bool:
    """Whether a rate lost half of the improvement at the pause, or diverged."""
    if point.early is None:
        return True
    if base_loss is None or best.early is None or best.early >= base_loss:
        return False
    return point.early - best.early >= _CANNOT_WIN * (base_loss - best.early)


def _expected(point: _Point, best: _Point, base_loss: float | None) -> float:
    """A rate's final loss; if it was not trained to the end, its loss at the pause, moved as the best one's moved."""
    assert best.final is not None
    if point.final is not None:
        found = point.final
    elif point.early is None or best.early is None:
        found = math.inf
    else:
        found = point.early + best.final - best.early
    # Far above the loss before training, the parabola would only see the cliff.
    return min(found, max(base_loss, best.final) if base_loss is not None else found)


def _vertex(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> tuple[float, float]:
    """The minimum of the parabola through three points, of which the middle one is the lowest.

    If the parabola has none, because the points lie on a line or are not finite, it is the middle point.
    """
    (x0, y0), (x1, y1), (x2, y2) = left, middle, right
    if not (math.isfinite(y0) and math.isfinite(y2)):
        return middle
    a, b, c = np.polyfit([x0 - x1, 0.0, x2 - x1], [y0, y1, y2], 2)
    if a <= 0:
        return middle
    shift = float(np.clip(-b / (2 * a), x0 - x1, x2 - x1))
    return x1 + shift, float(np.polyval([a, b, c], shift))


def _grown(sweep: _Sweep, *, up: bool) -> Plan | None:
    """The next rate beyond the end of the range; None if it may not grow further."""
    new = beyond(sweep.rates, up=up, count=1, added=sweep.added) if len(sweep.rates) > 1 else []
    if not new:
        return None
    last, end = (sweep.rates[-1], "highest") if up else (sweep.rates[0], "lowest")
    return Plan(
        (TrialSpec({LR: new[0]}, "extension", pause_at=pause_at(sweep.config)),),
        why=f"refine: {format_value(last)} is the {end} tried: adding {format_value(new[0])}",
    )


def limit(config: SweepConfig, results: Sequence[Result], found: Plan, seconds: float) -> str:
    """The limit that a plan would break, as `key=value`; empty if none.

    Args:
        config: The sweep's config.
        results: The finished trials, and the paused ones.
        found: The plan.
        seconds: Seconds spent training so far.
    """
    search = config.search
    if search.n_trials is not None and len(results) + len(found.new) > search.n_trials:
        return f"search.n_trials={search.n_trials}"
    if search.budget is None:
        return ""
    if search.budget_seconds is not None:
        return f"search.budget={search.budget}" if seconds >= search.budget_seconds else ""
    steps = config.training.max_steps
    done = {result.number: result.step for result in results}
    more = sum(spec.pause_at or steps for spec in found.new) + sum(steps - done[number] for number in found.resumed)
    return f"search.budget={search.budget}" if sum(done.values()) + more > int(search.budget) else ""
