"""The dialect of ms-swift: the config that `swift sft FILE` reads."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import FinetuneConfig
from lrsweep.dialects import harmless_keys, lora_keys, optimizer_keys, router_keys, training_arguments
from lrsweep.dialects.data_keys import share_only
from lrsweep.dialects.mapping import (
    OWN_SCRIPT,
    Dialect,
    Refusal,
    Row,
    TheirRun,
    Tree,
    Version,
    brief,
    evaluated,
    saved_at_evaluations,
)
from lrsweep.dialects.model_keys import model_folder
from lrsweep.dialects.ms_swift_data import (
    COLUMNS,
    NAME,
    ROW_KEYS,
    has_eval_set,
    read_held_out,
    read_rows,
    rows_differ,
    rows_of,
    sets_of,
    write_held_out,
    write_rows,
)
from lrsweep.dialects.rows import exact, fixed, flag, given, key, number, whole, word
from lrsweep.errors import InputError
from lrsweep.files.paths import expanded
from lrsweep.training import modelscope

# ms-swift accumulates gradients up to this many rows if the file does not say how many.
_ROWS_PER_STEP = 16


def _read_model(tree: Tree) -> Tree:
    if not tree.get("model"):
        raise InputError("model: missing; give the model")
    path = word("model", tree["model"])
    on_modelscope = not _is_folder(path) and not flag("use_hf", given(tree, "use_hf", False))
    revision, attention = tree.get("model_revision"), tree.get("attn_impl")
    return {
        "model.path": f"{modelscope.PREFIX}{path}" if on_modelscope else path,
        "model.revision": None if revision is None else word("model_revision", revision),
        "model.attn_implementation": "flash_attention_2" if attention == "flash_attn" else attention,
    }


def _is_folder(path: str) -> bool:
    return expanded(path).exists() or path.startswith((".", "/", "~"))


def _write_model(config: SweepConfig) -> Tree:
    model = config.model
    place = model_folder(model.path.removeprefix(modelscope.PREFIX))
    return {
        "model": place,
        **({} if place != model.path or _is_folder(place) else {"use_hf": True}),
        **({"model_revision": model.revision} if model.revision else {}),
        **({"attn_impl": model.attn_implementation} if model.attn_implementation else {}),
    }


# A pattern of `finetune.unfrozen_parameters` that is the start of a name and nothing else.
_START = re.compile(r"\^[\w.]+")


def _read_trained(tree: Tree) -> list[str]:
    """Reads the starts of names of the only parameters that are trained, as patterns; empty if all are trained."""
    ratio = number("freeze_parameters_ratio", given(tree, "freeze_parameters_ratio", 0))
    starts = tree.get("trainable_parameters") or []
    if not ratio and not starts:
        return []
    shown = f"freeze_parameters_ratio={ratio:g}, trainable_parameters={brief(starts)}"
    if ratio != 1 or not starts or not isinstance(starts, list):
        raise InputError(f"{shown}: trials freeze all but a list of parameters; set the ratio to 1 and list them")
    patterns = [f"^{word('trainable_parameters', start)}" for start in starts]
    if not all(_START.fullmatch(pattern) for pattern in patterns) or "language_model" in str(starts):
        raise InputError(f"{shown}: the names may differ in trials; name parameters of a text model")
    return patterns


def _write_trained(finetune: FinetuneConfig) -> Tree:
    patterns = finetune.unfrozen_parameters
    if not all(_START.fullmatch(pattern) for pattern in patterns):
        raise InputError(
            f"finetune.unfrozen_parameters={brief(list(patterns))}: ms-swift takes the starts of names only; write "
            "each as ^model.layers.3. without other signs"
        )
    starts = [pattern.removeprefix("^") for pattern in patterns]
    return {"freeze_parameters_ratio": 1.0, "trainable_parameters": starts} if starts else {}


def _read_tuner(tree: Tree) -> Tree:
    """The mode, and the precision: full fine-tuning keeps its weights in the model's dtype there."""
    mode = word("tuner_type", given(tree, "tuner_type", given(tree, "train_type", "lora")))
    if mode not in ("lora", "full"):
        raise InputError(f"tuner_type={mode}: trials train lora or full; choose one of them")
    in_bf16 = flag("bf16", given(tree, "bf16", False))
    dtype = tree.get("torch_dtype") or ("bfloat16" if in_bf16 and mode == "lora" else None)
    if dtype not in (None, "bfloat16", "float32"):
        raise InputError(f"torch_dtype={dtype}: trials train in bf16 or float32; choose one of them")
    if mode == "full" and dtype is None:
        raise InputError(
            "torch_dtype=None: ms-swift then trains the weights in the checkpoint's dtype, which is not known here; "
            "give it"
        )
    bits = tree.get("quant_bits")
    if bits is not None and (tree.get("quant_method") != "bnb" or bits not in (4, 8)):
        raise InputError(f"quant_bits={bits}: trials quantize with bitsandbytes to 4 or 8 bits; set quant_method: bnb")
    patterns = _read_trained(tree)
    if patterns and mode == "lora":
        raise InputError(f"trainable_parameters={brief(patterns)}: trials train adapters whole; remove it")
    found = {
        "model.dtype": "bfloat16" if mode == "full" and in_bf16 else dtype or "auto",
        "model.quantization": None if bits is None else f"{bits}bit",
        "finetune.mode": "freeze" if patterns else mode,
        "finetune.unfrozen_parameters": patterns,
        "finetune.pure_bf16": mode == "full" and dtype == "bfloat16" and not training_arguments.sharded(tree),
    }
    if mode == "full":
        return found
    return {
        **found,
        **lora_keys.read(tree, ("lora_rank", 8), alpha=32, dropout=0.05, prefix="use", init="init_weights"),
        "finetune.target_modules": lora_keys.read_targets(tree, "target_modules", "all-linear"),
    }


