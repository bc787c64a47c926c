"""Kernels for a GPU, in Triton: gated activations with their adapters, rotary positions, and the cross-entropy.

Each reads its inputs from memory once and writes its outputs once; what is between is computed in float32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Ranks up to which a kernel multiplies adapters: tiles of it have to fit in registers.
MAX_RANK = 64
# A tensor core multiplies at least so many columns.
_LEAST_RANK = 16
# Rows and columns of a tile of activations, columns of the cross-entropy's, and pairs that are rotated at once.
_ROWS, _COLUMNS, _LOGITS, _ROTATED = 64, 64, 8192, 2048


class LowRank(NamedTuple):
    """A product of each trial's tokens and weights, to be added: left [k, N, R] times right [k, R, F].

    Attributes:
        left: The tokens' side; its last axis is contiguous.
        right: The weights' side, with any strides.
    """

    left: Tensor
    right: Tensor


def gated(gate: Tensor, up: Tensor, adapters: tuple[LowRank, LowRank] | None = None) -> Tensor:
    """Computes silu(gate) up.

    Args:
        gate: The gates [k, N, F], contiguous.
        up: What they are for [k, N, F], contiguous.
        adapters: What is added to each first; both of one rank.

    Returns:
        The products [k, N, F].
    """
    y = torch.empty_like(gate)
    of_gate, of_up = adapters or (_none(gate), _none(gate))
    _, rows, columns = gate.shape
    _gated[_grid(gate)](
        gate, up, y, *of_gate, *of_up, rows, columns, of_gate.left.shape[2], *_strides(of_gate), *_strides(of_up),
        RANK=_padded_rank(of_gate), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return y


def gated_backward(
    dy: Tensor,
    gate: Tensor,
    up: Tensor,
    adapters: tuple[LowRank, LowRank] | None = None,
    of_dy: LowRank | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of `gated`.

    With x = gate and s = sigmoid(x): dgate = dy up s (1 + x (1 - s)), and dup = dy x s.

    Args:
        dy: The products' gradient [k, N, F], contiguous.
        gate: As for `gated`.
        up: As for `gated`.
        adapters: As for `gated`.
        of_dy: What is added to `dy` first.

    Returns:
        The gradients of gate and up [k, N, F], after the adapters were added to them.
    """
    dgate, dup = torch.empty_like(gate), torch.empty_like(up)
    of_gate, of_up = adapters or (_none(gate), _none(gate))
    of_dy = of_dy or _none(gate)
    _, rows, columns = gate.shape
    _gated_backward[_grid(gate)](
        dy, gate, up, dgate, dup, *of_gate, *of_up, *of_dy, rows, columns, of_gate.left.shape[2], of_dy.left.shape[2],
        *_strides(of_gate), *_strides(of_up), *_strides(of_dy),
        RANK=_padded_rank(of_gate), RANK_OF_DY=_padded_rank(of_dy), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return dgate, dup


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    """Rotates queries and keys by their positions: (a, b) becomes (a cos - b sin, b cos + a sin).

    Args:
        q: The queries [B, H, T, D]; D is contiguous, as in all arguments.
        k: The keys, with any number of heads.
        cos: The cosines of the positions [B or 1, T, D].
        sin: The sines, with the strides of `cos`.
        back: Computes the gradients of `q` and `k` from those of the results.

    Returns:
        Both, rotated; heads are the third axis in memory, as in a projection's output.
    """
    batch, _, tokens, size = q.shape
    made = [torch.empty(batch, tokens, x.shape[1], size, dtype=x.dtype, device=x.device) for x in (q, k)]
    lanes, heads_q = triton.next_power_of_2(size // 2), triton.next_power_of_2(q.shape[1])
    at_once = max(1, _ROTATED // (lanes * heads_q))
    _rotate[(triton.cdiv(tokens, at_once), batch)](
        q, k, *made, cos, sin, tokens, q.shape[1], k.shape[1], *q.stride()[:3], *k.stride()[:3],
        0 if len(cos) == 1 else cos.stride(0), cos.stride(1), HALF=size // 2, LANES=lanes,
        HEADS_Q=heads_q, HEADS_K=triton.next_power_of_2(k.shape[1]), TOKENS=at_once, BACK=back, num_warps=4,
    )  # fmt: skip
    rotated_q, rotated_k = (x.transpose(1, 2) for x in made)
    return rotated_q, rotated_k


def cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and their gradient.

    Args:
        logits: The logits [n, V], contiguous. They are overwritten.
        wanted: The labels [n, 1].

    Returns:
        The losses [n] in float32, in nats, and the gradient of each with respect to its logits [n, V]: the memory of
        `logits`.
    """
    count, vocabulary = logits.shape
    losses = torch.empty(count, dtype=torch.float32, device=logits.device)
    if count:
        columns = min(_LOGITS, triton.next_power_of_2(vocabulary))
        _cross_entropy[(count,)](logits, wanted, losses, VOCABULARY=vocabulary, COLUMNS=columns, num_warps=16)
    return losses, logits


def _none(like: Tensor) -> LowRank:
    empty = like.new_empty(1, 1, 0)
    return LowRank(empty, empty.mT)


def _grid(x: Tensor) -> tuple[int, int, int]:
    trials, rows, columns = x.shape
    return triton.cdiv(columns, _COLUMNS), triton.cdiv(rows, _ROWS), trials


def _padded_rank(product: LowRank) -> int:
    rank = product.left.shape[2]
    return max(_LEAST_RANK, triton.next_power_of_2(rank)) if rank else 0


def _strides(product: LowRank) -> tuple[int, int, int, int, int]:
    left, right = product
    return left.stride(0), left.stride(1), right.stride(0), right.stride(1), right.stride(2)


@triton.jit
def _product(
    left, right, trial, first_row, first_column, row, column, inside_rows, inside_columns, rank,
    left_k, left_n, right_k, right_r, right_f, RANK: tl.constexpr,
):  # fmt: skip
    """A tile of left [N, R] times right [R, F], in float32."""
    r = tl.arange(0, RANK)
    left += trial * left_k + first_row * left_n
    x = tl.load(left + row[:, None] * left_n + r[None, :], mask=inside_rows & (r < rank)[None, :], other=0.0)
    right += trial * right_k + first_column * right_f
    places = right + r[:, None] * right_r + column[None, :] * right_f
    w = tl.load(places, mask=(r < rank)[:, None] & inside_columns, other=0.0)
    return tl.dot(x, w, input_precision="ieee")


@triton.jit
def _gated(
    gate, up, y, gate_left, gate_right, up_left, up_right, rows, columns, rank,
    gl_k, gl_n, gr_k, gr_r, gr_f, ul_k, ul_n, ur_k, ur_r, ur_f,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Where the tile begins takes 64 bits; inside it 32 are enough.
    trial, first_row = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * ROWS
    first_column = tl.program_id(0) * COLUMNS
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside_rows = (row < rows - first_row)[:, None]
    inside_columns = (column < columns - first_column)[None, :]
    inside = inside_rows & inside_columns
    start = (trial * rows + first_row) * columns + first_column
    places = row[:, None] * columns + column[None, :]
    g = tl.load(gate + start + places, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + start + places, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        g += _product(
            gate_left, gate_right, trial, first_row, first_column, row, column, inside_rows, inside_columns, rank,
            gl_k, gl_n, gr_k, gr_r, gr_f, RANK,
        )  # fmt: skip
        u += _product(
            up_left, up_right, trial, first_row, first_column, row, column, inside_rows, inside_columns, rank,
            ul_k, ul_n, ur_k, ur_r, ur_f, RANK,
        )  # fmt: skip
    tl.store(y + start + places, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward(
    dy, gate, up, dgate, dup, gate_left, gate_right, up_left, up_right, dy_left, dy_right, rows, columns, rank,
    rank_of_dy, gl_k, gl_n, gr_k, gr_r, gr_f, ul_k, ul_n, ur_k, ur_r, ur_f, dl_k, dl_n, dr_k, dr_r, dr_f,
    RANK: tl.constexpr, RANK_OF_DY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    trial, first_row = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * ROWS
    first_column = tl.program_id(0) * COLUMNS
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside_rows = (row < rows - first_row)[:, None]
    inside_columns = (column < columns - first_column)[None, :]
    inside = inside_rows & inside_columns
    start = (trial * rows + first_row) * columns + first_column
    places = row[:, None] * columns + column[None, :]
    d = tl.load(dy + start + places, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + start + places, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + start + places, mask=inside, other=0.0).to(tl.float32)
    if RANK_OF_DY > 0:
        d += _product(
            dy_left, dy_right, trial, first_row, first_column, row, column, inside_rows, inside_columns, rank_of_dy,
            dl_k, dl_n, dr_k, dr_r, dr_f, RANK_OF_DY,
        )  # fmt: skip
    if RANK > 0:
        g += _product(
            gate_left, gate_right, trial, first_row, first_column, row, column, inside_rows, inside_columns, rank,
            gl_k, gl_n, gr_k, gr_r, gr_f, RANK,
        )  # fmt: skip
        u += _product(
            up_left, up_right, trial, first_row, first_column, row, column, inside_rows, inside_columns, rank,
            ul_k, ul_n, ur_k, ur_r, ur_f, RANK,
        )  # fmt: skip
    share = tl.sigmoid(g)
    d *= share
    tl.store(dgate + start + places, (d * u * (1 + g * (1 - share))).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + start + places, (d * g).to(dup.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_heads(
    x, y, batch, first, token, tokens, heads, x_b, x_h, x_t, cos_a, cos_b, sin_a, sin_b, i,
    HALF: tl.constexpr, HEADS: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Rotates all heads of some tokens."""
    h = tl.arange(0, HEADS)[None, :, None]
    inside = (token < tokens - first) & (h < heads) & (i < HALF)
    places = x + batch * x_b + first * x_t + token * x_t + h * x_h + i
    a = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(places + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        new_a = a * cos_a + b * sin_b
        new_b = b * cos_b - a * sin_a
    else:
        new_a = a * cos_a - b * sin_a
        new_b = b * cos_b + a * sin_b
    places = y + (batch * tokens + first) * heads * (2 * HALF) + (token * heads + h) * (2 * HALF) + i
    tl.store(places, new_a.to(y.dtype.element_ty), mask=inside)
    tl.store(places + HALF, new_b.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    q, k, new_q, new_k, cos, sin, tokens, heads_q, heads_k, q_b, q_h, q_t, k_b, k_h, k_t, cos_b, cos_t,
    HALF: tl.constexpr, LANES: tl.constexpr, HEADS_Q: tl.constexpr, HEADS_K: tl.constexpr, TOKENS: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    first, batch = tl.program_id(0).to(tl.int64) * TOKENS, tl.program_id(1).to(tl.int64)
    token, i = tl.arange(0, TOKENS)[:, None, None], tl.arange(0, LANES)[None, None, :]
    angle = batch * cos_b + first * cos_t + token * cos_t + i
    known = (token < tokens - first) & (i < HALF)
    cos_1 = tl.load(cos + angle, mask=known, other=0.0).to(tl.float32)
    cos_2 = tl.load(cos + angle + HALF, mask=known, other=0.0).to(tl.float32)
    sin_1 = tl.load(sin + angle, mask=known, other=0.0).to(tl.float32)
    sin_2 = tl.load(sin + angle + HALF, mask=known, other=0.0).to(tl.float32)
    _rotate_heads(
        q, new_q, batch, first, token, tokens, heads_q, q_b, q_h, q_t, cos_1, cos_2, sin_1, sin_2, i,
        HALF, HEADS_Q, BACK,
    )  # fmt: skip
    _rotate_heads(
        k, new_k, batch, first, token, tokens, heads_k, k_b, k_h, k_t, cos_1, cos_2, sin_1, sin_2, i,
        HALF, HEADS_K, BACK,
    )  # fmt: skip


@triton.jit
def _cross_entropy(logits, wanted, losses, VOCABULARY: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * VOCABULARY
    label = tl.load(wanted + row)
    # Before any thread overwrites it: the reductions below wait for all threads.
    of_label = tl.load(start + label).to(tl.float32)
    highest = float("-inf")
    total = 0.0
    for first in range(0, VOCABULARY, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(start + column, mask=column < VOCABULARY, other=float("-inf")).to(tl.float32)
        new = tl.maximum(highest, tl.max(x, 0))
        total = total * tl.exp(highest - new) + tl.sum(tl.exp(x - new), 0)
        highest = new
    log_sum = tl.log(total)
    # From the highest logit: from zero, a share near one would lose digits.
    log_share = of_label - highest - log_sum
    of_label = tl.exp(log_share) - 1
    for first in range(0, VOCABULARY, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        x = tl.load(start + column, mask=column < VOCABULARY, other=0.0).to(tl.float32)
        gradient = tl.where(column == label, of_label, tl.exp(x - highest - log_sum))
        tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=column < VOCABULARY)
    tl.store(losses + row, -log_share)
