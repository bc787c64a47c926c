"""Kernels for a long training on a GPU, compiled by torch: gated activations, rotary positions and the cross-entropy.

Each is tried beside the operations that it replaces, and is used only where both give the same numbers up to rounding.
"""

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lrsweep.training.packing.fused import Rotation, angles, rotate_pair

log = logging.getLogger(__name__)


@functools.cache
def one_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors [..., D], compiled to one kernel for any shape with this D.

    D is known, so that the kernel reads several elements at a time: for flat tensors of any length, the gates' backward
    had half of an H200's bandwidth.
    """
    compiled = torch.compile(function, dynamic=True)

    def run(*tensors: Tensor) -> Any:
        # Inside a compiled decoder, its compiler knows all shapes.
        for tensor in () if torch.compiler.is_compiling() else tensors:
            torch._dynamo.mark_static(tensor, tensor.dim() - 1)
        return compiled(*tensors)

    return run


@torch.no_grad()
def compile_gates(model: PreTrainedModel) -> None:
    """On a GPU, computes silu(gate) * up of the model's MLPs in one kernel, forward and backward."""
    for module in model.modules():
        parts = dict(module.named_children())
        if parts.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"} or next(module.parameters()).is_cpu:
            continue
        weight = next(module.parameters())
        x = torch.randn(1, 16, parts["gate_proj"].in_features, generator=torch.Generator().manual_seed(0)).to(weight)
        wanted = module(x)
        try:
            found = _gated_mlp(module, x)
        except Exception as fault:  # a compiler may be missing or fail in any way
            log.info("the activations stay as they are: %s", str(fault).splitlines()[0])
            return
        if torch.allclose(found, wanted, rtol=0, atol=4 * torch.finfo(x.dtype).eps * wanted.abs().max().item()):
            module.forward = types.MethodType(_gated_mlp, module)


def _gated_mlp(mlp: Any, x: Tensor) -> Tensor:
    y: Tensor = mlp.down_proj(_Gated.apply(mlp.gate_proj(x), mlp.up_proj(x)))  # type: ignore[no-untyped-call]
    return y


class _Gated(torch.autograd.Function):
    """y = silu(gate) up. With s = sigmoid(gate), backward: dup = dy silu(gate), dgate = dy up s (1 + gate (1 - s))."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        y: Tensor = one_kernel(_silu_mul)(gate.flatten(0, -2), up.flatten(0, -2))
        return y.view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = one_kernel(_silu_mul_backward)(*(x.flatten(0, -2) for x in (dy, gate, up)))
        return dgate.view(gate.shape), dup.view(up.shape)


def _silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(gate.float()) * up.float()).to(gate.dtype)


def _silu_mul_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    found, x = dy.float(), gate.float()
    share = torch.sigmoid(x)
    dgate = found * up.float() * share * (1 + x * (1 - share))
    return dgate.to(gate.dtype), (found * x * share).to(up.dtype)


def cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and their gradient in one kernel, where `has_cross_entropy`.

    Args:
        logits: The logits [n, V].
        wanted: The labels [n, 1].

    Returns:
        The losses [n] in float32, in nats, and the gradient of each with respect to its logits [n, V], in their dtype.
    """
    found: tuple[Tensor, Tensor] = one_kernel(_cross_entropy)(logits, wanted)
    return found


@functools.cache
@torch.no_grad()
def has_cross_entropy(device: torch.device, dtype: torch.dtype, vocabulary: int) -> bool:
    """Whether `cross_entropy` works on the device: on a GPU, where a compiler makes the kernel, and it is right."""
    if device.type == "cpu" or dtype == torch.float64:
        return False
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4, vocabulary, generator=generator)).to(device, dtype)
    wanted = torch.arange(4, device=device)[:, None] % vocabulary
    try:
        losses, gradient = cross_entropy(logits, wanted)
    except Exception as fault:  # a compiler may be missing or fail in any way
        log.info("the cross-entropy stays as it is: %s", (str(fault).splitlines() or [""])[0])
        return False
    log_shares = torch.log_softmax(logits.float(), 1)
    expected = log_shares.exp().scatter_add(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
    allowed = 4 * torch.finfo(dtype).eps
    right = torch.allclose(losses, -log_shares.gather(1, wanted)[:, 0], rtol=1e-5, atol=1e-5)
    return right and torch.allclose(gradient.float(), expected, rtol=allowed, atol=1e-6)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.float()
    # From the highest logit: from zero, a share near one would lose digits.
    x = x - x.amax(1, keepdim=True)
    log_sum = x.exp().sum(1, keepdim=True).log()
    of_target = x.gather(1, wanted) - log_sum
    is_target = torch.arange(x.shape[1], device=x.device) == wanted
    gradient = torch.where(is_target, torch.expm1(of_target), torch.exp(x - log_sum))
    return -of_target[:, 0], gradient.to(logits.dtype)


def compiled_rotation(model: PreTrainedModel) -> Rotation:
    """The rotation of queries and keys, on a GPU in one kernel each way."""
    weight = next(model.parameters())
    return _one_kernel_pair if not weight.is_cpu and _compiles_rotation(weight.device, weight.dtype) else rotate_pair


@functools.cache
def _compiles_rotation(device: torch.device, dtype: torch.dtype) -> bool:
    q, k, cos, sin = (x.to(device, dtype) for x in angles())
    try:
        found = _one_kernel_pair(q, k, cos, sin)
    except Exception as fault:  # a compiler may be missing or fail in any way
        log.info("the rotary positions stay as they are: %s", (str(fault).splitlines() or [""])[0])
        return False
    wanted = rotate_pair(q, k, cos, sin)
    allowed = 8 * torch.finfo(dtype).eps
    return all(torch.allclose(*pair, rtol=0, atol=allowed) for pair in zip(found, wanted, strict=True))


def _one_kernel_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    pair: tuple[Tensor, Tensor] = _PairRotation.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return pair


class _PairRotation(torch.autograd.Function):
    """The rotation of queries and keys, in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        pair: tuple[Tensor, Tensor] = one_kernel(_rotate_both)(q, k, cos, sin)
        return pair

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return *one_kernel(_rotate_both_back)(dq, dk, cos, sin), None, None


def _rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def rotate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    return rotate(q), rotate(k)


def _rotate_both_back(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def rotate(dy: Tensor) -> Tensor:
        a, b = (dy * sin).chunk(2, dim=-1)
        return dy * cos + torch.cat([b, -a], dim=-1)

    return rotate(dq), rotate(dk)
