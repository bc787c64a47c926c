"""Who won, and how sure: the best held-out loss among complete trials, what cannot be told from it, and the lr_curve around."""

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
# Why a trial exists: the search chose it, rules of thumb gave its rate, or it followed from results.
Role = Literal["search", "prior", "extension", "rescue", "replicate"]


@dataclass(frozen=True)
class Result:
    """A finished trial: the config it ran, its axis values by key, how it ended and its last eval loss.

    `evals` are its last eval losses, step and value, in order. `overrides` are config keys that set it apart beside its
    axes, `of` the trial that it repeats or rescues.
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
        """Its peak learning rate."""
        return self.config.optimizer.lr

    @property
    def trained(self) -> dict[str, Any]:
        """Its axis values as it was trained with them."""
        return trained(self.values, self.config)


@dataclass(frozen=True)
class Candidate:
    """A complete trial with its replicates: their eval losses, its own first; `diverged` more of its seeds did not complete."""

    result: Result
    losses: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float:
        """The mean eval loss over its seeds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Edge:
    """The best value of an axis is its lowest or highest one: the true best may lie beyond."""

    key: str
    value: float
    side: Literal["lowest", "highest"]


@dataclass(frozen=True)
class Verdict:
    """`candidates` are ranked, best first; `ties` are those that noise cannot tell from the first, it among them.

    `recommended` is the tie that risks least. `safe_range` are the lowest and highest learning rate among the ties.
    `inconclusive` says in words why the sweep does not answer the question; empty where it does.
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
        """The complete trials, best first, a replicated one by its mean."""
        return tuple(candidate.result for candidate in self.candidates)

    @property
    def best(self) -> Result | None:
        """The recommended trial."""
        return None if self.recommended is None else self.recommended.result

    @property
    def safe_range(self) -> tuple[float, float] | None:
        """Learning rates, lowest and highest, among the ties."""
        lrs = [candidate.result.lr for candidate in self.ties]
        return (min(lrs), max(lrs)) if lrs else None


def judge(results: Sequence[Result], base_loss: float | None = None) -> Verdict:
    """Ranks complete trials of the longest budget by mean eval loss; `base_loss` is the one before training.

    Where some trials have replicates, the winner is one of those: a single lucky run does not beat a mean. What diverged with
    one seed wins only where nothing else completed.
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


# From so many of the best trials the noise is read where there are no replicates.
_FEW = 5


def ranked(results: Sequence[Result]) -> tuple[Candidate, ...]:
    """The complete trials of the longest budget with their replicates, the best mean first.

    Those with most seeds come first, those that diverged with a seed last; equal losses go by lower learning rate, then
    by number.
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
    """Losses compare at equal steps of equal schedules only."""
    return result.config.training.max_steps, result.config.training.schedule_steps


def _tied(candidate: Candidate, best: Candidate, noise: Noise | None, among: int) -> bool:
    gap = candidate.mean - best.mean
    if noise is None:
        return gap == 0
    return same(gap, len(candidate.losses), len(best.losses), noise, among)


def _lr_curve(
    results: Sequence[Result], candidates: Sequence[Candidate], noise: Noise | None, base_loss: float | None
) -> LrCurve | None:
    """The loss over the learning rate: of each rate the best that the other axes allow."""
    if LR not in candidates[0].result.values:
        return None
    lowest: dict[float, float] = {}
    for candidate in [c for c in candidates if c.diverged == 0] or candidates:
        lowest[candidate.result.lr] = min(candidate.mean, lowest.get(candidate.result.lr, math.inf))
    longest = _budget(candidates[0].result)
    diverged = {r.lr for r in results if r.status == "diverged" and r.role != "rescue" and _budget(r) == longest}
    return fit(lowest, sorted(diverged - lowest.keys()), noise.deviation if noise else None, base_loss)


def _risk(candidate: Candidate, lr_curve: LrCurve | None) -> float:
    """The loss to expect if the real run's best rate were another one nearby."""
    return candidate.mean if lr_curve is None else lr_curve.risk(candidate.result.lr)


def _inconclusive(
    candidates: Sequence[Candidate], ties: Sequence[Candidate], noise: Noise | None, edges: Sequence[Edge]
) -> str:
    if len(candidates) >= 3 and len(ties) == len(candidates):
        return f"all {len(candidates)} complete trials are within noise of each other"
    if any(edge.key == LR for edge in edges):
        return "the lowest loss is at the end of the learning rates tried, so that the best rate is not known to be among them"
    if noise is None and len(candidates) > 1:
        return "how much of the difference is noise is not known: evaluate more often, or set search.replicates=3"
    return ""


def _edges(best: Result, results: Sequence[Result]) -> list[Edge]:
    """Numeric axes whose best value is the lowest or highest tried: of at least three values, or two learning rates."""
    found = []
    for key, value in best.values.items():
        tried = sorted({result.values[key] for result in results if _is_number(result.values[key])})
        # Weight decay 0 or warm-up 0 has nothing below it.
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
    """The best learning rate of each budget (steps trained, steps of the schedule), where several were tried."""
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None]
    budgets = itertools.groupby(sorted(complete, key=_budget), key=_budget)
    found = {budget: min(group, key=lambda r: (r.eval_loss, r.lr)).lr for budget, group in budgets}
    return found if len(found) > 1 else {}
