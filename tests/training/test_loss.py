"""The weighted losses against the trainers' own functions, where their packages are installed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.training.loss import anchored_loss, summed_loss, weighing

# The package and the function, and the same loss as overrides. LLaMA-Factory computes it in float32.
THEIRS = [
    ("trl.trainer.sft_trainer", "dft_loss", {}, ("training.loss=dft",), 1e-12),
    ("llamafactory.train.trainer_utils", "dft_loss_func", {}, ("training.loss=dft",), 1e-6),
    ("llamafactory.train.trainer_utils", "eaft_loss_func", {"alpha": 1.0}, ("training.loss=eaft",), 1e-6),
    (
        "llamafactory.train.trainer_utils",
        "eaft_loss_func",
        {"alpha": 0.3},
        ("training.loss=eaft", "training.eaft_alpha=0.3"),
        1e-6,
    ),
]


class Outputs(SimpleNamespace):
    def get(self, name: str) -> Any:
        return getattr(self, name)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 9, 50, generator=generator, dtype=torch.float64)
    labels = torch.randint(50, (3, 9), generator=generator)
    labels[:, :3] = -100
    labels[1, 6:] = -100
    return logits, labels


@pytest.mark.parametrize(("package", "name", "arguments", "overrides", "tolerance"), THEIRS)
def test_the_gradient_is_that_of_the_trainers_own_loss(
    package: str, name: str, arguments: dict[str, float], overrides: tuple[str, ...], tolerance: float
) -> None:
    theirs = getattr(pytest.importorskip(package), name)
    logits, labels = batch()
    theirs_at = logits.clone().requires_grad_()
    theirs(Outputs(logits=theirs_at), labels.clone(), num_items_in_batch=torch.tensor(17), **arguments).backward()
    ours_at = logits.clone().requires_grad_()
    weigh = weighing(sweep_config(["+sweep=lora_lr", *overrides]).training)
    (summed_loss(ours_at[:, :-1], labels[:, 1:], weigh) / 17).backward()  # type: ignore[no-untyped-call]
    assert theirs_at.grad is not None
    assert ours_at.grad is not None
    assert torch.allclose(ours_at.grad, theirs_at.grad, rtol=tolerance, atol=tolerance)


def test_the_gradient_near_the_base_is_llama_factorys() -> None:
    theirs = pytest.importorskip("llamafactory.train.trainer_utils").asft_loss_func
    logits, labels = batch()
    base = logits.flip(0) + 0.5
    theirs_at, ours_at = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    theirs(Outputs(logits=theirs_at), labels, base.float(), asft_alpha=0.3).backward()
    anchored_loss(ours_at[:, :-1], labels[:, 1:], base[:, :-1], 0.3, 17).backward()  # type: ignore[no-untyped-call]
    assert theirs_at.grad is not None
    assert ours_at.grad is not None
    assert torch.allclose(ours_at.grad, theirs_at.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["dft", "eaft"])
def test_the_reported_loss_has_no_weights(loss: str) -> None:
    logits, labels = batch()
    weigh = weighing(sweep_config(["+sweep=lora_lr", f"training.loss={loss}"]).training)
    assert summed_loss(logits, labels, weigh).item() == pytest.approx(summed_loss(logits, labels, None).item(), 1e-12)
    assert weigh is not None
    weights = weigh(logits[0], labels[0, :, None].clamp(min=0))
    assert (weights >= 0).all()
    assert weights.std() > 0.001
