"""Embeddings that are padded to a multiple of a number of tokens."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrsweep.embedded import BASE
from lrsweep.training.engines.packed import PackedEngine
from lrsweep.training.engines.trainer import TrainerEngine
from lrsweep.training.model import load_model, load_tokenizer
from tests.recorder import tiny, train

# The embedded model's tokenizer has 2048 tokens.
MORE = 1000


def test_missing_rows_are_drawn_as_transformers_does_and_others_stay() -> None:
    config = tiny(f"model.pad_embeddings_to_multiple_of={MORE}")
    stock = AutoModelForCausalLM.from_pretrained(BASE)
    rows = stock.get_input_embeddings().num_embeddings
    assert rows == len(load_tokenizer(config.model))
    assert rows % MORE
    state = torch.get_rng_state()
    padded = load_model(config.model, config.finetune)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    stock.resize_token_embeddings(len(load_tokenizer(config.model)), pad_to_multiple_of=MORE)
    assert padded.get_input_embeddings().num_embeddings == -(-rows // MORE) * MORE
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, padded.state_dict()[name].cpu()), name


@pytest.mark.parametrize("multiple", [2, 1024])
def test_a_model_with_enough_rows_stays(multiple: int) -> None:
    config = tiny(f"model.pad_embeddings_to_multiple_of={multiple}")
    assert load_model(config.model, config.finetune).get_input_embeddings().num_embeddings == 2048


def test_engines_agree_on_a_padded_model_and_it_is_another(tmp_path: Path) -> None:
    plain, padded = tiny(), tiny(f"model.pad_embeddings_to_multiple_of={MORE}")
    packed = train(PackedEngine(1, 8), tmp_path / "packed", padded)
    stock = train(TrainerEngine(), tmp_path / "trainer", padded)
    before = train(TrainerEngine(), tmp_path / "plain", plain)
    for metric in ("loss", "eval_loss", "grad_norm"):
        assert packed.curve(metric) == pytest.approx(stock.curve(metric), rel=2e-3)
    assert stock.curve("eval_loss")[0] > before.curve("eval_loss")[0] + 1e-3, "more tokens share the probability"
