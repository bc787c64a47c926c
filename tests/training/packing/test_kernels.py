"""What a long training compiles, before it is compiled. `make gpu` compiles it, and compares with stock PEFT."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from lrsweep.training.packing import fused, kernels
from tests.training.packing.solo import COMMON


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "one_kernel", lambda function: function)


def test_gated_activations_have_the_gradient_of_autograd() -> None:
    mlp = modeling_llama.LlamaMLP(LlamaConfig(**COMMON)).requires_grad_(False)
    x = torch.randn(2, 3, mlp.hidden_size, generator=torch.Generator().manual_seed(0))
    gradients = []
    for run in (mlp, lambda x: kernels._gated_mlp(mlp, x)):
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)


def test_the_cross_entropy_and_its_gradient_are_torchs() -> None:
    logits = torch.tensor(
        [[0.0, 1.0, -2.0], [40.0, 0.0, 0.0], [-300.0, 300.0, 0.0], [5.0, 5.0, 5.0]], requires_grad=True
    )
    wanted = torch.tensor([2, 0, 0, 1])
    expected = F.cross_entropy(logits, wanted, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    losses, found = kernels.cross_entropy(logits.detach(), wanted[:, None])
    assert torch.allclose(losses, expected, rtol=1e-6, atol=1e-7)
    assert torch.allclose(found, gradient, rtol=1e-5, atol=1e-7)
    # The share of a label that is nearly sure keeps its digits.
    nearly = torch.tensor([[9.0, 0.0]])
    _, found = kernels.cross_entropy(nearly, torch.tensor([[0]]))
    assert found[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(9.0).double()).item() - 1, rel=1e-3)


def test_a_row_that_is_nan_leaves_the_others_alone() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([[1], [2], [3]])
    losses, gradient = kernels.cross_entropy(logits, wanted)
    logits[1] = torch.nan
    others, beside = kernels.cross_entropy(logits, wanted)
    assert others.isnan().tolist() == [False, True, False]
    assert torch.equal(others[[0, 2]], losses[[0, 2]])
    assert torch.equal(beside[[0, 2]], gradient[[0, 2]])


def test_the_rotation_has_the_gradient_of_the_other_one() -> None:
    """For cosines and sines of any size, which belong to no angle."""
    q, k, cos, sin = fused.angles()
    found = []
    for rotate in (fused.rotate_pair, kernels._one_kernel_pair):
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        pair = rotate(leaves[0], leaves[1], cos, sin)
        loss = torch.cat([y.sin().flatten() for y in pair]).sum()
        found.append([*pair, *torch.autograd.grad(loss, leaves)])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_nothing_is_compiled() -> None:
    model = modeling_llama.LlamaForCausalLM(LlamaConfig(**COMMON))
    kernels.compile_gates(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert kernels.compiled_rotation(model) is fused.rotate_pair
    assert not kernels.has_cross_entropy(torch.device("cpu"), torch.float32, 61)
