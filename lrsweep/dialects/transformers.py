"""The dialect of transformers: TrainingArguments as YAML. Model and data are in the user's own script."""

from collections.abc import Sequence
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects import harmless_keys, training_arguments
from lrsweep.dialects.mapping import OWN_SCRIPT, Dialect, Refusal, Row, TheirRun, Tree, Version
from lrsweep.dialects.rows import fixed, flag, word
from lrsweep.formatting import format_value

# The first version of transformers without warmup_ratio.
ONE_WARMUP_KEY: Version = (5, 15)


def _read_precision(tree: Tree) -> Tree:
    return {"model.dtype": "bfloat16" if flag("bf16", tree.get("bf16") or False) else "float32"}


def _names_model(tree: Tree) -> bool:
    return bool(tree.get("model_name_or_path"))


PRECISION = Row(("bf16",), ("model.dtype",), _read_precision, training_arguments.write_precision)
_LOSS = (fixed("transformers", training_arguments.PLAIN_LOSS), training_arguments.mean_over("transformers"))
# This is not in TrainingArguments, but often in a script's own dataclass.
_MODEL = Row(
    ("model_name_or_path",),
    ("model.path",),
    lambda tree: {"model.path": word("model_name_or_path", tree["model_name_or_path"])} if _names_model(tree) else {},
    lambda config: {},
)


def warmup(version: Version | None) -> Row:
    """Returns the row for warm-up in a version of transformers; None is the current one."""
    return (
        training_arguments.WARMUP_STEPS
        if version is None or version >= ONE_WARMUP_KEY
        else training_arguments.WARMUP_RATIO
    )


def _rows(version: Version | None) -> Sequence[Row]:
    return (
        _MODEL,
        PRECISION,
        *_LOSS,
        *training_arguments.rows(5e-5, warmup(version), training_arguments.checkpointing(False)),
    )


def _complete(config: SweepConfig) -> dict[str, Any]:
    # With the filter off, a NaN is logged as NaN instead of the running average.
    return {"output_dir": f"{config.name}-run", "logging_nan_inf_filter": False}


def _their_run(tree: Tree, command: str | None) -> TheirRun:
    # The user's own script, which nothing here names.
    return TheirRun(command or "", method=OWN_SCRIPT if command else None)


def not_here(config: SweepConfig) -> str:
    """Returns comments on model, data and LoRA, which TrainingArguments does not hold."""
    model, data, finetune = config.model, config.data, config.finetune
    comment = f"# Not part of TrainingArguments: model {model.path}"
    comment += f" in {model.quantization}" if model.quantization else ""
    comment += "" if model.double_quantization else ", its constants not quantized"
    comment += f", data {data.path} in {'packed ' if data.packing else ''}rows of up to {data.max_length} tokens"
    comment += " (longer ones are left out)" if data.drop_long_rows else ""
    comment += ", learning prompts too" if data.train_on_prompt else ""
    if model.output_router_logits:
        weight = model.router_aux_loss_coef
        comment += " with output_router_logits=true" + ("" if weight is None else f", router_aux_loss_coef={weight:g}")
    comment += f", special tokens {format_value(dict(model.special_tokens))}" if model.special_tokens else ""
    multiple = model.pad_embeddings_to_multiple_of
    comment += "" if multiple is None else f", embeddings padded to a multiple of {multiple}"
    if finetune.mode == "lora":
        kind = ("rs" if finetune.rslora else "") + ("DoRA" if finetune.dora else "LoRA")
        comment += f", {kind} r={finetune.r} alpha={finetune.alpha:g} dropout={finetune.dropout:g}"
        comment += f" on {format_value(finetune.target_modules)}"
        init, ratio = finetune.init_lora_weights, finetune.loraplus_lr_ratio
        comment += "" if init is True else f", initialised by {init}"
        comment += "" if ratio is None else f", B at {ratio:g} times A's rate (LoRA+)"
    else:
        comment += f", {finetune.mode} fine-tuning"
        if finetune.unfrozen_parameters:
            comment += f" of the parameters {format_value(finetune.unfrozen_parameters)} (patterns as in Axolotl)"
        elif finetune.mode == "freeze":
            comment += f" of the last {finetune.trainable_layers} layers"
        comment += " with weights and moments in bfloat16" if finetune.pure_bf16 else ""
    if model.dtype == "auto":
        comment += ".\n# Trials ran in bf16 if their GPU supports it: add `bf16: true` on such a machine"
    return comment + ".\n"


DIALECT = Dialect(
    "transformers",
    _rows,
    (
        *training_arguments.REFUSALS,
        Refusal("bf16_full_eval", "trials are evaluated in the precision of training", "set it to false"),
    ),
    harmless_keys.TRAINING_ARGUMENTS + "trust_remote_code torch_dtype",
    _their_run,
    _complete,
    notes=training_arguments.notes,
    not_here=not_here,
    versioned=True,
)
