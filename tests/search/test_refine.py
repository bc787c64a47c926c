"""`search.method=refine`: the plan from what the trials have measured, and a whole sweep."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lrsweep.analysis.ranking import Result, Role, Status
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.files.metrics_log import read_metrics
from lrsweep.search.axis_by_axis import plan
from lrsweep.search.refine import Plan, pause_at
from tests.conftest import SMALL, FinishedSweep, lrsweep_here

BASE = 4.0
STEPS, PAUSE = 60, 15


@functools.cache
def config(*overrides: str, lrs: str = "[1e-5,1e-4]") -> SweepConfig:
    return sweep_config(["+sweep=lora_lr", "search=refine", f"space.optimizer.lr={lrs}", *overrides])


class Replay:
    """A sweep over a known curve: the loss of a rate after a share of its steps.

    Args:
        lrs: The rates that it starts with.
        loss: The loss at log10 of a rate after a share of the steps; inf has diverged.
        overrides: Of the config.
    """

    def __init__(self, lrs: Sequence[float], loss: Callable[[float, float], float], *overrides: str) -> None:
        self.config = config(*overrides, lrs=str(list(lrs)))
        self._loss = loss
        self.results: list[Result] = []
        for lr in lrs:
            self.train(lr, PAUSE)

    def train(self, lr: float, step: int, role: Role = "search", number: int | None = None) -> None:
        steps = (PAUSE, STEPS) if step == STEPS else (PAUSE,)
        evals = tuple((s, self._loss(math.log10(lr), s / STEPS)) for s in steps)
        loss = evals[-1][1]
        status: Status = "diverged" if math.isinf(loss) else "complete" if step == STEPS else "pruned"
        number = len(self.results) if number is None else number
        found = Result(
            number,
            {"optimizer.lr": lr},
            self.config,
            status,
            step,
            loss if math.isfinite(loss) else None,
            "",
            role,
            evals=evals,
        )
        self.results[number : number + 1] = [found]

    @property
    def paused(self) -> list[int]:
        return [result.number for result in self.results if result.status == "pruned"]

    def next(self, seconds: float = 0.0) -> Plan:
        return plan(self.config, search_space.axes(self.config), self.results, self.paused, BASE, seconds)

    def follow(self, found: Plan) -> None:
        for number in found.resumed:
            self.train(self.results[number].values["optimizer.lr"], STEPS, self.results[number].role, number)
        for spec in found.new:
            self.train(spec.params["optimizer.lr"], STEPS if spec.pause_at is None else spec.pause_at, spec.role)

    def finish(self) -> str:
        """Runs the sweep to its end; returns why it ended."""
        for _ in range(40):
            found = self.next()
            if not found.goes_on:
                return found.why
            self.follow(found)
        raise AssertionError("it never ends")

    def complete(self) -> dict[float, float]:
        return {
            r.values["optimizer.lr"]: r.eval_loss
            for r in self.results
            if r.status == "complete" and r.eval_loss is not None
        }


def parabola(at: float, width: float = 1.0) -> Callable[[float, float], float]:
    """A loss that is lowest at log10 lr = `at`, 1 below the base, and back at the base `width` decades away."""
    return lambda log_lr, share: BASE - math.sqrt(share) * (1 - ((log_lr - at) / width) ** 2)


LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


def rates(sweep: Replay, found: Plan) -> list[float]:
    resumed = [sweep.results[number].values["optimizer.lr"] for number in found.resumed]
    return sorted([*resumed, *(spec.params["optimizer.lr"] for spec in found.new)])


def test_at_the_pause_the_lowest_and_what_is_close_beside_it_go_on() -> None:
    sweep = Replay(LADDER, parabola(-3.6))
    found = sweep.next()
    assert rates(sweep, found) == [1e-4, 3e-4, 1e-3]
    assert found.new == ()
    # A neighbour that has lost more than half of the improvement cannot win.
    steep = Replay(LADDER, lambda log_lr, share: parabola(-3.6, 2.0)(log_lr, share) if log_lr < -3.2 else 3.99)
    assert rates(steep, steep.next()) == [1e-4, 3e-4]


def test_the_minimum_of_a_parabola_is_found_in_one_step() -> None:
    sweep = Replay(LADDER, parabola(-3.76, 3.0))
    sweep.follow(sweep.next())
    found = sweep.next()
    assert rates(sweep, found) == [pytest.approx(10**-3.76, rel=0.03)]
    assert found.new[0].role == "fit"
    assert found.new[0].pause_at is None
    sweep.follow(found)
    assert sweep.next().why == "refine: no rate is expected to be better than 0.00017 by an amount that matters"


def test_a_gain_below_the_tolerance_is_not_worth_a_trial() -> None:
    near = -3.62  # 3e-4 is 0.1 % of the improvement above the minimum
    coarse, fine = Replay(LADDER, parabola(near, 3.0)), Replay(LADDER, parabola(near, 3.0), "search.tolerance=1e-6")
    coarse.finish()
    fine.finish()
    assert set(coarse.complete()) <= set(LADDER)
    assert not set(fine.complete()) <= set(LADDER)


def test_the_range_grows_at_the_cost_of_a_quarter_while_the_lowest_is_at_its_end() -> None:
    sweep = Replay(LADDER, parabola(-1.9))
    grown = []
    while not sweep.complete():
        found = sweep.next()
        if found.new:
            assert found.new[0].role == "extension"
            assert found.new[0].pause_at == PAUSE
            grown += rates(sweep, found)
        sweep.follow(found)
    assert grown == [1e-2, 3e-2]
    sweep.finish()
    assert min(sweep.complete(), key=sweep.complete().__getitem__) == pytest.approx(10**-1.9, rel=0.05)


def test_a_rate_that_diverged_is_no_end_of_the_range() -> None:
    sweep = Replay(LADDER, lambda log_lr, share: math.inf if log_lr > -2.9 else parabola(-3.0)(log_lr, share))
    sweep.finish()
    assert max(result.values["optimizer.lr"] for result in sweep.results) == 3e-3
    assert min(sweep.complete(), key=sweep.complete().__getitem__) == pytest.approx(1e-3, rel=0.05)


def test_a_narrow_valley_is_searched_beyond_what_a_parabola_shows() -> None:
    """The loss of qwen2_signatures at 20 steps: the minimum lies beside a cliff, off any parabola's."""

    def valley(log_lr: float, share: float) -> float:
        x = log_lr + 3.35
        return BASE - math.sqrt(share) * (1 - (0.5 * abs(x) if x < 0 else 2.5 * x))

    sweep = Replay((1e-5, 4e-5, 1e-4, 2.6e-4, 7e-4, 2e-3), valley)
    sweep.finish()
    best = min(sweep.complete().values())
    assert best - (BASE - 1) <= 0.05


