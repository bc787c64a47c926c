"""A trial's config file for its own trainer: the export's, except for where it writes, what it logs and what it keeps."""

from pathlib import Path
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Dialect, Tree, changed

# A trial is neither published nor resumed by its trainer; keys that would do that, or contradict those set here, go.
_OUT = (
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "load_best_model_at_end",
    "resume_from_checkpoint",
    "auto_resume_from_checkpoints",
    "evals_per_epoch",
    "saves_per_epoch",
    "evaluation_strategy",
)


def of_trial(dialect: Dialect, tree: Tree, config: SweepConfig, output: Path) -> dict[str, Any]:
    """The file of one trial.

    Args:
        dialect: The trainer's.
        tree: An export of the trial's config in that dialect.
        config: The trial's config.
        output: The folder that the trainer writes to.
    """
    keys = {
        "output_dir": str(output.resolve()),
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": config.training.eval_every,
    }
    return changed(tree, {**dict.fromkeys(_OUT), **keys, **dialect.trial_keys(tree, config)})
