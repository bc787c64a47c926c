"""A few steps on a few rows before the first trial, to find mistakes that would keep every trial from learning."""

import gc
import math
from collections.abc import Sequence

import torch
from torch import nn

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.data.row_sampler import row_batches
from lrsweep.training.plain_loop import PlainLoop, check_loss, in_memory

_ROWS = 4
# LoRA's A changes in the second step at the earliest: its gradient is zero as long as B is.
_STEPS = 3
# float32 has seven digits: a smaller relative change of the loss is rounding.
_RELATIVE = 1e-7


def check_gradients(config: SweepConfig, lrs: Sequence[float]) -> None:
    """Checks that trials can learn: trains a few steps on at most 4 rows of the first batch.

    At least one parameter must be trained and one label count, the loss and the gradients must be finite, the gradients
    not all zero, and the highest learning rate must change the loss. A loss that diverges at that rate is no mistake: a
    sweep is there to find out. The model is loaded once, and its memory is freed.

    Args:
        config: The sweep's config.
        lrs: The learning rates of the trials.

    Raises:
        InputError: A check fails; the message names the key to change.
    """
    try:
        with in_memory(config, min(_ROWS, config.training.batch_size)):
            _check(config, max(lrs))
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _check(config: SweepConfig, lr: float) -> None:
    loop = PlainLoop(config)
    loop.model.eval()  # dropout would change the loss by itself
    training = config.training
    # The first of the rows that trials start with.
    first = next(row_batches(len(loop.rows), training.batch_size, training.gradient_accumulation_steps, training.seed))
    batch = first[0][:_ROWS]
    check_rows([loop.rows[row] for row in batch], loop.model, config)
    before = loop.gradients([batch])
    check_loss(before, config)
    _check_usable(loop.weights, config)
    after = before
    for _ in range(_STEPS):
        loop.step(lr)
        after = loop.gradients([batch])
        if not math.isfinite(after):
            return
    if abs(after - before) <= _RELATIVE * abs(before):
        clipping = f", or training.max_grad_norm={training.max_grad_norm:g}" if training.max_grad_norm > 0 else ""
        raise InputError(
            f"optimizer.lr={lr:g}: {_STEPS} steps at the highest rate leave the loss of a batch at {before:.7g}; "
            f"raise it{clipping}"
        )


def check_rows(examples: Sequence[Example], model: nn.Module, config: SweepConfig) -> None:
    """Checks that at least one label of the rows counts, and that the model has an embedding for every token.

    Args:
        examples: The rows.
        model: The model that trains on them.
        config: The sweep's config, for the message.

    Raises:
        InputError: One of the two is not so.
    """
    if all(label == IGNORED for example in examples for label in example.labels[1:]):
        raise InputError(
            f"data.path={config.data.path}: no label counts in the first {len(examples)} rows, so nothing can be "
            f"learned; check data.format={config.data.format} and data.columns, or raise "
            f"data.max_length={config.data.max_length}"
        )
    known = getattr(model.get_input_embeddings(), "num_embeddings", math.inf)  # type: ignore[operator]
    highest = max(max(example.input_ids) for example in examples)
    if highest >= known:
        raise InputError(
            f"model.path={config.model.path!r}: its tokenizer gives token {highest} and the model has embeddings for "
            f"{known} only; use the tokenizer that the model was trained with"
        )


def _check_usable(weights: Sequence[nn.Parameter], config: SweepConfig) -> None:
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if not finite:
        raise InputError(
            f"model.dtype={config.model.dtype}: the loss is finite, its gradients are not; use model.dtype=float32, or "
            "another model.attn_implementation (eager, sdpa)"
        )
    if any(bool(gradient.any()) for gradient in gradients):
        return
    if config.finetune.mode == "lora":
        key, fix = (
            f"finetune.target_modules={config.finetune.target_modules!r}",
            "name modules that the loss depends on",
        )
    else:
        key, fix = f"finetune.mode={config.finetune.mode}", "use finetune=lora or finetune=full"
    raise InputError(
        f"{key}: every gradient is zero, so no learning rate changes anything; {fix}, or check the weights of "
        f"model.path={config.model.path!r}"
    )
