"""The parameters that decay are those of transformers' Trainer, for models with every kind of norm."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from lrsweep.training.weight_decay import decayed_names

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32}
SHAPES = {
    "llama": {**SMALL, "intermediate_size": 16},
    "qwen2": {**SMALL, "intermediate_size": 16, "num_key_value_heads": 2},
    "qwen3": {**SMALL, "intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {**SMALL, "intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8},
    "phi": {**SMALL, "intermediate_size": 16},
    "olmo": {**SMALL, "intermediate_size": 16},
    "gpt_neox": {**SMALL, "intermediate_size": 16},
    "bloom": {"hidden_size": 16, "n_head": 2, "n_layer": 1, "vocab_size": 32},
    "opt": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 16, "vocab_size": 32},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 32},
    "bert": {**SMALL, "intermediate_size": 16, "is_decoder": True},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_parameters_that_decay_are_trainers(kind: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES[kind]))
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    expected = named & set(Trainer.get_decay_parameter_names(None, model))
    assert decayed_names(model) == expected
    # OLMo's norms have no weights, and nothing has a bias.
    assert (expected == named) == (kind == "olmo")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_those_of_an_adapter_and_of_saved_modules_too(kind: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES[kind]))
    norm = "ln_f" if kind == "gpt2" else "norm"
    found = get_peft_model(model, LoraConfig(r=2, bias="all", modules_to_save=[norm], fan_in_fan_out=kind == "gpt2"))
    named = {name for name, _ in found.named_parameters(remove_duplicate=False)}
    assert decayed_names(found) == named & set(Trainer.get_decay_parameter_names(None, found))


def test_a_layer_norm_is_known_by_its_class_whatever_its_name() -> None:
    model = nn.ModuleDict({"first": nn.LayerNorm(4), "second": nn.Linear(4, 4), "shared_norm": nn.Linear(4, 4)})
    assert decayed_names(model) == set(Trainer.get_decay_parameter_names(None, model)) == {"second.weight"}
