"""The interface between the sweep and its training engines.

An engine takes trials from a `Host`, trains them, and reports measurements and outcomes. It knows nothing of Hydra,
Optuna or MLflow. To add one, implement `Engine` and register it in `engines/factory.py`; it must pass
`tests/training/engines/test_engine_contract.py`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import LrsweepError
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One set of hyperparameters to train.

    Attributes:
        number: The trial's number, unique in the sweep.
        config: The sweep's whole config with this trial's values in place of the axes.
        folder: The trial's folder, which exists. The engine may write checkpoints and adapters to it.
    """

    number: int
    config: SweepConfig
    folder: Path


@dataclass(frozen=True)
class Measurement:
    """A trial's metrics at one step, under transformers' names.

    Attributes:
        number: The trial's number.
        step: Optimizer steps done.
        metrics: After a training step `loss` (mean over the step's label tokens, in nats), `grad_norm` (before
            clipping) and `learning_rate` (of that step); after an evaluation `eval_loss` (mean over all label tokens of
            the eval set, in nats).
        row_losses: After an evaluation the loss on each eval row, if the engine knows it. They show how much the eval
            set's choice of rows adds to the noise.
    """

    number: int
    step: int
    metrics: Mapping[str, float]
    row_losses: RowLosses | None = field(default=None, compare=False)

    @classmethod
    def of_evaluation(cls, number: int, step: int, losses: RowLosses) -> "Measurement":
        """The measurement of an evaluation.

        Args:
            number: The trial's number.
            step: Optimizer steps done.
            losses: The loss on each eval row.
        """
        return cls(number, step, {"eval_loss": losses.mean}, losses)

    @property
    def not_finite(self) -> str:
        """The first metric that is not finite, such as `loss is nan`; empty if all are finite."""
        return next((f"{name} is {value}" for name, value in self.metrics.items() if not math.isfinite(value)), "")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        number: The trial's number.
        step: Optimizer steps done.
        status: `complete`: all `training.max_steps` steps were done. `stopped`: the host asked for it. `diverged`: a
            loss or gradient was not finite. `failed`: there was an error.
        reason: Why the trial diverged or failed, in one line for the user; empty otherwise.
        engine: The engine that trained it; empty if none did.
        in_company: The error came from a computation on several trials at once, any of which may have caused it. The
            host then has each of them trained again.
    """

    number: int
    step: int
    status: Literal["complete", "stopped", "diverged", "failed"]
    reason: str = ""
    engine: str = field(default="", compare=False)
    in_company: bool = field(default=False, compare=False)


def failed(trial: Trial, fault: Exception) -> Outcome:
    """The outcome of a trial that an error ended.

    The traceback of an unexpected error goes to the log; an LrsweepError's message is enough.
    """
    if isinstance(fault, LrsweepError):
        return Outcome(trial.number, 0, "failed", str(fault))
    log.error("trial %d", trial.number, exc_info=fault)
    first_line = (str(fault).strip().splitlines() or [""])[0]
    kind = type(fault).__name__
    if is_out_of_memory(fault):
        kind = "out of GPU memory"
    elif isinstance(fault, MemoryError) or "can't allocate memory" in first_line:  # Python's, and torch's for the CPU
        kind = "out of host memory"
    return Outcome(trial.number, 0, "failed", f"{kind}: {first_line}" if first_line else kind)


# Why a trial must stop: the pruner has ended it, it will be resumed from its checkpoint, or another worker has it now.
Stop = Literal["pruned", "paused", "lost"]


class Host(Protocol):
    """The sweep, as an engine sees it. An engine calls it from one thread."""

    def next_trial(self) -> Trial | None:
        """Hands the engine a trial to train.

        Returns:
            The next trial, or None if there is no trial now. Trials that end may make room for more, so an engine that
            trains several at once should ask again after each `finish`.
        """

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        """Takes the new measurements of the running trials, each trial's by ascending step.

        An engine reports `eval_loss` at step 0 (unless it resumes from a checkpoint), every `training.eval_every` steps
        and after the last step, and the training metrics of every step. It reports a measurement that is not finite,
        then ends the trial as `diverged`. Several trials may be reported together; an empty sequence is fine.

        Args:
            measurements: The measurements since the last call.

        Returns:
            The numbers of the trials that must stop now, with the reason. `pruned` trials need no checkpoint. `paused`
            ones need one if `training.checkpoint_seconds` is not None. `lost` ones must not write one, because their
            folder belongs to another worker.
        """

    def finish(self, outcome: Outcome) -> None:
        """Takes the outcome of a trial. Call it exactly once for each trial from `next_trial`."""


class Engine(Protocol):
    """Trains trials until the host has no more."""

    def run(self, host: Host) -> None:
        """Trains every trial of the host, and returns when the host has no more and all of them have ended.

        It may be called again when more trials have been added. A trial whose folder has a checkpoint of this engine
        and the same `trial_digest` resumes from it; see `lrsweep.files.checkpoint`. An error in one trial ends that
        trial with `failed(trial, error)`, not the run.

        Args:
            host: Hands out trials, and takes their measurements and outcomes.

        Raises:
            StorageError: The disk is full, or a file cannot be written. Running trials can be resumed.
            torch.AcceleratorError: The device no longer works for this process. Running trials can be resumed.
        """
