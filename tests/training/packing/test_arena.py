"""Rows of the arena against torch's own optimizers and clipping, one trial at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrsweep.training.packing import Arena, runs

SHAPES = {"a": (3, 5), "norm": (7,), "b": (40, 30)}
STEPS = 6
Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def random(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def arena(slots: int = 3) -> Arena:
    return Arena(SHAPES, slots, undecayed=["norm"])


def feed(arena: Arena, slot: int, grads: dict[str, Tensor]) -> None:
    for name, view in arena.views(slot, slot + 1).items():
        place = view.grad[0]
        place[tuple(slice(size) for size in grads[name].shape)] += grads[name]


def alone(
    weights: dict[str, Tensor], make: Make, gradients: list[dict[str, Tensor]], max_norm: float
) -> dict[str, Tensor]:
    """The same trial with stock parts: one tensor per parameter, transformers' two groups."""
    parameters = {name: nn.Parameter(weight.clone()) for name, weight in weights.items()}
    decayed = [parameters["a"], parameters["b"]]
    optimizer = make([{"params": decayed}, {"params": [parameters["norm"]], "weight_decay": 0.0}])
    for grads in gradients:
        for name, parameter in parameters.items():
            parameter.grad = grads[name].clone()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


OPTIMIZERS: dict[str, tuple[Make, bool]] = {
    "adamw": (lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1), True),
    "adamw fused": (lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, fused=True), True),
    "adam": (lambda groups: torch.optim.Adam(groups, lr=0.01, weight_decay=0.1), True),
    "nadam": (lambda groups: torch.optim.NAdam(groups, lr=0.01, weight_decay=0.1), True),
    "radam": (lambda groups: torch.optim.RAdam(groups, lr=0.01), True),
    "adamax": (lambda groups: torch.optim.Adamax(groups, lr=0.01), True),
    "adagrad": (lambda groups: torch.optim.Adagrad(groups, lr=0.01), True),
    "rmsprop": (lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5), True),
    "sgd": (lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1), True),
    "adafactor": (lambda groups: torch.optim.Adafactor(groups, lr=0.01), False),
}


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_torch_optimizer_per_slot(name: str, max_norm: float) -> None:
    make, flat = OPTIMIZERS[name]
    packed = arena()
    gradients = {slot: [random(100 * slot + step) for step in range(STEPS)] for slot in range(3)}
    for slot in range(3):
        packed.admit(slot, random(slot), make, max_norm=max_norm, flat=flat)
    for step in range(STEPS):
        for slot in range(3):
            feed(packed, slot, gradients[slot][step])
        packed.step(range(3))
    for slot in range(3):
        expected = alone(random(slot), make, gradients[slot], max_norm)
        for parameter, weight in packed.read(slot).items():
            torch.testing.assert_close(weight, expected[parameter], rtol=1e-6, atol=1e-7)


def test_clipping_is_per_row_and_exact_in_float32() -> None:
    """One flat float32 sum over this many squares is off by 2e-4."""
    wide = Arena({"w": (2_000_000,)}, 3)
    norms = []
    for slot, (scale, max_norm) in enumerate([(1e-3, 0.1), (1.0, 0.0), (1e-5, 1.0)]):
        wide.admit(
            slot, {"w": torch.zeros(2_000_000)}, lambda groups: torch.optim.SGD(groups, lr=1.0), max_norm=max_norm
        )
        grad = torch.randn(2_000_000, generator=torch.Generator().manual_seed(slot)) * scale
        wide.views(slot, slot + 1)["w"].grad[0] += grad
        norms.append(grad.double().norm())
    found = wide.step(range(3))
    torch.testing.assert_close(found.double(), torch.stack(norms), rtol=1e-6, atol=0)
    stepped = torch.stack([wide.read(slot)["w"].double().norm() for slot in range(3)])
    torch.testing.assert_close(
        stepped, torch.stack([torch.tensor(0.1).double(), norms[1], norms[2]]), rtol=1e-5, atol=0
    )


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, fused=True)


