"""LoRA's keys, which LLaMA-Factory, TRL and Axolotl name nearly alike; which modules it adapts, each says its own way."""

from lrsweep.config.trial_schema import FinetuneConfig
from lrsweep.dialects.mapping import Tree, flag, given, integral, number, whole


def read(tree: Tree, rank: tuple[str, int], alpha: float, dropout: float, prefix: str) -> Tree:
    """`rank` is its key and the tool's default, `alpha` and `dropout` are defaults; DoRA's key is `prefix`_dora."""
    return {
        "finetune.mode": "lora",
        "finetune.r": whole(rank[0], given(tree, *rank)),
        "finetune.alpha": number("lora_alpha", given(tree, "lora_alpha", alpha)),
        "finetune.dropout": number("lora_dropout", given(tree, "lora_dropout", dropout)),
        "finetune.dora": flag(f"{prefix}_dora", given(tree, f"{prefix}_dora", False)),
        "finetune.rslora": flag(f"{prefix}_rslora", given(tree, f"{prefix}_rslora", False)),
    }


def write(finetune: FinetuneConfig, rank: str, prefix: str, targets: Tree, tool: str) -> Tree:
    """The same, back, with the tool's `targets`."""
    return {
        rank: finetune.r,
        "lora_alpha": integral("finetune.alpha", finetune.alpha, tool),
        "lora_dropout": finetune.dropout,
        **targets,
        **({f"{prefix}_dora": True} if finetune.dora else {}),
        **({f"{prefix}_rslora": True} if finetune.rslora else {}),
    }
