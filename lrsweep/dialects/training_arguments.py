"""TrainingArguments' rows, which transformers, TRL and LLaMA-Factory share, each with its own defaults."""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, get_args

from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import SchedulerName
from lrsweep.dialects import optimizer_keys
from lrsweep.dialects.mapping import Refusal, Row, Tree, brief
from lrsweep.dialects.optimizer_keys import PAGED_OR_LOW_BIT_ADAMW
from lrsweep.dialects.rows import flag, key, number, whole, word
from lrsweep.errors import InputError

# Keys that change training and are off by default.
REFUSALS = (
    Refusal("label_smoothing_factor", "trials do not smooth labels", "set it to 0", (0, 0.0)),
    Refusal("neftune_noise_alpha", "trials add no noise to embeddings", "remove it"),
    Refusal("optim_target_modules", "trials have no optimizer for single modules", "remove it"),
    Refusal(
        "auto_find_batch_size", "a learning rate is for one batch size", "set it to false and choose the batch size"
    ),
    Refusal("group_by_length", "trials draw rows at random", "set it to false"),
    Refusal("train_sampling_strategy", "trials draw rows at random", "set it to random", ("random",)),
)


def rows(lr: float, warmup: Row, checkpointing: Row) -> tuple[Row, ...]:
    """Returns the rows of TrainingArguments.

    Args:
        lr: The trainer's default learning rate.
        warmup: The row for the warm-up, `WARMUP_RATIO` or `WARMUP_STEPS`.
        checkpointing: The row for activation checkpointing.
    """
    return (
        key("learning_rate", "optimizer.lr", lr, number),
        optimizer_keys.row(),
        optimizer_keys.ONE_RATE,
        key("weight_decay", "optimizer.weight_decay", 0.0, number),
        key("max_grad_norm", "training.max_grad_norm", 1.0, number),
        scheduler("lr_scheduler_type", "linear"),
        warmup,
        key("per_device_train_batch_size", "training.batch_size", 8, whole),
        key("gradient_accumulation_steps", "training.gradient_accumulation_steps", 1, whole),
        length("num_train_epochs"),
        evaluation(8),
        checkpointing,
        key("seed", "training.seed", 42, whole),
    )


def read_warmup(tree: Tree) -> Tree:
    """Reads the warm-up as all versions do: steps take precedence over the ratio, and steps below 1 are a ratio."""
    steps = number("warmup_steps", tree.get("warmup_steps") or 0)
    share = number("warmup_ratio", tree.get("warmup_ratio") or 0)
    if steps >= 1:
        return {"scheduler.warmup_steps": whole("warmup_steps", steps), "scheduler.warmup_ratio": None}
    share = steps or share
    return {"scheduler.warmup_steps": None, "scheduler.warmup_ratio": share or None}


def write_warmup(config: SweepConfig) -> Tree:
    """Writes the warm-up to one of the two keys."""
    scheduler = config.scheduler
    if scheduler.warmup_steps is not None:
        return {"warmup_steps": scheduler.warmup_steps}
    return {"warmup_ratio": scheduler.warmup_ratio or 0.0}


def _write_warmup_steps(config: SweepConfig) -> Tree:
    scheduler = config.scheduler
    return {
        "warmup_steps": scheduler.warmup_steps if scheduler.warmup_steps is not None else scheduler.warmup_ratio or 0
    }


LOSS_OURS = ("training.loss", "training.eaft_alpha", "training.asft_alpha")
# What the trainers always do that have no key for it.
PLAIN_LOSS = {"training.loss": "cross_entropy", "training.eaft_alpha": 1.0, "training.asft_alpha": 0.1}


def mean_over(trainer: str) -> Row:
    """Returns the row for trainers that take a step's loss as the mean over its label tokens: all but Axolotl."""

    def write(config: SweepConfig) -> Tree:
        training = config.training
        if training.mean_over != "tokens" and training.gradient_accumulation_steps > 1:
            raise InputError(
                f"training.mean_over={training.mean_over}: with gradient accumulation, {trainer} takes the mean over a "
                "step's tokens; set it to tokens"
            )
        return {}

    return Row((), ("training.mean_over",), lambda tree: {"training.mean_over": "tokens"}, write)


COARSE = "fp8 stays: its products are rounded more coarsely; trials train in bf16 or float32"
WEIGHTED = "trials minimise the same, and report and are ranked by the cross-entropy without its weights"
WARMUP_OURS = ("scheduler.warmup_steps", "scheduler.warmup_ratio")
# transformers up to 5.14 has both keys. From 5.15 on it has only warmup_steps, which is a ratio if it is below 1.
WARMUP_RATIO = Row(("warmup_steps", "warmup_ratio"), WARMUP_OURS, read_warmup, write_warmup, exclusive=True)
WARMUP_STEPS = Row(("warmup_steps", "warmup_ratio"), WARMUP_OURS, read_warmup, _write_warmup_steps, exclusive=True)


