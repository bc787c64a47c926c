"""`search.method=refine` over several axes: the rate, then the others one by one, then the rate again."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lrsweep.analysis.ranking import Result, Status
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import replace
from lrsweep.config.search_method import starts
from lrsweep.config.search_space import to_stored
from lrsweep.errors import InputError
from lrsweep.files.row_losses import RowLosses
from lrsweep.search.axis_by_axis import plan
from lrsweep.search.records import TrialSpec
from lrsweep.search.refine import Plan, pause_at
from tests.conftest import SMALL, lrsweep_here

BASE = 4.0
LR, DECAY, BETAS = "optimizer.lr", "optimizer.weight_decay", "optimizer.betas"
SPACE = (
    "space.optimizer.lr=[1e-5,3e-5,1e-4,3e-4,1e-3,3e-3]",
    "space.optimizer.weight_decay=[0,0.01,0.1]",
    "space.optimizer.betas=[[0.9,0.999],[0.9,0.95]]",
)
# The loss at a rate's log10, a weight decay and a beta2.
Loss = Callable[[float, float, float], float]


class Replay:
    """A sweep over known losses.

    Args:
        loss: The final loss; half of the improvement is there at the pause.
        overrides: Of the config.
        spread: How far the losses of two eval rows are apart, with a weight decay of 0.1; None if they are not known.
    """

    def __init__(self, loss: Loss, *overrides: str, spread: float | None = None) -> None:
        self.config = sweep_config(["+sweep=lora_lr", "search=refine", *SPACE, *overrides])
        self.axes = search_space.axes(self.config)
        self.results: dict[int, Result] = {}
        self._loss, self._spread = loss, spread
        for number, params in enumerate(starts(self.config, self.axes)):
            self._train(number, TrialSpec(params), pause_at(self.config))

    def _train(self, number: int, spec: TrialSpec, until: int | None) -> None:
        steps = self.config.training.max_steps
        pause = pause_at(self.config) or steps
        stored = {LR: spec.params[LR], **{a.key: a.value(spec.params[a.key]) for a in self.axes if a.key != LR}}
        final = self._loss(math.log10(stored[LR]), stored[DECAY], stored[BETAS][1])
        evals = ((pause, (BASE + final) / 2), (steps, final))[: 1 if until else 2]
        status: Status = "pruned" if until else "complete"
        rows = None
        if self._spread is not None:
            apart = self._spread * (stored[DECAY] == 0.1)
            rows = RowLosses(tuple(10 * (final + apart * (-1) ** i / 2) for i in range(20)), (10,) * 20)
        own = replace(self.config, stored)
        self.results[number] = Result(number, stored, own, status, *evals[-1], "", spec.role, evals=evals, rows=rows)

    def next(self, seconds: float = 0.0) -> Plan:
        results = list(self.results.values())
        paused = [result.number for result in results if result.status == "pruned"]
        return plan(self.config, self.axes, results, paused, BASE, seconds)

    def follow(self, found: Plan) -> None:
        for number in found.resumed:
            before = self.results[number]
            self._train(number, TrialSpec({key: to_stored(v) for key, v in before.values.items()}, before.role), None)
        for spec in found.new:
            self._train(len(self.results), spec, spec.pause_at)

    def until(self, word: str) -> Plan:
        """Follows the plans until one whose reason has the word."""
        for _ in range(40):
            found = self.next()
            if word in found.why or not found.goes_on:
                return found
            self.follow(found)
        raise AssertionError("it never ends")

    def best(self) -> Mapping[str, Any]:
        complete = [r for r in self.results.values() if r.status == "complete"]
        return min(complete, key=lambda r: r.eval_loss or math.inf).values


def valley(log_lr: float, decay: float, beta2: float) -> float:
    """Lowest at 4e-4, with a gain for weight decay 0.1 and for beta2 = 0.95, with which lower rates are best."""
    at = -3.4 - 0.3 * (beta2 == 0.95)
    return BASE - 1 + (log_lr - at) ** 2 - 0.1 * (decay == 0.1) - 0.2 * (beta2 == 0.95)


def points(found: Plan) -> list[tuple[float, float, str]]:
    return [(spec.params[LR], spec.params[DECAY], spec.params[BETAS]) for spec in found.new]


def test_it_starts_with_the_rates_and_the_configs_other_values() -> None:
    sweep = Replay(valley, "optimizer.weight_decay=0.02")
    assert [r.values[LR] for r in sweep.results.values()] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert {r.values[DECAY] for r in sweep.results.values()} == {0.01}, "the nearest"
    assert {tuple(r.values[BETAS]) for r in sweep.results.values()} == {(0.9, 0.999)}
    # A range is tried at four values.
    ranges = sweep_config(["+sweep=lora_lr", "search=refine", "space.optimizer.weight_decay={low: 0.0, high: 0.3}"])
    assert [axis.points() for axis in search_space.axes(ranges) if axis.key == DECAY] == [(0.0, 0.1, 0.2, 0.3)]


def test_the_other_axes_are_tried_one_by_one_at_the_best_rate() -> None:
    sweep = Replay(valley, "optimizer.weight_decay=0.0")
    found = sweep.until(DECAY)
    best = sweep.best()[LR]
    assert points(found) == [(best, 0.01, "[0.9, 0.999]"), (best, 0.1, "[0.9, 0.999]")]
    assert found.why == f"refine: trying optimizer.weight_decay 0.01, 0.1 at learning rate {best:g}"
    # A kill in between: only what is missing is tried.
    sweep.follow(Plan(found.new[:1]))
    assert points(sweep.next()) == points(found)[1:]
    sweep.follow(sweep.next())
    # The better one is kept while the next axis is tried.
    found = sweep.until(BETAS)
    assert points(found) == [(best, 0.1, "[0.9, 0.95]")]
    sweep.follow(found)
    found = sweep.next()
    assert [(decay, betas) for _, decay, betas in points(found)] == [(0.1, "[0.9, 0.95]")] * 2
    assert [lr < best for lr, _, _ in points(found)] == [True, False]
    assert "with optimizer.weight_decay 0.1, optimizer.betas 0.9,0.95" in found.why
    end = sweep.until("nothing")
    assert not end.goes_on
    assert (sweep.best()[DECAY], list(sweep.best()[BETAS])) == (0.1, [0.9, 0.95])
    assert sweep.best()[LR] == pytest.approx(2e-4, rel=0.1)


def test_what_is_no_better_is_not_taken_over() -> None:
    def flat(log_lr: float, decay: float, beta2: float) -> float:
        return BASE - 1 + (log_lr + 3.4) ** 2 - 0.005 * (decay == 0.1)

    sweep = Replay(flat, "optimizer.weight_decay=0.0")
    sweep.until("nothing")
    rates = {r.values[LR] for r in sweep.results.values() if r.values[DECAY] != 0 or r.values[BETAS][1] != 0.999}
    assert len(rates) == 1
    # With the losses on the eval rows, a small gain that all rows have is a gain.
    for spread, taken in ((0.0, True), (0.01, True), (0.1, False)):
        sure = Replay(flat, "optimizer.weight_decay=0.0", spread=spread)
        sure.until("nothing")
        assert (len({r.values[LR] for r in sure.results.values() if r.values[DECAY] == 0.1}) > 1) == taken


def test_the_limits_hold_for_all_axes() -> None:
    whole = Replay(valley)
    whole.until("nothing")
    steps = sum(result.step for result in whole.results.values())
    for limit, reached in ((f"search.n_trials={len(whole.results) - 1}", len), (f"search.budget={steps - 1}", None)):
        sweep = Replay(valley, limit)
        end = sweep.until("used up")
        assert end == Plan(why=f"refine: {limit} is used up")
        assert (
            len(sweep.results) < len(whole.results) if reached else sum(r.step for r in sweep.results.values()) < steps
        )


@pytest.mark.parametrize(
    "axes",
    [
        ["space.training.max_steps=[30,60]"],
        ["space.optimizer.name=[adamw,sgd]"],
        ["space.finetune.mode=[lora,full]"],
        ["space.finetune.r=[4,8]", "space.scheduler.warmup_ratio=[0,0.1]"],
    ],
)
def test_what_would_be_another_training_is_not_refined(axes: list[str]) -> None:
    config = sweep_config(["+sweep=lora_lr", "search=refine", *SPACE, *axes])
    with pytest.raises(InputError, match=r"searches optimizer.lr and at most three other keys of optimizer"):
        search_space.axes(config)
    with pytest.raises(InputError, match=r"but space has optimizer.weight_decay; use search=auto"):
        search_space.axes(sweep_config(["search=refine", "name=x", "space.optimizer.weight_decay=[0,0.1]"]))


def test_a_real_sweep_over_three_axes_ends_and_stays_ended(tmp_path: Path) -> None:
    command = (
        "+sweep=lora_lr",
        *SMALL[2:],
        "training.max_steps=8",
        "training.batch_size=4",
        "data.max_length=64",
        "data.max_eval_rows=16",
        "space.optimizer.lr=[1e-4,1e-3,1e-2,3e-2]",
        "space.optimizer.weight_decay=[0,0.1]",
        "space.optimizer.betas=[[0.9,0.999],[0.9,0.95]]",
        "search=auto",
        "search.n_trials=null",
        "search.replicates=auto",
        "tracking=none",
    )
    run = lrsweep_here(*command, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "search.method=auto: refine (the learning rate, then optimizer.weight_decay, optimizer.betas)" in run.stdout
    assert "refine: trying optimizer.betas " in run.stdout
    summary = json.loads((tmp_path / "outputs" / "lora_lr" / "summary.json").read_text())
    trials = [trial for trial in summary["trials"] if trial["role"] != "replicate"]
    tried = {(trial["values"][DECAY], tuple(trial["values"][BETAS])) for trial in trials}
    assert len(tried) >= 3
    assert summary["noise"]["seeds"] >= 2
    again = lrsweep_here(*command, cwd=tmp_path)
    assert f"is already complete: {len(summary['trials'])} trials" in again.stdout
