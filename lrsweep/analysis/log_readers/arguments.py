"""A run's arguments, from the configs that trainers leave beside a log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A file of this size is no config.
_LARGEST = 1 << 20
_CONFIGS = ("training_args.json", "training_args.yaml", "llamaboard_config.yaml", "config.yaml", "adapter_config.json")
# What can make two runs of one task differ.
ARGUMENTS = {
    "learning_rate": "learning_rate",
    "train_batch_size": "batch size",
    "per_device_train_batch_size": "batch size",
    "gradient_accumulation_steps": "gradient accumulation",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warm-up",
    "weight_decay": "weight decay",
    "seed": "seed",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "r": "rank",
    "lora_dropout": "dropout",
    "base_model_name_or_path": "model",
    "model_name_or_path": "model",
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "weight decay",
    "training.seed": "seed",
}


def arguments_beside(path: Path) -> dict[str, Any]:
    """Returns the plain values in the configs in a log's folder; a config that cannot be read is passed over."""
    found: dict[str, Any] = {}
    for name in _CONFIGS:
        config = path.parent / name
        try:
            if not config.is_file() or config.stat().st_size > _LARGEST:
                continue
            content = config.read_text(encoding="utf-8-sig")
            tree = json.loads(content) if config.suffix == ".json" else _yaml(content)
        # The file may be another program's, and PyYAML's constructors raise errors of many types.
        except Exception:  # noqa: S112 - its log is judged all the same
            continue
        if isinstance(tree, dict):
            found |= _plain(tree)
    return found


def _yaml(content: str) -> Any:
    import yaml

    from lrsweep.config import yaml_safety

    yaml_safety.check(content, "config")
    return yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe


def _plain(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and not prefix:
            found |= _plain(value, f"{key}.")
        elif isinstance(value, int | float | str):
            found[f"{prefix}{key}"] = value
    return found


def named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that can make two runs differ, under the names that people give them."""
    return {ARGUMENTS[key]: value for key, value in arguments.items() if key in ARGUMENTS}
