"""LoRA's keys, whose names LLaMA-Factory, TRL and Axolotl nearly share. The key of the target modules differs."""

import re
from typing import Any

from lrsweep.config.trial_schema import FinetuneConfig
from lrsweep.dialects.mapping import Tree
from lrsweep.dialects.rows import flag, given, integral, number, whole, word
from lrsweep.errors import InputError

# The keys of `finetune` that the rows of an adapter have.
OURS = ("mode", "r", "alpha", "dropout", "target_modules", "dora", "rslora", "init_lora_weights", "loraplus_lr_ratio")
# What a module's name does not hold, and a regular expression does.
_REGEX = re.compile(r"[\\^$*+?()\[\]{}|]")


def read(
    tree: Tree,
    rank: tuple[str, int],
    alpha: float,
    dropout: float,
    prefix: str,
    loraplus: str | None = None,
    init: str | None = None,
) -> Tree:
    """Reads the LoRA keys except for the target modules.

    Args:
        tree: The trainer's file.
        rank: The trainer's key for the rank, and its default.
        alpha: The trainer's default for lora_alpha.
        dropout: The trainer's default for lora_dropout.
        prefix: What precedes `_dora` and `_rslora` in the trainer's keys.
        loraplus: The trainer's key for LoRA+'s ratio of rates; None if it has none.
        init: The trainer's key for PEFT's `init_lora_weights`; None if it has none.
    """
    ratio = None if loraplus is None else tree.get(loraplus)
    return {
        "finetune.mode": "lora",
        "finetune.r": whole(rank[0], given(tree, *rank)),
        "finetune.alpha": number("lora_alpha", given(tree, "lora_alpha", alpha)),
        "finetune.dropout": number("lora_dropout", given(tree, "lora_dropout", dropout)),
        "finetune.dora": flag(f"{prefix}_dora", given(tree, f"{prefix}_dora", False)),
        "finetune.rslora": flag(f"{prefix}_rslora", given(tree, f"{prefix}_rslora", False)),
        "finetune.init_lora_weights": True if init is None else _read_init(init, tree.get(init)),
        "finetune.loraplus_lr_ratio": None if ratio is None else number(str(loraplus), ratio),
    }


def _read_init(key: str, value: Any) -> bool | str:
    if value in (None, True, "true"):
        return True
    if value in ("gaussian", "orthogonal", "olora", "pissa") or re.fullmatch(r"pissa_niter_[1-9]\d?", str(value)):
        return str(value)
    raise InputError(
        f"{key}={value}: trials start with true, gaussian, orthogonal, olora, pissa or pissa_niter_16; choose one"
    )


def write(
    finetune: FinetuneConfig,
    rank: str,
    prefix: str,
    targets: Tree,
    tool: str,
    loraplus: str | None = None,
    init: str | None = None,
) -> Tree:
    """Writes the LoRA keys.

    Args:
        finetune: The fine-tuning config, in mode `lora`.
        rank: The trainer's key for the rank.
        prefix: What precedes `_dora` and `_rslora` in the trainer's keys.
        targets: The target modules by the trainer's keys.
        tool: The trainer's name, for messages.
        loraplus: The trainer's key for LoRA+'s ratio of rates; None if it has none.
        init: The trainer's key for PEFT's `init_lora_weights`; None if it has none.

    Raises:
        InputError: The trainer has no key for what the config asks for, or takes whole numbers only.
    """
    if finetune.init_lora_weights is not True and init is None:
        raise InputError(
            f"finetune.init_lora_weights={finetune.init_lora_weights}: {tool} has no key for it; set it to true, or "
            "export to axolotl or ms-swift"
        )
    ratio = finetune.loraplus_lr_ratio
    if ratio is not None and loraplus is None:
        raise InputError(
            f"finetune.loraplus_lr_ratio={ratio:g}: {tool} has no key for LoRA+; export to llamafactory or axolotl"
        )
    return {
        rank: finetune.r,
        "lora_alpha": integral("finetune.alpha", finetune.alpha, tool),
        "lora_dropout": finetune.dropout,
        **targets,
        **({f"{prefix}_dora": True} if finetune.dora else {}),
        **({f"{prefix}_rslora": True} if finetune.rslora else {}),
        **({init: finetune.init_lora_weights} if init is not None and finetune.init_lora_weights is not True else {}),
        **({loraplus: ratio} if loraplus is not None and ratio is not None else {}),
    }


def read_targets(tree: Tree, key: str, default: str | None) -> Any:
    """Reads the target modules of a trainer that hands them to PEFT: one name or regular expression, or a list.

    Args:
        tree: The trainer's file.
        key: The trainer's key.
        default: The trainer's default.

    Returns:
        The value of `finetune.target_modules`.
    """
    value = given(tree, key, default)
    targets = [word(key, name) for name in value] if isinstance(value, list) else value and word(key, value)
    if targets in ("all-linear", ["all-linear"]):
        return "all-linear"
    if isinstance(targets, list) and len(targets) == 1 and _REGEX.search(targets[0]):
        return targets[0]
    return [targets] if isinstance(targets, str) and targets and not _REGEX.search(targets) else targets or None
