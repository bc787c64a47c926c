"""Ranking of a sweep's trials: the best eval loss, the trials within noise of it, and the recommended one."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lrsweep.analysis.lr_curve import LrCurve, fit
from lrsweep.analysis.noise import Noise, estimate, same
from lrsweep.config.schema import SweepConfig, key_facts
from lrsweep.config.search_space import LR, trained

Status = Literal["complete", "pruned", "diverged", "failed"]
# Why a trial exists: the search chose it, the rule of thumb gave its rate, or it followed from earlier results.
Role = Literal["search", "prior", "extension", "rescue", "replicate"]


@dataclass(frozen=True)
class Result:
    """A finished trial.

    Attributes:
        number: The trial's number.
        values: Its axis values, by dotted key.
        config: The config that it ran with.
        status: How it ended.
        step: Its last step.
        eval_loss: Its last eval loss in nats per token; None if it has none.
        reason: Why it ended, if it did not complete.
        role: Why the trial exists.
        overrides: Config keys besides its axes that the trial changes, by dotted key.
        of: The number of the trial that it repeats or rescues; None for others.
        evals: Its last evaluations as (step, eval loss), in order.
    """

    number: int
    values: Mapping[str, Any]
    config: SweepConfig
    status: Status
    step: int
    eval_loss: float | None
    reason: str
    role: Role = "search"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    of: int | None = None
    evals: Sequence[tuple[int, float]] = field(default=())

    @property
    def lr(self) -> float:
        """The trial's peak learning rate."""
        return self.config.optimizer.lr

    @property
    def trained(self) -> dict[str, Any]:
        """The axis values that the trial was trained with, by dotted key."""
        return trained(self.values, self.config)


