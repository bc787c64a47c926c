"""The dialect of TRL: the config that `trl sft --config FILE` reads (ScriptArguments, SFTConfig and ModelConfig)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects import harmless_keys, lora_keys, router_keys, training_arguments
from lrsweep.dialects.data_keys import moved, rows_are_ours, share_only
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
    with_model,
)
from lrsweep.dialects.model_keys import model_folder, read_model, write_model
from lrsweep.dialects.rows import exact, fixed, flag, given, key, number, whole, word
from lrsweep.dialects.transformers import warmup
from lrsweep.errors import InputError

_FILE_TYPES = {"json": "json", "jsonl": "json", "csv": "csv", "parquet": "parquet"}
# The share of the rows to evaluate on if the sweep used another file for evaluation.
_HELD_OUT = 0.1
_FORMATS = ("messages", "prompt_completion", "text")


def _read_precision(tree: Tree) -> Tree:
    bf16, dtype = tree.get("bf16"), tree.get("dtype")
    full = not flag("use_peft", given(tree, "use_peft", False))
    if full and dtype not in (None, "float32", "bfloat16"):
        raise InputError(
            f"dtype={dtype}: the trained weights are in it, and trials keep them in float32 or bfloat16; choose one of "
            "them"
        )
    in_bf16 = bf16 is None or flag("bf16", bf16)
    pure = full and dtype == "bfloat16" and not _sharded(tree)
    if pure and not in_bf16:
        raise InputError("bf16=False: with dtype=bfloat16, trials compute in bf16 too; set it to true")
    return {"model.dtype": "bfloat16" if in_bf16 else "float32", "finetune.pure_bf16": pure}


def _sharded(tree: Tree) -> bool:
    """Whether DeepSpeed or FSDP trains a file, also by Accelerate's config, which TRL names."""
    config = str(given(tree, "accelerate_config", "single_gpu"))
    if config.startswith(("zero", "fsdp")):
        return True
    if config not in ("single_gpu", "multi_gpu"):
        raise InputError(f"accelerate_config={config}: it may train a float32 copy of the weights; set dtype: float32")
    return training_arguments.sharded(tree)


def _write_precision(config: SweepConfig) -> Tree:
    if config.finetune.pure_bf16:
        return {"bf16": True, "dtype": "bfloat16"}
    return training_arguments.write_precision(config)


def _read_quantization(tree: Tree) -> Tree:
    bits = flag("load_in_4bit", tree.get("load_in_4bit") or False)
    # Without 4 bits it has no effect.
    double = flag("use_bnb_nested_quant", given(tree, "use_bnb_nested_quant", not bits))
    return {"model.double_quantization": double, **_read_bits(tree)}


def _read_bits(tree: Tree) -> Tree:
    if flag("load_in_4bit", tree.get("load_in_4bit") or False):
        if tree.get("bnb_4bit_quant_type", "nf4") != "nf4":
            raise InputError(
                f"bnb_4bit_quant_type={tree['bnb_4bit_quant_type']}: trials quantize to nf4; set it to nf4"
            )
        return {"model.quantization": "4bit"}
    return {"model.quantization": "8bit" if flag("load_in_8bit", tree.get("load_in_8bit") or False) else None}


def _write_quantization(config: SweepConfig) -> Tree:
    if config.model.quantization == "4bit":
        double = config.model.double_quantization
        return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": double}
    usual: Tree = {} if config.model.double_quantization else {"use_bnb_nested_quant": False}
    return {"load_in_8bit": True, **usual} if config.model.quantization == "8bit" else usual


def _read_lora(tree: Tree) -> Tree:
    if not flag("use_peft", given(tree, "use_peft", False)):
        return {"finetune.mode": "full"}
    return {
        **lora_keys.read(tree, ("lora_r", 16), alpha=32, dropout=0.05, prefix="use"),
        "finetune.target_modules": lora_keys.read_targets(tree, "lora_target_modules", None),
    }


