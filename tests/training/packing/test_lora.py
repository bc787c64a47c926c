"""Adapters: PEFT's own at the start, PEFT's own on disk, mixed ranks between, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, CohereConfig, GPT2Config, LlamaConfig, PreTrainedModel, set_seed

from lrsweep.training.packing import Adapter, Pack, Unpackable, join, pack_lora, pack_weights, train_pass
from tests.training.packing.solo import COMMON, KINDS, Trial, lora_pack, mean_loss, tiny, together, trials


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_starts_as_peft_would_start_it(kind: str, dtype: torch.dtype) -> None:
    trial = Trial(seed=7, rank=3, alpha=5.0, rslora=True)
    model = tiny(kind, dtype)
    set_seed(trial.seed)
    stock = get_peft_model(model, trial.lora(fan_in_fan_out=kind == "gpt2"))
    expected = get_peft_model_state_dict(stock)
    pack = lora_pack(kind, 2, dtype)
    pack.start(trial.lora(), 8)
    before = torch.get_rng_state()
    start = pack.start(trial.lora(), trial.seed)
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(start, Adapter)
    assert start.weights.keys() == expected.keys()
    for name, weight in start.weights.items():
        assert weight.dtype == expected[name].dtype == torch.float32
        assert torch.equal(weight, expected[name])
    assert start.scaling == pytest.approx(5 / 3**0.5, rel=1e-12)


def test_zero_padding_is_a_fixed_point() -> None:
    """Beyond a trial's rank, A and B are zero: so are their gradients, moments and updates, to the bit."""
    pack = lora_pack("llama", 2)
    small = Trial(seed=1, rank=1, lr=0.1, weight_decay=0.3, max_norm=0.1)
    for slot, trial in enumerate([Trial(seed=0), small]):
        pack.admit(slot, pack.start(trial.lora(), trial.seed), trial.optimizer, max_norm=trial.max_norm)
    for step in range(4):
        train_pass(pack, 0, 2, join([Trial(0).batch(step), small.batch(step)]))
        outside = 0
        views = pack.arena.views(1, 2)
        for name in pack.arena.shapes:
            view = views[name]
            beyond = (slice(None), slice(1, None)) if ".lora_A." in name else (slice(None), slice(None), slice(1, None))
            assert view.grad.any() or step == 0
            assert not view.grad[beyond].any()
            assert not view.weight[beyond].any()
            outside += view.weight[beyond].numel()
        assert outside > 0
        pack.arena.step([0, 1])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_adapters_load_in_peft(kind: str, tmp_path: Path) -> None:
    queue = trials(3)
    assert len({trial.rank for trial in queue}) == 3
    for trial, curve in zip(queue, together(lora_pack(kind, 3), queue), strict=True):
        folder = tmp_path / str(trial.seed)
        trial.lora(fan_in_fan_out=kind == "gpt2", inference_mode=True).save_pretrained(folder)
        save_file(dict(curve.weights), folder / "adapter_model.safetensors")
        loaded = PeftModel.from_pretrained(tiny(kind), folder)
        with torch.no_grad():
            loss = mean_loss(loaded, trial.batch(-1)).item()
        assert loss == pytest.approx(curve.eval_loss, abs=1e-12)
        with torch.no_grad():
            assert mean_loss(tiny(kind), trial.batch(-1)).item() != pytest.approx(loss, abs=1e-6)


class Scaled(nn.Linear):
    """Stands for a quantized layer: a Linear by type, with arithmetic of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0.5


def test_a_base_layer_of_its_own_kind_is_called_as_it_is() -> None:
    def scaled() -> PreTrainedModel:
        model = tiny("llama")
        for module in list(model.modules()):
            if type(module) is nn.Linear and module is not model.lm_head:
                module.__class__ = Scaled
        return model

    def halved() -> PreTrainedModel:
        model = tiny("llama")
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear) and module is not model.lm_head:
                    module.weight.mul_(0.5)
                    if module.bias is not None:
                        module.bias.mul_(0.5)
        return model

    queue = trials(3)
    curves = [together(pack_lora(build(), Trial(0).lora(), 3), queue) for build in (scaled, halved)]
    for mine, theirs in zip(*curves, strict=True):
        assert mine.losses == pytest.approx(theirs.losses, abs=1e-10)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora=True"),
    "bias": ({"bias": "all"}, "bias='all'"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "mica": ({"init_lora_weights": "mica"}, "init_lora_weights='mica'"),
    "ranks": ({"rank_pattern": {"q_proj": 2}}, "rank or alpha differs"),
    "alphas": ({"alpha_pattern": {"q_proj": 2}}, "rank or alpha differs"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "embed_tokens is a Embedding"),
    "head": ({"target_modules": ["lm_head"]}, "lm_head is the output layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_adapters(name: str) -> None:
    options, reason = REFUSED[name]
    model = tiny("llama")
    modules = [type(module) for module in model.modules()]
    with pytest.raises(Unpackable, match=reason):
        pack_lora(model, Trial(0).lora(**options), 2)
    assert modules == [type(module) for module in model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def built(config: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config)


def test_refused_models() -> None:
    def refused(model: PreTrainedModel, reason: str) -> None:
        makers: tuple[Callable[[], Pack], ...] = (
            lambda: pack_lora(model, Trial(0).lora(), 2),
            lambda: pack_weights(model, 2),
        )
        for make in makers:
            with pytest.raises(Unpackable, match=reason):
                make()

    refused(
        built(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=50, bos_token_id=1, eos_token_id=1)), "drop.* = 0.1"
    )
    refused(built(LlamaConfig(**COMMON, attention_dropout=0.2)), "attention_dropout = 0.2")
    refused(built(CohereConfig(**COMMON, logit_scale=0.25, bos_token_id=1, eos_token_id=1)), "changed after it")
    refused(tiny("llama").half(), "float16")
    routed = tiny("llama")
    routed.config.output_router_logits = True
    refused(routed, "auxiliary loss")
    with pytest.raises(Unpackable, match="float16"):
        pack_weights(tiny("llama", torch.float32), 2, compute=torch.float16)
    model = tiny("llama")
    model.model.layers[0].mlp.experts = nn.ModuleList([nn.Linear(32, 32)])
    with pytest.raises(Unpackable, match=r"layers\.0\.mlp\.experts\.0 is an expert"):
        pack_lora(model, Trial(0).lora(), 2)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.sum()


def test_unknown_trained_modules_are_refused_in_full() -> None:
    model = tiny("llama")
    model.model.norm = Gate().double()
    with pytest.raises(Unpackable, match=r"model\.norm is a Gate"):
        pack_weights(model, 2)
    half_trained = tiny("llama")
    half_trained.model.layers[0].self_attn.q_proj.bias.requires_grad_(False)
    with pytest.raises(Unpackable, match="trained in part"):
        pack_weights(half_trained, 2)
    with pytest.raises(Unpackable, match="here are none"):
        pack_weights(tiny("llama").requires_grad_(False), 2)


def test_a_trial_that_does_not_fit_the_pack_is_refused() -> None:
    pack: Pack = lora_pack("llama", 2)
    with pytest.raises(Unpackable, match="no place in this pack"):
        pack.start(Trial(0, rank=8).lora())
    with pytest.raises(Unpackable, match="no place in this pack"):
        pack.start(Trial(0).lora(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="LoraConfig"):
        pack.start()
    config = LoraConfig(r=4, target_modules=["q_proj"])
    start = pack.start(config)
    with pytest.raises(ValueError, match="do not fit"):
        pack.admit(0, start, Trial(0).optimizer)
