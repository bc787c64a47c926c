"""The config's optimizer as a torch class and its arguments."""

import inspect
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import get_scheduler

from lrsweep.config.trial_schema import FinetuneConfig, OptimizerConfig, SchedulerConfig
from lrsweep.errors import InputError

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# Arguments that choose torch's implementation.
_IMPLEMENTATIONS = {"foreach", "fused", "capturable", "differentiable"}


def optimizer_class(optimizer: OptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and its arguments.

    Returns:
        The class, and its arguments without `weight_decay`, which differs between parameter groups. `betas` and `eps`
        are included if the class takes them.

    Raises:
        InputError: `optimizer.kwargs` has a name that the class does not take, or that has a key of its own.
    """
    kind = _CLASSES[optimizer.name]
    accepted = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"lr": optimizer.lr, "betas": optimizer.betas, "eps": optimizer.eps}
    if kind is torch.optim.Adafactor:
        del arguments["eps"]  # Adafactor's is a pair with another meaning
    for name in optimizer.kwargs:
        if name not in accepted or name in ("params", "lr", "betas", "eps", "weight_decay"):
            choices = sorted(accepted.keys() - {"params", "lr", "betas", "eps", "weight_decay"})
            raise InputError(f"optimizer.kwargs.{name}: {optimizer.name} takes only {', '.join(choices)} there")
    arguments = {name: value for name, value in arguments.items() if name in accepted} | optimizer.kwargs
    # One pass over memory, as Trainer does by default.
    if kind in (torch.optim.AdamW, torch.optim.Adam) and not arguments.keys() & _IMPLEMENTATIONS:
        arguments["fused"] = True
    return kind, arguments


def loraplus(
    model: torch.nn.Module, optimizer: OptimizerConfig, finetune: FinetuneConfig
) -> torch.optim.Optimizer | None:
    """PEFT's LoRA+ optimizer over a model with adapters; None if the config has one learning rate for A and B."""
    if finetune.mode != "lora" or finetune.loraplus_lr_ratio is None:
        return None
    kind, arguments = optimizer_class(optimizer)
    ratio, decay = finetune.loraplus_lr_ratio, optimizer.weight_decay
    found: torch.optim.Optimizer = create_loraplus_optimizer(
        model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **arguments
    )
    # PEFT makes groups for parameters that the adapters do not have.
    found.param_groups = [group for group in found.param_groups if group["params"]]
    return found


def check_buildable(optimizer: OptimizerConfig, scheduler: SchedulerConfig, schedule_steps: int) -> None:
    """Builds the optimizer and the schedule over a single number, to find bad options before any trial.

    Args:
        optimizer: The optimizer's config.
        scheduler: The schedule's config.
        schedule_steps: Optimizer steps of the schedule.

    Raises:
        InputError: One of them cannot be built.
    """
    kind, arguments = optimizer_class(optimizer)
    weight = torch.zeros(1, requires_grad=True)
    try:
        built = kind([weight], **arguments, weight_decay=optimizer.weight_decay)  # type: ignore[call-arg]
    except (TypeError, ValueError) as fault:
        raise InputError(f"optimizer.kwargs={optimizer.kwargs}: {fault}") from None
    try:
        get_scheduler(scheduler.name, built, scheduler.warmup(schedule_steps), schedule_steps, dict(scheduler.kwargs))
    except (TypeError, ValueError) as fault:
        raise InputError(
            f"scheduler.kwargs={scheduler.kwargs}: {scheduler.name}: {str(fault).splitlines()[0]}"
        ) from None