def test_without_any_live_rate_it_ends() -> None:
    sweep = Replay(LADDER, lambda log_lr, share: math.inf)
    assert sweep.next() == Plan(why="refine: every rate diverged or failed")


def test_a_rate_that_failed_is_not_tried_again() -> None:
    sweep = Replay(LADDER, parabola(-3.76, 3.0))
    sweep.follow(sweep.next())
    found = sweep.next()
    sweep.follow(found)
    sweep.results[-1] = dataclasses.replace(sweep.results[-1], status="failed", eval_loss=None, evals=())
    again = sweep.next()
    assert found.new
    assert not again.goes_on


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ("search.n_trials=6", "refine: search.n_trials=6 is used up"),
        ("search.budget=280", "refine: search.budget=280 is used up"),
    ],
)
def test_limits_end_it_after_the_first_complete_trials(limit: str, why: str) -> None:
    sweep = Replay(LADDER, parabola(-3.7), limit)
    assert sweep.finish() == why
    assert len(sweep.complete()) == 3
    assert sum(result.step for result in sweep.results) == 3 * PAUSE + 3 * STEPS


def test_a_budget_may_be_a_time() -> None:
    sweep = Replay(LADDER, parabola(-3.7), "search.budget=30min")
    sweep.follow(sweep.next(seconds=1800))
    assert sweep.next(seconds=1799).goes_on
    assert sweep.next(seconds=1800).why == "refine: search.budget=30min is used up"


