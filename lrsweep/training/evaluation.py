"""The loss on the eval set, computed the same way for every engine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lrsweep.files.row_losses import RowLosses
from lrsweep.training.data.collate import IGNORED
from lrsweep.training.data.loading import Example, collate
from lrsweep.training.packing.head import Head, find_head


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Example], batch_size: int, pad_token_id: int) -> RowLosses:
    """The cross-entropy of each row of the eval set, by length of the rows. Their `mean` is the eval loss.

    Every label token has the same weight, whatever its batch; Trainer's own evaluation averages batch means.

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
        losses = _losses(model, batch) if head is None else _label_losses(model, head, batch)
        sums += losses.tolist()
        tokens += (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
    model.train(training)
    return RowLosses(sums, tokens)


def _head(model: Any) -> Head | None:
    """The model's output layer; None if its logits are made in another way."""
    try:
        return find_head(model)
    except Exception:  # whatever the parts of a model's code do not know, the whole may
        return None


def _label_losses(model: Any, head: Head, batch: Mapping[str, Tensor]) -> Tensor:
    """Each row's summed loss [B]. The logits are computed at labels, and in parts: whole, they may fill a GPU."""
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
    hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    row, place = (labels != IGNORED).nonzero(as_tuple=True)
    compute = hidden.dtype
    if torch.is_autocast_enabled(device.type):
        compute = torch.get_autocast_dtype(device.type)
    states, wanted = hidden[row.to(device), place.to(device)], labels[row, place].to(device)
    losses, _ = head.cross_entropy(states, wanted, [len(row)], None, {}, compute)
    return losses.new_zeros(len(labels), dtype=torch.float64).index_add_(0, row.to(device), losses.double())


def _losses(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Each row's summed loss [B], row by row: so there are the logits of one row at a time."""
    device = next(model.parameters()).device
    found = []
    for i in range(len(batch["labels"])):
        inputs = {key: value[i : i + 1].to(device) for key, value in batch.items()}
        labels = inputs.pop("labels")[0, 1:]
        logits = model(**inputs).logits[0, :-1]
        # As in transformers' own loss, the softmax is computed in at least float32.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        found.append(nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum").double())
    return torch.stack(found)


def eval_batches(examples: Sequence[Example], batch_size: int, pad_token_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """The eval set as padded batches (see `collate`). Rows are sorted by length, so that there is little padding."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], pad_token_id)
