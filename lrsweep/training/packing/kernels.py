"""Where the kernels of `triton_kernels.py` are used: in a long training, on a GPU that has Triton.

Each is tried beside the operations that it replaces, and is used only where both give the same numbers up to rounding.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lrsweep.training.packing.fused import Rotation, angles, rotate_pair

log = logging.getLogger(__name__)


def triton_kernels() -> ModuleType:
    """The kernels. Their module needs Triton, and loads it."""
    from lrsweep.training.packing import triton_kernels

    return triton_kernels


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel may be tried: on a GPU, or by Triton's interpreter. They compute in float32."""
    return (device.type != "cpu" or os.environ.get("TRITON_INTERPRET") == "1") and dtype != torch.float64


def is_right(what: str, run: Callable[[], Iterable[tuple[Tensor, Tensor]]], rounding: float) -> bool:
    """Tries a kernel out.

    Args:
        what: What it computes, for the log.
        run: Returns what the kernel found, each with what it should be.
        rounding: The largest difference that is allowed, relative to the largest value.
    """
    try:
        for found, wanted in run():
            most = rounding * max(1.0, wanted.abs().max().item())
            if not torch.allclose(found.detach().float(), wanted.detach().float(), rtol=0, atol=most):
                return False
    except Exception as fault:  # Triton or a compiler may be missing or fail in any way
        log.info("%s: computed without a kernel: %s", what, (str(fault).splitlines() or [""])[0])
        return False
    return True


def cross_entropy(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and their gradient in one kernel, where `has_cross_entropy`.

    Args:
        logits: The logits [n, V], contiguous. They are overwritten.
        wanted: The labels [n, 1].

    Returns:
        The losses [n] in float32, in nats, and the gradient of each with respect to its logits [n, V], in their dtype.
    """
    found: tuple[Tensor, Tensor] = triton_kernels().cross_entropy(logits, wanted)
    return found


def has_cross_entropy(device: torch.device, dtype: torch.dtype, vocabulary: int) -> bool:
    """Whether `cross_entropy` works on the device, for a vocabulary of this size."""
    return can_run(device, dtype) and _is_cross_entropy(device, dtype, vocabulary)


@functools.cache
@torch.no_grad()
def _is_cross_entropy(device: torch.device, dtype: torch.dtype, vocabulary: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4, vocabulary, generator=generator)).to(device, dtype)
    wanted = torch.arange(4, device=device)[:, None] % vocabulary

    def run() -> Iterable[tuple[Tensor, Tensor]]:
        log_shares = torch.log_softmax(logits.float(), 1)
        one = torch.full_like(wanted, -1, dtype=torch.float32)
        gradient = log_shares.exp().scatter_add(1, wanted, one)
        losses, found = cross_entropy(logits.clone(), wanted)
        # A loss has no digit less for the logits' dtype.
        yield 1e4 * losses, -1e4 * log_shares.gather(1, wanted)[:, 0]
        yield found, gradient

    return is_right("the cross-entropy", run, max(4 * torch.finfo(dtype).eps, 1e-5))


def rotation(model: PreTrainedModel) -> Rotation:
    """The rotation of queries and keys: in one kernel each way, where there is one."""
    weight = next(model.parameters())
    known = can_run(weight.device, weight.dtype) and _rotates(weight.device, weight.dtype)
    return _rotate_pair if known else rotate_pair


@functools.cache
@torch.enable_grad()
def _rotates(device: torch.device, dtype: torch.dtype) -> bool:
    q, k, cos, sin = (x.to(device, dtype) for x in angles())

    def results(rotate: Rotation) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k)]
        rotated = rotate(*leaves, cos, sin)
        # Any gradient will do.
        return [*rotated, *torch.autograd.grad(rotated, leaves, [x.detach() for x in rotated])]

    def run() -> Iterable[tuple[Tensor, Tensor]]:
        return zip(results(_rotate_pair), results(rotate_pair), strict=True)

    return is_right("rotary positions", run, 8 * torch.finfo(dtype).eps)


def _rotate_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    plain = unsqueeze_dim == 1 and cos.dim() == 3 and cos.stride() == sin.stride()
    plain = plain and q.shape[-1] == cos.shape[-1] and all(x.stride(-1) == 1 for x in (q, k, cos))
    if not plain or torch.compiler.is_compiling():
        return rotate_pair(q, k, cos, sin, unsqueeze_dim)
    pair: tuple[Tensor, Tensor] = _PairRotation.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return pair


class _PairRotation(torch.autograd.Function):
    """The rotation of queries and keys, in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        pair: tuple[Tensor, Tensor] = triton_kernels().rotate(q, k, cos, sin, back=False)
        return pair

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        # What attention returns may have any strides.
        dq, dk = (x if x.stride(-1) == 1 else x.contiguous() for x in (dq, dk))
        return *triton_kernels().rotate(dq, dk, *ctx.saved_tensors, back=True), None, None
