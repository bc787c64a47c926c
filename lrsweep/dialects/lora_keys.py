"""LoRA's keys, whose names LLaMA-Factory, TRL and Axolotl nearly share. The key of the target modules differs."""

import re
from typing import Any

from lrsweep.config.trial_schema import FinetuneConfig
from lrsweep.dialects.mapping import Tree
from lrsweep.dialects.rows import flag, given, integral, number, whole

# What a module's name does not hold, and a regular expression does.
_REGEX = re.compile(r"[\\^$*+?()\[\]{}|]")


def read(tree: Tree, rank: tuple[str, int], alpha: float, dropout: float, prefix: str) -> Tree:
    """Reads the LoRA keys except for the target modules.

    Args:
        tree: The trainer's file.
        rank: The trainer's key for the rank, and its default.
        alpha: The trainer's default for lora_alpha.
        dropout: The trainer's default for lora_dropout.
        prefix: What precedes `_dora` and `_rslora` in the trainer's keys.
    """
    return {
        "finetune.mode": "lora",
        "finetune.r": whole(rank[0], given(tree, *rank)),
        "finetune.alpha": number("lora_alpha", given(tree, "lora_alpha", alpha)),
        "finetune.dropout": number("lora_dropout", given(tree, "lora_dropout", dropout)),
        "finetune.dora": flag(f"{prefix}_dora", given(tree, f"{prefix}_dora", False)),
        "finetune.rslora": flag(f"{prefix}_rslora", given(tree, f"{prefix}_rslora", False)),
    }


def write(finetune: FinetuneConfig, rank: str, prefix: str, targets: Tree, tool: str) -> Tree:
    """Writes the LoRA keys.

    Args:
        finetune: The fine-tuning config, in mode `lora`.
        rank: The trainer's key for the rank.
        prefix: What precedes `_dora` and `_rslora` in the trainer's keys.
        targets: The target modules by the trainer's keys.
        tool: The trainer's name, for messages.
    """
    return {
        rank: finetune.r,
        "lora_alpha": integral("finetune.alpha", finetune.alpha, tool),
        "lora_dropout": finetune.dropout,
        **targets,
        **({f"{prefix}_dora": True} if finetune.dora else {}),
        **({f"{prefix}_rslora": True} if finetune.rslora else {}),
    }


def read_targets(value: Any, everything: str) -> Any:
    """Reads the target modules of a trainer that hands them to PEFT.

    Args:
        value: The trainer's value: one name or regular expression, a list, or None.
        everything: The trainer's word for all linear layers.

    Returns:
        The value of `finetune.target_modules`.
    """
    names = value if value is None or isinstance(value, str) else [str(name) for name in value]
    if names in (everything, [everything]):
        return "all-linear"
    if isinstance(names, list) and len(names) == 1 and _REGEX.search(names[0]):
        return names[0]
    return [names] if isinstance(names, str) and not _REGEX.search(names) else names