def _write_tuner(config: SweepConfig) -> Tree:
    finetune, model = config.finetune, config.model
    dtype = "bfloat16" if finetune.pure_bf16 else model.dtype
    tuner = "lora" if finetune.mode == "lora" else "full"
    found: dict[str, Any] = {"tuner_type": tuner} | ({} if dtype == "auto" else {"torch_dtype": dtype})
    if finetune.mode != "lora":
        found |= _write_trained(finetune)
        if finetune.pure_bf16 or model.dtype == "float32":
            return found
        if model.dtype == "bfloat16":
            return {**found, "torch_dtype": "float32", "bf16": True}
        raise InputError(
            f"model.dtype={model.dtype}: ms-swift needs to know it for whole weights; set it to bfloat16 or float32"
        )
    if model.quantization:
        found |= {"quant_method": "bnb", "quant_bits": int(model.quantization[0])}
    targets = finetune.target_modules
    if targets is None or (isinstance(targets, str) and targets != "all-linear"):
        raise InputError(f"finetune.target_modules={targets!r}: the export to ms-swift writes names; list them")
    named = {"target_modules": [targets] if isinstance(targets, str) else list(targets)}
    return {**found, **lora_keys.write(finetune, "lora_rank", "use", named, "ms-swift", init="init_weights")}


def _read_rate(tree: Tree) -> Tree:
    usual = 1e-5 if given(tree, "tuner_type", given(tree, "train_type", "lora")) == "full" else 1e-4
    return {"optimizer.lr": number("learning_rate", given(tree, "learning_rate", usual))}


def _read_accumulation(tree: Tree) -> Tree:
    rows = whole("per_device_train_batch_size", given(tree, "per_device_train_batch_size", 1))
    usual = max(1, math.ceil(_ROWS_PER_STEP / max(1, rows)))
    steps = whole("gradient_accumulation_steps", given(tree, "gradient_accumulation_steps", usual))
    if steps > 1 and number("router_aux_loss_coef", tree.get("router_aux_loss_coef") or 0):
        raise InputError(f"gradient_accumulation_steps={steps}: {_ROUTER_SHARE}; set it to 1")
    return {"training.batch_size": rows, "training.gradient_accumulation_steps": steps}


_ROUTER_SHARE = "ms-swift weighs a batch's router loss by its share of the step's tokens, and trials add it whole"


