"""A batch without its padding: each trial's rows laid end to end, and taken apart again for attention alone.

All else in a decoder works token by token, and need not see padding. Attention is the model's own (`sdpa`) between two
gathers; transformers hands what it needs through the model, as it does for its own kernels.
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

# The name among transformers' attention functions.
_NAME = "lrsweep_unpadded"
# Below this share of padding the gathers cost more than they save.
_PADDING = 0.1
# Rows of up to so many tokens are padded to a common length for attention, as are those of up to twice as many, and so on.
_SHORT = 64


@dataclass(frozen=True)
class Layout:
    """Where the tokens of k trials' padded rows, [k*B, T], lie in [k, N], N being the longest trial's tokens.

    For attention rows are padded again, but in `groups` (rows, length) of like length, P places in all. `back` [k*N] is each
    token's place there, `source` [k*N] the one in the padded rows, and `places` [P] the token in each place. Where there is
    none they say another one of the same trial; `taken` [k*N, 1] and `real` [P, 1] are 0 there, else 1.
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
        """The layout of rows [k*B, T] that are padded on the right; the mask is 0 on padding, and nowhere for a whole row."""
        lengths = mask.sum(1)
        by_trial = lengths.view(trials, -1)
        longest = int(by_trial.sum(1).max())
        first = (by_trial.cumsum(1) - by_trial + longest * torch.arange(trials)[:, None]).flatten()
        buckets = lengths.clamp(min=_SHORT).log2().ceil().tolist()
        members = [
            torch.tensor([row for row, of_row in enumerate(buckets) if of_row == bucket])
            for bucket in sorted(set(buckets))
        ]
        groups = [(rows, int(lengths[rows].max())) for rows in members]
        row = torch.cat([rows.repeat_interleave(length) for rows, length in groups])
        position = torch.cat([torch.arange(length).repeat(len(rows)) for rows, length in groups])
        real = position < lengths[row]
        places = first[row] + torch.minimum(position, lengths[row] - 1)

        def by_token(of_place: Tensor) -> Tensor:
            # A trial's missing tokens are told of as its first one.
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
        moved = {
            key: value.to(device, non_blocking=True) for key, value in vars(self).items() if torch.is_tensor(value)
        }
        return Layout(self.trials, self.groups, **moved)

    def apart(self, x: Tensor) -> list[Tensor]:
        """Heads [k, H, N, d] as [rows, H, T, d], group by group."""
        _, heads, _, width = x.shape
        flat = x.transpose(1, 2).reshape(-1, heads * width)
        rows: Tensor = _Gather.apply(flat, self.places, self.back, self.taken)  # type: ignore[no-untyped-call]
        parts = torch.split(rows, [count * length for count, length in self.groups])
        return [part.view(*group, heads, width).transpose(1, 2) for part, group in zip(parts, self.groups, strict=True)]

    def together(self, parts: list[Tensor]) -> Tensor:
        """Rows [rows, T, H, d], group by group, as [k, N, H, d]."""
        heads, width = parts[0].shape[2:]
        flat = [part.reshape(-1, heads * width) for part in parts]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        found: Tensor = _Gather.apply(joined, self.back, self.places, self.real)  # type: ignore[no-untyped-call]
        return found.view(self.trials, -1, heads, width)


class _Gather(torch.autograd.Function):
    """x[index], whose gradient is gathered too: `inverse` says where each row of x went, `used` 0 where it went nowhere."""

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
    if layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **options)
        return found
    groups = zip(*map(layout.apart, (query, key, value)), strict=True)
    return layout.together([sdpa_attention_forward(module, *heads, None, **options)[0] for heads in groups]), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def run_unpadded(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    """The decoder's last hidden states [k, N, D] for padded ids [k*B, T], of a model that `lay_end_to_end` was called with."""
    states: Tensor = model.get_decoder()(
        input_ids=ids.flatten()[layout.source].view(layout.trials, -1),
        position_ids=layout.positions,
        # What has four axes transformers takes for a finished mask, and makes none.
        attention_mask=torch.ones(1, 1, 1, 1, device=ids.device),
        layout=layout,
        use_cache=False,
    ).last_hidden_state
    return states


def is_sparse(mask: Tensor) -> bool:
    """Whether rows have enough padding to be worth laying end to end."""
    return float(mask.float().mean()) < 1 - _PADDING


@torch.no_grad()
def lay_end_to_end(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """Makes the model take rows end to end, besides padded ones; returns how long they may be.

    0 where it makes something else of the batch then, and is left as it was. That is looked at, because a model's code
    decides what of its inputs reaches attention.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or "attention_mask" not in batch:
        return 0
    ids, mask = (batch[key].to(model.device) for key in ("input_ids", "attention_mask"))
    layout = Layout.of(batch["attention_mask"], 1, model.dtype).to(model.device)

    def padded() -> Tensor:
        states: Tensor = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states.flatten(0, 1)[mask.flatten().bool()]

    wanted = padded()
    config._attn_implementation = _NAME
    try:
        apart = max((found - wanted).abs().max().item() for found in (padded(), run_unpadded(model, ids, layout)[0]))
    except torch.AcceleratorError:
        raise
    except Exception:  # a model's code may trip over what it does not know in any way
        apart = math.inf
    if not apart <= torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max().item():
        config._attn_implementation = "sdpa"
        return 0
    # Attention that looks back so far only is not told of it.
    text = config.get_text_config()
    reaches = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((reach for reach in reaches if reach), default=torch.iinfo(torch.int64).max)
