"""Parts of a frozen model in fewer operations: norms, rotary positions, gated activations and the cross-entropy.

transformers writes them in elementary operations, each of which reads and writes memory. A replacement is tried beside
the original, and is used only where both give the same numbers up to rounding.
"""

import functools
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


@torch.no_grad()
def fuse_gates(model: PreTrainedModel) -> None:
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
    log_sum = torch.logsumexp(x, 1, keepdim=True)
    of_target = x.gather(1, wanted) - log_sum
    is_target = torch.arange(x.shape[1], device=x.device) == wanted
    gradient = torch.where(is_target, torch.expm1(of_target), torch.exp(x - log_sum))
    return -of_target[:, 0], gradient.to(logits.dtype)


def fuse_rotary(model: PreTrainedModel, *, one_kernel: bool = False) -> None:
    """Replaces the rotation of queries and keys in the model's attention, if it is that of Llama.

    Args:
        model: The model.
        one_kernel: Compiles it to one kernel each way, on a GPU.
    """
    weight = next(model.parameters())
    compiled = one_kernel and not weight.is_cpu and _compiles_rotation(weight.device, weight.dtype)
    rotation = _one_kernel_pair if compiled else _rotated_pair
    for module in model.modules():
        forward = type(module).forward
        function = getattr(forward, "__globals__", {}).get(_ROTATE)
        if function is None or _ROTATE not in forward.__code__.co_names or not _rotates_halves(function):
            continue
        # The same code with another function under that name. Other models keep the library's.
        own = types.FunctionType(
            forward.__code__,
            forward.__globals__ | {_ROTATE: rotation},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        own.__kwdefaults__ = forward.__kwdefaults__
        module.forward = types.MethodType(own, module)


@functools.cache
def _compiles_rotation(device: torch.device, dtype: torch.dtype) -> bool:
    q, k, cos, sin = (x.to(device, dtype) for x in _angles())
    try:
        found = _one_kernel_pair(q, k, cos, sin)
    except Exception as fault:  # a compiler may be missing or fail in any way
        log.info("the rotary positions stay as they are: %s", (str(fault).splitlines() or [""])[0])
        return False
    wanted = _rotated_pair(q, k, cos, sin)
    allowed = 8 * torch.finfo(dtype).eps
    return all(torch.allclose(*pair, rtol=0, atol=allowed) for pair in zip(found, wanted, strict=True))


def _rotated_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
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


def _one_kernel_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    pair: tuple[Tensor, Tensor] = _PairRotation.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
    return pair


class _PairRotation(torch.autograd.Function):
    """`_Rotation` of queries and keys, in one kernel each way."""

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


def _angles() -> tuple[Tensor, ...]:
    """Queries, keys, and cosines and sines that belong to no angle."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, *shape, generator=generator) for shape in ((3, 5, 16), (1, 5, 16), (5, 16), (5, 16)))


@torch.no_grad()
def _rotates_halves(function: Any) -> bool:
    """Whether a function rotates queries and keys as `_rotated_pair` does, up to rounding."""
    q, k, cos, sin = _angles()
    try:
        wanted = function(q, k, cos, sin)
    except (RuntimeError, TypeError, ValueError):
        return False
    found = _rotated_pair(q, k, cos, sin)
    return all(
        mine.shape == theirs.shape and torch.allclose(mine, theirs, atol=1e-6)
        for mine, theirs in zip(found, wanted, strict=True)
    )
