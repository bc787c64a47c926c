"""The winner: complete, finite, held out; what noise cannot tell from it; the basin; the warning at an edge."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from lrsweep.analysis.lr_curve import fit
from lrsweep.analysis.noise import Noise, estimate, same
from lrsweep.analysis.ranking import Edge, Result, by_budget, judge
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import replace

BASE = sweep_config(["+sweep=lora_lr"])


def result(
    number: int,
    lr: float,
    eval_loss: float | None,
    status: str = "complete",
    values: Mapping[str, float] | None = None,
) -> Result:
    config = replace(BASE, {"optimizer.lr": lr})
    return Result(number, {"optimizer.lr": lr, **(values or {})}, config, status, 10, eval_loss, "")  # type: ignore[arg-type]


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
    zero = [result(i, 1e-3, float(i), values={"optimizer.weight_decay": wd}) for i, wd in enumerate((0.0, 0.1, 0.2))]
    assert judge(zero).edges == ()
    two = [result(i, 1e-3, float(i), values={"optimizer.weight_decay": wd}) for i, wd in enumerate((0.1, 0.2))]
    assert judge(two).edges == ()


def test_pruned_trials_count_as_tried() -> None:
    tried = [result(0, 1e-5, 3.0), result(1, 1e-4, 2.0), result(2, 1e-3, None, "diverged")]
    assert judge(tried).edges == ()


def seeded(number: int, lr: float, losses: list[float]) -> list[Result]:
    """A trial and its replicates, which are numbered from 100 up."""
    first = result(number, lr, losses[0])
    again = [
        Result(**{**vars(result(100 + 10 * number + i, lr, loss)), "role": "replicate", "of": number})
        for i, loss in enumerate(losses[1:])
    ]
    return [first, *again]


def test_replicates_make_a_mean_and_a_lucky_run_does_not_beat_it() -> None:
    trials = [*seeded(0, 1e-3, [1.0, 1.1, 1.2]), *seeded(1, 3e-3, [1.05, 1.0, 1.01]), result(2, 1e-2, 0.99)]
    verdict = judge(trials)
    assert [r.number for r in verdict.ranking] == [1, 0, 2]
    assert verdict.candidates[0].mean == pytest.approx(1.02)
    assert verdict.noise is not None
    assert verdict.noise.source == "replicates"
    assert verdict.noise.degrees == 4
    assert verdict.noise.deviation == pytest.approx(math.sqrt((0.02 + 0.0014) / 4))


def test_what_diverges_with_another_seed_does_not_win() -> None:
    high = [result(0, 1e-2, 1.90), _repeat(1, 0, 1e-2, 1.91), _repeat(2, 0, 1e-2, None, "diverged")]
    low = [result(3, 3e-3, 2.00), _repeat(4, 3, 3e-3, 2.01), _repeat(5, 3, 3e-3, 1.99)]
    verdict = judge([*high, *low])
    assert verdict.best is not None
    assert verdict.best.number == 3
    assert [(c.result.number, c.diverged) for c in verdict.candidates] == [(3, 0), (0, 1)]
    assert [tie.result.number for tie in verdict.ties] == [3]
    alone = judge(high).best
    assert alone is not None, "nothing else completed"
    assert alone.number == 0


def _repeat(number: int, of: int, lr: float, eval_loss: float | None, status: str = "complete") -> Result:
    return dataclasses.replace(result(number, lr, eval_loss, status), role="replicate", of=of)


def test_the_tie_set_is_tukeys() -> None:
    """Against scipy's own Tukey test, for groups of equal size."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        groups = [list(draw.normal(mean, 0.1, 3)) for mean in (1.0, 1.05, 1.3, 1.6)]
        trials = [r for i, losses in enumerate(groups) for r in seeded(i, 10.0 ** (i - 4), losses)]
        verdict = judge(trials)
        first = verdict.candidates[0].result.number
        test = stats.tukey_hsd(*groups)
        apart = {i for i in range(4) if i != first and test.pvalue[first, i] < 0.05}
        assert {tie.result.number for tie in verdict.ties} == set(range(4)) - apart


def test_without_replicates_the_last_evaluations_are_asked() -> None:
    draw = np.random.default_rng(1)
    curves = [[(step, 2.0 - step / 100 + draw.normal(0, 0.03)) for step in range(0, 60, 10)] for _ in range(400)]
    noise = estimate([(1.0,)], curves)
    assert noise is not None
    assert noise.source == "last evaluations"
    assert noise.deviation == pytest.approx(0.03, rel=0.1)
    assert estimate([(1.0,), (2.0,)], [[(0, 1.0), (10, 0.9)]]) is None


