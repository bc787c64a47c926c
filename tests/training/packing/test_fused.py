"""The frozen model's parts in fewer operations: the numbers of the originals, and of layers one by one."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from lrsweep.training.packing import fused
from lrsweep.training.packing.functions import Frozen, Plan, adapted_linear, adapted_linears
from lrsweep.training.packing.working_copy import View
from tests.training.packing.solo import tiny

NORMS = (modeling_llama.LlamaRMSNorm, Qwen2RMSNorm, GemmaRMSNorm)


def filled(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    norm = kind(64).requires_grad_(False)
    weight = norm.get_parameter("weight")
    weight.add_(torch.randn(64, generator=torch.Generator().manual_seed(0)) / 8)
    return norm.to(dtype)


def values_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.arange(64)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", NORMS)
def test_norms_have_the_models_numbers(kind: type[nn.Module], dtype: torch.dtype) -> None:
    norm = filled(kind, dtype)
    found = fused.fused_norm(norm)
    if kind is GemmaRMSNorm and dtype == torch.bfloat16:
        assert found is None  # its factor 1 + weight has no place in 16 bits
        return
    assert found is not None
    x = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    for mine, theirs in zip(values_and_gradient(found, x), values_and_gradient(norm, x), strict=True):
        assert (mine - theirs).abs().max() <= 4 * torch.finfo(dtype).eps * theirs.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert found(x).dtype == dtype
    # What is not of the weight's dtype is computed as ever: QLoRA's norms are float32 between 16-bit layers.
    other = x.to(torch.float64)
    assert torch.equal(found(other), norm(other))


def test_norms_that_compute_something_else_stay() -> None:
    # transformers' norms round to float32 even in float64, which the fused one would not.
    for norm in (filled(modeling_llama.LlamaRMSNorm, torch.float64), nn.LayerNorm(64, bias=False), nn.Linear(4, 4)):
        assert fused.fused_norm(norm) is None


def test_rotary_positions_are_the_models_and_other_models_keep_theirs() -> None:
    model = tiny("llama")
    stock = copy.deepcopy(model)
    fused.fuse_rotary(model)
    ids = torch.arange(12)[None]
    gradients = []
    for each in (model, stock):
        embedded = each.get_input_embeddings()(ids).detach().requires_grad_()
        y = each.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        (y * torch.arange(y.shape[-1])).sum().backward()
        gradients.append((y.detach(), embedded.grad))
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine - theirs).abs().max() <= 1e-10
    attention = [module for module in model.modules() if type(module) is modeling_llama.LlamaAttention]
    assert all("forward" in vars(module) for module in attention)
    assert modeling_llama.LlamaAttention.forward.__globals__["apply_rotary_pos_emb"] is not fused.rotate_pair


@pytest.mark.parametrize("joined", [False, True])
def test_layers_of_one_input_are_the_same_layers_by_themselves(joined: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def view(*shape: int) -> View:
        weight = random(*shape).requires_grad_()
        return View(weight, weight, torch.zeros(shape, dtype=torch.float64))

    sizes = (6, 3, 4)
    layers = [Frozen(random(size, 5), random(size)) for size in sizes]
    joint = Frozen(*(torch.cat(parts) for parts in zip(*layers, strict=True))) if joined else None
    a, b = view(2, 3 * 2, 5), [view(2, size, 2) for size in sizes]
    x = random(2 * 2, 7, 5).requires_grad_()
    outputs = adapted_linears(x, Plan.of(layers, joint, a, b))
    sum((y * y).sum() for y in outputs).backward()  # type: ignore[union-attr]
    together = [y.detach().clone() for y in (*outputs, x.grad, a.grad, *(each.grad for each in b)) if y is not None]

    x.grad = None
    single = [
        View(*(part[:, 2 * i : 2 * i + 2] for part in (a.weight, a.compute, torch.zeros_like(a.grad))))
        for i in range(3)
    ]
    fresh = [each._replace(grad=torch.zeros_like(each.grad)) for each in b]
    outputs = tuple(
        adapted_linear(
            x,
            *layer,
            View(part.weight.detach().requires_grad_(), part.compute.detach().requires_grad_(), part.grad),
            own,
        )
        for layer, part, own in zip(layers, single, fresh, strict=True)
    )
    sum((y * y).sum() for y in outputs).backward()  # type: ignore[union-attr]
    grads = torch.cat([part.grad for part in single], dim=1)
    apart = [*(y.detach() for y in outputs), x.grad, grads, *(each.grad for each in fresh)]
    for mine, theirs in zip(together, apart, strict=True):
        assert theirs is not None
        assert (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()
