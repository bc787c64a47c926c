"""The dialect of LLaMA-Factory's default engine: the config that `llamafactory-cli train FILE` reads.

LLaMA-Factory requires a version of transformers that still has warmup_ratio.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import FinetuneConfig
from lrsweep.dialects import harmless_keys, lora_keys, router_keys, training_arguments
from lrsweep.dialects.data_keys import NO_EVALUATION, share_held_out
from lrsweep.dialects.llamafactory_data import (
    data_not_here,
    read_data,
    read_evaluation_set,
    read_packing,
    read_template,
    write_data,
    write_evaluation_set,
)
from lrsweep.dialects.mapping import (
    OWN_SCRIPT,
    Dialect,
    Refusal,
    Row,
    TheirRun,
    Tree,
    Version,
    evaluated,
    saved_at_evaluations,
    with_model,
)
from lrsweep.dialects.model_keys import read_model, write_model
from lrsweep.dialects.rows import fixed, flag, given, key, names, number, whole, word
from lrsweep.errors import InputError

_ATTENTION = {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
_IN_COMMAND = re.compile(r"llamafactory|\blmf\b|\bsrc/train\.py\b")
_V1 = "model peft_config micro_batch_size global_batch_size optim_config lr_scheduler_config train_dataset dist_config"


def _read_model(tree: Tree) -> Tree:
    attention = word("flash_attn", tree.get("flash_attn") or "auto")
    if attention not in _ATTENTION:
        raise InputError(f"flash_attn={attention}: no such attention; choose one of {', '.join(_ATTENTION)}")
    return {**read_model(tree), "model.attn_implementation": _ATTENTION[attention]}


def _write_model(config: SweepConfig) -> Tree:
    model = config.model
    names = {ours: theirs for theirs, ours in _ATTENTION.items()}
    if model.attn_implementation not in names:
        raise InputError(
            f"model.attn_implementation={model.attn_implementation}: LLaMA-Factory has no name for it; choose one of "
            f"{', '.join(name for name in names if name)}"
        )
    return {
        **write_model(config),
        **({"flash_attn": names[model.attn_implementation]} if model.attn_implementation else {}),
    }


def _read_precision(tree: Tree) -> Tree:
    pure = flag("pure_bf16", tree.get("pure_bf16") or False)
    if pure and (tree.get("finetuning_type") or "lora") == "lora":
        raise InputError("pure_bf16=True: trials keep adapters in float32; set bf16: true instead")
    # fp16 too keeps what is trained in float32, and differs from bf16 in rounding alone.
    dtype = "bfloat16" if pure or flag("bf16", tree.get("bf16") or False) else "auto"
    return {"model.dtype": dtype, "finetune.pure_bf16": pure and not training_arguments.sharded(tree)}


def _write_precision(config: SweepConfig) -> Tree:
    return {"pure_bf16": True} if config.finetune.pure_bf16 else training_arguments.write_precision(config)


def _read_quantization(tree: Tree) -> Tree:
    bits = tree.get("quantization_bit")
    if bits is None:
        return {"model.quantization": None}
    if whole("quantization_bit", bits) not in (4, 8):
        raise InputError(f"quantization_bit={bits}: trials quantize to 4 or 8 bits; choose one of them")
    return {"model.quantization": f"{int(bits)}bit"}


def _read_finetune(tree: Tree) -> Tree:
    mode = word("finetuning_type", tree.get("finetuning_type") or "lora")
    if mode not in ("lora", "full", "freeze"):
        raise InputError(f"finetuning_type={mode}: trials do lora, full and freeze; choose one of them")
    if mode == "full":
        return {"finetune.mode": mode}
    if mode == "freeze":
        layers = whole("freeze_trainable_layers", given(tree, "freeze_trainable_layers", 2))
        if layers < 1:
            raise InputError(f"freeze_trainable_layers={layers}: trials train the last layers; give a number above 0")
        return {"finetune.mode": mode, "finetune.trainable_layers": layers}
    rank = whole("lora_rank", given(tree, "lora_rank", 8))
    targets = names("lora_target", given(tree, "lora_target", "all"))
    if tree.get("loraplus_lr_ratio") is not None and any("emb" in target or "wte" in target for target in targets):
        raise InputError(
            f"loraplus_lr_ratio: with lora_target={','.join(targets)} it gives embeddings a rate of their own"
        )
    return {
        **lora_keys.read(tree, ("lora_rank", 8), alpha=0, dropout=0.0, prefix="use", loraplus="loraplus_lr_ratio"),
        "finetune.alpha": number("lora_alpha", tree.get("lora_alpha") or 2 * rank),
        "finetune.init_lora_weights": _read_pissa(tree),
        "finetune.target_modules": "all-linear" if targets == ["all"] else targets,
    }


def _read_pissa(tree: Tree) -> bool | str:
    if not flag("pissa_init", tree.get("pissa_init") or False):
        return True
    steps = whole("pissa_iter", given(tree, "pissa_iter", 16))
    if steps != -1 and not 1 <= steps <= 99:
        raise InputError(f"pissa_iter={steps}: trials do 1 to 99 iterations, or -1 for none; choose one of them")
    return "pissa" if steps == -1 else f"pissa_niter_{steps}"


def _write_pissa(finetune: FinetuneConfig) -> Tree:
    init = finetune.init_lora_weights
    if init is True:
        return {}
    if not str(init).startswith("pissa"):
        raise InputError(
            f"finetune.init_lora_weights={init}: LLaMA-Factory has no key for it; use pissa, pissa_niter_16 or true"
        )
    return {"pissa_init": True, "pissa_iter": int(str(init).removeprefix("pissa").removeprefix("_niter_") or -1)}


def _write_finetune(config: SweepConfig) -> Tree:
    finetune = config.finetune
    if finetune.mode == "full":
        return {"finetuning_type": "full"}
    if finetune.mode == "freeze":
        return {"finetuning_type": "freeze", "freeze_trainable_layers": finetune.trainable_layers}
    targets = finetune.target_modules
    if targets is None or (isinstance(targets, str) and targets != "all-linear"):
        raise InputError(f"finetune.target_modules={targets!r}: LLaMA-Factory takes names only; list them")
    named = {"lora_target": "all" if isinstance(targets, str) else ",".join(targets)}
    usual = finetune.model_copy(update={"init_lora_weights": True})
    written = lora_keys.write(usual, "lora_rank", "use", named, "LLaMA-Factory", "loraplus_lr_ratio")
    return {"finetuning_type": "lora", **written, **_write_pissa(finetune)}


_LOSSES = {"use_dft_loss": "dft", "use_eaft_loss": "eaft", "use_asft_loss": "asft"}
_ALPHAS = {"eaft_alpha": 1.0, "asft_alpha": 0.1}


def _read_loss(tree: Tree) -> Tree:
    # With the first two, LLaMA-Factory takes the first.
    asked = [loss for name, loss in _LOSSES.items() if flag(name, tree.get(name) or False)]
    if "asft" in asked:
        if len(asked) > 1:
            raise InputError("use_asft_loss=True: it goes with no other loss; set the others to false")
        if word("finetuning_type", tree.get("finetuning_type") or "lora") == "lora":
            raise InputError("use_asft_loss=True: with LoRA it needs a ref_model there; set finetuning_type: full")
        if tree.get("packing") or tree.get("neat_packing"):
            raise InputError("use_asft_loss=True: packed rows have other positions in its second model; do not pack")
    alphas = {f"training.{name}": number(name, given(tree, name, usual)) for name, usual in _ALPHAS.items()}
    return {"training.loss": asked[0] if asked else "cross_entropy", **alphas}


def _write_loss(config: SweepConfig) -> Tree:
    training = config.training
    if training.loss == "asft" and (config.finetune.mode == "lora" or config.data.packing):
        raise InputError("training.loss=asft: LLaMA-Factory has it for whole weights and rows only; sweep so")
    asked: dict[str, Any] = {name: True for name, loss in _LOSSES.items() if loss == training.loss}
    return asked | {name: value for name, usual in _ALPHAS.items() if (value := getattr(training, name)) != usual}


def _has_other_loss(tree: Tree) -> bool:
    """Whether a loss of its own replaces the model's. Raises InputError if rows are packed."""
    if any(flag(name, tree.get(name) or False) for name in _LOSSES):
        return True
    if tree.get("packing") or tree.get("neat_packing"):
        raise InputError("moe_aux_loss_coef: with packed rows, LLaMA-Factory counts them by their place; do not pack")
    return False


