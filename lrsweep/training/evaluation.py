"""The loss on the eval set, computed the same way for every engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrsweep.files.row_losses import RowLosses
from lrsweep.training.data.collate import IGNORED
from lrsweep.training.data.loading import Example, collate
from lrsweep.training.packing.head import Head, find_head
from lrsweep.training.router import has_router_loss, router_loss


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Example], batch_size: int, pad_token_id: int) -> RowLosses:
    """The loss of each row of the eval set, by length of the rows. Their `mean` is the eval loss.

    It is the cross-entropy, and if the model adds a router's loss to it, so does each label token of the batch. Every
    label token has the same weight, whatever its batch; Trainer's own evaluation averages batch means.

    Args:
        model: A causal language model. It runs in eval mode, and is left in the mode it had.
        examples: The eval set.
        batch_size: Rows of a batch.
        pad_token_id: The token that pads input_ids.
    """
    training = model.training
    model.eval()
    head = _head(model)
    sums: list[float] = []
    tokens: list[int] = []
    for batch in eval_batches(examples, batch_size, pad_token_id):
        losses, of_router = _losses(model, batch) if head is None else _label_losses(model, head, batch)
        counts = (batch["labels"][:, 1:] != IGNORED).sum(1)
        sums += (losses.cpu() + float(of_router) * counts).tolist()
        tokens += counts.tolist()
    model.train(training)
    return RowLosses(sums, tokens)


def _head(model: Any) -> Head | None:
    """The model's output layer; None if its logits are made in another way."""
    try:
        return find_head(model)
    except Exception:  # whatever the parts of a model's code do not know, the whole may
        return None


def _label_losses(model: Any, head: Head, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
    """Each row's summed loss [B], and the router's. The logits are computed at labels, and in parts.

    Whole, they may fill a GPU.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    of_router: Tensor | float = 0.0
    if has_router_loss(model.config):
        # Only the whole model knows the router's loss: it runs, for one token's logits; the decoder's output is kept.
        decoded: list[Any] = []
        hook = model.get_decoder().register_forward_hook(lambda module, given, returned: decoded.append(returned))
        try:
            of_router = router_loss(model, model(**inputs, use_cache=False, logits_to_keep=1))
        finally:
            hook.remove()
        hidden = decoded[-1].last_hidden_state[:, :-1]
    else:
        hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    row, place = (labels != IGNORED).nonzero(as_tuple=True)
    compute = hidden.dtype
    if torch.is_autocast_enabled(device.type):
        compute = torch.get_autocast_dtype(device.type)
    states, wanted = hidden[row.to(device), place.to(device)], labels[row, place].to(device)
    losses, _ = head.cross_entropy(states, wanted, [len(row)], None, {}, compute)
    summed = losses.new_zeros(len(labels), dtype=torch.float64).index_add_(0, row.to(device), losses.double())
    return summed, of_router


def _losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | float]:
    """Each row's summed loss [B], and the router's.

    The rows run one by one, so that there are the logits of one row at a time; but a router's loss is of all of them.
    """
    device = next(model.parameters()).device
    size = len(batch["labels"])
    at_once = size if has_router_loss(model.config) else 1
    found: list[Tensor] = []
    of_router: Tensor | float = 0.0
    for start in range(0, size, at_once):
        inputs = {key: value[start : start + at_once].to(device) for key, value in batch.items()}
        labels = inputs.pop("labels")[:, 1:]
        outputs = model(**inputs)
        of_router = router_loss(model, outputs)
        # As in transformers' own loss, the softmax is computed in at least float32.
        logits = outputs.logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        found += [
            nn.functional.cross_entropy(row, wanted, ignore_index=IGNORED, reduction="sum").double()
            for row, wanted in zip(logits, labels, strict=True)
        ]
    return torch.stack(found), of_router


def eval_batches(examples: Sequence[Example], batch_size: int, pad_token_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """The eval set as padded batches (see `collate`). Rows are sorted by length, so that there is little padding."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], pad_token_id)