def test_of_equal_candidates_few_are_told_apart() -> None:
    draw = np.random.default_rng(2)
    noise = Noise(1.0, 20, "replicates")
    wrong = 0
    for _ in range(400):
        losses = np.sort(draw.normal(size=5))
        # The deviation is as uncertain as twenty degrees make it.
        seen = Noise(math.sqrt(draw.chisquare(20) / 20), noise.degrees, noise.source)
        wrong += not same(float(losses[-1] - losses[0]), 1, 1, seen, 5)
    assert wrong / 400 == pytest.approx(0.05, abs=0.03)


def test_the_recommendation_keeps_away_from_the_cliff() -> None:
    """Two equal losses, one beside a cliff: the other one is recommended, and the range tells both."""
    lrs = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    losses = (2.9, 2.6, 2.3, 2.05, 2.0, 1.999, 6.0)
    flat = [(40, 2.0), (50, 2.003), (60, 2.0)]
    trials = [
        Result(**{**vars(result(i, lr, loss)), "evals": flat})
        for i, (lr, loss) in enumerate(zip(lrs, losses, strict=True))
    ]
    verdict = judge(trials, base_loss=3.0)
    assert verdict.ranking[0].number == 5
    assert verdict.best is not None
    assert verdict.best.number == 4
    assert verdict.safe_range == (1e-3, 3e-3)
    assert verdict.inconclusive == ""


def test_the_basin_is_where_the_formula_has_it() -> None:
    lrs = 10 ** np.arange(-5, -0.9, 0.5)
    losses = {float(lr): 2.0 + 0.2 * (math.log10(lr) + 2.7) ** 2 for lr in lrs}
    basin = fit(losses, [], 0.005, None)
    assert basin is not None
    assert abs(math.log10(basin.centre) + 2.7) < 0.15
    at = np.interp(np.log10(list(losses)), np.log10(basin.lr), basin.mean)
    assert np.abs(at - list(losses.values())).max() < 0.02
    assert (basin.deviation > 0).all()
    # A diverged rate is a wall, whatever it measured; three rates have no shape.
    walled = fit({lr: loss for lr, loss in losses.items() if lr < 3e-3}, [3e-3, 1e-2], 0.005, 3.0)
    assert walled is not None
    assert walled.centre < 2e-3
    assert fit(dict(list(losses.items())[:3]), [], None, None) is None


def test_what_cannot_be_answered_is_said() -> None:
    equal = [
        Result(**{**vars(result(i, 10.0 ** (i - 4), 2.0)), "evals": [(0, 3.0), (5, 2.0), (10, 2.1)]}) for i in range(3)
    ]
    assert "within noise of each other" in judge(equal).inconclusive
    edge = [result(i, 10.0 ** (i - 4), 3.0 - i) for i in range(3)]
    assert "end of the learning rates tried" in judge(edge).inconclusive
    blind = [result(i, lr, loss) for i, (lr, loss) in enumerate(((1e-4, 2.0), (1e-3, 1.0), (1e-2, 2.0)))]
    assert "search.replicates" in judge(blind).inconclusive


def test_only_equal_budgets_compare() -> None:
    def length(number: int, lr: float, steps: int, loss: float) -> Result:
        values = {"optimizer.lr": lr, "training.max_steps": steps}
        config = replace(BASE, values)
        return Result(number, values, config, "complete", steps, loss, "")

    trials = [length(0, 1e-3, 30, 0.5), length(1, 1e-2, 30, 0.4), length(2, 1e-3, 60, 2.0), length(3, 1e-2, 60, 3.0)]
    verdict = judge(trials)
    assert [r.number for r in verdict.ranking] == [2, 3]
    assert by_budget(trials) == {(30, 30): 1e-2, (60, 60): 1e-3}
    assert by_budget(trials[:2]) == {}


def test_a_rate_that_is_scaled_to_the_batch_is_shown_as_it_was_trained() -> None:
    scaled = replace(BASE, {"search.lr_scaling": "sqrt", "optimizer.lr": 4.243e-3})
    own = Result(0, {"training.batch_size": 16, "optimizer.lr": 3e-3}, scaled, "complete", 10, 1.0, "")
    assert own.trained == {"training.batch_size": 16, "optimizer.lr": 4.243e-3}
    assert result(1, 3e-3, 1.0).trained == {"optimizer.lr": 3e-3}