@pytest.mark.parametrize("budget", ["0", "-5", "soon", "5 min", "1d"])
def test_a_budget_that_says_nothing_is_refused(budget: str) -> None:
    with pytest.raises(InputError, match=r"search\.budget=.*: must be a number of steps, or a time such as"):
        config(f"search.budget={budget}")


def test_the_pause_comes_after_the_warm_up() -> None:
    assert pause_at(config()) == PAUSE
    assert pause_at(config("scheduler.warmup_steps=30", "scheduler.warmup_ratio=null")) == 31
    assert pause_at(config("search=grid")) is None


def test_a_range_is_started_half_a_decade_apart() -> None:
    (axis,) = search_space.axes(config(lrs="{low: 1e-5, high: 1e-1}"))
    assert axis.points() == (1e-5, 3.16228e-5, 1e-4, 0.000316228, 1e-3, 0.00316228, 0.01, 0.0316228, 0.1)
    (axis,) = search_space.axes(config(lrs="{low: 1e-4, high: 1e-3}"))
    assert len(axis.points()) == 6


LOSSES = st.one_of(st.floats(0.5, 4.5), st.just(math.inf))


@settings(max_examples=200, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=2, max_size=9), st.integers(0, 2**16))
def test_any_losses_end_with_the_best_between_complete_or_hopeless_neighbours(
    losses: Sequence[tuple[float, float]], seed: int
) -> None:
    """Also losses that fit no curve at all."""
    known: dict[float, tuple[float, float]] = {}
    random = Random(seed)

    def loss(log_lr: float, share: float) -> float:
        if log_lr not in known:
            known[log_lr] = (
                losses[len(known)] if len(known) < len(losses) else (random.random() * 4, random.random() * 4)
            )
        return known[log_lr][share == 1]

    sweep = Replay([1e-6 * 10 ** (i / 2) for i in range(len(losses))], loss)
    sweep.finish()
    tried = [result.values["optimizer.lr"] for result in sweep.results]
    assert len(set(tried)) == len(tried), "each rate once"
    if sweep.complete():
        best = min(sweep.complete(), key=sweep.complete().__getitem__)
        ordered = sorted(sweep.results, key=lambda result: result.values["optimizer.lr"])
        at = [result.values["optimizer.lr"] for result in ordered].index(best)
        for beside in ordered[max(at - 1, 0) : at + 2]:
            if beside.status == "pruned":
                assert beside.eval_loss is not None
                early = dict(ordered[at].evals)[PAUSE]
                assert beside.eval_loss - early >= 0.5 * (BASE - early)


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outputs" / "lora_lr" / "summary.json").read_text())
    return found


@pytest.mark.xdist_group("finished_sweep")
def test_a_refined_sweep_pauses_and_goes_on_without_a_change_to_any_curve(
    finished_sweep: FinishedSweep, tmp_path: Path
) -> None:
    run = lrsweep_here(*SMALL, "search=refine", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = summary_of(tmp_path)
    by_lr = {trial["values"]["optimizer.lr"]: trial for trial in found["trials"]}
    assert {by_lr[lr]["status"] for lr in (1e-5, 1e-1)} == {"pruned"}
    assert {by_lr[lr]["step"] for lr in (1e-5, 1e-1)} == {4}
    whole = [trial for trial in found["trials"] if trial["status"] == "complete"]
    assert 3e-3 in {trial["values"]["optimizer.lr"] for trial in whole}
    grid = json.loads((finished_sweep.outputs / "summary.json").read_text())
    for trial in grid["trials"]:
        other = by_lr[trial["values"]["optimizer.lr"]]
        if other["status"] == "complete":
            assert other["evals"] == [[step, pytest.approx(loss, abs=1e-4)] for step, loss in trial["evals"]]
    for trial in whole:
        folder = tmp_path / "outputs" / "lora_lr" / "trials" / f"{trial['number']:04d}"
        assert [row["step"] for row in read_metrics(folder) if "loss" in row] == list(range(1, 17))
        assert not (folder / "checkpoint").exists()
    assert "no rate is expected to be better" in run.stdout
    again = lrsweep_here(*SMALL, "search=refine", cwd=tmp_path)
    assert "already complete" in again.stdout
    assert summary_of(tmp_path) == found