def _write_lora(config: SweepConfig) -> Tree:
    finetune = config.finetune
    if finetune.mode == "full":
        return {"use_peft": False}
    targets = finetune.target_modules
    named: Tree = {}
    if targets is not None:
        named = {"lora_target_modules": [targets] if isinstance(targets, str) else list(targets)}
    return {"use_peft": True, **lora_keys.write(finetune, "lora_r", "use", named, "TRL")}


def _read_data(tree: Tree) -> Tree:
    found: dict[str, Any] = {"data.path": "???", "data.name": None, "data.split": "train"}
    if mixture := tree.get("datasets"):
        if not isinstance(mixture, list) or len(mixture) != 1 or not isinstance(mixture[0], Mapping):
            raise InputError(
                f"datasets={brief(mixture)}: trials read one data set; put the rows into one file or folder"
            )
        found |= _one_set(mixture[0])
    elif tree.get("dataset_name"):
        found["data.path"] = word("dataset_name", tree["dataset_name"])
        found["data.name"] = tree.get("dataset_config")
        found["data.split"] = tree.get("dataset_train_split") or "train"
    field = tree.get("dataset_text_field") or "text"
    return found | {"data.columns": {} if field == "text" else {"text": field}, **_format(tree, field)}


def _read_evaluation_set(tree: Tree) -> Tree:
    if tree.get("test_split_size") is not None:
        return {"data.eval_fraction": number("test_split_size", tree["test_split_size"])}
    evaluated = (tree.get("eval_strategy") or "no") != "no"
    return (
        {"data.eval_split": tree.get("dataset_test_split") or "test"} if evaluated and tree.get("dataset_name") else {}
    )


def _one_set(entry: Tree) -> Tree:
    for name in entry:
        if name not in ("path", "name", "split", "data_files"):
            raise InputError(f"datasets: {name}={brief(entry[name])}: trials read a data set whole; remove it")
    files = entry.get("data_files")
    if files is not None and not isinstance(files, str):
        raise InputError(f"datasets: data_files={brief(files)}: trials read one file or folder; give one")
    return {
        "data.path": files or word("datasets.path", entry.get("path", "")),
        "data.name": entry.get("name"),
        "data.split": entry.get("split") or "train",
    }


def _format(tree: Tree, field: str) -> Tree:
    """The rows' format, if the file gives it, and what is learned; TRL itself goes by the columns."""
    answers_only = flag("assistant_only_loss", tree.get("assistant_only_loss") or False)
    return {"data.train_on_prompt": not answers_only, **_known_format(tree, field, answers_only)}


def _known_format(tree: Tree, field: str, answers_only: bool) -> Tree:
    if answers_only:
        return {"data.format": "messages"}
    if tree.get("completion_only_loss") is not None and flag("completion_only_loss", tree["completion_only_loss"]):
        return {"data.format": "prompt_completion"}
    return {"data.format": "text"} if field != "text" else {}


def _write_evaluation_set(config: SweepConfig) -> Tree:
    data = config.data
    if _is_mixture(config):
        # `trl sft` can evaluate on a split that this key makes, but not on another file.
        return {"test_split_size": share_only(data.eval_fraction, "TRL") or _HELD_OUT}
    return {"dataset_test_split": data.eval_split}


def _is_mixture(config: SweepConfig) -> bool:
    """Returns whether TRL gets the rows under `datasets`: for files, and for data without a split to evaluate on."""
    return _suffix(config.data.path) in _FILE_TYPES or config.data.eval_split is None


def _suffix(path: str) -> str:
    return path.rsplit(".", 1)[-1].lower()


def _write_data(config: SweepConfig) -> Tree:
    data = config.data
    if data.format not in _FORMATS:
        raise InputError(
            f"data.format={data.format}: TRL reads rows of {', '.join(_FORMATS)}; convert them, or export to "
            "llamafactory"
        )
    where: dict[str, Any]
    if _is_mixture(config):
        suffix = _suffix(data.path)
        entry = {"path": _FILE_TYPES[suffix], "data_files": data.path} if suffix in _FILE_TYPES else {"path": data.path}
        entry |= ({"name": data.name} if data.name else {}) | ({"split": data.split} if data.split != "train" else {})
        where = {"datasets": [entry]}
    else:
        where = {"dataset_name": data.path} | ({"dataset_config": data.name} if data.name else {})
        where |= {"dataset_train_split": data.split} if data.split != "train" else {}
    columns = dict(data.columns)
    if data.format == "text":
        return where | ({"dataset_text_field": columns["text"]} if columns else {})
    if columns:
        raise InputError(
            f"data.columns={columns}: TRL needs the column names {', '.join(columns)}; rename them in the file"
        )
    if data.format == "messages":
        return where | ({} if data.train_on_prompt else {"assistant_only_loss": True})
    return where | {"completion_only_loss": True}


