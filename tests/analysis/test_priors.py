"""Priors: the formula, what is read of a model, and whether a guess held."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lrsweep.analysis.lr_curve import SafeRange
from lrsweep.analysis.priors import applies, check, prior, read_size
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import Verdict, judge
from lrsweep.config.schema import replace
from lrsweep.config.trial_schema import ModelConfig
from tests.recorder import tiny

BATCH_128 = ("training.batch_size=32", "training.gradient_accumulation_steps=4")


def verdict(best: float, safe: tuple[float, float] | None = None) -> Verdict:
    """The verdict of a sweep that recommends a rate."""
    own = replace(tiny(), {"optimizer.lr": best})
    found = judge([Result(0, {"optimizer.lr": best}, own, "complete", 6, 1.0, "")], base_loss=2.0)
    return dataclasses.replace(found, safe_range=safe and SafeRange(*safe, 0.01))


@pytest.mark.parametrize(
    ("overrides", "hidden", "kind", "lr"),
    [
        (("finetune=full",), 2000, "llama", 5e-5),
        (("finetune=lora",), 2000, "llama", 5e-4),
        (("finetune=freeze",), 2000, "mistral", 5e-5),
        # The sizes of Llama 3.1 8B, for which tinker-cookbook's own sweep found 3e-4, and of Qwen3 8B: 1e-3 there.
        (("finetune=lora",), 4096, "llama", 2.9e-4),
        (("finetune=lora",), 4096, "qwen3", 4.7e-4),
        # No trend is known for other kinds.
        (("finetune=lora",), 4096, "gemma3_text", 5e-4),
        (("finetune=lora",), 64, "gpt2", 5e-4),
    ],
)
def test_the_prior_is_the_product_of_its_factors(overrides: tuple[str, ...], hidden: int, kind: str, lr: float) -> None:
    guess = prior(tiny(*BATCH_128, *overrides), hidden, kind)
    assert guess.lr == lr
    product = 1.0
    for factor in guess.factors:
        assert factor.name
        assert factor.source
        product *= factor.value
    assert product == pytest.approx(guess.lr, rel=0.05)


def test_the_lr_follows_the_square_root_of_the_batch_of_a_step() -> None:
    def lr(rows: int, accumulation: int) -> float:
        batch = (f"training.batch_size={rows}", f"training.gradient_accumulation_steps={accumulation}")
        return prior(tiny(*batch), 2000, "llama").lr

    assert lr(128, 1) == 5e-4
    assert lr(8, 4) == lr(32, 1) == 2.5e-4
    assert lr(2, 1) == pytest.approx(5e-4 / 8, rel=0.01)


def test_the_embedded_base_is_looked_at_and_guessed() -> None:
    config = tiny("training.batch_size=8")
    seen = read_size(config.model)
    assert seen == (128, "llama")
    guess = prior(config, *seen)
    assert guess.lr == pytest.approx(1e-3, rel=0.2)
    # Its best is 3e-3 (benchmarks/results/embedded.json).
    assert check(guess, verdict(3e-3)).right


def test_sizes_have_other_names_in_some_models(tmp_path: Path) -> None:
    def seen(config: object) -> tuple[int, str] | None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return read_size(ModelConfig(path=str(tmp_path)))

    assert seen({"model_type": "qwen2", "hidden_size": 896}) == (896, "qwen2")
    assert seen({"model_type": "gpt2", "n_embd": 768}) == (768, "gpt2")
    assert seen({"model_type": "gemma3", "text_config": {"hidden_size": 2560}}) == (2560, "gemma3")
    assert seen({"hidden_size": 896}) is None
    assert seen({"model_type": "llama", "hidden_size": "wide"}) is None
    assert seen({"model_type": "llama", "hidden_size": 0}) is None
    assert seen([1]) is None
    assert seen("{torn") is None
    assert read_size(ModelConfig(path=str(tmp_path / "none"))) is None
    assert read_size(ModelConfig(path="meta-llama/Llama-3.2-1B")) is None


@pytest.mark.parametrize(
    ("best", "safe", "right", "text"),
    [
        (1e-3, None, True, "was right: its own rate, 0.001, is the best"),
        (3e-3, None, True, "was right: 0.001 is within a factor of 3 of 0.003"),
        (3.4e-4, None, True, "was right: 0.001 is within a factor of 3 of 0.00034"),
        (1e-2, (1e-3, 3e-2), True, "was right: 0.001 is in the safe range 0.001 to 0.03"),
        (1e-2, (3e-3, 3e-2), False, "was off: 0.001 is 10 times too low; the best is 0.01"),
        (1e-2, None, False, "was off: 0.001 is 10 times too low; the best is 0.01"),
        (3e-5, (1e-5, 3e-4), False, "was off: 0.001 is 33 times too high; the best is 3e-05"),
    ],
)
def test_a_guess_held_or_was_off_by_a_factor(
    best: float, safe: tuple[float, float] | None, right: bool, text: str
) -> None:
    guess = prior(tiny("training.batch_size=128"), 1, "gpt2")
    answer = check(type(guess)(1e-3, guess.factors), verdict(best, safe))
    assert (answer.right, answer.text) == (right, text)
    assert answer.ratio == pytest.approx(1e-3 / best)


def test_an_inconclusive_sweep_shows_nothing_about_a_guess() -> None:
    guess = prior(tiny(), 2000, "llama")
    answer = check(guess, dataclasses.replace(verdict(guess.lr * 10), inconclusive="the lowest loss is at an edge"))
    assert answer.right is None
    assert "inconclusive" in answer.text


def test_only_adam_kinds_have_priors() -> None:
    assert applies(tiny())
    assert applies(tiny("optimizer.name=radam"))
    assert not applies(tiny("optimizer=sgd"))


def test_priors_need_no_heavy_library() -> None:
    script = (
        "import sys, lrsweep.analysis.priors as p; from lrsweep.config.trial_schema import ModelConfig; "
        "p.read_size(ModelConfig(path='embedded'));"
        "print([name for name in ('torch', 'transformers', 'optuna', 'hydra', 'mlflow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
