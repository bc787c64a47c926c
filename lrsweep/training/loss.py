"""What training minimises: the cross-entropy of label tokens, each with a weight if `training.loss` says so.

The weights are no part of the gradient. Every engine reports the cross-entropy without them, as `loss` too: the sum
with weights is no measure of a model. With `dft` it is zero for a token that the model gives no chance at all.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from lrsweep.config.trial_schema import TrainingConfig
from lrsweep.training.data.collate import IGNORED

# From the logits [n, V] of label tokens and the labels [n, 1] to the tokens' weights [n].
Weighing = Callable[[Tensor, Tensor], Tensor]

# EAFT: how many of the most probable tokens count, and about the highest entropy of so many, in nats.
_MOST_PROBABLE, _HIGHEST_ENTROPY = 20, 3.0


def weighing(training: TrainingConfig) -> Weighing | None:
    """How the config weighs label tokens; None if all are alike."""
    if training.loss == "dft":
        return _probability
    return partial(_entropy, alpha=training.eaft_alpha) if training.loss == "eaft" else None


def summed_loss(logits: Tensor, labels: Tensor, weigh: Weighing | None) -> Tensor:
    """The cross-entropy of label tokens, summed. Its gradient is that of the weighted sum.

    Args:
        logits: The logits [..., V], in the dtype of the softmax.
        labels: The labels [...] of these logits.
        weigh: The tokens' weights; None for 1.
    """
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if weigh is None:
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    counted = labels != IGNORED
    logits, labels = logits[counted], labels[counted]
    losses = F.cross_entropy(logits, labels, reduction="none")
    weighted = (losses * weigh(logits.detach(), labels[:, None])).sum()
    return losses.detach().sum() + (weighted - weighted.detach())


def frozen_copy(base: nn.Module) -> nn.Module:
    """The model that ASFT stays near: the base before any training."""
    return copy.deepcopy(base).eval().requires_grad_(False)


def anchored_loss(logits: Tensor, labels: Tensor, base: Tensor, alpha: float, tokens: float | Tensor) -> Tensor:
    """The cross-entropy of a batch's label tokens over `tokens`. Its gradient is that of ASFT's loss.

    That is the batch's mean of the weighted cross-entropy and of the divergence from the base (Zhu et al., "Anchored
    Supervised Fine-Tuning", 2025). As in LLaMA-Factory, the means of a step's batches are added, not averaged.

    Args:
        logits: The logits [..., V], in the dtype of the softmax.
        labels: The labels [...] of these logits.
        base: The base's logits [..., V].
        alpha: The weight of the divergence.
        tokens: The label tokens of a step.
    """
    counted = labels.flatten() != IGNORED
    logits, base = logits.flatten(0, -2)[counted], base.flatten(0, -2)[counted].to(logits.dtype)
    labels = labels.flatten()[counted]
    losses = F.cross_entropy(logits, labels, reduction="none")
    away = F.kl_div(logits.log_softmax(1), base.softmax(1), reduction="none").sum(1)
    objective = (losses * _probability(logits.detach(), labels[:, None]) + alpha * away).mean()
    return losses.detach().sum() / tokens + (objective - objective.detach())


def _probability(logits: Tensor, wanted: Tensor) -> Tensor:
    """Dynamic fine-tuning: the token's own probability (Wu et al., "On the Generalization of SFT", 2025)."""
    return (logits.gather(1, wanted) - logits.logsumexp(1, keepdim=True)).exp()[:, 0]


def _entropy(logits: Tensor, wanted: Tensor, alpha: float) -> Tensor:
    """Entropy-adaptive fine-tuning: the entropy among the most probable tokens, over about its maximum, to a power."""
    shares = logits.topk(min(_MOST_PROBABLE, logits.shape[1])).values.log_softmax(1)
    entropy = -(shares.exp() * shares).sum(1)
    return (entropy / _HIGHEST_ENTROPY).pow(alpha)
