"""Who won: the best held-out loss among complete trials, and whether the answer sits on the edge of its range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lrsweep.config import SweepConfig


@dataclass(frozen=True)
class Result:
    """A finished trial: the config it ran, its axis values by key, how it ended and its last eval loss."""

    number: int
    values: Mapping[str, Any]
    config: SweepConfig
    status: Literal["complete", "pruned", "diverged", "failed"]
    step: int
    eval_loss: float | None
    reason: str


@dataclass(frozen=True)
class Edge:
    """The best value of an axis is its lowest or highest one: the true best may lie beyond."""

    key: str
    value: float
    side: Literal["lowest", "highest"]


@dataclass(frozen=True)
class Verdict:
    """`ranking` holds the complete trials, best first; the first is the winner. Empty: there is none."""

    ranking: tuple[Result, ...]
    edges: tuple[Edge, ...]

    @property
    def best(self) -> Result | None:
        return self.ranking[0] if self.ranking else None


def judge(results: Sequence[Result]) -> Verdict:
    """Ranks complete trials by eval loss; equal losses by lower learning rate, then by number."""
    complete = [result for result in results if result.status == "complete" and result.eval_loss is not None]
    ranking = sorted(complete, key=lambda r: (r.eval_loss, r.config.optimizer.lr, r.number))
    return Verdict(tuple(ranking), tuple(_edges(ranking[0], results)) if ranking else ())


# Axes that have a best inside; of seeds, rows and steps there is none.
_TUNED = ("optimizer.", "scheduler.", "finetune.")


def _edges(best: Result, results: Sequence[Result]) -> list[Edge]:
    """Axes of at least three distinct numbers on which the best is an end of what was tried."""
    found = []
    for key, value in best.values.items():
        tried = sorted({result.values[key] for result in results if _is_number(result.values[key])})
        # Weight decay 0 or warm-up 0 has nothing below it.
        if (
            not key.startswith(_TUNED)
            or not _is_number(value)
            or len(tried) < 3
            or value not in (tried[0], tried[-1])
            or value == 0
        ):
            continue
        found.append(Edge(key, value, "lowest" if value == tried[0] else "highest"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