@dataclass(frozen=True)
class Candidate:
    """A complete trial with its replicates.

    Attributes:
        result: The trial.
        losses: The eval losses of its seeds, its own first, in nats per token.
        diverged: Number of its replicates that diverged.
    """

    result: Result
    losses: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float:
        """The mean eval loss over its seeds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Edge:
    """The best value of an axis is the lowest or highest one tried, so a better one may lie beyond.

    Attributes:
        key: The axis, as a dotted key.
        value: The best value.
        side: Which end of the axis it is.
    """

    key: str
    value: float
    side: Literal["lowest", "highest"]


@dataclass(frozen=True)
class Verdict:
    """The result of a sweep.

    Attributes:
        candidates: The complete trials of the longest budget, best first.
        ties: The candidates whose loss is within noise of the best one's, which is among them.
        recommended: The tie with the lowest risk (see `LrCurve.risk`); None if no trial completed.
        noise: Noise of one trial's eval loss; None if it is not known.
        lr_curve: The loss over the learning rate; None if it was not searched or too few rates were tried.
        edges: Axes whose best value is the lowest or highest tried.
        inconclusive: Why the sweep gives no clear answer; empty if it does.
    """

    candidates: tuple[Candidate, ...]
    ties: tuple[Candidate, ...]
    recommended: Candidate | None
    noise: Noise | None
    lr_curve: LrCurve | None
    edges: tuple[Edge, ...]
    inconclusive: str

    @property
    def ranking(self) -> tuple[Result, ...]:
        """The ranked trials without their replicates, best first."""
        return tuple(candidate.result for candidate in self.candidates)

    @property
    def best(self) -> Result | None:
        """The recommended trial; None if no trial completed."""
        return None if self.recommended is None else self.recommended.result

    @property
    def safe_range(self) -> tuple[float, float] | None:
        """The lowest and the highest learning rate among the ties; None if no trial completed."""
        lrs = [candidate.result.lr for candidate in self.ties]
        return (min(lrs), max(lrs)) if lrs else None


def judge(results: Sequence[Result], base_loss: float | None = None) -> Verdict:
    """Ranks a sweep's trials and recommends one.

    Trials are ranked by their mean eval loss over seeds, within the longest budget. If some trials have replicates, the
    winner is one of them: a single lucky run does not beat a mean. A trial of which one seed diverged wins only if all
    others have diverged seeds too.

    Args:
        results: The finished trials.
        base_loss: Eval loss before training, in nats per token; None if it is not known.
    """
    candidates = ranked(results)
    if not candidates:
        return Verdict((), (), None, None, None, (), "no trial completed")
    noise = estimate(
        [candidate.losses for candidate in candidates], [candidate.result.evals for candidate in candidates[:_FEW]]
    )
    best = candidates[0]
    steady = [c for c in candidates if c.diverged == 0]
    ties = tuple(c for c in steady or candidates if c is best or _tied(c, best, noise, len(candidates)))
    lr_curve = _lr_curve(results, candidates, noise, base_loss)
    edges = tuple(_edges(best.result, results))
    recommended = min(ties, key=lambda c: (_risk(c, lr_curve), c.mean, c.result.lr, c.result.number))
    return Verdict(candidates, ties, recommended, noise, lr_curve, edges, _inconclusive(candidates, ties, noise, edges))


# Without replicates, the noise is estimated from this many of the best trials.
_FEW = 5


def ranked(results: Sequence[Result]) -> tuple[Candidate, ...]:
    """Returns the complete trials of the longest budget with their replicates, best first.

    Trials with a diverged seed come last. If any trial has replicates, those with replicates come before those without.
    Then the mean eval loss counts, then the lower learning rate, then the lower number.
    """
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None and math.isfinite(r.eval_loss)]
    longest = max((_budget(result) for result in complete), default=(0, 0))
    complete = [result for result in complete if _budget(result) == longest]
    seeds = {
        result.number: tuple(
            r.eval_loss for r in complete if r.eval_loss is not None and (r is result or _repeats(r, result))
        )
        for result in complete
        if result.role != "replicate"
    }
    found = [
        Candidate(result, seeds[result.number], sum(r.status == "diverged" and _repeats(r, result) for r in results))
        for result in complete
        if result.number in seeds
    ]
    most = max((len(candidate.losses) for candidate in found), default=0)
    return tuple(
        sorted(
            found,
            key=lambda c: (c.diverged > 0, most > 1 and len(c.losses) == 1, c.mean, c.result.lr, c.result.number),
        )
    )


def _repeats(result: Result, of: Result) -> bool:
    return result.role == "replicate" and result.of == of.number


def _budget(result: Result) -> tuple[int, int]:
    """Steps trained and steps of the schedule: losses can only be compared if both are equal."""
    return result.config.training.max_steps, result.config.training.schedule_steps


def _tied(candidate: Candidate, best: Candidate, noise: Noise | None, among: int) -> bool:
    gap = candidate.mean - best.mean
    if noise is None:
        return gap == 0
    return same(gap, len(candidate.losses), len(best.losses), noise, among)


def _lr_curve(
    results: Sequence[Result], candidates: Sequence[Candidate], noise: Noise | None, base_loss: float | None
) -> LrCurve | None:
    """The loss over the learning rate, with the best loss that the other axes allow for each rate."""
    if LR not in candidates[0].result.values:
        return None
    lowest: dict[float, float] = {}
    for candidate in [c for c in candidates if c.diverged == 0] or candidates:
        lowest[candidate.result.lr] = min(candidate.mean, lowest.get(candidate.result.lr, math.inf))
    longest = _budget(candidates[0].result)
    diverged = {r.lr for r in results if r.status == "diverged" and r.role != "rescue" and _budget(r) == longest}
    return fit(lowest, sorted(diverged - lowest.keys()), noise.deviation if noise else None, base_loss)


def _risk(candidate: Candidate, lr_curve: LrCurve | None) -> float:
    """The loss to expect if the full run's best rate differs a little from the trials' one."""
    return candidate.mean if lr_curve is None else lr_curve.risk(candidate.result.lr)


def _inconclusive(
    candidates: Sequence[Candidate], ties: Sequence[Candidate], noise: Noise | None, edges: Sequence[Edge]
) -> str:
    if len(candidates) >= 3 and len(ties) == len(candidates):
        return f"all {len(candidates)} complete trials are within noise of each other"
    if any(edge.key == LR for edge in edges):
        return "the lowest loss is at one end of the learning rates tried, so the best rate may lie beyond"
    if noise is None and len(candidates) > 1:
        return (
            "the noise is not known, so the differences may be chance: evaluate more often, or set search.replicates=3"
        )
    return ""


def _edges(best: Result, results: Sequence[Result]) -> list[Edge]:
    """The numeric axes, with at least three values or two learning rates, whose best value is the lowest or highest."""
    found = []
    for key, value in best.values.items():
        tried = sorted({result.values[key] for result in results if _is_number(result.values[key])})
        # There is nothing below a weight decay of 0 or a warm-up of 0.
        if (
            not key_facts(key).tuned
            or not _is_number(value)
            or len(tried) < (2 if key == LR else 3)
            or value not in (tried[0], tried[-1])
            or value == 0
        ):
            continue
        found.append(Edge(key, value, "lowest" if value == tried[0] else "highest"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def by_budget(results: Sequence[Result]) -> dict[tuple[int, int], float]:
    """Returns the best learning rate of each budget; empty if there is only one budget.

    A budget is the steps trained and the steps of the schedule.
    """
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None]
    budgets = itertools.groupby(sorted(complete, key=_budget), key=_budget)
    found = {budget: min(group, key=lambda r: (r.eval_loss, r.lr)).lr for budget, group in budgets}
    return found if len(found) > 1 else {}
