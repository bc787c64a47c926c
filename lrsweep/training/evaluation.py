"""The loss on the eval set, computed the same way for every engine."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from lrsweep.files.row_losses import RowLosses
from lrsweep.training.data.loading import Example, collate


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
    device = next(model.parameters()).device
    sums: list[float] = []
    tokens: list[int] = []
    for host_batch in eval_batches(examples, batch_size, pad_token_id):
        batch = {key: value.to(device) for key, value in host_batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        # As in transformers' own loss, the softmax is computed in at least float32.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        )
        sums += losses.double().view_as(labels).sum(1).tolist()
        tokens += (labels != -100).sum(1).tolist()
    model.train(training)
    return RowLosses(sums, tokens)


def eval_batches(examples: Sequence[Example], batch_size: int, pad_token_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """The eval set as padded batches (see `collate`). Rows are sorted by length, so that there is little padding."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], pad_token_id)
