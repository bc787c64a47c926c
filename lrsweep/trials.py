"""What a study says of its trials: what each is to try, who has it, how it ended; read from Optuna's trials."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.trial import FrozenTrial

from lrsweep.lockstep import Heard

Status = Literal["complete", "pruned", "diverged", "failed"]
# Why a trial is there: the search's own point, the rate that rules of thumb give, or something that followed from results.
Role = Literal["search", "prior", "extension", "rescue", "replicate"]


@dataclass(frozen=True)
class Point:
    """What a trial is to try: stored axis values, and config keys that set it apart beside them.

    `of` is the trial that it repeats or rescues.
    """

    params: dict[str, Any]
    role: Role = "search"
    overrides: dict[str, Any] = field(default_factory=dict)
    of: int | None = None


@dataclass(frozen=True)
class Record:
    """A finished trial: what it tried, how it ended, its last eval loss (None if it never had one), what trained it."""

    number: int
    point: Point
    status: Status
    step: int
    eval_loss: float | None
    reason: str
    engine: str = ""


@dataclass(frozen=True)
class Seen:
    """A trial that has begun, as anybody sees it: who has it (worker, and how many had it before), and its end if it came.

    A worker without a name: the trial was let go of, to be taken up again.
    """

    number: int
    point: Point
    claim: tuple[str, int] | None
    record: Record | None


def heard_of(frozen: FrozenTrial) -> Iterator[Heard]:
    """A trial's evaluations, in order."""
    max_steps, warmup = frozen.user_attrs.get("budget", (1, 0))
    for step, value in sorted(frozen.intermediate_values.items()):
        yield Heard(frozen.number, step, max_steps, warmup, value)


def claim_of(of: FrozenTrial | Mapping[str, Any]) -> tuple[str, int] | None:
    """The worker that has a trial, and how many had it before; None where nobody ever had."""
    claim = (of.user_attrs if isinstance(of, FrozenTrial) else of).get("claim")
    return None if claim is None else (claim[0], claim[1])


def deaths_of(of: FrozenTrial | Mapping[str, Any]) -> list[tuple[int, str]]:
    """The step of the last evaluation before, and the reason of, each death."""
    return list((of.user_attrs if isinstance(of, FrozenTrial) else of).get("deaths", []))


def point_of(frozen: FrozenTrial) -> Point:
    """What a trial is to try."""
    return Point(dict(frozen.params), **frozen.user_attrs.get("point", {}))


def record_of(frozen: FrozenTrial) -> Record:
    """How a finished trial ended."""
    outcome = frozen.user_attrs.get("outcome", {"status": "failed", "step": 0, "reason": "ended outside lrsweep"})
    return Record(frozen.number, point_of(frozen), eval_loss=frozen.user_attrs.get("eval_loss"), **outcome)
