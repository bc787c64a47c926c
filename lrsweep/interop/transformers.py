"""The best config as transformers' TrainingArguments, a YAML file that HfArgumentParser reads."""

from typing import Any

from lrsweep import outputs
from lrsweep.config import OptimizerConfig, SweepConfig
from lrsweep.errors import InputError
from lrsweep.interop.header import header
from lrsweep.report.summary import Summary

# torch's name (and TrainingArguments', but for AdamW) -> what `optim_args` passes on; the rest is dropped there in silence.
_OPTIM_ARGS = {
    "sgd": {"momentum", "dampening", "nesterov"},
    "adagrad": {"lr_decay", "eps"},
    "rmsprop": {"momentum", "alpha", "eps", "centered"},
}


def export(summary: Summary) -> str:
    """The file's text. Raises InputError naming what TrainingArguments cannot say."""
    best = summary.verdict.best
    assert best is not None
    return header(summary) + _not_here(best.config) + outputs.to_yaml(arguments(best.config))


def arguments(config: SweepConfig) -> dict[str, Any]:
    """TrainingArguments by name, for transformers >= 5.15 (a `warmup_steps` below 1 is a ratio there).

    `max_steps` is the real run's (`training.horizon`) where it is known, else the trial's.
    """
    optimizer, scheduler, training = config.optimizer, config.scheduler, config.training
    return {
        "output_dir": f"{config.name}-run",
        "max_steps": training.schedule_steps,
        "per_device_train_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": optimizer.lr,
        **_optim(optimizer),
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "lr_scheduler_type": scheduler.name,
        "lr_scheduler_kwargs": dict(scheduler.kwargs),
        "warmup_steps": scheduler.warmup_steps if scheduler.warmup_steps is not None else scheduler.warmup_ratio or 0,
        "eval_strategy": "steps",
        "eval_steps": training.eval_every,
        "per_device_eval_batch_size": training.eval_batch_size,
        "seed": training.seed,
        **({} if config.model.dtype == "auto" else {"bf16": config.model.dtype == "bfloat16"}),
        **({"gradient_checkpointing": True} if training.gradient_checkpointing else {}),
        # A NaN is logged as a NaN, not as the running average.
        "logging_nan_inf_filter": False,
    }


def _optim(optimizer: OptimizerConfig) -> dict[str, Any]:
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
            raise InputError(f"optimizer.kwargs.{name}: TrainingArguments cannot pass it to {optimizer.name}")


def _not_here(config: SweepConfig) -> str:
    """TrainingArguments knows no model, data or LoRA: they are told in comments."""
    said = f"# Not part of TrainingArguments: model {config.model.path}, data {config.data.path}"
    if config.finetune.mode == "lora":
        said += f", LoRA r={config.finetune.r} alpha={config.finetune.alpha:g} dropout={config.finetune.dropout:g}"
    else:
        said += f", {config.finetune.mode} fine-tuning"
    if config.model.dtype == "auto":
        said += ".\n# Trials ran in bf16 if their GPU has it: add `bf16: true` on such a machine"
    if config.scheduler.warmup_ratio:
        said += ".\n# A warmup_steps below 1 is a share of the run, which takes transformers 5"
    if config.training.horizon is None:
        said += f".\n# max_steps is the trial's {config.training.max_steps}: set your own run's length"
    return said + ".\n"
