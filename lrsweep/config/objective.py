"""What trials are ranked by: a number that they log, turned so that the lowest is best."""

from collections.abc import Mapping
from dataclasses import dataclass

from lrsweep.formatting import format_loss

EVAL_LOSS = "eval_loss"


@dataclass(frozen=True)
class Objective:
    """A sweep's `search.metric` and `search.direction`.

    Search and verdict know scores only: the metric where the lowest is best, its negative where the highest is.

    Attributes:
        metric: The metric's name in the trainer's log.
        maximize: Whether the highest is best.
    """

    metric: str = EVAL_LOSS
    maximize: bool = False

    @property
    def key(self) -> str:
        """The metric's name in a trial's metrics; a number of training steps is smoothed, because one step is noise."""
        return self.metric if self.metric.startswith("eval_") else f"smoothed_{self.metric}"

    @property
    def name(self) -> str:
        """What to call it."""
        return "eval loss" if self.metric == EVAL_LOSS else self.key

    @property
    def best(self) -> str:
        """What the best trial has, after `the`."""
        if self.metric == EVAL_LOSS:
            return "lowest loss"
        return f"{'highest' if self.maximize else 'lowest'} {self.key}"

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """The score of one step's metrics; None if the metric is not among them."""
        value = metrics.get(self.key)
        return None if value is None else -value if self.maximize else value

    def value(self, score: float) -> float:
        """The metric of a score."""
        return -score if self.maximize else score

    def text(self, score: float | None) -> str:
        """The metric of a score, as text."""
        return format_loss(None if score is None else self.value(score))
