"""Packed trials against the same trials alone, on stock PEFT, torch.optim.AdamW and clip_grad_norm_.

More trials than slots, so that trials enter at different times; they differ in rate, betas, eps, decay, clipping, rank,
scaling, steps and data, and their batches are of unequal length.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from lrsweep.training.packing import Adapter, Pack, pack_lora, pack_weights
from tests.training.packing.solo import KINDS, Curve, Trial, alone, differences, lora_pack, tiny, together, trials

SLOTS = (1, 4, 8)


@functools.cache
def lora_alone(kind: str, dtype: torch.dtype, count: int) -> list[Curve]:
    base = tiny(kind, dtype)
    return [alone(base, trial) for trial in trials(count)]


def check(pack: Pack, expected: list[Curve], losses: float, weights: float, longest: int | None = None) -> None:
    curves = together(pack, trials(len(expected)), longest=longest)
    for mine, theirs in zip(curves, expected, strict=True):
        assert len(mine.losses) == len(theirs.losses)
        far = differences(mine, theirs)
        assert far[0] <= losses
        assert far[1] <= weights
    moved = max(abs(curve.losses[0] - curve.losses[-1]) for curve in curves)
    assert moved > 0.1, "nothing was learned, so nothing was compared"


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("kind", KINDS)
def test_lora_in_float64(kind: str, slots: int) -> None:
    check(lora_pack(kind, slots), lora_alone(kind, torch.float64, 10), losses=1e-10, weights=1e-9)


@pytest.mark.parametrize("longest", [1, 3])
def test_lora_in_smaller_passes(longest: int) -> None:
    check(lora_pack("llama", 8), lora_alone("llama", torch.float64, 10), 1e-10, 1e-9, longest)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_in_float32(kind: str) -> None:
    check(lora_pack(kind, 8, torch.float32), lora_alone(kind, torch.float32, 10), losses=1e-4, weights=1e-3)


def all_of(model: PreTrainedModel) -> PreTrainedModel:
    return model


def last_layer(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    stack = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    stack[-1].requires_grad_(True)
    return model


@pytest.mark.parametrize("choose", [all_of, last_layer])
@pytest.mark.parametrize("kind", KINDS)
def test_full_and_freeze_in_float64(kind: str, choose: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
    base = choose(tiny(kind))
    expected = [alone(base, trial, "weights") for trial in trials(6)]
    check(pack_weights(choose(tiny(kind)), 4), expected, losses=1e-10, weights=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_full_in_float32(kind: str) -> None:
    base = tiny(kind, torch.float32)
    expected = [alone(base, trial, "weights") for trial in trials(6)]
    check(pack_weights(tiny(kind, torch.float32), 4), expected, losses=1e-4, weights=1e-3)


def test_freeze_keeps_one_base() -> None:
    pack = pack_weights(last_layer(tiny("llama")), 2)
    assert all(".layers.1." in name for name in pack.arena.shapes)
    kept = {name for name, _ in pack.model.named_parameters()}
    assert "model.embed_tokens.weight" in kept
    assert not any(".layers.1." in name for name in kept)


def test_chosen_targets() -> None:
    targets = ["q_proj", "down_proj"]
    pack = pack_lora(tiny("qwen2"), Trial(0).lora(target_modules=targets), 3)
    queue = [Trial(seed) for seed in range(3)]
    for slot, trial in enumerate(queue):
        start = pack.start(trial.lora(target_modules=targets), trial.seed)
        assert isinstance(start, Adapter)
        assert {name.split(".")[-3] for name in start.weights} == set(targets)
        pack.admit(slot, start, trial.optimizer)
