"""Passes without padding: each trial's rows are laid end to end, and padded again for attention only.

Everything else in a decoder works token by token, and needs no padding. Attention is the model's own (`sdpa`) between
two gathers. transformers passes the layout through the model to the attention function, as it does for its own kernels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# The name of the attention function in transformers' registry.
_NAME = "lrsweep_unpadded"
# With a smaller share of padding than this, the gathers cost more than they save.
_PADDING = 0.1
# For attention, rows are grouped by length: up to this many tokens, up to twice as many, and so on.
_SHORT = 64
_NO_MASK = (1, 1, 1, 1)


@dataclass(frozen=True)
class Layout:
    """The places of the tokens of padded rows [k*B, T] when each trial's rows are laid end to end, [k, M].

    M is the largest number of tokens of a trial; trials with fewer tokens have padding after them. For attention, rows
    are padded again, in groups of similar length with P places in all. An index for padding points to another token of
    the same trial.

    Attributes:
        trials: The number of trials k.
        groups: The rows and the length of each group.
        positions: Each token's position in its row [k, M].
        rows: The number of each token's row in its trial's batch [k, M].
        source: Each token's place in the padded rows [k*M].
        back: Each token's place in the groups [k*M].
        places: The token in each place of the groups [P].
        taken: 1 for a token, 0 for padding [k*M, 1].
        real: 1 for a place with a token of its own, 0 for padding [P, 1].
    """

    trials: int
    groups: tuple[tuple[int, int], ...]
    positions: Tensor
    rows: Tensor
    source: Tensor
    back: Tensor
    places: Tensor
    taken: Tensor
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor, trials: int, dtype: torch.dtype) -> "Layout":
        """The layout of rows that are padded on the right.

        Args:
            mask: The attention mask [k*B, T], 0 on padding. No row is padding as a whole.
            trials: The number of trials k.
            dtype: The dtype of `taken` and `real`.
        """
        lengths = mask.sum(1)
        by_trial = lengths.view(trials, -1)
        longest = int(by_trial.sum(1).max())
        first = (by_trial.cumsum(1) - by_trial + longest * torch.arange(trials)[:, None]).flatten()
        buckets = lengths.clamp(min=_SHORT).log2().ceil().tolist()
        rows_by_bucket = [
            torch.tensor([row for row, of_row in enumerate(buckets) if of_row == bucket])
            for bucket in sorted(set(buckets))
        ]
        groups = [(rows, int(lengths[rows].max())) for rows in rows_by_bucket]
        row = torch.cat([rows.repeat_interleave(length) for rows, length in groups])
        position = torch.cat([torch.arange(length).repeat(len(rows)) for rows, length in groups])
        real = position < lengths[row]
        places = first[row] + torch.minimum(position, lengths[row] - 1)

        def by_token(of_place: Tensor) -> Tensor:
            # The padding of a trial points to its first token.
            found = torch.zeros(trials * longest, dtype=of_place.dtype)
            found[places[real]] = of_place[real]
            return torch.where(taken, found, found.view(trials, -1)[:, :1].expand(-1, longest).flatten())

        taken = torch.zeros(trials * longest, dtype=torch.bool)
        taken[places[real]] = True
        return cls(
            trials,
            tuple((len(rows), length) for rows, length in groups),
            positions=by_token(position).view(trials, -1),
            rows=by_token(row % by_trial.shape[1]).view(trials, -1),
            source=by_token(row * mask.shape[1] + position),
            back=by_token(torch.arange(len(row))),
            places=places,
            taken=taken[:, None].to(dtype),
            real=real[:, None].to(dtype),
        )

    def to(self, device: torch.device) -> "Layout":
        """The layout with its tensors on a device."""
        moved = {
            key: value.to(device, non_blocking=True) for key, value in vars(self).items() if torch.is_tensor(value)
        }
        return Layout(self.trials, self.groups, **moved)

    def pad(self, x: Tensor) -> list[Tensor]:
        """Attention heads [k, H, M, d] as padded rows [rows, H, length, d], for each group."""
        _, heads, _, dim = x.shape
        flat = x.transpose(1, 2).reshape(-1, heads * dim)
        rows: Tensor = _Gather.apply(flat, self.places, self.back, self.taken)  # type: ignore[no-untyped-call]
        parts = torch.split(rows, [count * length for count, length in self.groups])
        return [part.view(*group, heads, dim).transpose(1, 2) for part, group in zip(parts, self.groups, strict=True)]

    def unpad(self, parts: list[Tensor]) -> Tensor:
        """Padded rows [rows, length, H, d] of each group, laid end to end again as [k, M, H, d]."""
        heads, dim = parts[0].shape[2:]
        flat = [part.reshape(-1, heads * dim) for part in parts]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        found: Tensor = _Gather.apply(joined, self.back, self.places, self.real)  # type: ignore[no-untyped-call]
        return found.view(self.trials, -1, heads, dim)


class _Gather(torch.autograd.Function):
    """x[index], with a gather as its backward: `inverse` has each x row's new place, `used` 0 if it has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, used: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, used)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, used = ctx.saved_tensors
        return dy.index_select(0, inverse).mul_(used), None, None, None


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The sdpa attention of transformers, between padding and unpadding if there is a layout."""
    if layout is None:
        # Without a mask, attention is causal, and has faster kernels.
        mask = None if mask is not None and mask.shape == _NO_MASK else mask
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **options)
        return found
    groups = zip(*map(layout.pad, (query, key, value)), strict=True)
    return layout.unpad([sdpa_attention_forward(module, *heads, None, **options)[0] for heads in groups]), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def causal_only(device: torch.device) -> Tensor:
    """An attention mask that asks for causal attention and nothing else, for models that `lay_end_to_end` has prepared.

    transformers takes a mask with four axes as it is. Without one it would look for the beginnings of rows in the
    positions, for which the host waits, and a compiled model would always get a mask.
    """
    return torch.ones(_NO_MASK, device=device)


def run_unpadded(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    """The decoder's last hidden states, computed without padding.

    Args:
        model: A model that `lay_end_to_end` has prepared.
        ids: The padded rows' tokens [k*B, T].
        layout: The layout of these rows.

    Returns:
        The hidden states [k, M, D].
    """
    states: Tensor = model.get_decoder()(
        input_ids=ids.flatten()[layout.source].view(layout.trials, -1),
        position_ids=layout.positions,
        attention_mask=causal_only(ids.device),
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    return states


def is_sparse(mask: Tensor) -> bool:
    """Whether rows with this attention mask have so much padding that laying them end to end is faster."""
    return float(mask.float().mean()) < 1 - _PADDING


@torch.no_grad()
def lay_end_to_end(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """Prepares a model for rows that are laid end to end; it still takes padded ones.

    The model runs on a batch in both ways, and is left as it was if the hidden states differ: its own code decides
    which of its inputs reach attention.

    Args:
        model: The model.
        batch: A batch for the comparison, padded on the right.

    Returns:
        The most tokens that a row may have in `run_unpadded` and with `causal_only`; 0 if the model does not support
        them.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or "attention_mask" not in batch:
        return 0
    ids, mask = (batch[key].to(model.device) for key in ("input_ids", "attention_mask"))
    layout = Layout.of(batch["attention_mask"], 1, model.dtype).to(model.device)
    tokens = batch["attention_mask"].flatten().nonzero()[:, 0].to(model.device)

    def padded(mask: Tensor) -> Tensor:
        states: Tensor = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states.flatten(0, 1)[tokens]

    wanted = padded(mask)
    config._attn_implementation = _NAME
    try:
        others = padded(mask), padded(causal_only(model.device)), run_unpadded(model, ids, layout)[0]
        error = max((found - wanted).abs().max().item() for found in others)
    except torch.AcceleratorError:
        raise
    except Exception:  # a model's code may raise any error for an input that it does not know
        error = math.inf
    if not error <= torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max().item():
        config._attn_implementation = "sdpa"
        return 0
    # Without a mask, attention cannot apply the model's limit on how far it looks back, so rows must be within it.
    text = config.get_text_config()
    reaches = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((reach for reach in reaches if reach), default=torch.iinfo(torch.int64).max)
