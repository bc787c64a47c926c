"""What a study stores about its trials: their values, who trains them and how they ended. Read from Optuna's trials."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lrsweep.analysis.ranking import Role, Status
from lrsweep.search.sync_halving import EvalReport


@dataclass(frozen=True)
class TrialSpec:
    """What a trial tries.

    Attributes:
        params: The axes' values, as Optuna stores them.
        role: Why the trial exists.
        overrides: Config keys that distinguish it besides its axes, such as a replicate's seed.
        of: The number of the trial that it repeats or rescues.
        pause_at: It pauses at the first evaluation at or after this step, until the search decides whether it goes on;
            None if it does not.
    """

    params: dict[str, Any]
    role: Role = "search"
    overrides: dict[str, Any] = field(default_factory=dict)
    of: int | None = None
    pause_at: int | None = None


@dataclass(frozen=True)
class Record:
    """A finished trial.

    Attributes:
        number: The trial's number.
        spec: What it tried.
        status: How it ended.
        step: Optimizer steps done.
        eval_loss: Its last eval loss, in nats per token; None if there is none, or it is not finite.
        reason: Why it ended early; empty for a complete trial.
        engine: The engine that trained it.
    """

    number: int
    spec: TrialSpec
    status: Status
    step: int
    eval_loss: float | None
    reason: str
    engine: str = ""


@dataclass(frozen=True)
class Claim:
    """The worker that has a trial.

    Attributes:
        worker: The worker's name; empty if the trial was released, to be resumed.
        attempt: How many times the trial had been claimed before.
    """

    worker: str
    attempt: int


@dataclass(frozen=True)
class TrialView:
    """A trial that has started.

    Attributes:
        number: The trial's number.
        spec: What it tries.
        claim: Who has it; None if it ended outside lrsweep.
        record: How it ended; None while it runs.
    """

    number: int
    spec: TrialSpec
    claim: Claim | None
    record: Record | None


def eval_reports(frozen: FrozenTrial) -> Iterator[EvalReport]:
    """A trial's evaluations, by step."""
    max_steps, warmup = frozen.user_attrs.get("budget", (1, 0))
    for step, value in sorted(frozen.intermediate_values.items()):
        yield EvalReport(frozen.number, step, max_steps, warmup, value)


def claim_of(attributes: Mapping[str, Any]) -> Claim | None:
    """Who has the trial with these user attributes; None if it was never claimed."""
    claim = attributes.get("claim")
    return None if claim is None else Claim(claim[0], claim[1])


def is_paused(frozen: FrozenTrial) -> bool:
    """Whether a trial waits for the search to decide whether it goes on."""
    return frozen.state == TrialState.RUNNING and bool(frozen.user_attrs.get("paused"))


def deaths_of(attributes: Mapping[str, Any]) -> list[tuple[int, str]]:
    """For each worker that died with the trial: the step of the trial's last evaluation, and the reason."""
    return [(step, reason) for step, reason in attributes.get("deaths", [])]


def kills_of(attributes: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The same for each worker that someone else killed, since the trial's last evaluation."""
    return [(step, reason) for step, reason in attributes.get("kills", [])]


def is_suspect(attributes: Mapping[str, Any]) -> bool:
    """Whether a trial may end its worker, so that it is trained alone.

    The first kill by someone else blames no trial; a second one without progress may have a reason.
    """
    return bool(deaths_of(attributes)) or len(kills_of(attributes)) > 1


def spec_of(params: Mapping[str, Any], attributes: Mapping[str, Any]) -> TrialSpec:
    """What the trial with these parameters and user attributes tries."""
    return TrialSpec(dict(params), **attributes.get("point", {}))


def record_of(frozen: FrozenTrial) -> Record:
    """How a finished trial ended."""
    outcome = frozen.user_attrs.get("outcome", {"status": "failed", "step": 0, "reason": "ended outside lrsweep"})
    spec = spec_of(frozen.params, frozen.user_attrs)
    return Record(frozen.number, spec, eval_loss=frozen.user_attrs.get("eval_loss"), **outcome)
