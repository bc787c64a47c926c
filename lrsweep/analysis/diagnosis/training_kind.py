"""What kind of training a log is of, by the measures in it."""

from typing import Literal

import numpy as np

from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis

TrainingKind = Literal["supervised", "preference", "reinforcement"]
_PREFERENCE = ("rewards/margins", "rewards/accuracies", "rewards/chosen")
_REINFORCEMENT = ("reward", "rewards", "reward_std", "objective/kl", "completion_length", "completions/mean_length")


def training_kind(curve: Curve) -> TrainingKind:
    """Returns the kind: DPO, KTO and their like log rewards of chosen answers; GRPO and PPO one reward."""
    if any(len(curve.measures.get(prefix + name, ())) for name in _PREFERENCE for prefix in ("", "eval_")):
        return "preference"
    if any(2 * len(curve.measures.get(name, ())) >= max(len(curve.loss), 1) for name in _REINFORCEMENT):
        return "reinforcement"
    return "supervised"


def reinforcement(curve: Curve) -> Diagnosis | None:
    """Unknown: in reinforcement learning, the loss is no measure of success."""
    if training_kind(curve) != "reinforcement":
        return None
    # A gradient that is not finite ends this kind of training as well.
    reward = curve.measures.get("reward")
    reward = None if reward is None else reward.finite()
    seen = "" if not reward else f"; reward goes from {reward.values[0]:.4g} to {reward.values[-1]:.4g}"
    reason = f"the rows have a reward, as in GRPO and PPO, where the loss is no measure of success{seen}"
    return Diagnosis("unknown", {"reason": reason})


def negative_loss(curve: Curve) -> Diagnosis | None:
    """Unknown: a loss below 0 is no cross-entropy."""
    losses = curve.loss.finite().values
    if not len(losses) or np.mean(losses < 0) <= 0.1:
        return None
    return Diagnosis(
        "unknown", {"reason": "the loss is below 0, so it is no cross-entropy, and its level says nothing"}
    )
