"""The kernels of a long training: by Triton's interpreter, or on the device of LRSWEEP_TEST_DEVICE."""

import copy
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from lrsweep.training.packing import gated_mlp, kernels, pack_lora, train_pass
from lrsweep.training.packing.fused import angles, rotate_pair
from tests.conftest import DEVICE
from tests.training.packing.solo import COMMON, tiny

pytest.importorskip("triton")


@pytest.fixture
def device() -> ModuleType:
    """The kernels' module."""
    return kernels.triton_kernels()


@pytest.fixture
def tried_anew() -> Iterator[None]:
    """Forgets what was found right, before the test and after it."""
    found = (kernels._is_cross_entropy, kernels._rotates, gated_mlp._work)
    for each in found:
        each.cache_clear()
    yield
    for each in found:
        each.cache_clear()


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


@pytest.mark.parametrize("adapted", [False, True])
def test_gated_activations_have_the_gradient_of_autograd(device: ModuleType, adapted: bool) -> None:
    """Sizes that no tile divides, adapters that are parts of larger tensors, and ranks that are no power of two."""
    trials, rows, columns, rank = 2, 67, 131, 6
    gate, up, dy = (random(trials, rows, columns + i)[..., :columns].contiguous() for i in range(3))
    lows = random(trials, rows, 2 * rank).chunk(2, dim=2)
    rights = [random(trials, columns, rank).mT, random(trials, columns + 1, rank)[:, 1:].mT]
    adapters = tuple(map(device.LowRank, lows, rights)) if adapted else None
    of_dy = device.LowRank(random(trials, rows, 3), random(trials, 3, columns)) if adapted else None
    leaves = [x.clone().requires_grad_() for x in (gate, up)]
    added = [x + low @ right for x, low, right in zip(leaves, lows, rights, strict=True)] if adapted else leaves
    expected = F.silu(added[0]) * added[1]
    wanted = torch.autograd.grad(expected, leaves, dy + of_dy.left @ of_dy.right if of_dy is not None else dy)
    found = device.gated_backward(dy, gate, up, adapters, of_dy)
    assert torch.allclose(device.gated(gate, up, adapters), expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-3)


def test_the_cross_entropy_and_its_gradient_are_torchs(device: ModuleType) -> None:
    logits = torch.tensor(
        [[0.0, 1.0, -2.0], [40.0, 0.0, 0.0], [-300.0, 300.0, 0.0], [5.0, 5.0, 5.0]], requires_grad=True, device=DEVICE
    )
    wanted = torch.tensor([2, 0, 0, 1], device=DEVICE)
    expected = F.cross_entropy(logits, wanted, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    losses, found = kernels.cross_entropy(logits.detach().clone(), wanted[:, None])
    assert torch.allclose(losses, expected, rtol=1e-6, atol=1e-7)
    assert torch.allclose(found, gradient, rtol=1e-5, atol=1e-7)
    # The share of a label that is nearly sure keeps its digits.
    nearly = torch.tensor([[9.0, 0.0]], device=DEVICE)
    _, found = kernels.cross_entropy(nearly, torch.tensor([[0]], device=DEVICE))
    assert found[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(9.0).double()).item() - 1, rel=1e-3)
    # More columns than a tile has, the label and the highest logit in the last; no row at all.
    many = random(2, device._LOGITS + 5)
    many[:, -2] += 9
    label = torch.tensor([device._LOGITS + 4, 3], device=DEVICE)
    losses, _ = kernels.cross_entropy(many.clone(), label[:, None])
    assert torch.allclose(losses, F.cross_entropy(many, label, reduction="none"), rtol=1e-6)
    assert kernels.cross_entropy(many[:0], label[:0, None])[0].shape == (0,)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter is of numpy
def test_a_row_that_is_nan_leaves_the_others_alone(device: ModuleType) -> None:
    logits = random(3, 7)
    wanted = torch.tensor([[1], [2], [3]], device=DEVICE)
    losses, gradient = kernels.cross_entropy(logits.clone(), wanted)
    for broken in (torch.nan, torch.inf):
        logits[1, 0] = broken
        others, beside = kernels.cross_entropy(logits.clone(), wanted)
        assert others.isnan().tolist() == [False, True, False]
        assert torch.equal(others[[0, 2]], losses[[0, 2]])
        assert torch.equal(beside[[0, 2]], gradient[[0, 2]])


@pytest.mark.parametrize("rows", [1, 3])
def test_the_rotation_has_the_gradient_of_the_other_one(device: ModuleType, rows: int) -> None:
    """For cosines and sines of any size, which belong to no angle; heads before tokens in memory, and after them."""
    q, k = random(3, 5, 4, 12).transpose(1, 2), random(3, 2, 5, 12)
    cos, sin = random(rows, 5, 12), random(rows, 5, 12) + 1
    found = []
    for rotate in (rotate_pair, kernels._rotate_pair):
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in (q, k)]
        pair = rotate(leaves[0], leaves[1], cos, sin)
        loss = torch.cat([y.sin().flatten() for y in pair]).sum()
        found.append([*pair, *torch.autograd.grad(loss, leaves)])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5)
    assert angles()[2].shape[0] > 1  # what it is tried out with has positions of its own for each row


@pytest.mark.usefixtures("tried_anew")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_a_pack_with_kernels_has_the_gradients_of_one_without(
    device: ModuleType, family: str, targets: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = tiny(family).float().to(DEVICE)
    ids = torch.arange(2 * 2 * 9).view(4, 9) % 50
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][1, 5:], batch["labels"][1, 5:] = 0, -100
    used: set[str] = set()
    for name in ("gated", "gated_backward", "rotate", "cross_entropy"):
        kernel = getattr(device, name)

        def run(*given: object, _name: str = name, _kernel: object = kernel, **options: object) -> object:
            used.add(_name)
            return _kernel(*given, **options)  # type: ignore[operator]

        monkeypatch.setattr(device, name, run)
    results = []
    for with_kernels in (True, False):
        pack = pack_lora(copy.deepcopy(model), config, 2, compile_kernels=with_kernels)
        for slot in range(2):
            pack.admit(slot, pack.start(config, slot), torch.optim.SGD)
            for name, weight in pack.arena.read(slot).items():
                if ".lora_B." in name:
                    weight.copy_(random(*weight.shape) / 10)
        used.clear()
        losses = train_pass(pack, 0, 2, batch)
        assert used == ({"gated", "gated_backward", "rotate", "cross_entropy"} if with_kernels else set())
        results.append((losses, pack.arena.grads.clone()))
    (losses, gradients), (wanted, expected) = results
    assert torch.allclose(losses, wanted, rtol=1e-5)
    assert gradients.abs().max() > 0
    assert (gradients - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.usefixtures("tried_anew")
def test_a_kernel_that_is_wrong_is_not_used(device: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gated", lambda gate, up, adapters=None: gate * up)
    monkeypatch.setattr(device, "rotate", lambda q, k, cos, sin, back: (q, k))
    monkeypatch.setattr(device, "cross_entropy", lambda logits, wanted: (logits[:, 0], logits))
    model = modeling_llama.LlamaForCausalLM(LlamaConfig(**COMMON))
    gated_mlp.fuse_gated_mlps(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert kernels.rotation(model) is rotate_pair
    assert not kernels.has_cross_entropy(torch.device("cpu"), torch.float32, 61)


def test_without_a_gpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = modeling_llama.LlamaForCausalLM(LlamaConfig(**COMMON))
    gated_mlp.fuse_gated_mlps(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert kernels.rotation(model) is rotate_pair
    assert not kernels.has_cross_entropy(torch.device("cpu"), torch.float32, 61)
