"""The arithmetic of layers with a leading trial axis. Gradients are added to the arena directly.

Autograd would return a new gradient for each parameter and add it afterwards; a product that accumulates in place saves
that pass over memory. The functions get weights as leaves that require grad, so that a backward is recorded even if the
input needs no gradient; they return None as the weights' gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrsweep.training.packing.arena import View

_ONEDNN = "AVX512" in torch.backends.cpu.get_cpu_capability() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: View, b: View, scaling: Tensor) -> Tensor:
    """A frozen linear layer with an adapter for each trial: x W^T + bias + scaling (x A^T) B^T.

    Args:
        x: The input [k*B, T, in].
        weight: W [out, in].
        bias: The bias [out], or None.
        a: A [k, R, in].
        b: B [k, out, R].
        scaling: The adapters' scaling [k, 1, 1]. All other arguments have the same dtype.

    Returns:
        The output [k*B, T, out].
    """
    y: Tensor = _AdaptedLinear.apply(x, weight, bias, a.compute, b.compute, a.grad, b.grad, scaling)  # type: ignore[no-untyped-call]
    return y


def add_adapter(y: Tensor, x: Tensor, a: View, b: View, scaling: Tensor) -> Tensor:
    """Adds each trial's adapter to the output of any base layer: y + scaling (x A^T) B^T.

    Args:
        y: The base layer's output [k*B, T, out].
        x: The adapter's input [k*B, T, in].
        a: A [k, R, in].
        b: B [k, out, R].
        scaling: The adapters' scaling [k, 1, 1].

    Returns:
        The output [k*B, T, out], in y's dtype.
    """
    z: Tensor = _AddAdapter.apply(y, x, a.compute, b.compute, a.grad, b.grad, scaling)  # type: ignore[no-untyped-call]
    return z


def trial_linear(x: Tensor, weight: View, bias: View | None) -> Tensor:
    """Each trial's own linear layer: x W^T + bias.

    Args:
        x: The input [k*B, T, in].
        weight: W [k, out, in].
        bias: The bias [k, out], or None.

    Returns:
        The output [k*B, T, out].
    """
    shift, shift_grad = (None, None) if bias is None else (bias.compute, bias.grad)
    y: Tensor = _TrialLinear.apply(x, weight.compute, weight.grad, shift, shift_grad)  # type: ignore[no-untyped-call]
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x W^T + bias without a gradient.

    In float32 on CPUs with AVX-512 it calls oneDNN, through the operator that torch.compile puts in place of a linear
    layer. MKL, which F.linear calls, uses only AVX2 on CPUs that are not Intel's (see benchmarks/products.py).

    Args:
        x: The input [..., in].
        weight: W [out, in].
        bias: The bias [out], or None.
    """
    if _ONEDNN and x.dtype == torch.float32 and x.is_cpu:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def parameter(view: View) -> Tensor:
    """The weights [k, *shape] for use in any torch code; their gradients are added to the arena."""
    weight: Tensor = _Parameter.apply(view.weight, view.grad)  # type: ignore[no-untyped-call]
    return weight


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + bias + low B^T with low = scaling x A^T. Backward: dlow = scaling dy B and dx = dy W + dlow A."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        grad_a: Tensor,
        grad_b: Tensor,
        scaling: Tensor,
    ) -> Tensor:
        rows = x.reshape(a.shape[0], -1, x.shape[-1])
        low = torch.bmm(rows, a.mT).mul_(scaling)
        y = linear(rows, weight, bias).baddbmm_(low, b.mT)
        ctx.save_for_backward(rows, low)
        ctx.shape, ctx.weight, ctx.adapter = x.shape, weight, (a, b, grad_a, grad_b, scaling)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, low = ctx.saved_tensors
        a = ctx.adapter[0]
        dy = dy.reshape(*rows.shape[:2], -1)
        dlow = _adapter_backward(dy, rows, low, *ctx.adapter)
        dx = linear(dy, ctx.weight.mT).baddbmm_(dlow, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, None, None, None


class _AddAdapter(torch.autograd.Function):
    """z = y + low B^T with low = scaling x A^T. Backward: dlow = scaling dz B, dy = dz and dx = dlow A."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, scaling: Tensor
    ) -> Tensor:
        rows = x.reshape(a.shape[0], -1, x.shape[-1])
        low = torch.bmm(rows.to(a.dtype), a.mT).mul_(scaling)
        base = y.reshape(*rows.shape[:2], -1)
        same = y.dtype == a.dtype
        z = torch.baddbmm(base, low, b.mT) if same else (base + torch.bmm(low, b.mT)).to(y.dtype)
        ctx.save_for_backward(rows, low)
        ctx.adapter = (a, b, grad_a, grad_b, scaling)
        ctx.shape = x.shape
        return z.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        rows, low = ctx.saved_tensors
        a = ctx.adapter[0]
        dlow = _adapter_backward(dz.reshape(*rows.shape[:2], -1).to(a.dtype), rows.to(a.dtype), low, *ctx.adapter)
        dx = torch.bmm(dlow, a).to(rows.dtype).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return dz, dx, None, None, None, None, None


class _TrialLinear(torch.autograd.Function):
    """y = x W^T + bias. Backward: dW = dy^T x, dbias = the sum of dy over rows, and dx = dy W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, grad: Tensor, bias: Tensor | None, bias_grad: Tensor | None
    ) -> Tensor:
        rows = x.reshape(weight.shape[0], -1, x.shape[-1]).to(weight.dtype)
        y = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
        ctx.save_for_backward(rows)
        ctx.shape, ctx.dtype, ctx.layer = x.shape, x.dtype, (weight, grad, bias_grad)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        weight, grad, bias_grad = ctx.layer
        dy = dy.reshape(*rows.shape[:2], -1)
        _accumulate(grad, dy.mT, rows)
        if bias_grad is not None:
            bias_grad.add_(dy.sum(1))
        dx = torch.bmm(dy, weight).to(ctx.dtype).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


class _Parameter(torch.autograd.Function):
    """The identity, whose backward adds the gradient to the arena."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grad: Tensor) -> Tensor:
        ctx.grad = grad
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, found: Tensor) -> tuple[None, None]:
        ctx.grad.add_(found)
        return None, None


def _adapter_backward(
    dy: Tensor, rows: Tensor, low: Tensor, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, scaling: Tensor
) -> Tensor:
    """Adds dA = dlow^T x and dB = dy^T low to the arena; returns dlow = scaling dy B [k, B*T, R]."""
    # MKL is slow if the second matrix has R contiguous columns (see benchmarks/products.py).
    wide = b.mT.contiguous().mT if b.is_cpu else b
    dlow = torch.bmm(dy, wide).mul_(scaling)
    _accumulate(grad_b.mT, low.mT, dy)
    _accumulate(grad_a, dlow.mT, rows)
    return dlow


def _accumulate(grad: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to grad; each has shape [k, ., .]."""
    # Into rows that are not contiguous the CPU multiplies trial by trial; for small matrices one more pass costs less.
    small = grad.is_cpu and len(grad) > 1 and grad.shape[1] * grad.shape[2] <= 4096
    if small or grad.dtype != left.dtype:
        grad.add_(torch.bmm(left, right))
    else:
        grad.baddbmm_(left, right)