def _with_dft(tree: Tree) -> bool:
    if flag("enable_dft_loss", tree.get("enable_dft_loss") or False):
        raise InputError(
            "router_aux_loss_coef: with enable_dft_loss, ms-swift adds the router's loss to a loss with weights, and "
            "trials do not; remove one of them"
        )
    return False


_ROWS = (
    Row(
        ("model", "use_hf", "model_revision", "attn_impl"),
        ("model.path", "model.revision", "model.attn_implementation"),
        _read_model,
        _write_model,
    ),
    Row(
        (
            "tuner_type",
            "train_type",
            "torch_dtype",
            "bf16",
            "quant_method",
            "quant_bits",
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "use_dora",
            "use_rslora",
            "init_weights",
            "freeze_parameters_ratio",
            "trainable_parameters",
            "deepspeed",
            "fsdp",
        ),
        (
            "model.dtype",
            "model.quantization",
            "finetune.pure_bf16",
            "finetune.unfrozen_parameters",
            *(f"finetune.{name}" for name in lora_keys.OURS),
        ),
        _read_tuner,
        _write_tuner,
    ),
    Row(
        (*ROW_KEYS, "model_type"),
        (
            "data.path",
            "data.format",
            "data.tokenized_by",
            "data.trainer_config",
            "data.max_length",
            "data.drop_long_rows",
            "data.eval_path",
        ),
        read_rows,
        write_rows,
    ),
    Row(
        ("split_dataset_ratio", "val_dataset"),
        ("data.eval_fraction",),
        read_held_out,
        write_held_out,
        keep_file_value=True,
    ),
    key("packing", "data.packing", False, flag),
    key("bnb_4bit_use_double_quant", "model.double_quantization", True, flag, lambda value: None if value else False),
    Row(("learning_rate",), ("optimizer.lr",), _read_rate, lambda config: {"learning_rate": config.optimizer.lr}),
    optimizer_keys.row(beta2=0.95),
    optimizer_keys.ONE_RATE,
    exact(
        "ms-swift",
        Row(
            ("enable_dft_loss",),
            training_arguments.LOSS_OURS,
            lambda tree: (
                training_arguments.PLAIN_LOSS | {"training.loss": "dft"}
                if flag("enable_dft_loss", tree.get("enable_dft_loss") or False)
                else training_arguments.PLAIN_LOSS
            ),
            lambda config: {"enable_dft_loss": True} if config.training.loss == "dft" else {},
        ),
    ),
    router_keys.row("ms-swift", "router_aux_loss_coef", ("enable_dft_loss",), _with_dft),
    training_arguments.mean_over("ms-swift"),
    fixed("ms-swift", {"model.special_tokens": {}, "model.pad_embeddings_to_multiple_of": None}),
    key("weight_decay", "optimizer.weight_decay", 0.1, number),
    key("max_grad_norm", "training.max_grad_norm", 1.0, number),
    training_arguments.scheduler("lr_scheduler_type", "cosine"),
    training_arguments.WARMUP_RATIO,
    Row(
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        ("training.batch_size", "training.gradient_accumulation_steps"),
        _read_accumulation,
        lambda config: {
            "per_device_train_batch_size": config.training.batch_size,
            "gradient_accumulation_steps": config.training.gradient_accumulation_steps,
        },
    ),
    training_arguments.length("num_train_epochs"),
    training_arguments.evaluation(1),
    training_arguments.checkpointing(True),
    key("seed", "training.seed", 42, whole),
)


def _rows(version: Version | None) -> Sequence[Row]:
    return _ROWS


def _check(config: SweepConfig, version: Version | None) -> None:
    if config.finetune.mode == "freeze" and not config.finetune.unfrozen_parameters:
        raise InputError(
            "finetune.mode=freeze: ms-swift freezes by parameter names; give finetune.unfrozen_parameters, or sweep "
            "with finetune=lora or full"
        )
    if config.model.output_router_logits and config.training.gradient_accumulation_steps > 1:
        raise InputError(f"model.output_router_logits=true: with accumulation, {_ROUTER_SHARE}; sweep without one")


