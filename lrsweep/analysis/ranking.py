"""A sweep's finished trials, ranked: the complete ones of the longest budget, with their replicates, best first."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import trained
from lrsweep.files.row_losses import RowLosses

Status = Literal["complete", "pruned", "diverged", "failed"]
# Why a trial exists: the search chose it, the rule of thumb gave its rate, or it followed from earlier results.
Role = Literal["search", "prior", "extension", "fit", "rescue", "replicate"]


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
        evals: Its evaluations after training began as (step, eval loss), in order.
        rows: Its last loss on each eval row; None if it is not known.
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
    rows: RowLosses | None = field(default=None, repr=False)

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
        by_seed: The eval losses of its seeds, its own first, in nats per token.
        diverged: Number of its replicates that diverged.
        repeated: Number of its replicates, whatever became of them.
    """

    result: Result
    by_seed: Mapping[int, float]
    diverged: int = 0
    repeated: int = 0

    @property
    def losses(self) -> tuple[float, ...]:
        """The eval losses of its seeds, its own first, in nats per token."""
        return tuple(self.by_seed.values())

    @property
    def mean(self) -> float:
        """The mean eval loss over its seeds."""
        return sum(self.losses) / len(self.losses)


def ranked(results: Sequence[Result]) -> tuple[Candidate, ...]:
    """Returns the complete trials of the longest budget with their replicates, best first.

    Trials with a diverged seed come last. If any trial has replicates, those with replicates come before those without:
    a single lucky run does not beat a mean. Then the mean eval loss counts, then the lower learning rate, then the
    lower number.
    """
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None and math.isfinite(r.eval_loss)]
    longest = max((budget(result) for result in complete), default=(0, 0))
    found = []
    for result in complete:
        if result.role == "replicate" or budget(result) != longest:
            continue
        repeats = [other for other in results if other.role == "replicate" and other.of == result.number]
        seeds = {r.config.training.seed: r.eval_loss for r in (result, *(r for r in repeats if r in complete))}
        losses = {seed: loss for seed, loss in seeds.items() if loss is not None}
        found.append(Candidate(result, losses, sum(r.status == "diverged" for r in repeats), len(repeats)))
    most = max((len(candidate.losses) for candidate in found), default=0)
    return tuple(
        sorted(
            found,
            key=lambda c: (c.diverged > 0, most > 1 and len(c.losses) == 1, c.mean, c.result.lr, c.result.number),
        )
    )


def budget(result: Result) -> tuple[int, int]:
    """Steps trained and steps of the schedule: losses can only be compared if both are equal."""
    return result.config.training.max_steps, result.config.training.schedule_steps


def by_budget(results: Sequence[Result]) -> dict[tuple[int, int], float]:
    """Returns the best learning rate of each budget; empty if there is only one budget.

    A budget is the steps trained and the steps of the schedule.
    """
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None]
    budgets = itertools.groupby(sorted(complete, key=budget), key=budget)
    found = {of: min(group, key=lambda r: (r.eval_loss, r.lr)).lr for of, group in budgets}
    return found if len(found) > 1 else {}
