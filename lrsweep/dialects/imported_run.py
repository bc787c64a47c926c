"""An imported run as a config: what an import asks for and returns, and how long a trial of the run is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrsweep.config.schema import SweepConfig, validate

# A trial of a long run is its first 200 steps on its schedule, or three times the warm-up if that is longer.
_STEPS, _WARMUPS = 200, 3
_EVALUATIONS = 8
# What trials use where the file does not give a value.
DEFAULTS = {"data.eval_fraction": 0.1, "data.max_eval_rows": 512, "training.eval_batch_size": 8}
# If the file does not give these, the user must, on the command line or in the sweep file.
OPEN = ("model.path", "data.path", "data.format")
# A complete config, whose values the imported ones replace.
_TEMPLATE: dict[str, Any] = {
    "name": "imported",
    "model": {"path": "open"},
    "data": {"path": "open", "format": "messages"},
    "finetune": {"mode": "full"},
    "optimizer": {"name": "adamw", "lr": 1e-4},
    "scheduler": {"name": "linear"},
    "training": {"max_steps": 1, "batch_size": 1, "eval_every": 1},
    "search": {"method": "grid"},
    "space": {},
    "pruner": {"name": "auto"},
    "engine": {"name": "auto"},
    "executor": {"name": "local"},
    "tracking": {"name": "mlflow"},
}


@dataclass(frozen=True)
class Imported:
    """An imported run.

    Attributes:
        config: The run as a config.
        missing: The dotted keys that the file does not give, which the user has to set.
        kept: The trainer's keys without an lrsweep equivalent, kept for the export.
        notes: Notes for the user, each a clause without a full stop.
        reasons: What made it a sweep of the user's own command; empty if our engines train it.
    """

    config: SweepConfig
    missing: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """How the user wants a file imported.

    Attributes:
        engine: `ours`, `theirs`, or `auto`: ours if it trains exactly what the file says.
        command: The trainer's command, with `{config}`; None for the dialect's usual one.
        python: The Python of the trainer's environment.
        model: Where the model is, if it is not where the file says.
        data_dir: Where the data is, if it is not where the file says.
    """

    engine: str = "auto"
    command: str | None = None
    python: str | None = None
    model: str | None = None
    data_dir: str | None = None


def config_of(values: Mapping[str, Any]) -> SweepConfig:
    """Returns a whole config with these values by dotted key. Raises InputError."""
    tree = {section: dict(part) if isinstance(part, dict) else part for section, part in _TEMPLATE.items()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    # The whole run for now; `trial_length` shortens it.
    tree["training"]["max_steps"] = values.get("training.horizon") or 1
    return validate(tree)


def trial_length(config: SweepConfig, steps: int | None, every_given: bool) -> dict[str, Any]:
    """Returns the config keys for a trial's length and how often it is evaluated."""
    length = max(_STEPS, _WARMUPS * config.scheduler.warmup(steps or 0))
    length = length if steps is None else min(steps, length)
    every = config.training.eval_every
    if not every_given or every > length // 2:
        every = max(1, length // _EVALUATIONS)
    return {"training.horizon": steps, "training.max_steps": length, "training.eval_every": every}


def run_steps(rows: int, config: SweepConfig, times: float) -> int:
    """Returns the number of optimizer steps of a run, as transformers counts them.

    Args:
        rows: Number of training rows.
        config: The run's config, for batch size and gradient accumulation.
        times: Number of epochs.
    """
    batches = math.ceil(rows / config.training.batch_size)
    return math.ceil(max(1, math.ceil(batches / config.training.gradient_accumulation_steps)) * times)