_ROWS = (
    training_arguments.mean_over("LLaMA-Factory"),
    fixed(
        "LLaMA-Factory",
        {
            "model.special_tokens": {},
            "model.pad_embeddings_to_multiple_of": None,
            "data.drop_long_rows": False,
            "finetune.unfrozen_parameters": [],
        },
    ),
    router_keys.row("LLaMA-Factory", "moe_aux_loss_coef", (*_LOSSES, "packing", "neat_packing"), _has_other_loss),
    Row(
        ("model_name_or_path", "model_revision", "flash_attn"),
        ("model.path", "model.revision", "model.attn_implementation"),
        _read_model,
        _write_model,
    ),
    Row(
        ("bf16", "pure_bf16", "deepspeed", "fsdp"),
        ("model.dtype", "finetune.pure_bf16"),
        _read_precision,
        _write_precision,
    ),
    Row(
        ("quantization_bit",),
        ("model.quantization",),
        _read_quantization,
        lambda config: {"quantization_bit": int(config.model.quantization[0])} if config.model.quantization else {},
    ),
    key("double_quantization", "model.double_quantization", True, flag, lambda value: None if value else False),
    Row(
        (
            "finetuning_type",
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_target",
            "use_dora",
            "use_rslora",
            "loraplus_lr_ratio",
            "pissa_init",
            "pissa_iter",
            "freeze_trainable_layers",
        ),
        tuple(f"finetune.{name}" for name in (*lora_keys.OURS, "trainable_layers")),
        _read_finetune,
        _write_finetune,
    ),
    Row(
        ("dataset", "dataset_dir", "max_samples", "tokenized_path"),
        ("data.path", "data.format", "data.name", "data.max_rows_per_set"),
        read_data,
        write_data,
    ),
    Row(
        ("template",),
        ("data.template",),
        read_template,
        lambda config: {"template": written} if (written := read_template(vars(config.data))["data.template"]) else {},
    ),
    Row((*_LOSSES, *_ALPHAS), training_arguments.LOSS_OURS, _read_loss, _write_loss),
    key("cutoff_len", "data.max_length", 2048, whole),
    key("train_on_prompt", "data.train_on_prompt", False, flag, lambda value: value or None),
    Row(
        ("packing", "neat_packing"),
        ("data.packing",),
        read_packing,
        lambda config: {"neat_packing": True} if config.data.packing else {},
    ),
    Row(
        ("eval_dataset", "val_size"),
        ("data.eval_name", "data.eval_fraction"),
        read_evaluation_set,
        write_evaluation_set,
        keep_file_value=True,
    ),
)
_CHECKPOINTING = Row(
    ("disable_gradient_checkpointing",),
    ("training.gradient_checkpointing",),
    lambda tree: {
        "training.gradient_checkpointing": not flag(
            "disable_gradient_checkpointing", tree.get("disable_gradient_checkpointing") or False
        )
    },
    lambda config: {"disable_gradient_checkpointing": not config.training.gradient_checkpointing},
)


