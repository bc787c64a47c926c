"""The arithmetic of layers with a leading trial axis. Gradients are added to the arena directly.

Autograd would return a new gradient for each parameter and add it afterwards; a product that accumulates in place saves
that pass over memory. The functions get weights as leaves that require grad, so that a backward is recorded even if the
input needs no gradient; they return None as the weights' gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lrsweep.training.packing.working_copy import View

_ONEDNN = "AVX512" in torch.backends.cpu.get_cpu_capability() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Frozen(NamedTuple):
    """The weight [out, in] and the bias [out] of a frozen linear layer."""

    weight: Tensor
    bias: Tensor | None


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: View, b: View) -> Tensor:
    """A frozen linear layer with an adapter for each trial: x W^T + bias + (x A^T) B^T.

    Args:
        x: The input [k*B, T, in].
        weight: W [out, in].
        bias: The bias [out], or None.
        a: A [k, R, in].
        b: B [k, out, R], with the adapter's scaling. All arguments have the same dtype.

    Returns:
        The output [k*B, T, out].
    """
    (y,) = adapted_linears(x, Plan.of([Frozen(weight, bias)], None, a, [b]))
    return y


def adapted_linears(x: Tensor, plan: "Plan") -> tuple[Tensor, ...]:
    """Frozen linear layers of one input, with adapters for each trial.

    One function for all of them reads the input once for all A, and adds up the input's gradient as it is computed.

    Args:
        x: The input [k*B, T, in].
        plan: The layers and their adapters.

    Returns:
        The output [k*B, T, out] of each layer.
    """
    y: tuple[Tensor, ...] = _AdaptedLinears.apply(x, plan, plan.a)  # type: ignore[no-untyped-call]
    return y


def add_adapter(y: Tensor, x: Tensor, a: View, b: View) -> Tensor:
    """Adds each trial's adapter to the output of any base layer: y + (x A^T) B^T.

    Args:
        y: The base layer's output [k*B, T, out].
        x: The adapter's input [k*B, T, in].
        a: A [k, R, in].
        b: B [k, out, R], with the adapter's scaling.

    Returns:
        The output [k*B, T, out], in y's dtype.
    """
    z: Tensor = _AddAdapter.apply(y, x, a.compute, b.compute, a.grad, b.grad)  # type: ignore[no-untyped-call]
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


class Plan(NamedTuple):
    """Linear layers of one input and their adapters.

    Attributes:
        layers: The frozen layers, m of them.
        joint: The layers concatenated to one, for one product in the forward pass; None for a product each.
        a: Their A, concatenated [k, m*R, in].
        grad_a: Its gradient.
        b: The B [k, out, R] of each, with the adapter's scaling.
        grad_b: Their gradients.
    """

    layers: tuple[Frozen, ...]
    joint: Frozen | None
    a: Tensor
    grad_a: Tensor
    b: tuple[Tensor, ...]
    grad_b: tuple[Tensor, ...]

    @classmethod
    def of(cls, layers: Sequence[Frozen], joint: Frozen | None, a: View, b: Sequence[View]) -> "Plan":
        """From views of the arena's parameters."""
        products, gradients = zip(*((view.compute, view.grad) for view in b), strict=True)
        return cls(tuple(layers), joint, a.compute, a.grad, products, gradients)

    def rows(self, x: Tensor) -> Tensor:
        """An input [k*B, T, in] by trial [k, B*T, in]."""
        return x.reshape(self.a.shape[0], -1, x.shape[-1])

    def products(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """The frozen layers' outputs [k, N, out] for rows [k, N, in], and low = x A^T [k, N, m*R]."""
        low = torch.bmm(rows, self.a.mT)
        if self.joint is None:
            return [linear(rows, *layer) for layer in self.layers], low
        sizes = [len(layer.weight) for layer in self.layers]
        return list(torch.split(linear(rows, *self.joint), sizes, dim=2)), low

    def adapters_backward(self, rows: Tensor, low: Tensor, found: Sequence[Tensor]) -> Tensor:
        """Adds the gradients of A and B, from those of the outputs [k, N, out].

        Returns:
            That of `low` [k, N, m*R]: dlow_i = dy_i B_i.
        """
        lows = low.chunk(len(self.b), dim=2)
        parts = [_b_backward(*each) for each in zip(found, lows, self.b, self.grad_b, strict=True)]
        dlow = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        _accumulate(self.grad_a, dlow.mT, rows)
        return dlow

    def frozen_backward(self, found: Sequence[Tensor]) -> Tensor:
        """The sum of all dy_i W_i [k, N, in]."""
        dx = linear(found[0], self.layers[0].weight.mT)
        for dy, layer in zip(found[1:], self.layers[1:], strict=True):
            _add_product(dx, dy, layer.weight)
        return dx


class _AdaptedLinears(torch.autograd.Function):
    """y_i = x W_i^T + bias_i + low_i B_i^T with low = x A^T.

    Backward: dlow_i = dy_i B_i, and dx = the sum of all dy_i W_i + dlow A.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, a: Tensor) -> tuple[Tensor, ...]:
        rows = plan.rows(x)
        parts, low = plan.products(rows)
        for part, piece, b in zip(parts, low.chunk(len(plan.b), dim=2), plan.b, strict=True):
            part.baddbmm_(piece, b.mT)
        ctx.save_for_backward(rows, low)
        ctx.shape, ctx.plan = x.shape, plan
        return tuple(part.view(*x.shape[:-1], -1) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *found: Tensor) -> tuple[Tensor | None, ...]:
        rows, low = ctx.saved_tensors
        plan: Plan = ctx.plan
        gradients = [plan.rows(dy) for dy in found]
        dlow = plan.adapters_backward(rows, low, gradients)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return plan.frozen_backward(gradients).baddbmm_(dlow, plan.a).view(ctx.shape), None, None


class _AddAdapter(torch.autograd.Function):
    """z = y + low B^T with low = x A^T. Backward: dlow = dz B, dy = dz and dx = dlow A."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> Tensor:
        rows = x.reshape(a.shape[0], -1, x.shape[-1])
        low = torch.bmm(rows.to(a.dtype), a.mT)
        base = y.reshape(*rows.shape[:2], -1)
        same = y.dtype == a.dtype
        z = torch.baddbmm(base, low, b.mT) if same else (base + torch.bmm(low, b.mT)).to(y.dtype)
        ctx.save_for_backward(rows, low)
        ctx.adapter = (a, b, grad_a, grad_b)
        ctx.shape = x.shape
        return z.view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        rows, low = ctx.saved_tensors
        a, b, grad_a, grad_b = ctx.adapter
        dlow = _b_backward(dz.reshape(*rows.shape[:2], -1).to(a.dtype), low, b, grad_b)
        _accumulate(grad_a, dlow.mT, rows.to(a.dtype))
        dx = torch.bmm(dlow, a).to(rows.dtype).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return dz, dx, None, None, None, None


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


def _b_backward(dy: Tensor, low: Tensor, b: Tensor, grad_b: Tensor) -> Tensor:
    """Adds dB = dy^T low to the arena; returns dlow = dy B [k, B*T, R]."""
    _accumulate(grad_b.mT, low.mT, dy)
    # MKL is slow if the second matrix has R contiguous columns (see benchmarks/products.py).
    return torch.bmm(dy, b.mT.contiguous().mT if b.is_cpu else b)


def _add_product(x: Tensor, dy: Tensor, weight: Tensor) -> None:
    """Adds dy W to x."""
    if _ONEDNN and x.dtype == torch.float32 and x.is_cpu:
        x.add_(linear(dy, weight.mT))
    else:
        x.view(-1, x.shape[-1]).addmm_(dy.reshape(-1, dy.shape[-1]), weight)


def _accumulate(grad: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to grad; each has shape [k, ., .]."""
    # Into rows that are not contiguous the CPU multiplies trial by trial; for small matrices one more pass costs less.
    small = grad.is_cpu and len(grad) > 1 and grad.shape[1] * grad.shape[2] <= 4096
    if grad.dtype == left.dtype and not small:
        grad.baddbmm_(left, right)
    elif not grad.is_cpu and grad.dtype == torch.float32 and _adds_in_float32(grad.device):
        torch.baddbmm(grad, left, right, out_dtype=torch.float32, out=grad)
    else:
        grad.add_(torch.bmm(left, right))


@functools.cache
def _adds_in_float32(device: torch.device) -> bool:
    """Whether the device adds a product of 16-bit matrices to a float32 one; tried out, as torch documents it for few.

    The tried product has the strides of the arena's gradients: rows that are not contiguous, and transposed ones.
    """
    left = torch.ones(2, 16, 8, dtype=torch.bfloat16, device=device)
    right = torch.full((2, 16, 24), 1 / 256, dtype=torch.bfloat16, device=device)
    for transposed in (False, True):
        grad = torch.ones(2, 1000, device=device)[:, :192].view(2, *((24, 8) if transposed else (8, 24)))
        place = grad.mT if transposed else grad
        try:
            torch.baddbmm(place, left.mT, right, out_dtype=torch.float32, out=place)
        except (RuntimeError, TypeError):
            return False
        # In bfloat16, this sum would be rounded.
        if not torch.allclose(grad, torch.full_like(grad, 1 + 16 / 256), rtol=1e-6):
            return False
    return True