def _read_eos(tree: Tree) -> Tree:
    token = tree.get("eos_token")
    return {"model.special_tokens": {} if token is None else {"eos_token": word("eos_token", token)}}


def _write_eos(config: SweepConfig) -> Tree:
    return dict(config.model.special_tokens)


_LOSSES = {"nll": "cross_entropy", "chunked_nll": "cross_entropy", "dft": "dft"}


def _read_loss(tree: Tree) -> Tree:
    name = word("loss_type", given(tree, "loss_type", "nll"))
    if name not in _LOSSES:
        raise InputError(f"loss_type={name}: trials have no such loss; choose one of {', '.join(_LOSSES)}")
    return training_arguments.PLAIN_LOSS | {"training.loss": _LOSSES[name]}


_ROUTER_MEAN = "TRL takes the mean of a router's loss over the batches of a step, and trials add each"


def _read_router(tree: Tree) -> Tree:
    given_weight = tree.get("router_aux_loss_coef")
    weight = None if given_weight is None else number("router_aux_loss_coef", given_weight)
    # Without the key, `trl sft` adds the loss of every mixture of experts with the model's own weight.
    if weight == 0 or (weight is None and not router_keys.is_mixture(str(tree.get("model_name_or_path") or ""))):
        return router_keys.OFF
    steps = whole("gradient_accumulation_steps", given(tree, "gradient_accumulation_steps", 1))
    if steps > 1:
        raise InputError(f"gradient_accumulation_steps={steps}: {_ROUTER_MEAN}; set it to 1")
    if tree.get("loss_type") == "dft":
        raise InputError("loss_type=dft: TRL adds a router's loss to it, and trials do not; set it to nll")
    rows = whole("per_device_train_batch_size", given(tree, "per_device_train_batch_size", 8))
    if flag("packing", given(tree, "packing", False)) and rows > 1:
        raise InputError("packing=True: a router's loss would count the padding of packed rows; set it to false")
    own: Tree = {"model.output_router_logits": True, "model.router_aux_loss_coef": None}
    return own if weight is None else router_keys.weighted("router_aux_loss_coef", given_weight)


def _write_router(config: SweepConfig) -> Tree:
    if not config.model.output_router_logits:
        return {"router_aux_loss_coef": 0.0} if router_keys.is_mixture(model_folder(config.model.path)) else {}
    if config.training.gradient_accumulation_steps > 1:
        raise InputError(f"training.gradient_accumulation_steps: {_ROUTER_MEAN}; sweep with 1")
    weight = config.model.router_aux_loss_coef
    if weight == 0:
        raise InputError("model.router_aux_loss_coef=0: TRL then has no such loss; set output_router_logits=false")
    return {} if weight is None else {"router_aux_loss_coef": weight}


