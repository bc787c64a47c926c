"""A batch without its padding: each trial's rows laid end to end, and taken apart again for attention alone.

All else in a decoder works token by token, and need not see padding. Attention is the model's own (`sdpa`) between two
gathers; transformers hands what it needs through the model, as it does for its own kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lrsweep.packing.dropout import token_places

# The name among transformers' attention functions.
_NAME = "lrsweep_unpadded"
# Below this share of padding the gathers cost more than they save.
_PADDING = 0.1


@dataclass(frozen=True)
class Layout:
    """Where the tokens of k trials' padded rows, [k*B, T], lie in [k, N], N being the longest trial's tokens.

    `back` [k*N] is the padded place of each token, and `places` [k*B*T] the other way round. Where there is none they
    say another token of the trial; `taken` [k*N, 1] and `real` [k*B*T, 1] are 0 there, else 1.
    """

    trials: int
    rows: int
    positions: Tensor
    back: Tensor
    places: Tensor
    taken: Tensor
    real: Tensor

    @classmethod
    def of(cls, mask: Tensor, trials: int, dtype: torch.dtype) -> "Layout":
        """The layout of rows [k*B, T] that are padded on the right; the mask is 0 on padding."""
        by_trial = mask.view(trials, -1).bool()
        counts, size = by_trial.sum(1), by_trial.shape[1]
        longest = int(counts.max())
        within = by_trial.cumsum(1) - 1  # padding says the last token before it
        padded = by_trial.flatten().nonzero()[:, 0]
        trial = padded // size
        back = (torch.arange(trials) * size)[:, None].repeat(1, longest)
        back[trial, within.flatten()[padded]] = padded
        taken = torch.arange(longest) < counts[:, None]
        positions = torch.where(taken, back % mask.shape[1], 0)
        places = within.clamp(min=0) + longest * torch.arange(trials)[:, None]
        return cls(
            trials, len(mask), positions, back.flatten(), places.flatten(),
            taken.view(-1, 1).to(dtype), by_trial.reshape(-1, 1).to(dtype),
        )  # fmt: skip

    def places_in_batch(self) -> Tensor:
        """Each token's place in its trial's batch, [k, N], as dropout has it."""
        length = len(self.places) // self.rows
        row = self.back.view(self.trials, -1) // length % (self.rows // self.trials)
        return token_places(row, self.positions)

    def to(self, device: torch.device) -> "Layout":
        moved = {
            key: value.to(device, non_blocking=True) for key, value in vars(self).items() if torch.is_tensor(value)
        }
        return Layout(self.trials, self.rows, **moved)

    def apart(self, x: Tensor) -> Tensor:
        """Heads [k, H, N, d] as [k*B, H, T, d]."""
        _, heads, _, width = x.shape
        flat = x.transpose(1, 2).reshape(-1, heads * width)
        rows: Tensor = _Gather.apply(flat, self.places, self.back, self.taken)  # type: ignore[no-untyped-call]
        return rows.view(self.rows, -1, heads, width).transpose(1, 2)

    def together(self, x: Tensor) -> Tensor:
        """Rows [k*B, T, H, d] as [k, N, H, d]."""
        _, _, heads, width = x.shape
        flat: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, heads * width), self.back, self.places, self.real
        )
        return flat.view(self.trials, -1, heads, width)


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
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    *, layout: Layout | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    if layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **options)
        return found
    rows, _ = sdpa_attention_forward(module, *map(layout.apart, (query, key, value)), None, **options)
    return layout.together(rows), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def run_unpadded(model: PreTrainedModel, ids: Tensor, layout: Layout) -> Tensor:
    """The decoder's last hidden states [k, N, D] for padded ids [k*B, T], of a model that `lay_end_to_end` was called with."""
    states: Tensor = model.get_decoder()(
        input_ids=ids.flatten()[layout.back].view(layout.trials, -1),
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
    padded = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    config._attn_implementation = _NAME
    try:
        states = run_unpadded(model, ids, layout)
    except (TypeError, ValueError, RuntimeError):
        states = padded.new_full((), torch.nan)
    wanted = padded.flatten(0, 1)[mask.flatten().bool()]
    if not (states - wanted).abs().max() <= torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max():
        config._attn_implementation = "sdpa"
        return 0
    # Attention that looks back so far only is not told of it.
    text = config.get_text_config()
    reaches = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((reach for reach in reaches if reach), default=torch.iinfo(torch.int64).max)
