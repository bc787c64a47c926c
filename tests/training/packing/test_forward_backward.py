"""Losses, batches and passes: against transformers' own loss, and against the same trial under other circumstances."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, set_seed

from lrsweep.training.packing import Pack, Unpackable, eval_pass, head, join, pack_lora, pack_weights, train_pass
from lrsweep.training.packing.functions import linear
from tests.training.packing.solo import (
    COMMON,
    KINDS,
    VOCABULARY,
    Trial,
    alone,
    differences,
    lora_pack,
    mean_loss,
    tiny,
    together,
    trials,
)


def filled(pack: Pack, queue: list[Trial]) -> Pack:
    for slot, trial in enumerate(queue):
        start = pack.start(trial.lora() if pack.adapters else None, trial.seed)
        pack.admit(slot, start, trial.optimizer, max_norm=trial.max_norm, seed=trial.seed)
    return pack


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_transformers_own(kind: str) -> None:
    queue = trials(3)
    model = tiny(kind, torch.float32)
    stock = [model(**trial.batch(0)).loss.item() for trial in queue]
    pack = filled(lora_pack(kind, 3, torch.float32), queue)
    batch = join([trial.batch(0) for trial in queue])
    assert train_pass(pack, 0, 3, batch).tolist() == pytest.approx(stock, abs=1e-6)
    sums, counts = eval_pass(pack, 0, 3, batch)
    labels = [trial.batch(0)["labels"][:, 1:] for trial in queue]
    assert [row[: len(of)].tolist() for row, of in zip(counts, labels, strict=True)] == [
        (of != -100).sum(1).tolist() for of in labels
    ]
    assert (sums.sum(1) / counts.sum(1)).tolist() == pytest.approx(stock, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_row_is_what_it_has_alone(kind: str) -> None:
    queue = trials(2)
    model = tiny(kind, torch.float32)
    pack = filled(lora_pack(kind, 2, torch.float32), queue)
    sums, counts = eval_pass(pack, 0, 2, join([trial.batch(0) for trial in queue]))
    for trial, of_rows, numbers in zip(queue, sums, counts, strict=True):
        batch = trial.batch(0)
        for row in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else None
            alone = {key: values[row : row + 1, :length] for key, values in batch.items()}
            if numbers[row]:
                assert of_rows[row].item() / int(numbers[row]) == pytest.approx(model(**alone).loss.item(), abs=1e-5)


def test_evaluation_leaves_no_trace() -> None:
    pack = filled(lora_pack("llama", 2), trials(2))
    state = copy.deepcopy(pack.state(0))
    sums, _ = eval_pass(pack, 0, 2, join([trial.batch(0) for trial in trials(2)]))
    assert not sums.requires_grad
    assert not pack.arena.grads.any()
    assert pack.state(0)["window"] == state["window"]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_nan_in_one_trial_leaves_the_others_bits_alone(mode: str) -> None:
    queue = [Trial(seed, max_norm=0.1 * seed) for seed in range(4)]

    def run(poison: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model = tiny("llama", torch.float32)
        pack = pack_lora(model, Trial(0).lora(), 4) if mode == "lora" else pack_weights(model, 4)
        filled(pack, queue)
        losses = []
        for step in range(6):
            if poison and step == 2:
                next(weight for name, weight in pack.arena.read(1).items() if "down_proj" in name).fill_(torch.nan)
            losses.append(train_pass(pack, 0, 4, join([trial.batch(step) for trial in queue])))
            pack.arena.step(range(4))
        return torch.stack(losses), pack.arena.weights

    (clean, weights), (hurt, hurt_weights) = run(False), run(True)
    others = [0, 2, 3]
    assert hurt[2:, 1].isnan().all()
    assert not clean.isnan().any()
    assert torch.equal(clean[:, others], hurt[:, others])
    assert torch.equal(weights[others], hurt_weights[others])


def test_slot_and_neighbours_do_not_matter() -> None:
    """To the bit where passes have the same shape; to rounding where they have not."""
    queue = [Trial(seed, lr=3e-3, max_norm=0.1 * (seed % 2)) for seed in range(5)]
    base = together(lora_pack("qwen2", 5), queue)
    shuffled = together(lora_pack("qwen2", 5), queue, order=[4, 2, 0, 1, 3])
    sparse = together(lora_pack("qwen2", 8), queue, order=[7, 5, 3, 1, 0])
    for mine, other, third in zip(base, shuffled, sparse, strict=True):
        assert max(*differences(mine, other), *differences(mine, third)) <= 1e-12


def test_moving_a_trial_mid_way() -> None:
    trial = Trial(1, steps=4, dropout=0.3)
    (straight,) = together(lora_pack("llama", 1), [trial])
    pack = lora_pack("llama", 3)
    optimizer = pack.admit(0, pack.start(trial.lora(), trial.seed), trial.optimizer, seed=trial.seed)
    losses = []
    for step in range(4):
        slot = 2 * (step >= 2)
        if step == 2:
            pack.move(0, 2)
            pack.admit(0, pack.start(Trial(9).lora(), 9), Trial(9).optimizer)
        losses.append(train_pass(pack, slot, slot + 1, trial.batch(step)).item())
        pack.arena.step([slot])
    assert losses == pytest.approx(straight.losses, abs=1e-12)
    assert len(optimizer.state) == 1


def test_gathered_gradients_divide_by_all_their_tokens() -> None:
    """Two batches a step with the step's label tokens as divisor, as Trainer's num_items_in_batch has it."""
    trial = Trial(3, lr=1e-2, max_norm=0.2)
    base = tiny("llama")
    set_seed(trial.seed)
    model = get_peft_model(base, trial.lora())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = trial.optimizer([{"params": parameters}])
    pack = filled(lora_pack("llama", 2), [Trial(0), trial])
    for step in range(3):
        batches = [trial.batch(2 * step), trial.batch(2 * step + 1)]
        counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
        expected: Any = sum(
            mean_loss(model, batch) * count for batch, count in zip(batches, counts, strict=True)
        ) / sum(counts)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(parameters, trial.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        found = sum(train_pass(pack, 0, 2, join([batch, batch]), [1, sum(counts)])[1].item() for batch in batches)
        pack.arena.step([0, 1])
        assert found == pytest.approx(expected.item(), abs=1e-10)


def test_a_batch_may_be_shorter_than_its_neighbours() -> None:
    """A last batch of one row beside one of two, and rows packed into blocks with positions of their own."""
    short = {key: value[:1] for key, value in Trial(0).batch(0).items()}
    blocks = {
        "input_ids": torch.arange(1, 13)[None],
        "labels": torch.arange(1, 13)[None].clone(),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]),
    }
    blocks["labels"][0, [0, 5]] = -100
    longer = {key: torch.cat([value, value], dim=1).repeat(2, 1) for key, value in blocks.items()}
    model = tiny("llama")
    for mine, other in ((short, Trial(1).batch(0)), (blocks, longer)):
        expected = [mean_loss(model, batch).item() for batch in (mine, other)]
        pack = filled(lora_pack("llama", 2), [Trial(0), Trial(1)])
        assert train_pass(pack, 0, 2, join([mine, other])).tolist() == pytest.approx(expected, abs=1e-12)
        grads = pack.arena.grads[0].clone()
        train_pass(filled(pack_alone := lora_pack("llama", 1), [Trial(0)]), 0, 1, mine)
        assert (grads - pack_alone.arena.grads[0]).abs().max() <= 1e-12


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_trial_without_labels_has_no_loss_and_no_gradient(mode: str) -> None:
    model = tiny("llama")
    pack = filled(pack_lora(model, Trial(0).lora(), 3) if mode == "lora" else pack_weights(model, 3), trials(3))
    batches = [trial.batch(0) for trial in trials(3)]
    batches[1]["labels"].fill_(-100)
    losses = train_pass(pack, 0, 3, join(batches))
    assert losses.isnan().tolist() == [False, True, False]
    assert [row.any().item() for row in pack.arena.grads] == [True, False, True]
    sums, counts = eval_pass(pack, 0, 3, join(batches))
    assert (sums[1].sum().item(), counts[1].sum().item()) == (0, 0)


def test_left_padding_keeps_its_mask() -> None:
    batch = Trial(0).batch(0)
    flipped = {key: value.flip(1) for key, value in batch.items()}
    assert not flipped["attention_mask"].all()
    expected = mean_loss(tiny("llama"), flipped).item()
    pack = filled(lora_pack("llama", 2), [Trial(0), Trial(1)])
    assert train_pass(pack, 0, 2, join([flipped, flipped])).tolist() == pytest.approx([expected] * 2, abs=1e-10)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_logits_a_few_rows_at_a_time(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = trials(3)

    def run() -> list[Any]:
        model = tiny("llama")
        return together(pack_lora(model, Trial(0).lora(), 3) if mode == "lora" else pack_weights(model, 3), queue)

    whole = run()
    monkeypatch.setattr(head, "_rows_at_once", lambda *_: 5)
    for mine, theirs in zip(run(), whole, strict=True):
        assert max(differences(mine, theirs)) <= 1e-12


def gemma2() -> Any:
    set_seed(0)
    config = Gemma2Config(
        **COMMON, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=20.0, attn_implementation="eager"
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


@pytest.mark.parametrize("mode", ["lora", "weights"])
def test_soft_capped_logits(mode: str) -> None:
    queue = [Trial(seed, lr=3e-3, max_norm=0.3) for seed in range(2)]
    expected = [alone(gemma2(), trial, mode) for trial in queue]
    pack = pack_lora(gemma2(), Trial(0).lora(), 2) if mode == "lora" else pack_weights(gemma2(), 2)
    for mine, theirs in zip(together(pack, queue), expected, strict=True):
        assert max(differences(mine, theirs)) <= 1e-6  # its norms round to float32


def test_output_bias() -> None:
    def biased() -> Any:
        model = tiny("llama")
        model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64))
        return model

    queue = trials(2)
    expected = [alone(biased(), trial, "weights") for trial in queue]
    for mine, theirs in zip(together(pack_weights(biased(), 2), queue), expected, strict=True):
        assert max(differences(mine, theirs)) <= 1e-10


@pytest.mark.parametrize("mode", ["lora", "weights"])
def test_bfloat16_products_as_under_autocast(mode: str) -> None:
    """float32 weights and moments, bfloat16 products: near stock training under autocast; float32 where it counts."""
    dtype = torch.bfloat16 if mode == "lora" else torch.float32
    trial = Trial(1, lr=3e-3, rank=4, max_norm=1.0, steps=4)
    model: Any = tiny("llama", dtype)
    if mode == "lora":
        set_seed(trial.seed)
        model = get_peft_model(model, trial.lora())
    optimizer = trial.optimizer([{"params": [weight for weight in model.parameters() if weight.requires_grad]}])
    expected = []
    for step in range(trial.steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = mean_loss(model, trial.batch(step))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), trial.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    fresh, half = tiny("llama", dtype), torch.bfloat16
    pack = pack_lora(fresh, trial.lora(), 2, compute=half) if mode == "lora" else pack_weights(fresh, 2, compute=half)
    assert pack.arena.weights.dtype == pack.arena.grads.dtype == torch.float32
    curves = together(pack, [trial, Trial(2)])
    assert curves[0].losses == pytest.approx(expected, abs=0.03)


def test_recomputed_activations_change_nothing() -> None:
    queue = [Trial(seed, dropout=0.2 * seed) for seed in range(3)]
    plain = together(lora_pack("llama", 3), queue)
    pack = lora_pack("llama", 3)
    pack.model.activation_checkpointing_enable({"use_reentrant": False})
    pack.model.train()
    for mine, theirs in zip(together(pack, queue), plain, strict=True):
        assert max(differences(mine, theirs)) <= 1e-12


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_compiled_decoder(dtype: torch.dtype, tolerance: float) -> None:
    """The whole decoder as one graph, its gradients still written into the arena."""
    batch = join([Trial(seed).batch(0) for seed in range(2)])
    packs = []
    for compiled in (False, True):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**COMMON | {"num_hidden_layers": 1}), dtype=dtype)
        model.load_state_dict(tiny("llama").state_dict(), strict=False)
        pack = filled(pack_lora(model, Trial(0).lora(), 2), trials(2))
        if compiled:
            model.model.forward = torch.compile(model.model.forward, backend="aot_eager", fullgraph=True)
        packs.append((train_pass(pack, 0, 2, batch), pack.arena.grads))
    assert packs[0][1].any()
    for mine, theirs in zip(*packs, strict=True):
        assert (mine - theirs).abs().max() <= tolerance  # the graph may round its norms to float32 elsewhere


def test_padding_to_a_multiple_changes_nothing() -> None:
    """So that a compiled decoder sees few lengths."""
    batches = [Trial(seed).batch(0) for seed in range(2)]
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    found = []
    for multiple in (1, longest + 3):
        pack = filled(lora_pack("llama", 2), trials(2))
        batch = join(batches, multiple)
        assert batch["input_ids"].shape[1] == (longest if multiple == 1 else multiple)
        found.append((train_pass(pack, 0, 2, batch), pack.arena.grads))
    assert found[0][1].any()
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() <= 1e-12


def test_rows_must_share_out() -> None:
    pack = filled(lora_pack("llama", 2), trials(2))
    with pytest.raises(ValueError, match="3 rows cannot be shared out"):
        train_pass(pack, 0, 2, {key: value[[0, 1, 0]] for key, value in Trial(0).batch(0).items()})
    with pytest.raises(ValueError, match=r"slots 1\.\.3 of 2"):
        train_pass(pack, 1, 3, Trial(0).batch(0))


def test_layers_that_get_gathered_rows_are_found_out() -> None:
    """A Linear fed anything but all rows in order would train the wrong trial."""

    class Gathering(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.inner(x[1:]).sum(0) + 0 * x
            return mixed

    model = AutoModelForCausalLM.from_config(LlamaConfig(**COMMON), dtype=torch.float64)
    model.model.layers[0].mlp = Gathering(model.model.layers[0].mlp)
    pack = pack_lora(model, Trial(0).lora(), 1)
    filled(pack, [Trial(0)])
    with pytest.raises(Unpackable, match="not all of the pass's 2 rows"):
        train_pass(pack, 0, 1, Trial(0).batch(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_torchs_own(dtype: torch.dtype) -> None:
    """In any library: with a bias, of a transposed weight, of many axes, of no rows, of what is not finite."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 32, generator=generator).to(dtype), torch.randn(48, generator=generator).to(dtype)
    tolerance = 20 * torch.finfo(dtype).eps
    for rows in ((7, 5, 32), (40, 32), (1, 32), (0, 32)):
        x = torch.randn(*rows, generator=generator).to(dtype)
        assert linear(x, weight, bias).shape == (*rows[:-1], 48)
        for mine, theirs in (
            (linear(x, weight, bias), F.linear(x, weight, bias)),
            (linear(x, weight.T.contiguous().T), F.linear(x, weight)),
        ):
            assert torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    x = torch.ones(3, 32, dtype=dtype)
    x[1, 4], x[2, 5] = torch.nan, torch.inf
    assert linear(x, weight)[0].isfinite().all()
    assert linear(x, weight)[1].isnan().all()
    assert linear(x, weight)[2].isinf().all()