_ROWS = (
    Row(
        (
            "model_name_or_path",
            "loss_type",
            "gradient_accumulation_steps",
            "per_device_train_batch_size",
            "packing",
            "router_aux_loss_coef",  # last, so that an edit changes it and not the others
        ),
        router_keys.OURS,
        _read_router,
        _write_router,
    ),
    exact(
        "TRL",
        Row(
            ("loss_type",),
            training_arguments.LOSS_OURS,
            _read_loss,
            lambda config: {"loss_type": "dft"} if config.training.loss == "dft" else {},
        ),
    ),
    exact("TRL", Row(("eos_token",), ("model.special_tokens",), _read_eos, _write_eos)),
    training_arguments.mean_over("TRL"),
    fixed("TRL", {"model.pad_embeddings_to_multiple_of": None}),
    fixed("TRL", {"data.drop_long_rows": False}),
    Row(("model_name_or_path", "model_revision"), ("model.path", "model.revision"), read_model, write_model),
    key("attn_implementation", "model.attn_implementation", None, word),
    Row(
        ("bf16", "dtype", "use_peft", "deepspeed", "fsdp", "accelerate_config"),
        ("model.dtype", "finetune.pure_bf16"),
        _read_precision,
        _write_precision,
    ),
    Row(
        ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"),
        ("model.quantization", "model.double_quantization"),
        _read_quantization,
        _write_quantization,
    ),
    Row(
        ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "use_rslora"),
        tuple(f"finetune.{name}" for name in lora_keys.OURS),
        _read_lora,
        _write_lora,
    ),
    Row(
        (
            "datasets",
            "dataset_name",
            "dataset_config",
            "dataset_train_split",
            "dataset_text_field",
            "assistant_only_loss",
            "completion_only_loss",
        ),
        ("data.path", "data.name", "data.split", "data.columns", "data.format", "data.train_on_prompt"),
        _read_data,
        _write_data,
    ),
    Row(
        ("dataset_test_split", "test_split_size"),
        ("data.eval_split", "data.eval_fraction"),
        _read_evaluation_set,
        _write_evaluation_set,
        keep_file_value=True,
    ),
    key("max_length", "data.max_length", 1024, whole),
    key("packing", "data.packing", False, flag),
)


def _rows(version: Version | None) -> Sequence[Row]:
    return (*_ROWS, *training_arguments.rows(2e-5, warmup(version), training_arguments.checkpointing(True)))


def _check(config: SweepConfig, version: Version | None) -> None:
    if config.finetune.mode == "freeze":
        raise InputError(
            "finetune.mode=freeze: TRL has no such mode; sweep with finetune=lora or full, or export to llamafactory"
        )


def _complete(config: SweepConfig) -> Tree:
    return {"output_dir": f"{config.name}-run", "logging_nan_inf_filter": False}


def _held_out(tree: Tree, config: SweepConfig) -> Tree:
    """`trl sft` evaluates on a split from the hub, or on one that it splits off, which needs the key `datasets`."""
    share = {"test_split_size": tree.get("test_split_size") or share_only(config.data.eval_fraction, "TRL")}
    if tree.get("datasets"):
        return share
    if config.data.eval_split:
        return {}
    names = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
    entry = {name: tree[key] for name, key in names.items() if tree.get(key)}
    return {**dict.fromkeys((*names.values(), "dataset_test_split")), "datasets": [entry], **share}


# What is TRL's own default for each of its commands: the learning rate; what their runs are compared by.
_COMMANDS: Mapping[str, TheirRun] = {
    "sft": TheirRun("", lr=2e-5),
    "dpo": TheirRun("", "eval_rewards/accuracies", "maximize", 1e-6, "trl dpo"),
    "kto": TheirRun("", lr=1e-6, method="trl kto"),
    "reward": TheirRun("", "eval_accuracy", "maximize", 1e-4, "trl reward"),
    "grpo": TheirRun("", "reward", "maximize", 1e-6, "trl grpo", evaluates=False),
    "rloo": TheirRun("", "reward", "maximize", 1e-6, "trl rloo", evaluates=False),
}
# `trl dpo`, and its module `trl.scripts.dpo` or that file.
_IN_COMMAND = re.compile(r"(?:^|[\s/])trl\s+(\w+)|trl[./]scripts[./](\w+)")
# Keys that only one command has, or that tell it from `trl sft`.
_SIGNS = (
    ("rloo", "normalize_advantages reward_clip_range"),
    ("grpo", "reward_funcs num_generations max_completion_length scale_rewards num_iterations epsilon use_vllm"),
    ("kto", "desirable_weight undesirable_weight"),
    ("reward", "center_rewards_coefficient"),
    ("dpo", "beta precompute_ref_log_probs f_divergence_type loss_weights ld_alpha sync_ref_model use_weighting"),
)
# Keys that only `trl sft` has.
_OF_SFT = ("completion_only_loss", "assistant_only_loss", "packing", "dataset_text_field", "chat_template_path")
_GUESS = (
    "no key tells which of TRL's commands it is for, so it is taken for trl sft; for another: "
    "--command 'trl dpo --config {config}'"
)


