"""Synchronous successive halving: the pruner for packs, which compares all trials of a rung at once.

Optuna's pruners get one trial at a time. In a pack they would compare it with completed trials, of which there are none
yet, or depend on the order in which trials report.
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
        eval_loss: The eval loss, in nats per token.
    """

    number: int
    step: int
    max_steps: int
    warmup: int
    eval_loss: float


@dataclass(frozen=True)
class Rungs:
    """The steps at which trials are compared.

    Attributes:
        first_rung: The first rung, as a share of max_steps.
        reduction_factor: Each rung is this many times the previous one, and one trial in this many continues.

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
        """The numbers of the rungs that a trial has passed.

        Args:
            step: Optimizer steps done.
            max_steps: Optimizer steps of the whole trial.
            warmup: Optimizer steps of its warm-up; no rung is passed before its end.
        """
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

    It uses the loss at the rung, not the best so far, so that a trial that got worse is stopped. A loss that is not
    finite is the worst.

    Attributes:
        rungs: The rungs.
    """

    rungs: Rungs
    _values: dict[int, dict[int, float]] = field(default_factory=dict)

    def report(self, evals: Sequence[EvalReport]) -> frozenset[int]:
        """Takes evaluations that were made at the same time, in any order; returns the trials to stop, by number."""
        new: dict[int, list[int]] = {}
        for report in evals:
            for rung in self.rungs.reached(report.step, report.max_steps, report.warmup):
                values = self._values.setdefault(rung, {})
                if report.number not in values:
                    values[report.number] = report.eval_loss if math.isfinite(report.eval_loss) else math.inf
                    new.setdefault(rung, []).append(report.number)
        return frozenset(
            number for rung, numbers in new.items() for number in numbers if not self._continues(rung, number)
        )

    def _continues(self, rung: int, number: int) -> bool:
        values: Mapping[int, float] = self._values[rung]
        kept = math.ceil(len(values) / self.rungs.reduction_factor)
        # Trials with the same loss all continue.
        return sum(other < values[number] for other in values.values()) < kept


class NoHalving:
    """Stops no trial."""

    def report(self, evals: Sequence[EvalReport]) -> frozenset[int]:
        """Returns no trial."""
        return frozenset()