def checkpointing(default: bool) -> Row:
    """Returns the row for activation checkpointing, under its old and its new name.

    Args:
        default: The trainer's default.
    """
    names = ("gradient_checkpointing", "activation_checkpointing")

    def read(tree: Tree) -> Tree:
        flags = [flag(name, tree[name]) for name in names if tree.get(name) is not None]
        return {"training.gradient_checkpointing": any(flags) if flags else default}

    def write(config: SweepConfig) -> Tree:
        # transformers 4 and 5 both accept the old name. It is written only if it differs from the default.
        wanted = config.training.gradient_checkpointing
        return {} if wanted == default else {"gradient_checkpointing": wanted}

    return Row(names, ("training.gradient_checkpointing",), read, write)


def mapping_of(name: str, value: Any) -> dict[str, Any]:
    """Reads a mapping, also from JSON text, as the trainers do. Raises InputError for other values."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise InputError(f"{name}={brief(value)}: not a mapping; write {name}: {{name: value}}")
    return dict(value)


def scheduler(theirs: str, usual: str) -> Row:
    """Returns the row for the learning-rate schedule and its arguments.

    Args:
        theirs: The trainer's key for the schedule's name.
        usual: The trainer's default schedule.
    """

    def read(tree: Tree) -> Tree:
        name = word(theirs, tree.get(theirs) or usual)
        if name not in get_args(SchedulerName):
            raise InputError(
                f"{theirs}={name}: trials have no such schedule; choose one of {', '.join(get_args(SchedulerName))}"
            )
        kwargs = tree.get("lr_scheduler_kwargs")
        arguments = mapping_of("lr_scheduler_kwargs", kwargs) if kwargs else {}
        return {"scheduler.name": name, "scheduler.kwargs": arguments}

    def write(config: SweepConfig) -> Tree:
        kwargs = dict(config.scheduler.kwargs)
        return {theirs: config.scheduler.name} | ({"lr_scheduler_kwargs": kwargs} if kwargs else {})

    return Row((theirs, "lr_scheduler_kwargs"), ("scheduler.name", "scheduler.kwargs"), read, write)


def length(in_epochs: str) -> Row:
    """Returns the row for the run's length, which stays as the file gives it, in steps or in epochs.

    Args:
        in_epochs: The trainer's key for the length in epochs.
    """

    def read(tree: Tree) -> Tree:
        steps = whole("max_steps", tree.get("max_steps") or -1)
        return {"training.horizon": steps} if steps > 0 else {}

    def write(config: SweepConfig) -> Tree:
        return {"max_steps": config.training.schedule_steps}

    return Row(("max_steps", in_epochs), ("training.horizon", "training.max_steps"), read, write, keep_file_value=True)


def evaluation(usual_rows: int) -> Row:
    """Returns the row for how often a run is evaluated, and with how many rows at a time.

    Args:
        usual_rows: The trainer's default for the rows.
    """

    def read(tree: Tree) -> Tree:
        rows = whole("per_device_eval_batch_size", tree.get("per_device_eval_batch_size") or usual_rows)
        every = number("eval_steps", tree.get("eval_steps") or 0)
        return {"training.eval_batch_size": rows} | (
            {"training.eval_every": whole("eval_steps", every)} if every >= 1 else {}
        )

    def write(config: SweepConfig) -> Tree:
        return {
            "eval_strategy": "steps",
            "eval_steps": config.training.eval_every,
            "per_device_eval_batch_size": config.training.eval_batch_size,
        }

    return Row(
        ("eval_strategy", "evaluation_strategy", "eval_steps", "do_eval", "per_device_eval_batch_size"),
        ("training.eval_every", "training.eval_batch_size"),
        read,
        write,
        keep_file_value=True,
    )


def epochs(tree: Tree, name: str, default: float) -> float:
    """Reads the run's number of epochs.

    Args:
        tree: The trainer's file.
        name: The trainer's key for it.
        default: The trainer's default.

    Raises:
        InputError: The value is not a positive, finite number.
    """
    found = number(name, tree.get(name) if tree.get(name) is not None else default)
    if not found > 0 or math.isinf(found):
        raise InputError(f"{name}={found:g}: must be finite and above 0; correct it")
    return found


def sharded(tree: Tree) -> bool:
    """Returns whether DeepSpeed or FSDP trains a file, which keep a float32 copy of weights in bf16 and train that."""
    return bool(tree.get("deepspeed") or tree.get("fsdp"))


def write_precision(config: SweepConfig) -> Tree:
    """Writes bf16 on or off; nothing for `auto`, which depends on the machine."""
    return {} if config.model.dtype == "auto" else {"bf16": config.model.dtype == "bfloat16"}


def notes(tree: Tree, key_of_optimizer: str = "optim") -> list[str]:
    """Returns notes on keys that stay in the trainer's file but differ in trials.

    Args:
        tree: The trainer's file.
        key_of_optimizer: The trainer's key for the optimizer.
    """
    found = []
    if tree.get("fp16"):
        found.append("fp16 stays; trials train in bf16 or float32, and weights and optimizer are float32 in both")
    if (name := tree.get(key_of_optimizer)) in PAGED_OR_LOW_BIT_ADAMW:
        found.append(f"{key_of_optimizer}: {name} stays; trials use 32-bit AdamW with the same hyperparameters")
    if sharded(tree) or tree.get("fsdp_config"):
        found.append(
            "deepspeed and fsdp stay; if the run uses N devices, multiply training.gradient_accumulation_steps by N"
        )
    return found