def _their_run(tree: Tree, command: str | None) -> TheirRun:
    name = next((name for name, keys in _SIGNS if any(tree.get(key) is not None for key in keys.split())), "sft")
    if command is None:
        guess = name == "sft" and not any(tree.get(key) is not None for key in _OF_SFT)
        return replace(_COMMANDS[name], command=f"trl {name} --config {{config}}", guess=_GUESS if guess else "")
    match = _IN_COMMAND.search(command)
    named = next((name for name in match.groups() if name), "") if match else ""
    if named in _COMMANDS:
        return replace(_COMMANDS[named], command=command)
    return replace(_COMMANDS[name], command=command, method=OWN_SCRIPT)


def _does_not_train(tree: Tree) -> str | None:
    for names in (("model_name_or_path",), ("dataset_name", "datasets")):
        if not any(tree.get(name) for name in names):
            return f"{names[0]}: missing, so TRL itself would not train this file; give it"
    return None


def _relocated(tree: Tree, model: str | None, data_dir: str | None) -> Tree:
    found = dict(with_model(tree, model, None))
    if data_dir is None:
        return found
    if tree.get("datasets"):
        return found | {"datasets": moved(tree["datasets"], "data_files", data_dir)}
    return found | {"dataset_name": str(Path(data_dir, str(tree.get("dataset_name", ""))))}


def _notes(tree: Tree) -> list[str]:
    found = training_arguments.notes(tree)
    if tree.get("loss_type") == "dft":
        found.append(f"loss_type: dft stays: {training_arguments.WEIGHTED}")
    if tree.get("bf16") is not False and tree.get("use_peft") and tree.get("dtype", "float32") == "float32":
        found.append("dtype: float32 stays; trials keep the frozen base model in bf16")
    return found


DIALECT = Dialect(
    "trl",
    _rows,
    (
        *training_arguments.REFUSALS,
        Refusal("chat_template_path", "trials use the tokenizer's own template", "put it there as chat_template.jinja"),
        Refusal("packing_strategy", "trials keep packed rows whole and separate", "set it to bfd", ("bfd",)),
        Refusal("truncation_mode", "trials keep the start of long rows", "set it to keep_start", ("keep_start",)),
        Refusal("lora_modules_to_save", "trials train adapters only", "remove it", ([],)),
        Refusal("lora_target_parameters", "trials adapt modules only", "remove it", ([],)),
        Refusal("lora_task_type", "trials train causal models", "remove it", ("CAUSAL_LM",)),
        Refusal("streaming dataset_streaming", "trials need all rows", "set it to false"),
        Refusal("max_seq_length", "TRL 0.20 renamed it", "use max_length"),
        Refusal("torch_dtype", "TRL renamed it", "use dtype"),
        Refusal("model_init_kwargs", "it changes the model", "remove it", ({},)),
        Refusal("dataset_kwargs", "trials do not change rows", "remove it", ({},)),
        Refusal("padding_free", "trials pad batches; the loss is the same only with packing", "set it to false"),
        *(
            Refusal(keys, f"it is a key of trl {name}, and trials do supervised fine-tuning", "")
            for name, keys in _SIGNS
        ),
    ),
    harmless_keys.TRAINING_ARGUMENTS + harmless_keys.TRL,
    _their_run,
    _complete,
    _check,
    _notes,
    not_here=rows_are_ours,
    versioned=True,
    formats={
        "messages": frozenset({"messages"}),
        "prompt_completion": frozenset({"prompt", "completion"}),
        "text": frozenset({"text"}),
    },
    does_not_train=_does_not_train,
    relocated=_relocated,
    evaluation_keys=lambda tree, config: {**_held_out(tree, config), **evaluated(tree, config)},
    config_argument="--config {config}",
)
