"""The pruner for packs: successive halving that hears all trials of a rung together.

Optuna's pruners hear one trial at a time: in a pack they compare with completed trials, of which there are none yet, or
depend on the order of asking.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heard:
    """An evaluation: whose, after how many steps of how many, with how many of warm-up."""

    number: int
    step: int
    max_steps: int
    warmup: int
    eval_loss: float


@dataclass(frozen=True)
class Rungs:
    """Where trials are compared: shares of max_steps, the first `first_rung`, each `reduction_factor` times the last."""

    first_rung: float = 0.25
    reduction_factor: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.first_rung < 1:
            raise ValueError(f"first_rung={self.first_rung!r}: must be above 0 and below 1, a share of max_steps")
        if not (isinstance(self.reduction_factor, int) and self.reduction_factor >= 2):
            raise ValueError(f"reduction_factor={self.reduction_factor!r}: must be a whole number, at least 2")

    def reached(self, step: int, max_steps: int, warmup: int) -> list[int]:
        """The rungs, by number, that a trial has behind it at `step`; none before its warm-up has ended."""
        found = []
        share, rung = self.first_rung, 0
        while share < 1:
            if step >= max(share * max_steps, warmup + 1):
                found.append(rung)
            share, rung = share * self.reduction_factor, rung + 1
        return found


@dataclass
class Lockstep:
    """Each trial's first eval loss at or after each rung, and who goes on from there.

    A trial is compared once a rung, by the value it has then, not by its best so far: one that has turned bad is seen. What
    is not finite is worst.
    """

    rungs: Rungs
    _values: dict[int, dict[int, float]] = field(default_factory=dict)

    def hear(self, evals: Sequence[Heard]) -> frozenset[int]:
        """Takes the evaluations of one moment, in any order; answers the trials to stop."""
        new: dict[int, list[int]] = {}
        for heard in evals:
            for rung in self.rungs.reached(heard.step, heard.max_steps, heard.warmup):
                values = self._values.setdefault(rung, {})
                if heard.number not in values:
                    values[heard.number] = heard.eval_loss if math.isfinite(heard.eval_loss) else math.inf
                    new.setdefault(rung, []).append(heard.number)
        return frozenset(
            number for rung, numbers in new.items() for number in numbers if not self._goes_on(rung, number)
        )

    def _goes_on(self, rung: int, number: int) -> bool:
        values: Mapping[int, float] = self._values[rung]
        kept = math.ceil(len(values) / self.rungs.reduction_factor)
        # Of equals, all go on.
        return sum(other < values[number] for other in values.values()) < kept


class NoLockstep:
    """Nobody is stopped."""

    def hear(self, evals: Sequence[Heard]) -> frozenset[int]:
        """Stops none."""
        return frozenset()
