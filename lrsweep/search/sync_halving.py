"""Synchronous successive halving: the pruner for packs, which sees all trials of a rung together.

Optuna's pruners see one trial at a time: in a pack they compare with completed trials, of which there are none yet, or
depend on the order in which trials report.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EvalReport:
    """One evaluation.

    Attributes:
        number: The trial's number.
        step: Optimizer steps done.
        max_steps: Optimizer steps of the whole trial.
        warmup: Optimizer steps of its warm-up.
        eval_loss: The eval loss, in nats a token.
    """

    number: int
    step: int
    max_steps: int
    warmup: int
    eval_loss: float


@dataclass(frozen=True)
class Rungs:
    """Where trials are compared.

    Attributes:
        first_rung: The first rung, as a share of max_steps.
        reduction_factor: Each rung is this many times the one before, and one trial in so many goes on.

    Raises:
        ValueError: A value is out of range.
    """

    first_rung: float = 0.25
    reduction_factor: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.first_rung < 1:
            raise ValueError(f"first_rung={self.first_rung!r}: must be above 0 and below 1, a share of max_steps")
        if not (isinstance(self.reduction_factor, int) and self.reduction_factor >= 2):
            raise ValueError(f"reduction_factor={self.reduction_factor!r}: must be a whole number, at least 2")

    def reached(self, step: int, max_steps: int, warmup: int) -> list[int]:
        """The rungs, by number, that a trial has passed at `step`; none before its warm-up has ended."""
        found = []
        share, rung = self.first_rung, 0
        while share < 1:
            if step >= max(share * max_steps, warmup + 1):
                found.append(rung)
            share, rung = share * self.reduction_factor, rung + 1
        return found


@dataclass
class SyncHalving:
    """Compares each trial's first eval loss at or after each rung.

    A trial is compared once a rung, by the value it has then and not by its best so far: one that got worse is noticed. A
    value that is not finite is the worst.
    """

    rungs: Rungs
    _values: dict[int, dict[int, float]] = field(default_factory=dict)

    def report(self, evals: Sequence[EvalReport]) -> frozenset[int]:
        """Takes the evaluations of one moment, in any order; returns the trials to stop."""
        new: dict[int, list[int]] = {}
        for report in evals:
            for rung in self.rungs.reached(report.step, report.max_steps, report.warmup):
                values = self._values.setdefault(rung, {})
                if report.number not in values:
                    values[report.number] = report.eval_loss if math.isfinite(report.eval_loss) else math.inf
                    new.setdefault(rung, []).append(report.number)
        return frozenset(
            number for rung, numbers in new.items() for number in numbers if not self._goes_on(rung, number)
        )

    def _goes_on(self, rung: int, number: int) -> bool:
        values: Mapping[int, float] = self._values[rung]
        kept = math.ceil(len(values) / self.rungs.reduction_factor)
        # Of equals, all go on.
        return sum(other < values[number] for other in values.values()) < kept


class NoHalving:
    """Stops no trial."""

    def report(self, evals: Sequence[EvalReport]) -> frozenset[int]:
        """Stops none."""
        return frozenset()
