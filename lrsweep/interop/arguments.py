"""TrainingArguments' rows, which the dialects of transformers, TRL and LLaMA-Factory share; each has its own defaults."""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, get_args

from lrsweep.config import OptimizerConfig, SchedulerName, SweepConfig
from lrsweep.errors import InputError
from lrsweep.interop.mapping import Refusal, Row, Tree, brief, flag, key, number, whole, word

# One update rule, in several makes; the 8-bit ones hold its state in fewer bits.
ADAMW = (
    "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_torch_xla", "adamw_torch_npu_fused",
    "paged_adamw", "paged_adamw_32bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_4bit",
    "adamw_torch_8bit",
)  # fmt: skip
# torch's name (and TrainingArguments', but for AdamW) -> what `optim_args` passes on; the rest is dropped there in silence.
_OPTIM_ARGS = {
    "sgd": {"momentum", "dampening", "nesterov"},
    "adagrad": {"lr_decay", "eps"},
    "rmsprop": {"momentum", "alpha", "eps", "centered"},
}
# What changes the training, and is on only where it is set.
REFUSALS = (
    Refusal("label_smoothing_factor", "trials learn the labels as they are", "set it to 0", (0, 0.0)),
    Refusal("neftune_noise_alpha", "trials add no noise to embeddings", "take it out"),
    Refusal("optim_target_modules", "trials have no optimizer that works on some modules", "take it out"),
    Refusal(
        "auto_find_batch_size", "a learning rate belongs to one batch size", "set it to false and choose the batch"
    ),
    Refusal("group_by_length", "trials draw rows at random", "set it to false"),
    Refusal("train_sampling_strategy", "trials draw rows at random", "set it to random", ("random",)),
    Refusal("fp16", "trials train in bf16 or float32", "set bf16: true instead, or fp16: false"),
    Refusal("fp8", "trials train in bf16 or float32", "set bf16: true instead"),
    Refusal("use_dft_loss", "it is another loss", "set it to false"),
)
SECTIONS = (
    "lr_scheduler_kwargs", "optim_args", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "fsdp_config",
    "deepspeed", "accelerator_config", "liger_kernel_config", "parallelism_config",
)  # fmt: skip


def rows(lr: float, warmup: Row, checkpointing: Row) -> tuple[Row, ...]:
    """The table, for a tool whose default learning rate is `lr`."""
    return (
        key("learning_rate", "optimizer.lr", lr, number),
        _OPTIMIZER,
        key("weight_decay", "optimizer.weight_decay", 0.0, number),
        key("max_grad_norm", "training.max_grad_norm", 1.0, number),
        _SCHEDULER,
        warmup,
        key("per_device_train_batch_size", "training.batch_size", 8, whole),
        key("gradient_accumulation_steps", "training.gradient_accumulation_steps", 1, whole),
        _LENGTH,
        _EVALUATION,
        checkpointing,
        key("seed", "training.seed", 42, whole),
    )


def ratio(tree: Tree) -> Tree:
    """Warm-up as all versions mean it: steps beat the ratio, and steps below 1 are one."""
    steps = number("warmup_steps", tree.get("warmup_steps") or 0)
    share = number("warmup_ratio", tree.get("warmup_ratio") or 0)
    if steps >= 1:
        return {"scheduler.warmup_steps": whole("warmup_steps", steps), "scheduler.warmup_ratio": None}
    share = steps or share
    return {"scheduler.warmup_steps": None, "scheduler.warmup_ratio": share or None}


def _ratio_key(config: SweepConfig) -> Tree:
    scheduler = config.scheduler
    if scheduler.warmup_steps is not None:
        return {"warmup_steps": scheduler.warmup_steps}
    return {"warmup_ratio": scheduler.warmup_ratio or 0.0}


def _one_key(config: SweepConfig) -> Tree:
    scheduler = config.scheduler
    return {
        "warmup_steps": scheduler.warmup_steps if scheduler.warmup_steps is not None else scheduler.warmup_ratio or 0
    }


