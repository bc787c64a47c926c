"""A best value at the end of what was tried: a better one may lie beyond it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lrsweep.analysis.ranking import Result
from lrsweep.config.schema import key_facts
from lrsweep.config.search_space import LR


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


def edges(best: Result, results: Sequence[Result], negligible: float = 0.0) -> tuple[Edge, ...]:
    """Returns the numeric axes whose best value is the lowest or highest tried.

    A learning rate needs two values tried, any other axis three: of two, one is always at each end. Only trials with
    the best one's choices count, such as its scheduler: the best rate of another one is another question.

    Args:
        best: The trial with the lowest loss.
        results: The finished trials.
        negligible: A difference of losses that nobody minds, in nats per token. An axis but the learning rate has no
            edge if another of its values, with all else the same, costs no more.
    """
    choices = {key: value for key, value in best.values.items() if not _is_number(value)}
    same = [r for r in results if r.status != "failed" and all(r.values[key] == choices[key] for key in choices)]
    found = []
    for key, value in best.values.items():
        if not _is_number(value) or not key_facts(key).tuned:
            continue
        if key != LR and _is_inert(key, best, results, negligible):
            continue
        fewest = 2 if key == LR else 3
        tried = _tried(key, same)
        if len(tried) < fewest:
            tried = _tried(key, results)
        # There is nothing below a weight decay of 0 or a warm-up of 0.
        if len(tried) >= fewest and value in (tried[0], tried[-1]) and value != 0:
            found.append(Edge(key, value, "lowest" if value == tried[0] else "highest"))
    return tuple(found)


def _is_inert(key: str, best: Result, results: Sequence[Result], negligible: float) -> bool:
    """Whether a trial with another value of this axis alone is as good."""
    others = [other for other in best.values if other != key]
    return any(
        result.status == "complete"
        and result.role != "replicate"
        and result.values[key] != best.values[key]
        and all(result.values[other] == best.values[other] for other in others)
        and result.eval_loss is not None
        and best.eval_loss is not None
        and result.eval_loss - best.eval_loss <= negligible
        for result in results
    )


def _tried(key: str, results: Sequence[Result]) -> list[float]:
    return sorted({result.values[key] for result in results if _is_number(result.values[key])})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
