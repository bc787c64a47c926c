"""A gated MLP, down(silu(gate(x)) up(x)), with kernels that also add the adapters to what they read.

Outside a kernel, an adapter's product would be added to a tensor of the MLP's inner width, which is read and written
for it alone: on an H200 that took a tenth of a step.
"""

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lrsweep.training.packing import kernels
from lrsweep.training.packing.functions import Plan
from lrsweep.training.packing.layers import LoraLinear

_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@torch.no_grad()
def fuse_gated_mlps(model: PreTrainedModel) -> None:
    """Has the model's MLPs that are gated by a SiLU computed with kernels, where they work.

    Args:
        model: The model, not converted yet.
    """
    for module in model.modules():
        if dict(module.named_children()).keys() != _PARTS:
            continue
        gate: Any = module.gate_proj
        weight = next(module.parameters())
        if not (kernels.can_run(weight.device, weight.dtype) and _work(weight.device, weight.dtype)):
            return
        x = torch.randn(1, 16, gate.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
        rounding = 4 * torch.finfo(x.dtype).eps
        # It may be gated by something else.
        if kernels.is_right("an MLP", functools.partial(_beside, module, x), rounding):
            module.forward = types.MethodType(_gated_mlp, module)


def _beside(mlp: Any, x: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    wanted = mlp(x)
    size = wanted.abs().max()
    yield _gated_mlp(mlp, x) / size, wanted / size


def _gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    y: Tensor
    if torch.compiler.is_compiling():  # a compiler of the whole decoder makes kernels of its own
        y = down(F.silu(gate(x)) * up(x))
    elif (plans := _plans(gate, up, down, x)) is not None:
        y = _AdaptedMlp.apply(x, *plans, plans[0].a)  # type: ignore[no-untyped-call]
    else:
        y = down(_Gated.apply(gate(x), up(x)))  # type: ignore[no-untyped-call]
    return y


def _plans(gate: Any, up: Any, down: Any, x: Tensor) -> tuple[Plan, Plan] | None:
    """The adapted layers of an MLP, in the current pass; None if the kernels cannot add their adapters."""
    if not all(isinstance(layer, LoraLinear) and layer.is_plain(x) for layer in (gate, up, down)):
        return None
    if gate.joint is None or list(gate.joint.layers) != [gate, up]:
        return None
    gate.check(x)
    inner, outer = gate.joint.plan(), down.plan()
    most = kernels.triton_kernels().MAX_RANK
    return (inner, outer) if max(each.shape[-1] for each in (*inner.b, *outer.b)) <= most else None


class _Gated(torch.autograd.Function):
    """y = silu(gate) up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        flat = [_flat(x) for x in (gate, up)]
        ctx.save_for_backward(*flat)
        y: Tensor = kernels.triton_kernels().gated(*flat)
        return y.view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        dgate, dup = kernels.triton_kernels().gated_backward(_flat(dy), *ctx.saved_tensors)
        return dgate.view(dy.shape), dup.view(dy.shape)


class _AdaptedMlp(torch.autograd.Function):
    """An MLP of three frozen layers, each with an adapter for each trial.

    The layers' outputs are kept without their adapters, which each kernel adds anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inner: Plan, outer: Plan, a: Tensor) -> Tensor:
        rows = inner.rows(x)
        (gate, up), low = inner.products(rows)
        h = kernels.triton_kernels().gated(gate, up, _adapters(inner, low))
        (y,), low_h = outer.products(h)
        y.baddbmm_(low_h, outer.b[0].mT)
        ctx.save_for_backward(rows, low, gate, up, h, low_h)
        ctx.shape, ctx.inner, ctx.outer = x.shape, inner, outer
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, gate, up, h, low_h = ctx.saved_tensors
        inner, outer = ctx.inner, ctx.outer
        device = kernels.triton_kernels()
        found = [outer.rows(dy)]
        dlow_h = outer.adapters_backward(h, low_h, found)
        dh = outer.frozen_backward(found)
        of_dh = device.LowRank(dlow_h, outer.a)
        gradients = device.gated_backward(dh, gate, up, _adapters(inner, low), of_dh)
        dlow = inner.adapters_backward(rows, low, gradients)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return inner.frozen_backward(gradients).baddbmm_(dlow, inner.a).view(ctx.shape), None, None, None


def _adapters(inner: Plan, low: Tensor) -> tuple[Any, Any]:
    """What the adapters add to gate and up."""
    lows = low.chunk(2, dim=2)
    of_gate, of_up = (kernels.triton_kernels().LowRank(left, b.mT) for left, b in zip(lows, inner.b, strict=True))
    return of_gate, of_up


def _flat(x: Tensor) -> Tensor:
    """[..., F] as [1, N, F]."""
    return x.reshape(1, -1, x.shape[-1]).contiguous()


@functools.cache
@torch.enable_grad()
def _work(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels work on the device, with adapters."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # Sizes that no tile divides.
    trials, rows, columns, rank = 2, 70, 136, 8
    gate, up, dy = (normal(trials, rows, columns) for _ in range(3))
    lows, left = normal(trials, rows, 2 * rank).chunk(2, dim=2), normal(trials, rows, rank)
    rights = [normal(trials, columns, rank).mT for _ in range(2)]
    right = normal(trials, rank, columns)

    def run() -> Iterable[tuple[Tensor, Tensor]]:
        device = kernels.triton_kernels()
        of_gate, of_up, of_dy = map(device.LowRank, (*lows, left), (*rights, right))
        leaves = [x.float().requires_grad_() for x in (gate, up)]
        added = [x + low.float() @ b.float() for x, low, b in zip(leaves, lows, rights, strict=True)]
        y = F.silu(added[0]) * added[1]
        gradients = torch.autograd.grad(y, leaves, dy.float() + left.float() @ right.float())
        yield device.gated(gate, up, (of_gate, of_up)), y.detach()
        found = device.gated_backward(dy, gate, up, (of_gate, of_up), of_dy)
        yield from zip(found, gradients, strict=True)

    return kernels.is_right("gated activations", run, 4 * torch.finfo(dtype).eps)
