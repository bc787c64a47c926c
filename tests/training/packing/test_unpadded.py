"""Rows laid end to end: the numbers of padded ones, for every kind of model that takes them; refused to all others."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention

from lrsweep.training.packing import Pack, eval_pass, join, lay_end_to_end, pack_lora, pack_weights, train_pass
from lrsweep.training.packing.unpadded import Layout, is_sparse
from tests.training.packing.solo import COMMON, KINDS, Trial, alone, differences, lora_pack, tiny, together, trials

# Mistral's window here is shorter than the rows.
TAKERS = [kind for kind in KINDS if kind != "mistral"]


def unpadded(model: PreTrainedModel, pack: Callable[[PreTrainedModel], Pack]) -> Pack:
    longest = lay_end_to_end(model, Trial(0).batch(-1))
    assert longest > 0
    return dataclasses.replace(pack(model), unpadded=longest)


def lora(kind: str, slots: int, dtype: torch.dtype = torch.float64) -> Pack:
    return unpadded(tiny(kind, dtype), lambda model: pack_lora(model, Trial(0).lora(), slots, rank=4))


def shapes_seen(pack: Pack) -> list[tuple[int, ...]]:
    """What the decoder gets, in a list that goes on growing."""
    seen: list[tuple[int, ...]] = []

    def look(_: Any, __: Any, options: dict[str, Any]) -> None:
        seen.append(tuple(options["input_ids"].shape))

    pack.model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize(("dtype", "losses", "weights"), [(torch.float64, 1e-10, 1e-9), (torch.float32, 1e-4, 1e-3)])
@pytest.mark.parametrize("kind", TAKERS)
def test_trials_have_the_curves_of_stock_peft(
    kind: str, dtype: torch.dtype, losses: float, weights: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrsweep.training.packing.unpadded._SHORT", 8)  # attention in two groups
    base = tiny(kind, dtype)
    pack = lora(kind, 4, dtype)
    seen = shapes_seen(pack)
    for trial, mine in zip(trials(7), together(pack, trials(7)), strict=True):
        far = differences(mine, alone(base, trial))
        assert far[0] <= losses
        assert far[1] <= weights
    assert max(shape[0] for shape in seen) == 4, "one row a trial, not two"


@pytest.mark.parametrize("kind", TAKERS)
def test_full_fine_tuning_too(kind: str) -> None:
    base = tiny(kind)
    pack = unpadded(tiny(kind), functools.partial(pack_weights, slots=3))
    for trial, mine in zip(trials(4), together(pack, trials(4)), strict=True):
        far = differences(mine, alone(base, trial, "weights"))
        assert far[0] <= 1e-10
        assert far[1] <= 1e-9


def test_dropout_is_that_of_padded_rows() -> None:
    queue = [Trial(seed, dropout=0.3 * (seed % 2), lr=3e-3) for seed in range(4)]
    for mine, theirs in zip(together(lora("llama", 3), queue), together(lora_pack("llama", 3), queue), strict=True):
        assert max(differences(mine, theirs)) <= 1e-12


def test_recomputed_activations_change_nothing() -> None:
    pack = lora("llama", 3)
    pack.model.activation_checkpointing_enable({"use_reentrant": False})
    pack.model.train()
    for mine, theirs in zip(together(pack, trials(3)), together(lora_pack("llama", 3), trials(3)), strict=True):
        assert max(differences(mine, theirs)) <= 1e-12


@pytest.mark.parametrize("slot", [0, 1])
def test_what_is_not_finite_stays_in_its_trial(slot: int) -> None:
    """Places without a token say another one of the same trial, and never a neighbour's."""
    queue = trials(3)
    others = [other for other in range(3) if other != slot]
    batch = join([trial.batch(0) for trial in queue])
    grads = []
    for value in (1.0, torch.nan, torch.inf):
        pack = lora("llama", 3)
        for number, trial in enumerate(queue):
            pack.admit(number, pack.start(trial.lora(), trial.seed), trial.optimizer)
        pack.arena.weights[slot].mul_(value)
        losses = train_pass(pack, 0, 3, batch)
        assert losses[others].isfinite().all()
        assert losses[slot].isfinite() == (value == 1.0)
        grads.append(pack.arena.grads[others])
    assert grads[0].any()
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_rows_with_little_padding_stay_rows() -> None:
    pack = lora("llama", 1)
    seen = shapes_seen(pack)
    batch = Trial(0).batch(0)
    length = batch["input_ids"].shape[1]
    pack.admit(0, pack.start(Trial(0).lora(), 0), Trial(0).optimizer)
    for padding, shape in ((0, (2, length)), (1, (2, length)), (length - 4, (1, length + 4))):
        mask = torch.ones_like(batch["input_ids"])
        mask[1, length - padding :] = 0
        assert is_sparse(mask) == (shape[0] == 1)
        labels = batch["labels"].masked_fill(mask == 0, -100)
        eval_pass(pack, 0, 1, {"input_ids": batch["input_ids"], "attention_mask": mask, "labels": labels})
        assert seen[-1] == shape


