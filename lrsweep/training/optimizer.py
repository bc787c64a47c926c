"""The config's optimizer as a torch class and its arguments, and the parameters with learning rates of their own."""

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import get_scheduler

from lrsweep.config.trial_schema import FinetuneConfig, OptimizerConfig, SchedulerConfig
from lrsweep.errors import InputError
from lrsweep.training.weight_decay import decayed_names

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


def with_own_rates(
    model: torch.nn.Module, optimizer: OptimizerConfig, finetune: FinetuneConfig
) -> torch.optim.Optimizer | None:
    """The optimizer of a model whose parameters do not all have one learning rate; None if they have.

    LoRA+'s is PEFT's own.

    Args:
        model: The model, with the parameters to train selected.
        optimizer: The optimizer's config.
        finetune: The finetuning's config.

    Raises:
        InputError: A group of `optimizer.lr_groups` has no parameter.
    """
    kind, arguments = optimizer_class(optimizer)
    if finetune.mode == "lora" and finetune.loraplus_lr_ratio is not None:
        found: torch.optim.Optimizer = create_loraplus_optimizer(
            model,
            kind,
            loraplus_lr_ratio=finetune.loraplus_lr_ratio,
            loraplus_weight_decay=optimizer.weight_decay,
            **arguments,
        )
        # PEFT makes groups for parameters that the adapters do not have.
        found.param_groups = [group for group in found.param_groups if group["params"]]
        return found
    if not optimizer.lr_groups:
        return None
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    factors = lr_factors(trained, optimizer, finetune)
    decayed = decayed_names(model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    # The first group's rate is the one that is logged.
    for name, weight in sorted(trained.items(), key=lambda item: item[0] in factors):
        factor = factors.get(name, 1.0)
        decay = {} if name in decayed else {"weight_decay": 0.0}
        group = groups.setdefault((factor, name in decayed), {"params": [], "lr": optimizer.lr * factor, **decay})
        group["params"].append(weight)
    return kind(groups.values(), **arguments, weight_decay=optimizer.weight_decay)  # type: ignore[call-arg]


def lr_factors(names: Iterable[str], optimizer: OptimizerConfig, finetune: FinetuneConfig) -> Mapping[str, float]:
    """The learning rates of parameters over `optimizer.lr`, by name, for those that have one of their own.

    LoRA+: Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models" (2024).

    Args:
        names: The names of the parameters that are trained, as the model or PEFT has them.
        optimizer: The optimizer's config.
        finetune: The finetuning's config.

    Raises:
        InputError: A group of `optimizer.lr_groups` has no parameter.
    """
    if finetune.mode == "lora" and finetune.loraplus_lr_ratio is not None:
        return {name: finetune.loraplus_lr_ratio for name in names if ".lora_B." in name}
    # PEFT's names are the model's, within its own.
    plain = {name: name.removeprefix("base_model.model.").replace(".default.", ".") for name in names}
    factors: dict[str, float] = {}
    for pattern, factor in reversed(list(optimizer.lr_groups.items())):
        found = [name for name in plain if re.search(pattern, plain[name])]
        if not found:
            examples = dict.fromkeys(re.sub(r"\.\d+\.", ".0.", name) for name in plain.values())
            raise InputError(
                f"optimizer.lr_groups.{pattern}={factor:g}: no trained parameter has this in its name; trained are "
                f"{', '.join(list(examples)[:3])}{' and others' if len(examples) > 3 else ''}"
            )
        factors |= dict.fromkeys(found, factor)
    return factors


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
