"""A best value at the end of what was tried: reported, and for learning rates extended."""

from typing import Any

import pytest

from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import judge
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import replace
from lrsweep.search.followups import followups


def results(key: str, losses: dict[float, float], *overrides: str) -> list[Result]:
    base = sweep_config(["+sweep=full_lr", "search=grid", f"space.{key}={list(losses)}", *overrides])
    return [
        Result(i, {key: value}, replace(base, {key: value}), "complete", 60, loss, "", evals=((40, loss), (60, loss)))
        for i, (value, loss) in enumerate(losses.items())
    ]


@pytest.mark.parametrize(
    ("losses", "side", "added"),
    [({1e-4: 2.0, 1e-3: 1.5}, "highest", [3e-3, 1e-2]), ({1e-4: 1.5, 1e-3: 2.0}, "lowest", [3e-5, 1e-5])],
)
def test_a_grid_of_two_rates_has_its_best_at_an_edge(losses: dict[float, float], side: Any, added: list[float]) -> None:
    found = results("optimizer.lr", losses, "search.extend=true")
    verdict = judge(found)
    best = min(losses, key=lambda lr: losses[lr])
    assert [(edge.key, edge.value, edge.side) for edge in verdict.edges] == [("optimizer.lr", best, side)]
    assert f"the {side} learning rate tried" in verdict.inconclusive
    config = sweep_config(["+sweep=full_lr", "search=grid", f"space.optimizer.lr={list(losses)}", "search.extend=true"])
    specs, _ = followups(config, search_space.axes(config), found, verdict, {})
    assert [spec.params["optimizer.lr"] for spec in specs] == added


def test_an_edge_is_that_of_the_bests_own_choices() -> None:
    """The linear schedule was tried up to 1e-3 only, and is best there; cosine was tried beyond."""
    base = sweep_config(["+sweep=full_lr"])
    tried = {("cosine", 1e-4): 2.2, ("cosine", 1e-3): 2.1, ("cosine", 1e-2): 2.3, ("linear", 1e-4): 2.0}
    tried["linear", 1e-3] = 1.9
    found = []
    for i, ((name, lr), loss) in enumerate(tried.items()):
        values = {"scheduler.name": name, "optimizer.lr": lr}
        found.append(Result(i, values, replace(base, values), "complete", 60, loss, ""))
    assert [(edge.value, edge.side) for edge in judge(found).edges] == [(1e-3, "highest")]
    failed = Result(9, {"scheduler.name": "linear", "optimizer.lr": 1e-2}, base, "failed", 0, None, "out of memory")
    assert [edge.value for edge in judge([*found, failed]).edges] == [1e-3], "nobody knows what it would have given"
    diverged = Result(9, {"scheduler.name": "linear", "optimizer.lr": 1e-2}, base, "diverged", 3, None, "loss is nan")
    assert judge([*found, diverged]).edges == ()


def test_a_single_rate_has_no_edge() -> None:
    assert judge(results("optimizer.lr", {1e-4: 2.0})).edges == ()


def test_of_two_values_of_another_axis_one_is_always_the_best() -> None:
    assert judge(results("optimizer.weight_decay", {0.01: 2.0, 0.1: 1.5})).edges == ()
    three = judge(results("optimizer.weight_decay", {0.01: 2.0, 0.03: 1.8, 0.1: 1.5}))
    assert [edge.key for edge in three.edges] == ["optimizer.weight_decay"]


def test_an_axis_that_makes_no_difference_has_no_edge() -> None:
    base = sweep_config(["+sweep=full_lr"])

    def judged(*losses: float) -> list[str]:
        found = []
        for i, (decay, loss) in enumerate(zip((0.01, 0.03, 0.1), losses, strict=True)):
            for j, lr in enumerate((1e-4, 1e-3, 1e-2)):
                values = {"optimizer.weight_decay": decay, "optimizer.lr": lr}
                own = loss + 0.3 * (lr != 1e-3)
                found.append(Result(3 * i + j, values, replace(base, values), "complete", 60, own, ""))
        return [edge.key for edge in judge(found, 3.0).edges]

    # 1 % of the improvement is 0.01.
    assert judged(2.03, 2.02, 2.0) == ["optimizer.weight_decay"]
    assert judged(2.02, 2.009, 2.0) == []
    assert judged(2.0, 2.0, 2.0) == []