def test_a_row_is_none_of_the_others_business() -> None:
    """Bits of slot 0, stepped beside a free slot and a slot gone NaN, and with neither."""
    results = []
    for crowded in (True, False):
        packed = arena()
        packed.admit(0, random(0), adamw, max_norm=0.5)
        if crowded:
            packed.admit(2, random(2), adamw, max_norm=0.5)
        for step in range(STEPS):
            feed(packed, 0, random(10 + step))
            if crowded:
                feed(packed, 2, {name: grad * torch.nan for name, grad in random(20).items()})
            packed.step([0, 2] if crowded else [0])
        assert not packed.weights[1].any()
        if crowded:
            assert packed.weights[2].isnan().any()
            feed(packed, 2, random(20))
            packed.evict(2)
            assert not packed.weights[2].any()
            assert not packed.grads[2].any()
        results.append(packed.weights[0].clone())
    assert torch.equal(*results)


def test_a_trial_starts_with_a_clean_slate() -> None:
    """Whatever a pass has left in a free slot."""
    packed = arena()
    feed(packed, 0, random(3))
    packed.weights[0] += 1
    packed.admit(0, {name: weight[:2] for name, weight in random(0).items()}, adamw)
    assert not packed.grads[0].any()
    assert int((packed.weights[0] != 0).sum()) == sum(weight.numel() for weight in packed.read(0).values())


def test_gradients_wait_for_their_own_step() -> None:
    packed = arena()
    for slot in (0, 1):
        packed.admit(slot, random(slot), adamw)
        feed(packed, slot, random(10 + slot))
    packed.step([0])
    assert not packed.grads[0].any()
    assert packed.grads[1].any()


@pytest.mark.parametrize("flat", [True, False])
def test_state_and_move_carry_a_trial_on_to_the_bit(flat: bool) -> None:
    straight, paused = arena(), arena()
    for packed in (straight, paused):
        packed.admit(0, random(0), adamw, max_norm=0.5, flat=flat)
    for step in range(STEPS):
        feed(straight, 0, random(10 + step))
        straight.step([0])
    for step in range(2):
        feed(paused, 0, random(10 + step))
        paused.step([0])
    state = paused.state(0)
    feed(paused, 0, random(0))
    paused.step([0])  # must not reach into the saved state
    other = arena()
    optimizer = other.restore(1, state, adamw, max_norm=0.5, flat=flat)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for step in range(2, 4):
        feed(other, 1, random(10 + step))
        other.step([1])
    other.move(1, 2)
    for step in range(4, STEPS):
        feed(other, 2, random(10 + step))
        other.step([2])
        schedule.step()
    assert torch.equal(straight.weights[0], other.weights[2])
    assert not other.weights[1].any()


def test_smaller_weights_fill_a_corner_and_the_rest_stays_zero() -> None:
    packed = arena()
    small = {name: weight[:2] for name, weight in random(0).items()}
    packed.admit(1, small, adamw)
    for step in range(3):
        feed(packed, 1, {name: grad[:2] for name, grad in random(10 + step).items()})
        packed.step([1])
    assert {name: weight.shape for name, weight in packed.read(1).items()} == {
        name: weight.shape for name, weight in small.items()
    }
    assert int((packed.weights[1] != 0).sum()) == sum(weight.numel() for weight in small.values())


def test_refusals() -> None:
    packed = arena()
    with pytest.raises(ValueError, match="slot 0 is free"):
        packed.state(0)
    with pytest.raises(ValueError, match="slot 1 is free"):
        packed.step([1])
    with pytest.raises(ValueError, match="do not fit"):
        packed.admit(0, {"a": torch.zeros(3, 5)}, adamw)
    packed.admit(0, random(0), adamw)
    with pytest.raises(ValueError, match="slot 0 is taken"):
        packed.admit(0, random(0), adamw)
    with pytest.raises(ValueError, match="cannot move"):
        packed.move(1, 2)
    with pytest.raises(ValueError, match="wide"):
        Arena({"a": (5000,)}, 1).restore(0, packed.state(0), adamw)


def test_runs() -> None:
    assert runs([0, 1, 2, 4, 5, 7]) == [(0, 3), (4, 6), (7, 8)]
    assert runs(range(5), 2) == [(0, 2), (2, 4), (4, 5)]
    assert runs(range(3), 1) == [(0, 1), (1, 2), (2, 3)]
    assert runs([]) == []


