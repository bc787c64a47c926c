"""What an engine is: it takes trials, trains them and says what happened. It knows nothing of Hydra, Optuna or MLflow."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import LrsweepError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One hyperparameter set to train: the whole config with its axis values in place, and the folder it may write to."""

    number: int
    config: SweepConfig
    folder: Path


@dataclass(frozen=True)
class Measurement:
    """What a trial measured after `step` optimizer steps, under transformers' names.

    Training: `loss`, `grad_norm` (before clipping), `learning_rate`. Evaluation: `eval_loss`, also at step 0.
    """

    number: int
    step: int
    metrics: Mapping[str, float]

    @property
    def not_finite(self) -> str:
        """What is not a finite number, like `loss is nan`; empty where all is well."""
        return next((f"{name} is {value}" for name, value in self.metrics.items() if not math.isfinite(value)), "")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, after `step` optimizer steps.

    complete: full budget. stopped: the host asked for it. diverged: a loss or gradient that is not finite. failed: an error,
    told in `reason`. `engine` is what trained it, empty if none came to. `in_company`: the error was in work shared with other
    trials, and may be any one's.
    """

    number: int
    step: int
    status: Literal["complete", "stopped", "diverged", "failed"]
    reason: str = ""
    engine: str = field(default="", compare=False)
    in_company: bool = field(default=False, compare=False)


def failed(trial: Trial, fault: Exception) -> Outcome:
    """The outcome of a trial that an error ended; its traceback goes to the log."""
    if isinstance(fault, LrsweepError):
        return Outcome(trial.number, 0, "failed", str(fault))
    log.error("trial %d", trial.number, exc_info=fault)
    first_line = (str(fault).strip().splitlines() or [""])[0]
    kind = type(fault).__name__
    if kind == "OutOfMemoryError":
        kind = "out of GPU memory"
    elif isinstance(fault, MemoryError) or "can't allocate memory" in first_line:  # Python's, and torch's for the CPU
        kind = "out of host memory"
    return Outcome(trial.number, 0, "failed", f"{kind}: {first_line}" if first_line else kind)


# Why a trial is to stop: it is out of the race, it goes on later from its checkpoint, or another worker has it.
Stop = Literal["pruned", "paused", "lost"]


class Host(Protocol):
    """What an engine sees of the sweep."""

    def next_trial(self) -> Trial | None:
        """The next trial to train, or None when there is none left."""

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        """Hears what trials measured; answers the numbers of those that should stop now, and why.

        Only one that is paused needs a checkpoint; one that is lost must not get any, as its folder is another worker's.
        """

    def finish(self, outcome: Outcome) -> None:
        """Hears that a trial has ended; called once for each trial taken."""


class Engine(Protocol):
    """Trains trials until the host has none left."""

    def run(self, host: Host) -> None:
        """Trains every trial that `host` gives. An error inside one trial ends that trial, not the run."""
