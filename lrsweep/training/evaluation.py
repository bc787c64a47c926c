"""Held-out loss, the same for every engine."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from lrsweep.training.data.loading import Example, collate


@torch.no_grad()
def evaluate(model: nn.Module, examples: Sequence[Example], batch_size: int, pad_token_id: int) -> float:
    """Mean cross-entropy over all label tokens of `examples`, in nats.

    Every label token counts the same, whatever batch it falls in; Trainer's own evaluation averages batch means.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    for host_batch in eval_batches(examples, batch_size, pad_token_id):
        batch = {key: value.to(device) for key, value in host_batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        # As in transformers' own loss, the softmax is taken in at least float32.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total += nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        tokens += int((labels != -100).sum())
    model.train(training)
    return float(total) / tokens


def eval_batches(examples: Sequence[Example], batch_size: int, pad_token_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """The eval set in batches; rows of like length share one, so that little is padding."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    for start in range(0, len(ordered), batch_size):
        yield collate(ordered[start : start + batch_size], pad_token_id)