_WARMUP_OURS = ("scheduler.warmup_steps", "scheduler.warmup_ratio")
# transformers up to 5.14 has both keys; from 5.15 on, warmup_steps alone, a share where it is below 1.
WARMUP_RATIO = Row(("warmup_steps", "warmup_ratio"), _WARMUP_OURS, ratio, _ratio_key, exclusive=True)
WARMUP_STEPS = Row(("warmup_steps", "warmup_ratio"), _WARMUP_OURS, ratio, _one_key, exclusive=True)


def checkpointing(default: bool) -> Row:
    """Activation checkpointing, under its old or its new name."""
    names = ("gradient_checkpointing", "activation_checkpointing")

    def read(tree: Tree) -> Tree:
        said = [flag(name, tree[name]) for name in names if tree.get(name) is not None]
        return {"training.gradient_checkpointing": any(said) if said else default}

    def write(config: SweepConfig) -> Tree:
        # The old name, which transformers 4 and 5 both take; only where it has to be said.
        wanted = config.training.gradient_checkpointing
        return {} if wanted == default else {"gradient_checkpointing": wanted}

    return Row(names, ("training.gradient_checkpointing",), read, write)


def mapping_of(name: str, value: Any) -> dict[str, Any]:
    """A mapping, also as the JSON text that the tools take for one."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise InputError(f"{name}={brief(value)}: not a mapping; write {name}: {{name: value}}")
    return dict(value)


def _read_optimizer(tree: Tree) -> Tree:
    name, said = word("optim", tree.get("optim") or "adamw_torch"), tree.get("optim_args")
    if name not in ADAMW and name not in _OPTIM_ARGS:
        raise InputError(
            f"optim={name}: trials train with {ADAMW[0]} (or its other makes) or {', '.join(_OPTIM_ARGS)}; choose one of them"
        )
    passed = _passed(said)
    for argument in passed:
        if argument not in _OPTIM_ARGS.get(name, ()):
            raise InputError(f"optim_args={brief(said)}: {name} is not given {argument} there; take it out")
    eps = number("adam_epsilon", tree.get("adam_epsilon") if tree.get("adam_epsilon") is not None else 1e-8)
    betas = [
        number(beta, default if tree.get(beta) is None else tree[beta])
        for beta, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999))
    ]
    return {
        "optimizer.name": "adamw" if name in ADAMW else name,
        "optimizer.betas": betas,
        "optimizer.eps": passed.pop("eps") if "eps" in passed else eps,
        "optimizer.kwargs": passed,
    }


def _passed(said: Any) -> dict[str, Any]:
    """`momentum=0.9,nesterov=True` as a mapping."""
    found: dict[str, Any] = {}
    for part in str(said).replace(" ", "").split(",") if said else ():
        name, _, value = part.partition("=")
        found[name] = value == "True" if value in ("True", "False") else number(f"optim_args.{name}", value)
    return found


def _write_optimizer(config: SweepConfig) -> Tree:
    optimizer = config.optimizer
    if optimizer.name == "adamw":
        _refuse_beyond(optimizer, set())
        adam = {"adam_beta1": optimizer.betas[0], "adam_beta2": optimizer.betas[1], "adam_epsilon": optimizer.eps}
        return {"optim": "adamw_torch", **adam}
    if optimizer.name not in _OPTIM_ARGS:
        raise InputError(
            f"optimizer.name={optimizer.name!r}: TrainingArguments has no name for torch's (it has adamw, "
            f"{', '.join(_OPTIM_ARGS)}); pass the optimizer to Trainer in code"
        )
    accepted = _OPTIM_ARGS[optimizer.name]
    _refuse_beyond(optimizer, accepted)
    passed = ({"eps": optimizer.eps} if "eps" in accepted else {}) | optimizer.kwargs
    return {"optim": optimizer.name} | (
        {"optim_args": ",".join(f"{k}={v}" for k, v in passed.items())} if passed else {}
    )


def _refuse_beyond(optimizer: OptimizerConfig, accepted: set[str]) -> None:
    for name in optimizer.kwargs:
        if name not in accepted:
            raise InputError(
                f"optimizer.kwargs.{name}: TrainingArguments cannot pass it to {optimizer.name}; take it out of the sweep"
            )


def _read_scheduler(tree: Tree) -> Tree:
    name = word("lr_scheduler_type", tree.get("lr_scheduler_type") or "linear")
    if name not in get_args(SchedulerName):
        raise InputError(
            f"lr_scheduler_type={name}: trials have no such schedule; choose of {', '.join(get_args(SchedulerName))}"
        )
    kwargs = tree.get("lr_scheduler_kwargs")
    return {"scheduler.name": name, "scheduler.kwargs": mapping_of("lr_scheduler_kwargs", kwargs) if kwargs else {}}


def _write_scheduler(config: SweepConfig) -> Tree:
    kwargs = dict(config.scheduler.kwargs)
    return {"lr_scheduler_type": config.scheduler.name} | ({"lr_scheduler_kwargs": kwargs} if kwargs else {})


def _read_length(tree: Tree) -> Tree:
    steps = whole("max_steps", tree.get("max_steps") or -1)
    return {"training.horizon": steps} if steps > 0 else {}


def _read_evaluation(tree: Tree) -> Tree:
    found: dict[str, Any] = {
        "training.eval_batch_size": whole("per_device_eval_batch_size", tree.get("per_device_eval_batch_size") or 8)
    }
    every = number("eval_steps", tree.get("eval_steps") or 0)
    return found | ({"training.eval_every": whole("eval_steps", every)} if every >= 1 else {})


def _write_evaluation(config: SweepConfig) -> Tree:
    training = config.training
    return {
        "eval_strategy": "steps",
        "eval_steps": training.eval_every,
        "per_device_eval_batch_size": training.eval_batch_size,
    }


_OPTIMIZER = Row(
    ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    ("optimizer.name", "optimizer.betas", "optimizer.eps", "optimizer.kwargs"),
    _read_optimizer, _write_optimizer,
)  # fmt: skip
_SCHEDULER = Row(
    ("lr_scheduler_type", "lr_scheduler_kwargs"),
    ("scheduler.name", "scheduler.kwargs"),
    _read_scheduler,
    _write_scheduler,
)
_LENGTH = Row(
    ("max_steps", "num_train_epochs"), ("training.horizon", "training.max_steps"), _read_length,
    lambda config: {"max_steps": config.training.schedule_steps}, own=True,
)  # fmt: skip
_EVALUATION = Row(
    ("eval_strategy", "evaluation_strategy", "eval_steps", "do_eval", "per_device_eval_batch_size"),
    ("training.eval_every", "training.eval_batch_size"), _read_evaluation, _write_evaluation, own=True,
)  # fmt: skip


def epochs(tree: Tree, name: str = "num_train_epochs", default: float = 3.0) -> float:
    """How often the run goes over its rows, where its steps are not given."""
    found = number(name, tree.get(name) if tree.get(name) is not None else default)
    if not found > 0 or math.isinf(found):
        raise InputError(f"{name}={found:g}: no run; give a number above 0")
    return found


def model_folder(path: str) -> str:
    """The model's path; that of the shipped model where that is meant."""
    if path != "embedded":
        return path
    from lrsweep.embedded import BASE

    return str(BASE)


def rows_are_ours(config: SweepConfig) -> str:
    """What a file has to say that names rows which no other tool has."""
    if config.data.path != "embedded":
        return ""
    return "# The rows are lrsweep's own, from Python's standard library: name your data set instead of `embedded`.\n"


def notes(tree: Tree) -> list[str]:
    """What stays with the trainer and is not quite so in trials."""
    found = []
    if tree.get("optim") in ADAMW[6:]:
        found.append(f"optim: {tree['optim']} stays; trials train with AdamW in 32 bits, with the same hyperparameters")
    if tree.get("deepspeed") or tree.get("fsdp"):
        found.append(
            "deepspeed and fsdp stay; on N devices, set training.gradient_accumulation_steps to N times its value"
        )
    return found
