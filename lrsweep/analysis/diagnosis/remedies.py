"""Remedies: what to change, for people and as config overrides."""

import math
from collections.abc import Mapping
from typing import Any

from lrsweep.analysis.diagnosis.curve import Advice, Curve

# Its overrides depend on the batch size, which a curve does not hold: `trial_remedies` fills them in.
TWICE_THE_BATCH = "or double the batch size and multiply the learning rate by the square root of 2"


# No fine-tune with an optimizer of the Adam family starts here: a step down from it is not enough.
_FAR_TOO_HIGH = 0.3
_USUAL = "start again from a usual learning rate: 1e-4 with LoRA, 1e-5 without"


def lower_lr(curve: Curve) -> tuple[Advice, ...]:
    """Remedies for a learning rate that is too high."""
    if curve.peak_lr is not None and curve.peak_lr >= _FAR_TOO_HIGH:
        return (Advice(_USUAL, {"optimizer.lr": 1e-4}),)
    return (
        Advice("lower the learning rate", _lr(curve, -1)),
        Advice("or warm up longer", {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None}),
        Advice("or set beta1 = 0.8", {"optimizer.betas": [0.8, 0.999]}),
    )


def after_nan(curve: Curve, from_the_start: bool) -> tuple[Advice, ...]:
    """Remedies for losses or gradients that are not finite; from the start, the learning rate is not the cause."""
    if from_the_start:
        return (
            Advice("train in bf16 instead of fp16, or in fp32: it went wrong before the learning rate mattered", {}),
            Advice("or choose another attention implementation (eager), as padded rows can be NaN in others", {}),
            Advice("or look for rows whose labels are all masked, such as prompts longer than the cutoff", {}),
        )
    return (*lower_lr(curve), Advice("or train in bf16, if this was fp16", {}))


AFTER_NAN_EVALS = (
    Advice("look for eval rows whose labels are all masked, such as prompts longer than the cutoff", {}),
    Advice("or evaluate in bf16 or fp32, if this was fp16", {}),
)


def after_collapse(curve: Curve) -> tuple[Advice, ...]:
    """Remedies for a model that gives every input the same answer."""
    return (
        *lower_lr(curve),
        Advice("or check that labels and inputs belong together, and that no class has nearly all rows", {}),
    )


def against_oscillation(curve: Curve) -> tuple[Advice, ...]:
    """Remedies for an oscillating loss."""
    return (
        Advice("lower the learning rate", _lr(curve, -1)),
        Advice(TWICE_THE_BATCH, {}),
        Advice("or warm up longer", {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None}),
    )


def higher_lr(curve: Curve) -> tuple[Advice, ...]:
    """Remedies for a learning rate that is too low."""
    return (Advice("raise the learning rate, step by step", _lr(curve, 1)),)


def against_overfitting(curve: Curve, lowest_at: float) -> tuple[Advice, ...]:
    """Remedies for overfitting; `lowest_at` is the step at which the eval loss was lowest."""
    halved = {} if curve.peak_lr is None else {"optimizer.lr": _round(curve.peak_lr / 2)}
    steps = {} if curve.counted else {"training.max_steps": max(round(lowest_at), 1)}
    return (
        Advice("halve the learning rate", halved),
        Advice("or raise the weight decay", {"optimizer.weight_decay": 0.1}),
        Advice(f"or stop earlier: eval_loss was lowest at {curve.place(lowest_at)}", steps),
    )


LESS_DECAY = (
    Advice("turn weight decay off", {"optimizer.weight_decay": 0.0}),
    Advice("or make it very small", {"optimizer.weight_decay": 1e-4}),
)
CHECK = (
    Advice("check that some parameters are trainable, that not all labels are masked, and that gradients flow", {}),
)


# The keys of transformers' TrainingArguments, which LLaMA-Factory, TRL and Axolotl share, for those that remedies set.
_THEIRS = {
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "weight_decay",
    "scheduler.warmup_ratio": "warmup_ratio",
    "training.max_steps": "max_steps",
}


def in_training_arguments(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a remedy's overrides under the keys of transformers' TrainingArguments."""
    found = {_THEIRS[key]: value for key, value in overrides.items() if key in _THEIRS}
    if "optimizer.betas" in overrides:
        found["adam_beta1"], found["adam_beta2"] = overrides["optimizer.betas"]
    return found


def rung(lr: float, by: int) -> float:
    """Returns a neighbour of a learning rate on the ladder 1e-5, 3e-5, 1e-4, 3e-4, ...

    Args:
        lr: The learning rate, on the ladder or between two rungs. Within ten percent of a rung it counts as on it.
        by: Number of rungs up, or down if negative.

    Returns:
        The rung. Beyond the ladder's ends (1e-12 and 300), `lr` times the square root of 10 for each rung.
    """
    ladder = sorted(float(f"{digit}e{power}") for power in range(-12, 3) for digit in (1, 3))
    beyond = [step for step in ladder if step > 1.1 * lr] if by > 0 else [s for s in reversed(ladder) if s < lr / 1.1]
    return beyond[abs(by) - 1] if abs(by) <= len(beyond) else _round(lr * math.sqrt(10) ** by)


def _lr(curve: Curve, by: int) -> dict[str, float]:
    return {} if curve.peak_lr is None else {"optimizer.lr": rung(curve.peak_lr, by)}


def _round(lr: float) -> float:
    return float(f"{lr:.2g}")
