"""A trial's config for its own trainer: the export's, but for where it writes, how often it says what, and what it keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsweep.config import SweepConfig
from lrsweep.interop.mapping import Tree, changed

# A trial is neither published nor gone on with; what these say otherwise, or beside what is set here, goes.
_OUT = (
    "push_to_hub", "hub_model_id", "hub_strategy", "load_best_model_at_end", "resume_from_checkpoint",
    "auto_resume_from_checkpoints", "evals_per_epoch", "saves_per_epoch", "evaluation_strategy",
)  # fmt: skip
# A share of the rows to hold out, where a file names no other evaluation: an eval loss is what a trial is for.
_HELD_OUT = {"llamafactory": ("eval_dataset", "val_size"), "axolotl": ("test_datasets", "val_set_size")}


def of_trial(dialect: str, tree: Tree, config: SweepConfig, output: Path) -> dict[str, Any]:
    """`tree`, an export of the trial's config in that dialect, for a run into the folder `output`."""
    every = config.training.eval_every
    keys: dict[str, Any] = {"output_dir": str(output.resolve()), "logging_steps": 1}
    keys |= {"eval_strategy": "steps", "eval_steps": every}
    if dialect == "llamafactory":
        keys |= {"save_strategy": "no", "overwrite_output_dir": True, "plot_loss": False}
    else:
        # LLaMA-Factory logs as it goes; the others' curves come out with their checkpoints only.
        keys |= {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1, "save_only_model": True}
    return changed(tree, {**dict.fromkeys(_OUT), **_evaluation(dialect, tree, config), **keys})


def _evaluation(dialect: str, tree: Tree, config: SweepConfig) -> Mapping[str, Any]:
    if dialect == "trl":
        return _trls_evaluation(tree, config)
    names = _HELD_OUT.get(dialect, ())
    return {names[-1]: config.data.eval_fraction} if names and not any(tree.get(name) for name in names) else {}


def _trls_evaluation(tree: Tree, config: SweepConfig) -> Mapping[str, Any]:
    """`trl sft` evaluates on a split of the hub's, or one that it splits off, which it does under `datasets` only."""
    share = {"test_split_size": tree.get("test_split_size") or config.data.eval_fraction}
    if tree.get("datasets"):
        return share
    if config.data.eval_split:
        return {}
    words = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
    entry = {name: tree[word] for name, word in words.items() if tree.get(word)}
    return {**dict.fromkeys((*words.values(), "dataset_test_split")), "datasets": [entry], **share}
