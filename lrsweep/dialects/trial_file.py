"""The config file of a trial that the user's own trainer runs: an export with other output, logging and checkpoints."""

from pathlib import Path
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Dialect, Tree, changed

# Its trainer neither publishes nor resumes a trial: keys that would do that, or contradict those set here, are removed.
_REMOVED = (
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
    """Makes the config file of one trial.

    Args:
        dialect: The trainer's dialect.
        tree: An export of the trial's config in that dialect.
        config: The trial's config.
        output: The folder that the trainer writes to.

    Returns:
        The file's content, by the trainer's keys.
    """
    keys = {**dict.fromkeys(_REMOVED), **dialect.trial_keys(tree, config, str(output.resolve()))}
    if dialect.their_run(tree, config.engine.command).evaluates:
        keys |= dialect.evaluation_keys(tree, config)
    return changed(tree, keys)
