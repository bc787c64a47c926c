"""The optimizer's keys in TrainingArguments: its name and its hyperparameters."""

from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.config.trial_schema import OptimizerConfig
from lrsweep.dialects.mapping import Row, Tree, brief
from lrsweep.dialects.rows import given, number, word
from lrsweep.errors import InputError

# Implementations of AdamW that keep its state in memory pages or in fewer bits.
PAGED_OR_LOW_BIT_ADAMW = (
    "paged_adamw",
    "paged_adamw_32bit",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
)
# All implementations of AdamW's update rule.
ADAMW = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_hf",
    "adamw_apex_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    *PAGED_OR_LOW_BIT_ADAMW,
)
# Optimizers by torch's name, which TrainingArguments shares, and the arguments that `optim_args` passes to them.
# TrainingArguments drops others silently.
_OPTIM_ARGS = {
    "sgd": {"momentum", "dampening", "nesterov"},
    "adagrad": {"lr_decay", "eps"},
    "rmsprop": {"momentum", "alpha", "eps", "centered"},
}


def _read_optimizer(tree: Tree, beta2: float) -> Tree:
    name, optim_args = word("optim", tree.get("optim") or "adamw_torch"), tree.get("optim_args")
    if name not in ADAMW and name not in _OPTIM_ARGS:
        raise InputError(
            f"optim={name}: trials train with AdamW ({ADAMW[0]} or the like), {', '.join(_OPTIM_ARGS)}; "
            "choose one of them"
        )
    passed = _passed(optim_args)
    for argument in passed:
        if argument not in _OPTIM_ARGS.get(name, ()):
            raise InputError(f"optim_args={brief(optim_args)}: does not pass {argument} to {name}; remove it")
    adam = dict(read_adam(tree, beta2))
    if "eps" in passed:
        adam["optimizer.eps"] = passed.pop("eps")
    return {"optimizer.name": "adamw" if name in ADAMW else name, **adam, "optimizer.kwargs": passed}


def read_adam(tree: Tree, beta2: float = 0.999) -> Tree:
    """Reads Adam's betas and eps; the trainer's default for the second beta is `beta2`."""
    usual = (("adam_beta1", 0.9), ("adam_beta2", beta2))
    return {
        "optimizer.betas": [number(name, given(tree, name, value)) for name, value in usual],
        "optimizer.eps": number("adam_epsilon", given(tree, "adam_epsilon", 1e-8)),
    }


def write_adam(optimizer: OptimizerConfig) -> Tree:
    """Writes Adam's betas and eps."""
    return {"adam_beta1": optimizer.betas[0], "adam_beta2": optimizer.betas[1], "adam_epsilon": optimizer.eps}


def _passed(optim_args: Any) -> dict[str, Any]:
    """Parses `momentum=0.9,nesterov=True` into a mapping."""
    found: dict[str, Any] = {}
    for part in str(optim_args).replace(" ", "").split(",") if optim_args else ():
        name, _, value = part.partition("=")
        found[name] = value == "True" if value in ("True", "False") else number(f"optim_args.{name}", value)
    return found


def _write_optimizer(config: SweepConfig) -> Tree:
    optimizer = config.optimizer
    if optimizer.name == "adamw":
        _refuse_others(optimizer, set())
        return {"optim": "adamw_torch", **write_adam(optimizer)}
    if optimizer.name not in _OPTIM_ARGS:
        raise InputError(
            f"optimizer.name={optimizer.name!r}: TrainingArguments has no name for torch's (it has adamw, "
            f"{', '.join(_OPTIM_ARGS)}); pass the optimizer to Trainer in code"
        )
    accepted = _OPTIM_ARGS[optimizer.name]
    _refuse_others(optimizer, accepted)
    passed = ({"eps": optimizer.eps} if "eps" in accepted else {}) | optimizer.kwargs
    return {"optim": optimizer.name} | (
        {"optim_args": ",".join(f"{k}={v}" for k, v in passed.items())} if passed else {}
    )


def _refuse_others(optimizer: OptimizerConfig, accepted: set[str]) -> None:
    for name in optimizer.kwargs:
        if name not in accepted:
            raise InputError(
                f"optimizer.kwargs.{name}: TrainingArguments cannot pass it to {optimizer.name}; remove it of the sweep"
            )


def row(beta2: float = 0.999) -> Row:
    """Returns the row for the optimizer; the trainer's default for Adam's second beta is `beta2`."""
    return Row(
        ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
        ("optimizer.name", "optimizer.betas", "optimizer.eps", "optimizer.kwargs"),
        lambda tree: _read_optimizer(tree, beta2),
        _write_optimizer,
    )


def _write_one_rate(config: SweepConfig) -> Tree:
    groups = config.optimizer.lr_groups
    if groups:
        pattern, factor = next(iter(groups.items()))
        raise InputError(
            f"optimizer.lr_groups.{pattern}={factor:g}: no config file of a trainer has groups with such rates; sweep "
            "without them, or pass the optimizer to Trainer in code"
        )
    return {}


# All that is trained has the one learning rate.
ONE_RATE = Row((), ("optimizer.lr_groups",), lambda tree: {"optimizer.lr_groups": {}}, _write_one_rate)