def _their_run(tree: Tree, command: str | None) -> TheirRun:
    method = tree.get("rlhf_type")
    name = next((name for name in ("rlhf", "pt") if f" {name} " in f" {command} "), "rlhf" if method else "sft")
    run = TheirRun(command or f"swift {name} {{config}}")
    if not re.search(r"\bswift\b", run.command):
        run = replace(run, method=OWN_SCRIPT)
    if name == "sft":
        return run
    if name == "pt":
        return replace(run, method=run.method or "swift pt")
    method = str(method or "dpo")
    run = replace(run, method=run.method or f"swift rlhf {method}", lr=None)
    if method in ("grpo", "ppo", "gkd"):
        metric = "loss" if method == "gkd" else "reward"
        return replace(run, metric=metric, direction="minimize" if metric == "loss" else "maximize", evaluates=False)
    best = {"dpo": "eval_rewards/accuracies", "rm": "eval_accuracy"}.get(method)
    return run if best is None else replace(run, metric=best, direction="maximize")


def _does_not_train(tree: Tree) -> str | None:
    if tree.get("lr") is not None or tree.get("micro_batch_size") is not None:
        return (
            "lr, micro_batch_size: keys of `megatron sft`, whose logs lrsweep does not read; use those of `swift sft`"
        )
    for names in (("model",), ("dataset", "cached_dataset")):
        if not any(tree.get(name) for name in names):
            return f"{names[0]}: missing, so ms-swift itself would not train this file; give it"
    return None


def _relocated(tree: Tree, model: str | None, data_dir: str | None) -> Tree:
    changes: dict[str, Any] = {} if model is None else {"model": model}
    if data_dir is not None:
        for name in ("dataset", "val_dataset"):
            if sets := sets_of(tree, name):
                changes[name] = [str(Path(data_dir, part)) for part in sets]
    return {**tree, **changes}


def _evaluation_keys(tree: Tree, config: SweepConfig) -> Tree:
    held_out = has_eval_set(tree) or tree.get("split_dataset_ratio")
    return {
        **({} if held_out else {"split_dataset_ratio": share_only(config.data.eval_fraction, "ms-swift") or 0.1}),
        **evaluated(tree, config),
    }


_METHOD = "trials train plain LoRA or all weights"
DIALECT = Dialect(
    NAME,
    _rows,
    (
        Refusal("rlhf_type", "trials do supervised fine-tuning only", "remove it"),
        Refusal("task_type", "trials train causal models", "remove it", ("causal_lm",)),
        Refusal("tuner_backend", "trials train with PEFT", "set it to peft", ("peft",)),
        Refusal("adapters external_plugins custom_register_path", "it may change the training", "remove it", ([],)),
        Refusal("optimizer use_galore lorap_lr_ratio vit_lr aligner_lr", "it is another optimizer", "remove it"),
        Refusal("lora_bias", _METHOD, "set it to none", ("none",)),
        Refusal(
            "modules_to_save target_regex target_parameters freeze_parameters freeze_parameters_regex "
            "trainable_parameters_regex lisa_activated_layers",
            _METHOD,
            "remove it",
            ([], 0),
        ),
        Refusal("freeze_llm freeze_vit freeze_aligner max_pixels", "trials learn from text alone", "remove it"),
        Refusal("streaming", "trials draw whole rows at random", "remove it"),
        Refusal("rope_scaling new_special_tokens", "it changes the model", "remove it", ([], 0)),
        Refusal("train_dataloader_shuffle", "trials draw rows at random", "set it to true", (True,), off=False),
        Refusal("bnb_4bit_quant_type", "trials quantize to nf4", "set it to nf4", ("nf4",)),
        Refusal("bnb_4bit_compute_dtype", "trials compute in bf16", "set it to bfloat16", ("bfloat16",)),
        Refusal("enable_channel_loss", "trials report one loss", "set it to false"),
        *training_arguments.REFUSALS,
    ),
    harmless_keys.TRAINING_ARGUMENTS + harmless_keys.MS_SWIFT,
    _their_run,
    lambda config: {"output_dir": f"{config.name}-run"},
    _check,
    training_arguments.notes,
    not_here=rows_differ,
    formats=COLUMNS,
    trial_keys=lambda tree, config, output: {**saved_at_evaluations(tree, config, output), "add_version": False},
    evaluation_keys=_evaluation_keys,
    does_not_train=_does_not_train,
    rows_of=rows_of,
    relocated=_relocated,
)
