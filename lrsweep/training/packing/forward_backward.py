"""Forward and backward passes over neighbouring slots, and their losses."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrsweep.training.packing.dropout import token_places
from lrsweep.training.packing.pack import Pack
from lrsweep.training.packing.unpadded import Layout, causal_only, is_sparse, run_unpadded

IGNORED = -100

# From rows [k*B, T] on the device to their hidden states [k*B, T, D].
Decoder = Callable[[Tensor], Tensor]


def train_pass(
    pack: Pack,
    start: int,
    stop: int,
    batch: Mapping[str, Tensor],
    tokens: Sequence[int] | None = None,
    decoder: Decoder | None = None,
) -> Tensor:
    """Forward and backward pass of the slots start..stop; gradients are added to the arena.

    A trial's loss is the sum of the cross-entropy over its label tokens, divided by their number or by its `tokens`.

    Args:
        pack: The pack.
        start: The first slot.
        stop: The slot after the last one.
        batch: The slots' batches, `join`ed: input_ids and labels [k*B, T], and optionally attention_mask and
            position_ids. On the CPU, so that nothing waits for the device.
        tokens: The divisor of each trial's loss: with gradient accumulation, the label tokens of all batches of a step.
            None: those of this batch.
        decoder: Computes the hidden states of rows without a mask; None for the model's own decoder.

    Returns:
        The losses [k], in nats. Without label tokens a trial's loss is nan, and has no gradient.
    """
    hidden, targets, rows = _label_states(pack, start, stop, batch, training=True, decoder=decoder)
    counts = _by_row(rows, batch).view(stop - start, -1).sum(1).tolist()
    divisor = torch.tensor(counts if tokens is None else tokens, dtype=torch.float64)
    shares = divisor.reciprocal().repeat_interleave(torch.tensor(counts))
    losses, gradient = pack.head.cross_entropy(
        hidden.detach(), targets, counts, _on(hidden.device, shares), pack.context.views, pack.arena.compute_dtype
    )
    if hidden.requires_grad:
        torch.autograd.backward(hidden, gradient)
    return _sums(losses, counts) / _on(hidden.device, divisor.to(losses.dtype))


@torch.no_grad()
def eval_pass(pack: Pack, start: int, stop: int, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Forward pass of the slots start..stop without dropout.

    Args:
        pack: The pack.
        start: The first slot.
        stop: The slot after the last one.
        batch: As for `train_pass`.

    Returns:
        Each row's cross-entropy, summed over its label tokens [k, B], in nats, and the number of its label tokens
        [k, B], which is on the CPU.
    """
    hidden, targets, rows = _label_states(pack, start, stop, batch, training=False)
    counts = _by_row(rows, batch).view(stop - start, -1)
    losses, _ = pack.head.cross_entropy(
        hidden, targets, counts.sum(1).tolist(), None, pack.context.views, pack.arena.compute_dtype
    )
    sums = losses.new_zeros(counts.numel(), dtype=torch.float64)
    sums.index_add_(0, _on(losses.device, rows), losses.double())
    return sums.view_as(counts), counts


def join(batches: Sequence[Mapping[str, Tensor]], multiple: int = 1) -> dict[str, Tensor]:
    """Joins the batches of neighbouring slots, trial by trial, padded to the same B and T.

    Padding has no labels and no token attends to it, so it changes no result.

    Args:
        batches: Each slot's batch, on the CPU: tensors [B, T], padded on the right. B and T may differ.
        multiple: Pads T to a multiple of this.

    Returns:
        The batch: tensors [k*B, T].
    """
    rows = max(len(batch["input_ids"]) for batch in batches)
    length = max(batch["input_ids"].shape[1] for batch in batches)
    length += -length % multiple
    joined: dict[str, Tensor] = {}
    for key in batches[0]:
        parts = [_padded(key, batch[key], rows, length) for batch in batches]
        joined[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return joined


def _padded(key: str, values: Tensor, rows: int, length: int) -> Tensor:
    missing_rows, missing = rows - values.shape[0], length - values.shape[1]
    if missing_rows == missing == 0:
        return values
    if key == "position_ids":  # padding is one more row of the block, with its own positions
        values = torch.cat([values, torch.arange(missing).expand(len(values), -1)], dim=1)
        return torch.cat([values, torch.arange(length).expand(missing_rows, -1)])
    values = F.pad(values, (0, missing), value=IGNORED if key == "labels" else 0)
    # A row that is masked as a whole would give NaN in some attention kernels.
    return F.pad(values, (0, 0, 0, missing_rows), value={"labels": IGNORED, "attention_mask": 1}.get(key, 0))


def _label_states(
    pack: Pack, start: int, stop: int, batch: Mapping[str, Tensor], *, training: bool, decoder: Decoder | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The n hidden states [n, D] that predict a label, the labels [n], and their rows of k*B [n]; trial by trial."""
    device = pack.arena.weights.device
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    right = mask is not None and pads_right(mask)
    if decoder is None and mask is not None and right and ids.shape[1] <= pack.unpadded and is_sparse(mask):
        layout = Layout.of(mask, stop - start, pack.arena.weights.dtype)
        pack.context.select(
            start, stop, *layout.positions.shape, training=training, places=token_places(layout.rows, layout.positions)
        )
        labels = labels.flatten()[layout.source].masked_fill(layout.taken[:, 0] == 0, IGNORED)
        row = layout.source // ids.shape[1]
        with autocast(pack):
            hidden = run_unpadded(pack.model, _on(device, ids), layout.to(device))
    else:
        pack.context.select(start, stop, *ids.shape, training=training)
        row = torch.arange(len(ids)).repeat_interleave(ids.shape[1])
        # Causal attention does not see what is on the right, so a mask of padding there would only cost time.
        left_out = {"labels", "attention_mask"} if right else {"labels"}
        inputs = {key: _on(device, value) for key, value in batch.items() if key not in left_out}
        if inputs.keys() == {"input_ids"} and ids.shape[1] <= pack.maskless:
            inputs["attention_mask"] = causal_only(device)
        with autocast(pack):
            if decoder is not None:
                hidden = decoder(inputs["input_ids"])
            else:
                hidden = pack.model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    labels = labels.flatten()
    places = (labels != IGNORED).nonzero()[:, 0]
    states = hidden.flatten(0, 1).index_select(0, _on(device, places))
    return states, _on(device, labels[places]), row[places]


def _on(device: torch.device, values: Tensor) -> Tensor:
    """Values on their way to the device: the host goes on, and waits for nothing."""
    # CUDA copies from pinned memory by itself. An expanded tensor cannot be pinned.
    return (values.contiguous().pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def _sums(losses: Tensor, counts: list[int]) -> Tensor:
    """Each trial's sum of losses [k]."""
    if len(set(counts)) == 1:
        return losses.view(len(counts), -1).sum(1)
    return torch.stack([part.sum() for part in torch.split(losses, counts)])


def _by_row(rows: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The number of labels in each row of k*B."""
    return torch.bincount(rows, minlength=len(batch["input_ids"]))


def autocast(pack: Pack) -> contextlib.AbstractContextManager[Any]:
    """Autocast to the dtype of the pack's products, if it is not that of its weights.

    Its cache of weights is off: no weight here is a parameter of autograd's, and a CUDA graph must not be recorded with
    one.
    """
    compute, weights = pack.arena.compute_dtype, pack.arena.weights
    mixed = compute != weights.dtype
    return torch.autocast(weights.device.type, compute, cache_enabled=False) if mixed else contextlib.nullcontext()


def pads_right(mask: Tensor) -> bool:
    """Whether all padding of an attention mask [rows, T] is on the right."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())