def test_a_scaled_parameter_trains_as_its_product_with_the_scale() -> None:
    """Its working copy is scaled, and gradients with respect to the copy become those of the weight."""
    packed = Arena(SHAPES, 2, undecayed=["norm"], scaled=["b"], stacks={"both": ["a"]})
    for slot, scale in enumerate((2.0, 0.5)):
        packed.admit(slot, random(slot), adamw)
        packed.scales[slot] = scale
    views = packed.views(0, 2)
    for name, view in views.items():
        factors = packed.scales.view(2, *[1] * (view.weight.dim() - 1)) if name == "b" else 1
        assert torch.equal(view.compute, view.weight * factors)
    for slot, scale in enumerate((2.0, 0.5)):
        gradient = random(10 + slot)
        for name in SHAPES:
            views[name].grad[slot] += gradient[name]
        expected = alone(random(slot), adamw, [gradient | {"b": gradient["b"] * scale}], max_norm=0)
        packed.step([slot])
        for name, weight in packed.read(slot).items():
            assert torch.allclose(weight, expected[name], rtol=1e-5, atol=1e-7)
    packed.evict(0)
    packed.move(1, 0)
    assert packed.scales[0] == 0.5


@pytest.mark.parametrize("flat", [True, False])
def test_parameters_may_have_rates_of_their_own(flat: bool) -> None:
    """In a slot that moves, and goes on from a saved state."""

    def rates(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        for group in groups:
            group["lr"] = 0.01 * group.pop("lr_factor", 1)
        return adamw(groups)

    factors = {"b": 10.0, "norm": 0.5}
    packed = Arena(SHAPES, 2, undecayed=["norm"], scaled=["b"])
    packed.admit(1, random(0), rates, flat=flat, lr_factors=factors)
    packed.move(1, 0)
    feed(packed, 0, random(1))
    packed.step([0])
    later = Arena(SHAPES, 1, undecayed=["norm"], scaled=["b"])
    later.restore(0, packed.state(0), rates, flat=flat, lr_factors=factors)
    feed(later, 0, random(2))
    later.step([0])
    parameters = {name: nn.Parameter(weight.clone()) for name, weight in random(0).items()}
    whose = {"a": {"lr": 0.01}, "b": {"lr": 0.1}, "norm": {"lr": 0.005, "weight_decay": 0.0}}
    optimizer = adamw([{"params": [parameters[name]], **options} for name, options in whose.items()])
    for seed in (1, 2):
        for name, grad in random(seed).items():
            parameters[name].grad = grad
        optimizer.step()
    for name, weight in later.read(0).items():
        assert torch.allclose(weight, parameters[name], rtol=1e-5, atol=1e-7), name


def test_a_group_has_all_parameters_of_its_rate_and_the_optimizers_own_rate_comes_first() -> None:
    seen: list[tuple[float, list[int]]] = []

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        seen.extend((group.get("lr_factor", 1.0), [weight.numel() for weight in group["params"]]) for group in groups)
        return adamw(groups)

    packed = Arena({"x": (2,), "y": (3,), "z": (4,)}, 1)
    packed.admit(0, {"x": torch.ones(2), "y": torch.ones(3), "z": torch.ones(4)}, make, lr_factors={"x": 2, "z": 2})
    assert seen == [(1.0, [3]), (2.0, [2, 4])]


def test_parameters_side_by_side_are_also_one() -> None:
    shapes = {"q": (2, 5), "k": (3, 5), "other": (4,)}
    packed = Arena(shapes, 2, stacks={"qk": ["q", "k"]})
    packed.weights.copy_(torch.arange(packed.weights.numel()).view_as(packed.weights))
    views = packed.views(0, 2)
    for part in ("weight", "compute", "grad"):
        stacked, parts = getattr(views["qk"], part), [getattr(views[name], part) for name in ("q", "k")]
        assert torch.equal(stacked, torch.cat(parts, dim=1))
        assert stacked.data_ptr() == parts[0].data_ptr()


@pytest.mark.parametrize("flat", [True, False])
def test_a_state_with_another_arrangement_of_columns_is_rearranged(flat: bool) -> None:
    """Checkpoints of earlier versions have each parameter where the adapter has it."""
    earlier = Arena(SHAPES, 1, undecayed=["norm"])
    later = Arena({name: SHAPES[name] for name in ("b", "norm", "a")}, 1, undecayed=["norm"], scaled=["a"])
    earlier.admit(0, random(0), adamw, flat=flat)
    feed(earlier, 0, random(1))
    earlier.step([0])
    later.restore(0, earlier.state(0), adamw, flat=flat)
    for packed in (earlier, later):
        for name, grad in random(2).items():
            packed.views(0, 1)[name].grad[0] += grad
        packed.step([0])
    for name, weight in earlier.read(0).items():
        assert torch.equal(later.read(0)[name], weight)
