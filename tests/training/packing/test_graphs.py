"""Passes as graphs. Recording needs a GPU (see `make gpu`); elsewhere a plain decoder takes a recorded one's place."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lrsweep.training.packing import Pack, graphs, join, lay_end_to_end, pack_lora, train_pass
from lrsweep.training.packing.graphs import GraphRunner
from tests.conftest import DEVICE
from tests.training.packing.solo import Trial, tiny

Run = Callable[[Tensor], Tensor]


def filled(dropout: float = 0.0) -> Pack:
    model = tiny("llama")
    reach = lay_end_to_end(model, Trial(0).batch(0))
    pack = dataclasses.replace(pack_lora(model, Trial(0).lora(), 2), unpadded=reach, maskless=reach)
    for slot in (0, 1):
        trial = Trial(slot, dropout=dropout)
        pack.admit(slot, pack.start(trial.lora(), slot), trial.optimizer, seed=slot)
        for weight in pack.arena.read(slot).values():
            weight.add_(0.1)
    return pack


class Recorder:
    """Runs the decoder as it is; `scale` makes it wrong."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.shapes: list[tuple[int, ...]] = []
        self.runs = 0

    def __call__(self, pack: Pack, start: int, stop: int, ids: Tensor) -> Run:
        self.shapes.append((start, stop, *ids.shape))
        train_pass(pack, start, stop, {"input_ids": ids, "labels": ids})  # as recording, it leaves gradients behind

        def run(ids: Tensor) -> Tensor:
            self.runs += 1
            states: Tensor = pack.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            return states * self.scale

        return run


def steps(pack: Pack, train: Callable[..., Tensor], count: int = 6) -> list[Tensor]:
    """Losses and gradients of some steps: two passes with other label tokens each, and the optimizers."""
    found = []
    for step in range(count):
        batches = [Trial(slot).batch(step) for slot in (0, 1)]
        found += [train(0, 2, join(batches), [20, 30]), train(0, 2, join(batches[::-1]), [20, 30])]
        found.append(pack.arena.grads.clone())
        pack.arena.step([0, 1])
    return found


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_FASTER", float("inf"))


@pytest.mark.usefixtures("always_faster")
def test_a_shape_is_recorded_once_and_changes_no_number() -> None:
    eager, pack, record = filled(), filled(), Recorder()
    runner = GraphRunner(pack, record)
    wanted = steps(eager, lambda *rest: train_pass(eager, *rest))
    assert apart(steps(pack, runner.train), wanted) <= 1e-8
    # Rows of 6 to 14 tokens, all as 64 ones; tried twice when it was recorded, and run nine times after it.
    assert record.shapes == [(0, 2, 4, 64)]
    assert record.runs == 2 + 9
    assert runner.recorded == 1
    runner.forget()
    assert runner.recorded == 0


@pytest.mark.usefixtures("always_faster")
@pytest.mark.parametrize("fault", ["wrong", "no such operation", "slow", "all arithmetic"])
def test_a_graph_that_does_not_prove_itself_leaves_no_trace(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager, pack = filled(), filled()
    record: Any = Recorder(1.01 if fault == "wrong" else 1.0)
    if fault == "slow":
        monkeypatch.setattr(graphs, "_FASTER", 0.0)
    if fault == "all arithmetic":
        monkeypatch.setattr(graphs, "_LONG", 0.0)
    if fault == "no such operation":
        inner = record

        def record(pack: Pack, start: int, stop: int, ids: Tensor) -> Run:
            inner(pack, start, stop, ids)
            raise RuntimeError("operation not permitted when stream is capturing")

    runner = GraphRunner(pack, record)
    wanted = steps(eager, lambda *rest: train_pass(eager, *rest))
    assert apart(steps(pack, runner.train), wanted) == 0
    assert runner.recorded == 0
    if fault == "all arithmetic":
        assert not record.shapes
    assert pack.context.progress() == eager.context.progress()


@pytest.mark.usefixtures("always_faster")
def test_a_diverged_neighbour_does_not_keep_a_graph_from_proving_itself() -> None:
    pack = filled()
    for weight in pack.arena.read(0).values():
        weight.fill_(torch.nan)
    runner = GraphRunner(pack, Recorder())
    steps(pack, runner.train, 3)
    assert runner.recorded == 1


@pytest.mark.usefixtures("always_faster")
def test_what_needs_more_than_a_causal_mask_runs_as_it_is() -> None:
    record = Recorder()
    whole = join([Trial(slot).batch(0) for slot in (0, 1)])
    left = whole | {"attention_mask": whole["attention_mask"].flip(1)}
    positions = torch.arange(whole["input_ids"].shape[1]).expand(len(whole["input_ids"]), -1)
    blocks = {key: whole[key] for key in ("input_ids", "labels")} | {"position_ids": positions}
    for pack, batch in (
        (filled(), left),
        (filled(), blocks),
        (filled(dropout=0.1), whole),
        (dataclasses.replace(filled(), maskless=63), whole),
    ):
        runner = GraphRunner(pack, record)
        for _ in range(4):
            runner.train(0, 2, batch)
    assert not record.shapes


@pytest.mark.usefixtures("always_faster")
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs need a GPU")
def test_a_cuda_graph_is_the_decoder() -> None:
    eager, pack = filled(), filled()
    runner = GraphRunner(pack)
    wanted = steps(eager, lambda *rest: train_pass(eager, *rest))
    assert apart(steps(pack, runner.train), wanted) <= 1e-8
    assert runner.recorded == 1