def test_attention_that_looks_back_so_far_only() -> None:
    assert lay_end_to_end(tiny("mistral"), Trial(0).batch(0)) == 0
    wide = AutoModelForCausalLM.from_config(MistralConfig(**COMMON, sliding_window=14), dtype=torch.float64)
    assert lay_end_to_end(wide, Trial(0).batch(0)) == 14


def test_a_model_that_keeps_the_layout_from_attention_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows would see each other."""
    stock = LlamaAttention.forward

    def forgetful(*arguments: Any, **options: Any) -> Any:
        options.pop("layout", None)
        return stock(*arguments, **options)

    monkeypatch.setattr(LlamaAttention, "forward", forgetful)
    model = tiny("llama")
    assert lay_end_to_end(model, Trial(0).batch(0)) == 0
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_knows_its_attention_by_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its padded rows would come out otherwise, or it would trip."""
    stock = LlamaAttention.forward

    def particular(self: LlamaAttention, *arguments: Any, **options: Any) -> Any:
        found, weights = stock(self, *arguments, **options)
        known = "layout" in options or self.config._attn_implementation == "sdpa"
        return found if known else 2 * found, weights

    def tripping(self: LlamaAttention, *arguments: Any, **options: Any) -> Any:
        if self.config._attn_implementation != "sdpa":
            raise KeyError(self.config._attn_implementation)
        return stock(self, *arguments, **options)

    for forward in (particular, tripping):
        monkeypatch.setattr(LlamaAttention, "forward", forward)
        model = tiny("llama")
        assert lay_end_to_end(model, Trial(0).batch(0)) == 0
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_attention_gets_no_mask_where_it_is_only_causal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it has its fastest kernels. A mask that says more, such as a window's, stays."""
    masks: list[Any] = []

    def look(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        masks.append(mask)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    monkeypatch.setattr("lrsweep.training.packing.unpadded.sdpa_attention_forward", look)
    model = tiny(kind)
    reach = lay_end_to_end(model, {key: value[:, :3] for key, value in Trial(0).batch(0).items()})
    pack = dataclasses.replace(pack_lora(model, Trial(0).lora(), 2, rank=4), maskless=reach)
    plain = lora_pack(kind, 2)
    for tokens in (3, 12):
        # With no padding at all, and without a mask.
        ids = torch.arange(2 * tokens).view(2, tokens) % 50
        batch = {"input_ids": ids, "labels": ids}
        for each in (pack, plain):
            for slot in (0, 1):
                each.admit(slot, each.start(Trial(slot).lora(), slot), Trial(slot, lr=0.1).optimizer)
        for _ in range(2):
            masks.clear()
            losses = [train_pass(each, 0, 2, join([batch] * 2)) for each in (pack, plain)]
            assert (losses[0] - losses[1]).abs().max() <= 1e-12
            assert masks
            assert all(mask is None for mask in masks) == (tokens <= reach)
            for each in (pack, plain):
                each.arena.step(range(2))
        for each in (pack, plain):
            for slot in (0, 1):
                each.evict(slot)


def test_other_attention_is_left_alone() -> None:
    model = tiny("llama")
    model.set_attn_implementation("eager")
    assert lay_end_to_end(model, Trial(0).batch(0)) == 0
    assert lay_end_to_end(tiny("llama"), {"input_ids": torch.ones(1, 4, dtype=torch.long)}) == 0


@pytest.mark.parametrize("short", [64, 1])
def test_the_way_there_and_back(short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of unequal rows, one trial with fewer, taken apart (in groups of like length) and laid together again."""
    monkeypatch.setattr("lrsweep.training.packing.unpadded._SHORT", short)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    layout = Layout.of(mask, 2, torch.float64)
    assert layout.groups == (((4, 4),) if short == 64 else ((1, 1), (1, 2), (2, 4)))
    assert layout.positions.tolist() == [[0, 1, 2, 0, 0, 0], [0, 1, 2, 3, 0, 1]]
    assert layout.rows.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    tokens = torch.arange(12.0, dtype=torch.float64).view(2, 1, 6, 1).requires_grad_()
    parts = layout.pad(tokens)
    rows = [part[:, 0, :, 0].tolist() for part in parts]
    if short == 64:
        assert rows == [[[0, 1, 2, 2], [3, 3, 3, 3], [6, 7, 8, 9], [10, 11, 11, 11]]]
    else:
        assert rows == [[[3]], [[10, 11]], [[0, 1, 2, 2], [6, 7, 8, 9]]]
    again = layout.unpad([part.transpose(1, 2) for part in parts]).flatten()
    real = layout.taken.flatten().bool()
    assert again[real].tolist() == tokens.flatten()[real].tolist()
    (again * torch.arange(1.0, 13.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    assert tokens.grad.flatten().tolist() == [1, 2, 3, 4, 0, 0, 7, 8, 9, 10, 11, 12]
