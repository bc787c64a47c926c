"""A plain torch training loop: for the range test and the gradient check, and a start for an engine of your own."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.data.collate import IGNORED, collate
from lrsweep.training.evaluation import evaluate
from lrsweep.training.inputs import inputs
from lrsweep.training.loss import anchored_loss, frozen_copy, summed_loss, weighing
from lrsweep.training.model import enable_checkpointing, load_model, make_trainable, resolve_dtype
from lrsweep.training.optimizer import optimizer_class, with_own_rates
from lrsweep.training.out_of_memory import is_out_of_memory
from lrsweep.training.router import check_padding, router_loss
from lrsweep.training.weight_decay import decayed_names


class PlainLoop:
    """The config's model, training rows and optimizer, without a schedule: each step may be given its learning rate.

    A batch is a list of row numbers, and a step has `gradient_accumulation_steps` of them (see
    `row_sampler.row_batches`). Losses are means over the label tokens of a step, in nats,
    and gradients those of what `training.loss` minimises.

    Args:
        config: The trial's config.

    Attributes:
        model: The model, in train mode.
        rows: The training set.
        weights: The trained parameters.
        optimizer: The optimizer, at the config's learning rate.

    Raises:
        InputError: The model or data cannot be loaded, or nothing is trained.
    """

    def __init__(self, config: SweepConfig) -> None:
        training = config.training
        tokenizer, data = inputs(config.model, config.data)
        self.rows = data.train
        self._held_out = data.evaluation
        self._eval_batch_size = training.eval_batch_size
        self._pad: int = tokenizer.pad_token_id
        self._compute = resolve_dtype(config.model)
        self._max_norm = training.max_grad_norm
        self._weigh = weighing(training)
        self._of_batches = training.mean_over == "batches"
        base = load_model(config.model, config.finetune)
        check_padding(config, base.config)
        self._anchor = frozen_copy(base) if training.loss == "asft" else None
        self._alpha = training.asft_alpha
        if training.gradient_checkpointing:
            enable_checkpointing(base)
        self.model: nn.Module = make_trainable(base, config.finetune, training.seed).train()
        set_seed(training.seed)  # for dropout
        named = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.weights = list(named.values())
        if not named:
            raise InputError(f"finetune.mode={config.finetune.mode}: it leaves no parameter to train; use another mode")
        # Norms and biases do not decay, as in Trainer.
        decayed = decayed_names(self.model)
        groups: list[dict[str, Any]] = [
            {"params": [weight for name, weight in named.items() if name in decayed]},
            {"params": [weight for name, weight in named.items() if name not in decayed], "weight_decay": 0.0},
        ]
        kind, arguments = optimizer_class(config.optimizer)
        self.optimizer: torch.optim.Optimizer = with_own_rates(self.model, config.optimizer, config.finetune) or kind(  # type: ignore[call-arg]
            [group for group in groups if group["params"]], **arguments, weight_decay=config.optimizer.weight_decay
        )
        # Not every group learns at the config's rate.
        self._ratios = [group["lr"] / config.optimizer.lr for group in self.optimizer.param_groups]

    @torch.no_grad()
    def measure(self, batches: Sequence[Sequence[int]]) -> float:
        """The loss over the batches of one step, without gradients."""
        return sum(self._loss(batch, batches).item() for batch in batches)

    def gradients(self, batches: Sequence[Sequence[int]]) -> float:
        """The loss over the batches of one step. Its gradients, not clipped yet, replace the earlier ones."""
        self.model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = self._loss(batch, batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def step(self, lr: float | None = None) -> float:
        """One optimizer step with the current gradients, clipped as the config says.

        Args:
            lr: The learning rate; None is the optimizer's own, which a schedule may set.

        Returns:
            The gradients' norm before clipping.
        """
        norm = nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None])
        if self._max_norm > 0:
            nn.utils.clip_grads_with_norm_(self.weights, self._max_norm, norm)
        if lr is not None:
            for group, ratio in zip(self.optimizer.param_groups, self._ratios, strict=True):
                group["lr"] = lr * ratio
        self.optimizer.step()
        return float(norm)

    def evaluate(self) -> RowLosses:
        """The loss on each held-out row, as every engine measures it."""
        device = self.weights[0].device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._compute == torch.bfloat16):
            return evaluate(self.model, self._held_out, self._eval_batch_size, self._pad)

    def _tokens(self, batches: Sequence[Sequence[int]]) -> int:
        return sum(label != IGNORED for batch in batches for row in batch for label in self.rows[row].labels[1:])

    def _loss(self, rows: Sequence[int], step: Sequence[Sequence[int]]) -> Tensor:
        """The share of these rows in the loss of a step's batches, on the device."""
        tokens = len(step) * self._tokens([rows]) if self._of_batches else self._tokens(step)
        device = self.weights[0].device
        batch = {key: value.to(device) for key, value in collate([self.rows[row] for row in rows], self._pad).items()}
        labels = batch.pop("labels")[:, 1:]
        # As Trainer does for `bf16=True`.
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._compute == torch.bfloat16):
            outputs = self.model(**batch)
            logits = outputs.logits[:, :-1]
            if self._anchor is not None:
                with torch.no_grad():
                    anchor = self._anchor(**batch).logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self._anchor is not None:
            return anchored_loss(logits, labels, anchor, self._alpha, tokens)
        loss = summed_loss(logits, labels, self._weigh) / tokens
        # As in transformers, a loss with weights replaces the model's own, in which the router's is.
        return loss if self._weigh else loss + router_loss(self.model, outputs) / (len(step) if self._of_batches else 1)


def check_loss(loss: float, config: SweepConfig) -> None:
    """Checks that the untrained model's loss is finite.

    Args:
        loss: The loss.
        config: The trial's config, for the message.

    Raises:
        InputError: It is not.
    """
    if not math.isfinite(loss):
        raise InputError(
            f"model.path={config.model.path!r}: the loss is {loss} before any training, with model.dtype="
            f"{config.model.dtype}; try model.dtype=float32, and if that does not help, download the weights again"
        )


@contextlib.contextmanager
def in_memory(config: SweepConfig, rows: int) -> Iterator[None]:
    """Turns a GPU out-of-memory error inside the block into an InputError that lists what needs less memory.

    Args:
        config: The trial's config.
        rows: Rows of a batch, for the message.

    Raises:
        InputError: The GPU ran out of memory.
    """
    try:
        yield
    except RuntimeError as fault:
        if not is_out_of_memory(fault):
            raise
        ways = [
            f"training.batch_size below {rows}" if rows > 1 else "",
            "training.gradient_checkpointing=true" if not config.training.gradient_checkpointing else "",
            "a smaller data.max_length",
            "finetune=qlora" if config.model.quantization is None and config.finetune.mode == "lora" else "",
            "finetune=lora" if config.finetune.mode != "lora" else "",
        ]
        raise InputError(
            f"model.path={config.model.path!r}: out of GPU memory with {rows} rows of up to {config.data.max_length} "
            f"tokens; use {', '.join(way for way in ways if way)} or a smaller model"
        ) from None
