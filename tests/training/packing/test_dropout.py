"""Dropout keyed by trial, pass and layer: the right rate, no pattern, independent of slot, neighbours and padding."""

import pytest
import torch

from lrsweep.training.packing import dropout, join, train_pass
from lrsweep.training.packing.dropout import Masks, layer_keys, token_places
from tests.training.packing.solo import Trial, differences, lora_pack, together

CPU = torch.device("cpu")
SHAPE = (1, 4, 50, 500)


def mask(seed: int = 0, passes: int = 0, layer: int = 0, rate: float = 0.5) -> torch.Tensor:
    keys = layer_keys([seed], [passes], 3, CPU)[layer]
    return drawn(keys, SHAPE, torch.tensor([rate]))[0]


def drawn(keys: torch.Tensor, shape: tuple[int, int, int, int], rates: torch.Tensor) -> torch.Tensor:
    """The mask [k, B, T, D] of rows as they are in their batches."""
    places = token_places(torch.arange(shape[1])[:, None], torch.arange(shape[2])).view(1, -1)
    return Masks(keys[None], places, rates).keep(0, shape[3]).view(shape)


def test_rates() -> None:
    count = mask().numel()
    for rate in (0.0, 0.05, 0.1, 0.5, 0.9):
        for seed in range(5):
            dropped = (~mask(seed, rate=rate)).double().mean().item()
            assert abs(dropped - rate) <= 5 * (rate * (1 - rate) / count) ** 0.5


def test_no_structure_along_any_axis() -> None:
    """Means over rows, positions and columns scatter as those of independent draws do."""
    drawn = mask(rate=0.5).double() - 0.5
    for axis in range(3):
        means = drawn.movedim(axis, 0).flatten(1)
        expected = 0.5 / means.shape[1] ** 0.5
        assert means.mean(1).abs().max() <= 5 * expected
        assert means.mean(1).std() <= 1.6 * expected
        neighbours = (means[1:] * means[:-1]).mean().abs()
        assert neighbours <= 5 * 0.25 / drawn.numel() ** 0.5


def test_no_two_tokens_and_no_two_columns_drop_alike() -> None:
    """Rows and columns meet in one cheap hash: pairs of either must agree no more often than chance has it."""
    for seed in range(3):
        signs = mask(seed, rate=0.5).flatten(0, 1).double() * 2 - 1
        for drawn in (signs, signs.T):
            agreement = (drawn @ drawn.T).fill_diagonal_(0) / drawn.shape[1] ** 0.5
            assert agreement.abs().max() <= 6
            assert agreement.square().mean() <= 1.05


def test_seeds_passes_and_layers_draw_independently() -> None:
    masks = [mask(seed, passes, layer) for seed in (0, 1, 2**31 - 1) for passes in (0, 1, 2) for layer in (0, 1, 2)]
    centred = torch.stack([drawn.flatten().double() - 0.5 for drawn in masks])
    correlation = centred @ centred.T / centred.shape[1] / 0.25
    off = correlation - torch.eye(len(masks))
    assert off.abs().max() <= 5 / centred.shape[1] ** 0.5


def test_layers_hashed_together_draw_as_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, rates = layer_keys([1, 2], [0, 3], 5, CPU), torch.tensor([0.3, 0.5])
    places = token_places(torch.zeros(1, 7, dtype=torch.int64), torch.arange(7))
    together = Masks(keys, places, rates)
    monkeypatch.setattr(dropout, "_HASHED", 2 * 2 * 7)
    in_twos = Masks(keys, places, rates)
    for layer in (0, 1, 2, 3, 4, 1):  # a recomputed forward pass comes back to earlier layers
        single = Masks(keys[layer : layer + 1], places, rates).keep(0, 9)
        assert torch.equal(together.keep(layer, 9), single)
        assert torch.equal(in_twos.keep(layer, 9), single)


def test_padding_and_neighbours_leave_a_mask_alone() -> None:
    keys = layer_keys([5, 6, 7], [1, 2, 3], 1, CPU)[0]
    rates = torch.tensor([0.3, 0.0, 0.5])
    crowd = drawn(keys, (3, 4, 60, 32), rates)
    single = drawn(layer_keys([7], [3], 1, CPU)[0], (1, 2, 40, 32), rates[2:])
    assert torch.equal(crowd[2:, :2, :40], single)
    assert crowd[1].all()


def test_a_trial_drops_the_same_wherever_it_sits() -> None:
    queue = [Trial(seed, dropout=rate, lr=3e-3) for seed, rate in enumerate((0.5, 0.0, 0.1, 0.3))]
    together_ = together(lora_pack("llama", 4), queue)
    reversed_ = together(lora_pack("llama", 4), queue, order=[3, 1, 0, 2])
    for trial, mine, other in zip(queue, together_, reversed_, strict=True):
        (single,) = together(lora_pack("llama", 1), [trial])
        assert max(*differences(mine, single), *differences(mine, other)) <= 1e-10
        (plain,) = together(lora_pack("llama", 1), [Trial(trial.seed, lr=3e-3)])
        assert (differences(plain, single)[0] > 1e-4) == (trial.dropout > 0)


def test_the_mean_over_draws_is_the_plain_output() -> None:
    """Kept elements are scaled up by 1 / (1 - rate); masks change from pass to pass."""
    pack = lora_pack("llama", 1)
    trial = Trial(0, dropout=0.5)
    pack.admit(0, pack.start(trial.lora(), 0), trial.optimizer, seed=3)
    pack.context.select(0, 1, 2, 9, training=True)
    x = torch.ones(2, 9, 400, dtype=torch.float64)
    draws = []
    for _ in range(40):
        pack.context.select(0, 1, 2, 9, training=True)
        draws.append(pack.context.drop(0, x))
    assert abs(torch.stack(draws).mean().item() - 1) < 0.01
    assert torch.stack(draws).unique().tolist() == [0.0, 2.0]  # type: ignore[no-untyped-call]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], pack.context.drop(1, x))


def test_a_paused_trial_goes_on_with_its_own_masks() -> None:
    trial = Trial(2, dropout=0.4, steps=4)
    (straight,) = together(lora_pack("llama", 1), [trial])
    pack = lora_pack("llama", 2)
    pack.admit(0, pack.start(trial.lora(), trial.seed), trial.optimizer, seed=trial.seed)
    before = pack.context.progress()
    train_pass(pack, 0, 1, trial.batch(3))  # as when memory ran out: thrown away, and rewound
    pack.context.rewind(before)
    pack.arena.grads.zero_()
    losses = []
    for step in range(4):
        if step == 2:
            state = pack.state(0)
            pack = lora_pack("llama", 2)
            pack.restore(1, state, trial.optimizer)
        slot = step // 2
        losses.append(train_pass(pack, slot, slot + 1, join([trial.batch(step)])).item())
        pack.arena.step([slot])
    assert losses == straight.losses