def _rows(version: Version | None) -> Sequence[Row]:
    return (*_ROWS, *training_arguments.rows(5e-5, training_arguments.WARMUP_RATIO, _CHECKPOINTING))


def _check(config: SweepConfig, version: Version | None) -> None:
    if version is not None and version >= (1, 0):
        raise InputError(
            "--target-version v1: LLaMA-Factory's v1 engine has no keys for betas, weight decay, schedule and warm-up; "
            "train with its default engine (without USE_V1), and export without --target-version"
        )
    if config.model.output_router_logits and config.data.packing:
        raise InputError(
            "model.output_router_logits=true: LLaMA-Factory counts packed rows by their place; set data.packing=false"
        )


def _complete(config: SweepConfig) -> Tree:
    found: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "output_dir": f"{config.name}-run",
        "logging_nan_inf_filter": False,
    }
    if config.data.format == "prompt_completion":
        found["template"] = "empty"
    return found


def _trial_keys(tree: Tree, config: SweepConfig, output: str) -> Tree:
    if _is_v1(tree):
        return {"output_dir": output, "logging_steps": 1, "save_steps": None, "save_epochs": None}
    if config.search.metric not in ("eval_loss", "loss"):
        # Its own log has no other metrics; transformers' comes out with the checkpoints.
        return {**saved_at_evaluations(tree, config, output), "overwrite_output_dir": True, "plot_loss": False}
    # LLaMA-Factory writes its log during training, without checkpoints.
    keys = {"save_strategy": "no", "overwrite_output_dir": True, "plot_loss": False}
    return {"output_dir": output, "logging_steps": 1, **keys}


def _is_v1(tree: Tree) -> bool:
    return tree.get("model_name_or_path") is None and tree.get("train_dataset") is not None


def _does_not_train(tree: Tree) -> str | None:
    if _is_v1(tree):
        return None
    for either in (("model_name_or_path",), ("dataset", "tokenized_path")):
        if not any(tree.get(name) for name in either):
            return f"{either[0]}: missing, so LLaMA-Factory itself would not train this file; give it"
    if tree.get("do_train") is False or (tree.get("do_predict") and not tree.get("do_train")):
        return "do_train=False: LLaMA-Factory itself would not train this file; set do_train: true"
    return None


def _their_run(tree: Tree, command: str | None) -> TheirRun:
    if _is_v1(tree):
        command = command or "env USE_V1=1 llamafactory-cli train {config}"
        return TheirRun(command, "loss", lr=1e-4, method="the v1 engine", evaluates=False)
    run = TheirRun(command or "llamafactory-cli train {config}")
    stage = str(tree.get("stage") or "sft")
    if not _IN_COMMAND.search(run.command):
        run = replace(run, method=OWN_SCRIPT)
    if stage in ("sft", "pt"):
        return run
    run = replace(run, method=run.method or f"stage {stage}", evaluates=stage != "ppo")
    highest = {"dpo": "eval_rewards/accuracies", "rm": "eval_accuracy", "ppo": "reward"}
    if stage not in highest or (stage == "dpo" and tree.get("pref_loss") in ("orpo", "simpo")):
        return run
    return replace(run, metric=highest[stage], direction="maximize")


