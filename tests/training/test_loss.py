"""The weighted losses against boring code, and against the trainers' own functions (`make interop`)."""

import subprocess
from pathlib import Path

import pytest
import torch

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.training.loss import anchored_loss, summed_loss, weighing
from tests.dialects.test_preferences import python_of

# Prints nothing; writes the gradient of a trainer's own loss. It gets the function, its arguments and a file.
THEIRS = """
import ast, importlib, sys
from types import SimpleNamespace
import torch

class Outputs(SimpleNamespace):
    def get(self, name):
        return getattr(self, name)

place, arguments, file = sys.argv[1:]
module, _, name = place.rpartition(".")
given = torch.load(file)
leaf = given["logits"].requires_grad_()
arguments = ast.literal_eval(arguments)
rest = [given["base"].float()] if name == "asft_loss_func" else []
if not rest:
    arguments["num_items_in_batch"] = torch.tensor(17)
loss = getattr(importlib.import_module(module), name)(Outputs(logits=leaf), given["labels"], *rest, **arguments)
loss.backward()
torch.save(leaf.grad, file)
"""
# The environment and the function, and the same loss as overrides. LLaMA-Factory computes it in float32. TRL 1.16 has
# none that could be called: its trainer computes `dft` among other things.
SAME = [
    ("llamafactory", "llamafactory.train.trainer_utils.dft_loss_func", {}, ["training.loss=dft"], 1e-6),
    ("llamafactory", "llamafactory.train.trainer_utils.eaft_loss_func", {"alpha": 1.0}, ["training.loss=eaft"], 1e-6),
    (
        "llamafactory",
        "llamafactory.train.trainer_utils.eaft_loss_func",
        {"alpha": 0.3},
        ["training.loss=eaft", "training.eaft_alpha=0.3"],
        1e-6,
    ),
    ("llamafactory", "llamafactory.train.trainer_utils.asft_loss_func", {"asft_alpha": 0.3}, None, 1e-6),
]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 9, 50, generator=generator, dtype=torch.float64)
    labels = torch.randint(50, (3, 9), generator=generator)
    labels[:, :3] = -100
    labels[1, 6:] = -100
    return logits, labels


def ours(overrides: list[str]) -> torch.Tensor:
    logits, labels = batch()
    leaf = logits.requires_grad_()
    weigh = weighing(sweep_config(["+sweep=lora_lr", *overrides]).training)
    (gradient,) = torch.autograd.grad(summed_loss(leaf[:, :-1], labels[:, 1:], weigh) / 17, leaf)
    return gradient


@pytest.mark.parametrize(("tool", "place", "arguments", "overrides", "tolerance"), SAME)
def test_the_gradient_is_that_of_the_trainers_own_loss(
    tool: str,
    place: str,
    arguments: dict[str, float],
    overrides: list[str] | None,
    tolerance: float,
    tmp_path: Path,
) -> None:
    python = python_of(tool)
    logits, labels = batch()
    base = logits.flip(0) + 0.5
    file = tmp_path / "given.pt"
    torch.save({"logits": logits, "labels": labels, "base": base}, file)
    subprocess.run([python, "-c", THEIRS, place, repr(arguments), file], check=True, capture_output=True, timeout=300)
    if overrides is None:
        leaf = logits.requires_grad_()
        loss = anchored_loss(leaf[:, :-1], labels[:, 1:], base[:, :-1], arguments["asft_alpha"], 17)
        (found,) = torch.autograd.grad(loss, leaf)
    else:
        found = ours(overrides)
    assert torch.allclose(found, torch.load(file), rtol=tolerance, atol=tolerance)


def test_each_token_counts_as_its_probability_or_its_entropy_says() -> None:
    for loss in ("dft", "eaft"):
        logits, labels = batch()
        leaf = logits.requires_grad_()
        summed = leaf.new_zeros(())
        for row, wanted in zip(leaf[:, :-1].flatten(0, 1), labels[:, 1:].flatten().tolist(), strict=True):
            if wanted < 0:
                continue
            shares = row.softmax(0)
            highest = row.detach().sort(descending=True).values[:20].softmax(0)
            entropy = -sum(share * share.log() for share in highest)
            weight = shares[wanted].detach() if loss == "dft" else entropy / 3
            summed = summed - weight * shares[wanted].log() / 17
        (expected,) = torch.autograd.grad(summed, leaf)
        assert torch.allclose(ours([f"training.loss={loss}"]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["dft", "eaft"])
def test_the_reported_loss_has_no_weights(loss: str) -> None:
    logits, labels = batch()
    weigh = weighing(sweep_config(["+sweep=lora_lr", f"training.loss={loss}"]).training)
    assert summed_loss(logits, labels, weigh).item() == pytest.approx(summed_loss(logits, labels, None).item(), 1e-12)
    assert weigh is not None
    weights = weigh(logits[0], labels[0, :, None].clamp(min=0))
    assert (weights >= 0).all()
    assert weights.std() > 0.001
