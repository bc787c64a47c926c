"""The gradient check: it lets through what can learn, and names what cannot."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from lrsweep.embedded import BASE
from lrsweep.errors import InputError
from lrsweep.training.data.collate import IGNORED, Example
from lrsweep.training.gradient_check import check_gradients, check_rows
from lrsweep.training.model import load_model
from lrsweep.training.plain_loop import PlainLoop
from tests.recorder import tiny


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[LlamaForCausalLM], None]], str]:
    """The embedded model with its weights changed, as an override."""

    def make(change: Callable[[LlamaForCausalLM], None]) -> str:
        folder = tmp_path / "model"
        shutil.copytree(BASE, folder)
        model = LlamaForCausalLM.from_pretrained(BASE)
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        return f"model.path={folder}"

    return make


def refused(*overrides: str, lrs: tuple[float, ...] = (1e-4, 1e-3)) -> str:
    with pytest.raises(InputError) as caught:
        check_gradients(tiny(*overrides), lrs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("finetune=lora",),
        ("finetune=lora", "finetune.dropout=0.5", "training.gradient_checkpointing=true"),
        ("finetune=full",),
        ("finetune=freeze",),
        ("finetune=full", "optimizer=sgd"),
        ("model.dtype=bfloat16",),
        ("data.packing=true",),
        ("training.batch_size=1",),
    ],
    ids=" ".join,
)
def test_what_can_learn_passes(overrides: tuple[str, ...]) -> None:
    check_gradients(tiny(*overrides), [1e-5, 1e-4])


def test_a_rate_that_blows_up_passes() -> None:
    check_gradients(tiny("finetune=full", "optimizer=sgd", "training.max_grad_norm=0"), [1e-3, 1e30])


def test_a_rate_that_changes_nothing_is_refused() -> None:
    said = refused("finetune=full", lrs=(1e-30, 1e-20))
    assert re.match(
        r"optimizer\.lr=1e-20: 3 steps at the highest rate leave the loss of a batch at \d\.\d+; raise it", said
    )
    # Dropout is no change.
    assert "optimizer.lr=1e-20" in refused("finetune.dropout=0.5", lrs=(1e-20,))


def test_the_highest_rate_counts() -> None:
    check_gradients(tiny("finetune=full"), [1e-3, 1e-30])


def test_clipping_to_nothing_is_named() -> None:
    assert "training.max_grad_norm=1e-30" in refused("finetune=full", "optimizer=sgd", "training.max_grad_norm=1e-30")


@pytest.mark.parametrize(
    ("mode", "key"), [("lora", "finetune.target_modules='all-linear': "), ("full", "finetune.mode=full: ")]
)
def test_gradients_that_vanish_are_refused(
    changed: Callable[[Callable[[LlamaForCausalLM], None]], str], mode: str, key: str
) -> None:
    def zero(model: LlamaForCausalLM) -> None:
        for weight in model.parameters():
            weight.zero_()

    said = refused(changed(zero), f"finetune={mode}")
    assert said.startswith(key)
    assert "every gradient is zero" in said


def test_a_model_without_a_finite_loss_is_refused(changed: Callable[[Callable[[LlamaForCausalLM], None]], str]) -> None:
    def break_(model: LlamaForCausalLM) -> None:
        model.model.norm.weight[0] = float("nan")

    said = refused(changed(break_), "finetune=full")
    assert said.startswith("model.path=")
    assert "the loss is nan before any training, with model.dtype=auto" in said


def test_rows_without_a_label_or_with_unknown_tokens_are_refused() -> None:
    config = tiny("finetune=full")
    model = load_model(config.model, config.finetune)
    good = Example((5, 6, 7), (IGNORED, 6, 7))
    masked = Example((5, 6, 7), (5, IGNORED, IGNORED))  # a first label is none: nothing stands before it
    check_rows([masked, good], model, config)
    with pytest.raises(
        InputError, match=r"data\.path=embedded: no label counts in the first 2 rows.*data\.max_length=48"
    ):
        check_rows([masked, masked], model, config)
    with pytest.raises(InputError, match=r"its tokenizer gives token 2048 and the model has embeddings for 2048 only"):
        check_rows([good, Example((5, 2048), (IGNORED, 2048))], model, config)


def test_parts_the_model_lacks_are_refused_as_elsewhere() -> None:
    assert refused("finetune.target_modules=[nope]").startswith("finetune.target_modules=('nope',)")


@pytest.mark.parametrize("loss", ["dft", "eaft", "asft"])
def test_a_loss_with_weights_can_be_learned_from(loss: str) -> None:
    check_gradients(tiny(f"training.loss={loss}"), [1e-3])
    plain, weighted = PlainLoop(tiny()), PlainLoop(tiny(f"training.loss={loss}"))
    assert weighted.gradients([[0, 1]]) == pytest.approx(plain.gradients([[0, 1]]), rel=1e-5)
    assert weighted.step() != pytest.approx(plain.step(), rel=1e-2)
