"""Axolotl's keys for the weights: which are trained, in what precision, and how the frozen ones are quantized."""

from typing import Any

from lrsweep.config.patterns import ParameterPattern
from lrsweep.config.schema import SweepConfig
from lrsweep.dialects import lora_keys, training_arguments
from lrsweep.dialects.mapping import Tree, brief
from lrsweep.dialects.rows import flag, given, number
from lrsweep.errors import InputError


def _bf16(tree: Tree) -> Any:
    """`auto`, or whether weights are loaded in bf16: `bfloat16` is another name for `bf16`."""
    return True if flag("bfloat16", given(tree, "bfloat16", False)) else given(tree, "bf16", "auto")


def read_precision(tree: Tree) -> Tree:
    """Reads the dtype of the computation."""
    bf16 = _bf16(tree)
    return {"model.dtype": "auto" if bf16 == "auto" else "bfloat16" if flag("bf16", bf16) else "float32"}


def write_precision(config: SweepConfig) -> Tree:
    """Writes the dtype of the computation."""
    return {"bf16": {"auto": "auto", "bfloat16": True}.get(config.model.dtype, False)}


# Attention that Axolotl runs without casting norms and embeddings, which it has loaded in float32, to bf16; the older
# keys for that; the older keys for attention that it casts for; and all keys that decide it.
_UNCAST = (None, "sdpa", "eager")
_UNCAST_FLAGS = ("sdp_attention", "eager_attention")
_CAST_FLAGS = ("flash_attention", "xformers_attention", "flex_attention", "sage_attention")
CASTS = ("plugins", "cut_cross_entropy", "attn_implementation", *_CAST_FLAGS, *_UNCAST_FLAGS)


def _pure_bf16(tree: Tree) -> bool:
    """Whether whole weights are trained in bf16, as Axolotl loads them. Raises InputError if some are in float32."""
    if not _bf16(tree) or training_arguments.sharded(tree) or tree.get("fsdp_config"):
        return False
    plugin = "cut_cross_entropy" in str(tree.get("plugins")) and tree.get("cut_cross_entropy") is not False
    casts = plugin or any(tree.get(name) for name in _CAST_FLAGS)
    if tree.get("attn_implementation") in _UNCAST and not casts:
        raise InputError(
            "attn_implementation: without flash attention, Axolotl trains norms and embeddings in float32 and all else "
            "in bf16; trials train all weights alike"
        )
    return True


def _read_unfrozen(tree: Tree) -> list[str]:
    """Reads the patterns that name the parameters to train. Raises InputError for those that trials take otherwise."""
    patterns = tree.get("unfrozen_parameters") or []
    shown = f"unfrozen_parameters={brief(patterns)}"
    if not isinstance(patterns, list) or not all(isinstance(text, str) for text in patterns):
        raise InputError(f"{shown}: not a list of patterns; write one")
    for text in patterns:
        try:
            pattern = ParameterPattern.parse(text)
        except ValueError as fault:
            raise InputError(f"unfrozen_parameters: {fault}") from None
        if pattern.rows and (training_arguments.sharded(tree) or tree.get("fsdp_config")):
            raise InputError(f"{shown}: with DeepSpeed or FSDP, Axolotl may train other rows too; remove the range")
        if "language_model" in text:
            raise InputError(
                f"{shown}: names of a model of images too; trials load its text part, whose names may differ; "
                "name its parameters as trials have them"
            )
    if patterns and tree.get("adapter"):
        raise InputError(f"{shown}: trials train adapters whole; remove it")
    return patterns


def read_finetune(tree: Tree) -> Tree:
    """Reads what is trained. Raises InputError for what trials train otherwise."""
    adapter = tree.get("adapter")
    patterns = _read_unfrozen(tree)
    bits = [name for name in ("4bit", "8bit") if flag(f"load_in_{name}", given(tree, f"load_in_{name}", False))]
    if adapter is None:
        return {
            "finetune.mode": "freeze" if patterns else "full",
            "finetune.unfrozen_parameters": patterns,
            "model.quantization": None,
            "finetune.pure_bf16": _pure_bf16(tree),
        }
    if adapter not in ("lora", "qlora"):
        raise InputError(f"adapter={adapter}: trials train lora, qlora or all weights (no adapter); choose one of them")
    targets = lora_keys.read_targets(tree, "lora_target_modules", None)
    if flag("lora_target_linear", given(tree, "lora_target_linear", False)):
        targets = "all-linear"
    if tree.get("lora_r") is None or tree.get("lora_alpha") is None:
        raise InputError("lora_r, lora_alpha: missing; an adapter needs both")
    if tree.get("loraplus_lr_ratio") is not None and number("weight_decay", tree.get("weight_decay") or 0):
        raise InputError(f"weight_decay={brief(tree['weight_decay'])}: Axolotl leaves it out with LoRA+; remove it")
    return {
        **lora_keys.read(tree, ("lora_r", 0), alpha=0, dropout=0.0, prefix="peft_use", **_KEYS),
        "finetune.target_modules": targets,
        "model.quantization": bits[0] if bits else None,
    }


# Axolotl's keys for what not every trainer has.
_KEYS = {"loraplus": "loraplus_lr_ratio", "init": "peft_init_lora_weights"}


def write_finetune(config: SweepConfig) -> Tree:
    """Writes what is trained."""
    finetune, bits = config.finetune, config.model.quantization
    if finetune.mode != "lora":
        patterns = list(finetune.unfrozen_parameters)
        return {
            **({"unfrozen_parameters": patterns} if patterns else {}),
            **({"attn_implementation": "flash_attention_2"} if finetune.pure_bf16 else {}),
        }
    targets = finetune.target_modules
    named: Tree = {} if targets is None else {"lora_target_linear": True}
    if targets not in (None, "all-linear"):
        named = {"lora_target_modules": list(targets) if isinstance(targets, tuple) else targets}
    return {
        "adapter": "qlora" if bits == "4bit" else "lora",
        **({f"load_in_{bits}": True} if bits else {}),
        **lora_keys.write(finetune, "lora_r", "peft_use", named, "Axolotl", **_KEYS),
    }


def read_double(tree: Tree) -> Tree:
    """Reads how constants of 4 bits are kept. Raises InputError for other options of bitsandbytes."""
    given_kwargs = training_arguments.mapping_of("bnb_config_kwargs", given(tree, "bnb_config_kwargs", {}))
    double = flag("bnb_4bit_use_double_quant", given_kwargs.pop("bnb_4bit_use_double_quant", True))
    if given_kwargs.pop("bnb_4bit_quant_type", "nf4") != "nf4" or given_kwargs:
        raise InputError(f"bnb_config_kwargs={brief(tree['bnb_config_kwargs'])}: trials quantize to nf4; remove it")
    return {"model.double_quantization": double}


def write_double(config: SweepConfig) -> Tree:
    """Writes how constants of 4 bits are kept."""
    return {} if config.model.double_quantization else {"bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}}
