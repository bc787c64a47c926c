"""The dialect of Axolotl: the config that `axolotl train FILE` reads."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects import harmless_keys, lora_keys, router_keys, training_arguments
from lrsweep.dialects.axolotl_data import (
    DATA_KEYS,
    LENGTH,
    read_data,
    read_evaluation_set,
    rows_of,
    write_data,
    write_evaluation_set,
)
from lrsweep.dialects.axolotl_weights import (
    CASTS,
    read_double,
    read_finetune,
    read_precision,
    write_double,
    write_finetune,
    write_precision,
)
from lrsweep.dialects.data_keys import NO_EVALUATION, moved, rows_are_ours, share_held_out
from lrsweep.dialects.mapping import OWN_SCRIPT, Dialect, Refusal, Row, TheirRun, Tree, Version, brief, evaluated
from lrsweep.dialects.model_keys import model_folder
from lrsweep.dialects.optimizer_keys import ADAMW, ONE_RATE, read_adam, write_adam
from lrsweep.dialects.rows import fixed, flag, given, key, number, whole, word
from lrsweep.errors import InputError

# Axolotl's warm-up ratio for a config that does not set one.
_DEFAULT_WARMUP = 0.03


def _read_model(tree: Tree) -> Tree:
    if not tree.get("base_model"):
        raise InputError("base_model: missing; give the model")
    revision = tree.get("revision_of_model")
    return {
        "model.path": word("base_model", tree["base_model"]),
        "model.revision": None if revision is None else word("revision_of_model", revision),
    }


def _write_model(config: SweepConfig) -> Tree:
    model = config.model
    return {"base_model": model_folder(model.path)} | ({"revision_of_model": model.revision} if model.revision else {})


def _read_long_rows(tree: Tree) -> Tree:
    strategy = word("excess_length_strategy", given(tree, "excess_length_strategy", "drop"))
    if strategy not in ("drop", "truncate"):
        raise InputError(f"excess_length_strategy={strategy}: trials drop long rows or truncate them; choose one")
    return {"data.drop_long_rows": strategy == "drop"}


def _read_rate(tree: Tree) -> Tree:
    if tree.get("learning_rate") is None:
        raise InputError("learning_rate: missing; Axolotl has no default, give one")
    return {"optimizer.lr": number("learning_rate", tree["learning_rate"])}


def _read_optimizer(tree: Tree) -> Tree:
    name = word("optimizer", given(tree, "optimizer", "adamw_torch_fused"))
    if name not in ADAMW:
        raise InputError(
            f"optimizer={name}: trials train with AdamW, as {ADAMW[0]} or another implementation; choose one of them"
        )
    return {"optimizer.name": "adamw", **read_adam(tree), "optimizer.kwargs": {}}


def _write_optimizer(config: SweepConfig) -> Tree:
    optimizer = config.optimizer
    if optimizer.name != "adamw" or optimizer.kwargs:
        raise InputError(
            f"optimizer.name={optimizer.name}: the export to axolotl supports AdamW only; sweep with optimizer=adamw"
        )
    return {"optimizer": "adamw_torch", **write_adam(optimizer)}


def _read_warmup(tree: Tree) -> Tree:
    if tree.get("warmup_steps") is not None:
        steps = whole("warmup_steps", tree["warmup_steps"])
        # Axolotl makes two of one.
        return {"scheduler.warmup_steps": 2 if steps == 1 else steps, "scheduler.warmup_ratio": None}
    return {
        "scheduler.warmup_steps": None,
        "scheduler.warmup_ratio": number("warmup_ratio", given(tree, "warmup_ratio", _DEFAULT_WARMUP)),
    }


def _write_warmup(config: SweepConfig) -> Tree:
    if config.scheduler.warmup_steps == 1:
        raise InputError("scheduler.warmup_steps=1: Axolotl makes two of one; set it to 2")
    return training_arguments.write_warmup(config)


_SCHEDULE = training_arguments.scheduler("lr_scheduler", "cosine")


def _read_schedule(tree: Tree) -> Tree:
    found = _SCHEDULE.read(tree)
    ratio = number("cosine_min_lr_ratio", given(tree, "cosine_min_lr_ratio", 0))
    # Axolotl reads these two keys with the schedule cosine only, and a ratio of 0 as none.
    if found["scheduler.name"] != "cosine" or not ratio:
        return found
    if held := number("cosine_constant_lr_ratio", given(tree, "cosine_constant_lr_ratio", 0)):
        raise InputError(f"cosine_constant_lr_ratio={held:g}: trials have transformers' schedules; remove it")
    if found["scheduler.kwargs"] or not 0 < ratio <= 1:
        raise InputError(f"cosine_min_lr_ratio={ratio:g}: goes from 0 to 1, without lr_scheduler_kwargs; correct it")
    return {"scheduler.name": "cosine_with_min_lr", "scheduler.kwargs": {"min_lr_rate": ratio}}


def _read_batch(tree: Tree) -> Tree:
    rows = whole("micro_batch_size", given(tree, "micro_batch_size", 1))
    steps = whole("gradient_accumulation_steps", given(tree, "gradient_accumulation_steps", 1))
    if tree.get("batch_size"):
        # On any number of devices, each accumulates this often.
        steps = whole("batch_size", tree["batch_size"]) // max(1, rows)
        if tree.get("gradient_accumulation_steps") or steps < 1:
            raise InputError(
                f"batch_size={tree['batch_size']}: Axolotl takes it beside a smaller micro_batch_size, and instead of "
                "gradient_accumulation_steps; remove it"
            )
    return {
        "training.batch_size": rows,
        "training.gradient_accumulation_steps": steps,
        # Its trainer takes each batch's mean, and then that of a step's batches.
        "training.mean_over": "batches",
    }


def _write_batch(config: SweepConfig) -> Tree:
    training = config.training
    return {
        "micro_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
    }


def _read_evaluation(tree: Tree) -> Tree:
    found: dict[str, Any] = {
        "training.eval_batch_size": whole(
            "eval_batch_size", given(tree, "eval_batch_size", given(tree, "micro_batch_size", 1))
        )
    }
    every = number("eval_steps", given(tree, "eval_steps", 0))
    return found | ({"training.eval_every": whole("eval_steps", every)} if every >= 1 else {})


# Plugins that change kernels or reports only.
_PLUGINS = ("cut_cross_entropy", "liger", "kernels", "swanlab")


def _write_multiple(multiple: int) -> bool:
    if multiple != 32:
        raise InputError(f"model.pad_embeddings_to_multiple_of={multiple}: Axolotl has 32 only; set it to 32 or null")
    return True


def _write_loading(config: SweepConfig) -> Tree:
    return {"special_tokens": dict(config.model.special_tokens)} if config.model.special_tokens else {}


def _read_loading(tree: Tree) -> Tree:
    """Checks how the model and its tokenizer are loaded: keys of which only some values change what is learned."""
    plugins = given(tree, "plugins", [])
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if str(plugin).removeprefix("axolotl.integrations.").split(".")[0] not in _PLUGINS:
            raise InputError(f"plugins={brief(plugin)}: it may change the training; remove it")
    tokens = training_arguments.mapping_of("special_tokens", given(tree, "special_tokens", {}))
    tokens = {name: value for name, value in tokens.items() if name != "pad_token" and value is not None}
    others = {name: value for name, value in tokens.items() if name not in ("bos_token", "eos_token", "unk_token")}
    if others:
        raise InputError(f"special_tokens={brief(others)}: it changes the tokenizer; put the tokens into its own files")
    model = word("model_type", given(tree, "model_type", "AutoModelForCausalLM"))
    if not model.endswith("ForCausalLM") and not model.endswith("LMHeadModel"):
        raise InputError(f"model_type={model}: trials train causal models on text; remove it")
    return {"model.special_tokens": {name: word(name, token) for name, token in tokens.items()}}


_ROWS = (
    Row(("base_model", "revision_of_model"), ("model.path", "model.revision"), _read_model, _write_model),
    Row(
        ("plugins", "special_tokens", "model_type"),
        ("model.special_tokens",),
        _read_loading,
        _write_loading,
    ),
    key(
        "resize_token_embeddings_to_32x",
        "model.pad_embeddings_to_multiple_of",
        None,
        lambda name, value: 32 if flag(name, value) else None,
        _write_multiple,
    ),
    Row(("bf16", "bfloat16"), ("model.dtype",), read_precision, write_precision),
    Row(
        (
            "adapter",
            "load_in_4bit",
            "load_in_8bit",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_linear",
            "peft_use_dora",
            "peft_use_rslora",
            "loraplus_lr_ratio",
            "peft_init_lora_weights",
            "unfrozen_parameters",
            "bf16",
            "bfloat16",
            *CASTS,
            "deepspeed",
            "fsdp",
            "fsdp_config",
        ),
        (
            "finetune.pure_bf16",
            "finetune.unfrozen_parameters",
            *(f"finetune.{name}" for name in lora_keys.OURS),
            "model.quantization",
        ),
        read_finetune,
        write_finetune,
    ),
    Row(("bnb_config_kwargs",), ("model.double_quantization",), read_double, write_double),
    Row(
        DATA_KEYS,
        (
            "data.path",
            "data.name",
            "data.split",
            "data.format",
            "data.columns",
            "data.template",
            "data.tokenized_by",
            "data.trainer_config",
        ),
        read_data,
        write_data,
    ),
    Row(
        ("test_datasets", "val_set_size"),
        ("data.eval_path", "data.eval_split", "data.eval_fraction"),
        read_evaluation_set,
        write_evaluation_set,
        keep_file_value=True,
    ),
    key("sequence_len", "data.max_length", LENGTH, whole),
    Row(
        ("excess_length_strategy",),
        ("data.drop_long_rows",),
        _read_long_rows,
        lambda config: {} if config.data.drop_long_rows else {"excess_length_strategy": "truncate"},
    ),
    key("sample_packing", "data.packing", False, flag),
    router_keys.AXOLOTL,
    Row(("learning_rate",), ("optimizer.lr",), _read_rate, lambda config: {"learning_rate": config.optimizer.lr}),
    Row(
        ("optimizer", "adam_beta1", "adam_beta2", "adam_epsilon"),
        ("optimizer.name", "optimizer.betas", "optimizer.eps", "optimizer.kwargs"),
        _read_optimizer,
        _write_optimizer,
    ),
    ONE_RATE,
    fixed("Axolotl", {"data.train_on_prompt": False, **training_arguments.PLAIN_LOSS}),
    key("weight_decay", "optimizer.weight_decay", 0.0, number),
    key("max_grad_norm", "training.max_grad_norm", 1.0, number),
    replace(
        _SCHEDULE, theirs=(*_SCHEDULE.theirs, "cosine_min_lr_ratio", "cosine_constant_lr_ratio"), read=_read_schedule
    ),
    Row(
        ("warmup_steps", "warmup_ratio"),
        training_arguments.WARMUP_OURS,
        _read_warmup,
        _write_warmup,
        exclusive=True,
    ),
    Row(
        ("micro_batch_size", "gradient_accumulation_steps", "batch_size"),
        ("training.batch_size", "training.gradient_accumulation_steps", "training.mean_over"),
        _read_batch,
        _write_batch,
    ),
    training_arguments.length("num_epochs"),
    Row(
        ("eval_steps", "evals_per_epoch", "eval_strategy", "eval_batch_size"),
        ("training.eval_every", "training.eval_batch_size"),
        _read_evaluation,
        lambda config: {"eval_steps": config.training.eval_every, "eval_batch_size": config.training.eval_batch_size},
        keep_file_value=True,
    ),
    key(
        "gradient_checkpointing",
        "training.gradient_checkpointing",
        False,
        lambda name, value: True if value in ("offload", "offload_disk") else flag(name, value),
    ),
    key("seed", "training.seed", 42, whole),
)


def _rows(version: Version | None) -> Sequence[Row]:
    return _ROWS


def _not_here(config: SweepConfig) -> str:
    """Comments on rows, and on whole weights that trials kept in float32, for which Axolotl has no key."""
    in_float32 = config.finetune.mode != "lora" and not config.finetune.pure_bf16 and config.model.dtype != "float32"
    comment = (
        "# Trials kept the trained weights in float32, as Axolotl does with DeepSpeed or FSDP. Without them,\n"
        "# it trains weights in bf16.\n"
    )
    of_tokens = config.training.mean_over == "tokens" and config.training.gradient_accumulation_steps > 1
    mean = "# Trials took the mean over a step's tokens; Axolotl takes that of each batch, and then their mean.\n"
    cut = "# Axolotl cuts texts longer than sequence_len into several rows; trials cut them short or left them out.\n"
    texts = config.data.format == "text" and config.data.path != "embedded"
    return (
        rows_are_ours(config) + (comment if in_float32 else "") + (mean if of_tokens else "") + (cut if texts else "")
    )


def _check(config: SweepConfig, version: Version | None) -> None:
    if config.finetune.loraplus_lr_ratio is not None and config.optimizer.weight_decay:
        raise InputError("optimizer.weight_decay: Axolotl leaves it out with LoRA+; sweep with weight_decay=0")
    if config.finetune.mode == "freeze" and not config.finetune.unfrozen_parameters:
        raise InputError(
            "finetune.mode=freeze: Axolotl freezes by parameter names; give finetune.unfrozen_parameters, or sweep "
            "with finetune=lora or full"
        )


def _notes(tree: Tree) -> list[str]:
    found = training_arguments.notes(tree, "optimizer")
    if tree.get("fp8"):
        found.append(training_arguments.COARSE)
    if tree.get("warmup_steps") is None and tree.get("warmup_ratio") is None:
        found.append("no warm-up is given: trials use Axolotl's default, 3% of the run (in Axolotl at most 100 steps)")
    if not tree.get("val_set_size") and not tree.get("test_datasets"):
        found.append(NO_EVALUATION)
    return found


def _their_run(tree: Tree, command: str | None) -> TheirRun:
    command = command or "axolotl train {config}"
    run = TheirRun(command, method=None if re.search(r"\baxolotl\b", command) else OWN_SCRIPT)
    method = tree.get("rl") or next((name for name in ("reward_model", "process_reward_model") if tree.get(name)), None)
    if method is None:
        streams = tree.get("streaming") or tree.get("pretraining_dataset")
        return replace(run, metric="loss", evaluates=False) if streams and not tree.get("test_datasets") else run
    if method in ("grpo", "gdpo", "ebft"):
        return replace(run, metric="reward", direction="maximize", method=run.method or str(method), evaluates=False)
    run = replace(run, method=run.method or str(method))
    return replace(run, metric="eval_rewards/accuracies", direction="maximize") if method in ("dpo", "ipo") else run


def _does_not_train(tree: Tree) -> str | None:
    for names in (("base_model",), ("datasets", "pretraining_dataset"), ("learning_rate",)):
        if not any(tree.get(name) for name in names):
            return f"{names[0]}: missing, so Axolotl itself would not train this file; give it"
    return None


def _relocated(tree: Tree, model: str | None, data_dir: str | None) -> Tree:
    changes: dict[str, Any] = {} if model is None else {"base_model": model}
    if data_dir is not None:
        for name in ("datasets", "test_datasets"):
            if tree.get(name):
                changes[name] = moved(tree[name], "path", data_dir)
    return {**tree, **changes}


_METHOD = "trials train plain LoRA or all weights"
_RATES = "trials train with a single learning rate"
DIALECT = Dialect(
    "axolotl",
    _rows,
    (
        Refusal(
            "rl reward_model process_reward_model trainer_cls", "trials do supervised fine-tuning only", "remove it"
        ),
        Refusal("embedding_lr embedding_lr_scale lr_groups dion_lr", _RATES, "remove it"),
        Refusal(
            "relora lisa_n_layers lora_modules_to_save lora_model_dir lora_target_parameters gptq "
            "peft_layers_to_transform peft_layer_replication peft_trainable_token_indices qat quantization peft",
            _METHOD,
            "remove it",
            ([],),
        ),
        Refusal(
            "lr_quadratic_warmup lr_div_factor jagged_restart_steps",
            "trials have transformers' schedules",
            "remove it",
        ),
        Refusal(
            "pretraining_dataset streaming curriculum_sampling sample_packing_sequentially use_pose",
            "trials draw whole rows in random order",
            "remove it",
        ),
        Refusal("optim_args", "trials support AdamW's betas and eps only", "remove it"),
        Refusal("float16 torch_dtype", "trials keep trained parameters in float32", "set bf16: true instead"),
        Refusal("tokens", "it adds tokens to the model", "make the change in the model's folder"),
        Refusal("use_eaft kd_trainer liger_use_token_scaling", "trials use the cross-entropy loss", "remove it"),
        Refusal("spectrum_top_fraction use_onebitllms diffusion llmcompressor", _METHOD, "remove it"),
        Refusal(
            "overrides_of_model_kwargs model_quantization_config model_quantization_config_kwargs quantize_moe_experts "
            "reinit_weights cls_model_config rope_scaling scaling_softmax fp32_norms",
            "it changes the model",
            "remove it",
        ),
        Refusal(
            "processor_type freeze_mm_modules skip_prepare_dataset image_size", "trials learn from text", "remove it"
        ),
        *training_arguments.REFUSALS,
    ),
    harmless_keys.TRAINING_ARGUMENTS + harmless_keys.AXOLOTL,
    _their_run,
    lambda config: {"output_dir": f"{config.name}-run"},
    _check,
    _notes,
    _not_here,
    epochs=("num_epochs", 1.0),
    does_not_train=_does_not_train,
    relocated=_relocated,
    rows_of=rows_of,
    evaluation_keys=lambda tree, config: {
        **share_held_out(tree, config, "test_datasets", "val_set_size"),
        **evaluated(tree, config),
    },
)