def _not_here(config: SweepConfig) -> str:
    """Comments on the data, and on a precision that no key asks for: with bf16: false LLaMA-Factory picks one."""
    dtype, data = config.model.dtype, data_not_here(config)
    if dtype in ("auto", "bfloat16"):
        return data
    return (
        f"# Trials ran in {dtype}. Without bf16, LLaMA-Factory trains in bfloat16 on a GPU if the weights are, else in "
        f"float16; on a CPU in float32.\n{data}"
    )


def _notes(tree: Tree) -> list[str]:
    found = training_arguments.notes(tree)
    for name in _LOSSES:
        if tree.get(name):
            found.append(f"{name} stays: {training_arguments.WEIGHTED}")
    if tree.get("moe_aux_loss_coef"):
        found.append(
            "moe_aux_loss_coef has no effect there for other models than mixtral, qwen2_moe, qwen3_moe, olmoe, phimoe, "
            "granitemoe, jamba, llama4 and ernie4_5_moe; for those, set model.output_router_logits=false and "
            "model.router_aux_loss_coef=null"
        )
    if tree.get("fp8"):
        found.append(training_arguments.COARSE)
    if tree.get("tokenized_path"):
        found.append("tokenized_path stays: LLaMA-Factory keeps the tokens there; trials make the same of the data set")
    if tree.get("trust_remote_code"):
        found.append("trust_remote_code stays; trials load the model with transformers' own code only")
    if not tree.get("val_size") and not tree.get("eval_dataset"):
        found.append(NO_EVALUATION)
    return found


_METHOD = "trials train plain LoRA, all weights or the last layers"
_DATA = "trials train on the answers in the rows, unchanged and in random order"
DIALECT = Dialect(
    "llamafactory",
    _rows,
    (
        Refusal(
            _V1,
            "a key of the v1 engine (USE_V1=1), which has no betas and no schedules",
            "use the default engine's keys",
        ),
        Refusal("stage", "trials do supervised fine-tuning only", "set stage: sft", ("sft",)),
        Refusal(
            "use_galore use_apollo use_badam use_adam_mini use_muon",
            "it is another optimizer, with another best learning rate",
            "set it to false",
        ),
        Refusal(
            "use_llama_pro additional_target freeze_extra_modules adapter_name_or_path mixture_of_depths "
            "use_mca use_kt train_from_scratch",
            _METHOD,
            "remove it",
        ),
        Refusal("freeze_trainable_modules", _METHOD, "remove it", ("all",)),
        Refusal(
            "mask_history streaming disable_shuffling tool_format default_system "
            "eval_on_each_dataset preserve_thinking",
            _DATA,
            "remove it",
        ),
        Refusal("mix_strategy", "trials concatenate data sets", "set it to concat", ("concat",)),
        Refusal("quantization_method", "trials quantize with bitsandbytes", "set it to bnb", ("bnb",)),
        Refusal("quantization_type", "trials quantize to nf4", "set it to nf4", ("nf4",)),
        Refusal("ignore_pad_token_for_loss", "trials do not learn padding", "set it to true", (True,), off=False),
        Refusal("use_fast_tokenizer", "trials use the fast tokenizer", "set it to true", (True,), off=False),
        Refusal(
            "rope_scaling shift_attn resize_vocab add_tokens add_special_tokens new_special_tokens_config",
            "it changes the model",
            "remove it",
        ),
        Refusal("use_megatron_bridge use_hyper_parallel", "it is another training loop", "set it to false"),
        Refusal("upcast_layernorm upcast_lmhead_output", "it changes the model's precision", "set it to false"),
        Refusal(
            "image_max_pixels image_min_pixels video_max_pixels video_min_pixels video_fps video_maxlen "
            "audio_sampling_rate freeze_vision_tower freeze_multi_modal_projector freeze_language_model",
            "trials learn from text alone",
            "remove it",
        ),
        *training_arguments.REFUSALS,
    ),
    harmless_keys.TRAINING_ARGUMENTS + harmless_keys.LLAMAFACTORY,
    _their_run,
    _complete,
    _check,
    _notes,
    not_here=_not_here,
    versioned=True,
    trial_keys=_trial_keys,
    does_not_train=_does_not_train,
    relocated=lambda tree, model, data_dir: {
        **with_model(tree, model, None),
        **({"dataset_dir": data_dir} if data_dir is not None else {}),
    },
    evaluation_keys=lambda tree, config: {
        **share_held_out(tree, config, "eval_dataset", "val_size"),
        **evaluated(tree, config),
    },
)
