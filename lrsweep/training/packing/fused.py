"""Parts of a frozen model in fewer operations: norms and rotary positions.

transformers writes them in elementary operations, each of which reads and writes memory. A replacement is tried beside
the original, and is used only where both give the same numbers up to rounding.
"""

import logging
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# Queries, keys, cosines, sines and the axis of the heads, as transformers has it.
Rotation = Callable[..., tuple[Tensor, Tensor]]
_ROTATE = "apply_rotary_pos_emb"


class FusedNorm(nn.Module):
    """An RMS norm with a frozen weight.

    Args:
        original: The model's norm, which still computes what has another dtype than the weight.
        weight: The factor [D].
        eps: Added to the mean square.
    """

    def __init__(self, original: nn.Module, weight: Tensor, eps: float) -> None:
        super().__init__()
        self._original = original
        self._weight, self._eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x [..., D]."""
        y: Tensor
        if x.dtype != self._weight.dtype:
            y = self._original(x)
        elif x.is_cpu and x.dtype in (torch.float32, torch.float64):
            y = _Norm.apply(x, self._weight, self._eps)  # type: ignore[no-untyped-call]
        else:
            # Autocast would compute it in float32, and leave it so for the layers that follow.
            with torch.autocast(x.device.type, enabled=False):
                y = F.rms_norm(x, self._weight.shape, self._weight, self._eps)
        return y


class _Norm(torch.autograd.Function):
    """y = x / rms w with rms^2 = |x|^2 / D + eps. Backward: dx = dy w / rms - x (dy w x) / (D rms^3).

    For CPUs, where torch composes its RMS norm of as many operations as transformers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, inverse, weight = ctx.saved_tensors
        dx = dy * weight
        along = (dx * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(x.shape[-1])
        return dx.mul_(inverse).addcmul_(x, along, value=-1), None, None


@torch.no_grad()
def fused_norm(norm: nn.Module) -> FusedNorm | None:
    """A replacement for a module that computes an RMS norm; None if it computes something else."""
    own = dict(norm.named_parameters(recurse=False))
    eps = next((vars(norm)[name] for name in ("variance_epsilon", "eps", "epsilon") if name in vars(norm)), None)
    if own.keys() != {"weight"} or own["weight"].dim() != 1 or not isinstance(eps, float) or list(norm.children()):
        return None
    weight = own["weight"].detach()
    precise = weight if weight.dtype == torch.float64 else weight.float()
    # Gemma's weight is the distance from 1. In 16 bits the sum would be rounded, and Gemma does not round it.
    factors = [factor.to(weight.dtype) for factor in (precise, 1 + precise) if torch.equal(factor.to(weight), factor)]
    x = 3 * torch.randn(16, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    wanted = norm(x)
    # The original rounds twice, before the product with the weight and after it.
    allowed = 2 * torch.finfo(x.dtype).eps if x.dtype.itemsize == 2 else 8 * torch.finfo(x.dtype).eps
    for factor in factors:
        fused = FusedNorm(norm, factor, eps)
        if wanted.dtype == x.dtype and torch.allclose(fused(x), wanted, rtol=allowed, atol=0):
            return fused
    return None


def fuse_rotary(model: PreTrainedModel, rotation: Rotation | None = None) -> None:
    """Replaces the rotation of queries and keys in the model's attention, if it is that of Llama.

    Args:
        model: The model.
        rotation: What replaces it; default `rotate_pair`.
    """
    for module in model.modules():
        forward = type(module).forward
        function = getattr(forward, "__globals__", {}).get(_ROTATE)
        if function is None or _ROTATE not in forward.__code__.co_names or not _rotates_halves(function):
            continue
        # The same code with another function under that name. Other models keep the library's.
        own = types.FunctionType(
            forward.__code__,
            forward.__globals__ | {_ROTATE: rotation or rotate_pair},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        own.__kwdefaults__ = forward.__kwdefaults__
        module.forward = types.MethodType(own, module)


def rotate_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotates queries [B, H, T, D] and keys by their positions' cosines and sines [B, T, D]."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)  # type: ignore[no-untyped-call]


class _Rotation(torch.autograd.Function):
    """y = x cos + rotated x sin, in which (a, b) rotated is (-b, a). Backward: the rotation the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        (a, b), (sin_a, sin_b) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
        y = x * cos
        y_a, y_b = y.chunk(2, dim=-1)
        y_a.addcmul_(b, sin_a, value=-1)
        y_b.addcmul_(a, sin_b)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (a, b), (sin_a, sin_b) = dy.chunk(2, dim=-1), sin.chunk(2, dim=-1)
        dx = dy * cos
        dx_a, dx_b = dx.chunk(2, dim=-1)
        dx_a.addcmul_(b, sin_b)
        dx_b.addcmul_(a, sin_a, value=-1)
        return dx, None, None


def angles() -> tuple[Tensor, ...]:
    """For trying a rotation out: queries, keys, and cosines and sines that belong to no angle."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, *shape, generator=generator) for shape in ((3, 5, 16), (1, 5, 16), (5, 16), (5, 16)))


@torch.no_grad()
def _rotates_halves(function: Any) -> bool:
    """Whether a function rotates queries and keys as `rotate_pair` does, up to rounding."""
    q, k, cos, sin = angles()
    try:
        wanted = function(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError):
        return False
    found = rotate_pair(q, k, cos, sin)
    return all(
        mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-6)
        for mine, theirs in zip(found, wanted, strict=True)
    )
