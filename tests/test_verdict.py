"""The winner: complete, finite, lowest held-out loss; and the warning when it sits on an edge."""

import pytest

from lrsweep.compose import sweep_config
from lrsweep.config import replace
from lrsweep.verdict import Edge, Result, judge

BASE = sweep_config(["+sweep=lora_lr"])


def result(number: int, lr: float, eval_loss: float | None, status: str = "complete", **values: float) -> Result:
    config = replace(BASE, {"optimizer.lr": lr})
    return Result(number, {"optimizer.lr": lr, **values}, config, status, 10, eval_loss, "")  # type: ignore[arg-type]


def test_the_lowest_complete_loss_wins() -> None:
    verdict = judge([result(0, 1e-4, 2.0), result(1, 1e-3, 1.0), result(2, 1e-2, 3.0)])
    assert [r.number for r in verdict.ranking] == [1, 0, 2]
    assert verdict.best is not None
    assert verdict.best.number == 1
    assert verdict.edges == ()


@pytest.mark.parametrize("status", ["pruned", "diverged", "failed"])
def test_what_did_not_complete_never_wins(status: str) -> None:
    verdict = judge([result(0, 1e-4, 2.0), result(1, 1e-3, 0.0, status)])
    assert [r.number for r in verdict.ranking] == [0]


def test_a_tie_goes_to_the_lower_learning_rate() -> None:
    assert judge([result(0, 1e-3, 1.0), result(1, 1e-4, 1.0)]).ranking[0].number == 1


def test_no_complete_trial_no_winner() -> None:
    assert judge([result(0, 1e-3, None, "diverged")]).best is None
    assert judge([]).best is None


@pytest.mark.parametrize(("losses", "side"), [((1.0, 2.0, 3.0), "lowest"), ((3.0, 2.0, 1.0), "highest")])
def test_a_best_on_the_edge_is_said(losses: tuple[float, ...], side: str) -> None:
    lrs = (1e-5, 1e-4, 1e-3)
    verdict = judge([result(i, lr, loss) for i, (lr, loss) in enumerate(zip(lrs, losses, strict=True))])
    assert verdict.edges == (Edge("optimizer.lr", lrs[0] if side == "lowest" else lrs[2], side),)  # type: ignore[arg-type]


def test_nothing_lies_below_zero_and_two_values_have_no_inside() -> None:
    zero = [result(i, 1e-3, float(i), **{"optimizer.weight_decay": wd}) for i, wd in enumerate((0.0, 0.1, 0.2))]
    assert judge(zero).edges == ()
    assert judge([result(0, 1e-4, 1.0), result(1, 1e-3, 2.0)]).edges == ()


def test_pruned_trials_count_as_tried() -> None:
    tried = [result(0, 1e-5, 3.0), result(1, 1e-4, 2.0), result(2, 1e-3, None, "diverged")]
    assert judge(tried).edges == ()
