"""Remedies: what to change, in words and as config overrides."""

import math

from lrsweep.analysis.diagnosis.curve import Advice, Curve

# Whose numbers the batch size decides, which a curve does not tell.
TWICE_THE_BATCH = "or twice the batch, with the learning rate times the square root of 2"


def lower(curve: Curve) -> tuple[Advice, ...]:
    """Against too high a rate."""
    return (
        Advice("lower the learning rate", _lr(curve, -1)),
        Advice("or warm up longer", {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None}),
        Advice("or beta1 = 0.8", {"optimizer.betas": [0.8, 0.999]}),
    )


def calmer(curve: Curve) -> tuple[Advice, ...]:
    """Against oscillation."""
    return (
        Advice("lower the learning rate", _lr(curve, -1)),
        Advice(TWICE_THE_BATCH, {}),
        Advice("or warm up longer", {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None}),
    )


def higher(curve: Curve) -> tuple[Advice, ...]:
    """Against too low a rate."""
    return (Advice("raise the learning rate, step by step", _lr(curve, 1)),)


def less_fitting(curve: Curve, turned_at: float) -> tuple[Advice, ...]:
    """Against overfitting that shows from step `turned_at` on."""
    halved = {} if curve.peak_lr is None else {"optimizer.lr": _round(curve.peak_lr / 2)}
    steps = max(round(turned_at), 1)
    return (
        Advice("halve the learning rate", halved),
        Advice("more weight decay", {"optimizer.weight_decay": 0.1}),
        Advice(f"stop earlier: eval_loss was lowest at step {turned_at:g}", {"training.max_steps": steps}),
    )


LESS_DECAY = (
    Advice("no weight decay", {"optimizer.weight_decay": 0.0}),
    Advice("or very little", {"optimizer.weight_decay": 1e-4}),
)
CHECK = (Advice("check that any parameter is trainable, that labels are not all masked, and that gradients flow", {}),)


def rung(lr: float, by: int) -> float:
    """The learning rate `by` rungs up (or down) the ladder 1e-5, 3e-5, 1e-4, 3e-4, ..."""
    ladder = sorted(float(f"{digit}e{power}") for power in range(-12, 3) for digit in (1, 3))
    # Within a tenth of a rung it stands on that rung; past the ladder's ends it keeps its ratio.
    beyond = [step for step in ladder if step > 1.1 * lr] if by > 0 else [s for s in reversed(ladder) if s < lr / 1.1]
    return beyond[abs(by) - 1] if abs(by) <= len(beyond) else _round(lr * math.sqrt(10) ** by)


def _lr(curve: Curve, by: int) -> dict[str, float]:
    return {} if curve.peak_lr is None else {"optimizer.lr": rung(curve.peak_lr, by)}


def _round(lr: float) -> float:
    return float(f"{lr:.2g}")
