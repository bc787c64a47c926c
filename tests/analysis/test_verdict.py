"""The winner: complete, finite, held out; what the seeds do not tell from it; the safe range; edges."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from lrsweep.analysis.edges import Edge
from lrsweep.analysis.lr_curve import LrCurve, better_rate, fit, safe_range
from lrsweep.analysis.ranking import Result, by_budget
from lrsweep.analysis.verdict import TOLERANCE, judge
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import replace

BASE = sweep_config(["+sweep=lora_lr", "search.replicates=3"])


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
    """A trial with seed 0 and its replicates, which are numbered from 100 up."""
    return [
        result(number, lr, losses[0]),
        *(_repeat(100 + 10 * number + i, number, lr, loss, seed=i) for i, loss in enumerate(losses[1:], start=1)),
    ]


def test_replicates_make_a_mean_and_a_lucky_run_does_not_beat_it() -> None:
    trials = [*seeded(0, 1e-3, [1.0, 1.1, 1.2]), *seeded(1, 3e-3, [1.05, 1.0, 1.01]), result(2, 1e-2, 0.99)]
    verdict = judge(trials)
    assert [r.number for r in verdict.ranking] == [1, 0, 2]
    assert verdict.candidates[0].mean == pytest.approx(1.02)
    assert verdict.noise is not None
    assert (verdict.noise.degrees, verdict.noise.seeds) == (2, 3)


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


def _repeat(
    number: int, of: int, lr: float, eval_loss: float | None, status: str = "complete", seed: int | None = None
) -> Result:
    found = result(number, lr, eval_loss, status)
    seed = number if seed is None else seed
    config = replace(found.config, {"training.seed": seed})
    return dataclasses.replace(found, role="replicate", of=of, config=config, overrides={"training.seed": seed})


def test_the_seeds_tell_two_rates_apart_by_a_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    seen = set()
    for gap in (0.0, 0.02, 0.2):
        shared = draw.normal(0, 0.1, 3)
        one, other = list(1.0 + shared + draw.normal(0, 0.01, 3)), list(1.0 + gap + shared + draw.normal(0, 0.01, 3))
        verdict = judge([*seeded(0, 1e-3, one), *seeded(1, 1e-2, other)])
        tied = bool(stats.ttest_rel(one, other).pvalue >= 0.05)
        assert [rival.tied for rival in verdict.rivals] == [tied]
        assert len(verdict.ties) == 1 + tied
        seen.add(tied)
    assert seen == {True, False}


def test_without_replicates_no_tie_is_claimed() -> None:
    flat = [(40, 2.0), (50, 2.003), (60, 2.0)]
    trials = [dataclasses.replace(result(i, 10.0 ** (i - 5), 2.0 + i / 1000), evals=flat) for i in range(4)]
    verdict = judge(trials, base_loss=3.0)
    assert verdict.noise is None
    assert [rival.tied for rival in verdict.rivals] == [False] * 3
    assert [rival.difference for rival in verdict.rivals] == pytest.approx([0.001, 0.002, 0.003])


LRS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@pytest.mark.parametrize(
    ("losses", "best", "given_up"),
    [
        # The lowest is beside a cliff, and its neighbour costs a thousandth of the improvement.
        ((2.9, 2.6, 2.3, 2.05, 2.0, 1.999, 6.0), 4, 0.001),
        # The lowest is the highest rate tried.
        ((2.9, 2.8, 2.6, 2.3, 2.1, 2.0, 1.995), 5, 0.005),
        # The neighbour would cost 5 % of the improvement, which is too much.
        ((2.9, 2.6, 2.3, 2.1, 2.05, 2.0, 6.0), 5, 0.0),
        # No danger, no reason to leave the lowest.
        ((2.9, 2.6, 2.3, 2.05, 2.0, 1.999, 2.1), 5, 0.0),
    ],
)
def test_the_recommendation_keeps_away_from_edges_and_cliffs_at_no_noticeable_cost(
    losses: tuple[float, ...], best: int, given_up: float
) -> None:
    trials = [result(i, lr, loss) for i, (lr, loss) in enumerate(zip(LRS, losses, strict=True))]
    verdict = judge(trials, base_loss=3.0)
    assert verdict.best is not None
    assert verdict.best.number == best
    assert verdict.given_up == pytest.approx(given_up)
    assert verdict.improvement == pytest.approx(3.0 - min(losses))
    assert verdict.given_up <= TOLERANCE * (3.0 - min(losses))


def test_a_difference_that_the_seeds_show_is_not_given_up() -> None:
    """A thousandth of the improvement is little, but here the seeds are sure of it."""
    cliff = result(3, 3e-2, 6.0)
    low = seeded(0, 3e-3, [2.0041, 2.0040, 2.0042])
    high = seeded(1, 1e-2, [1.999, 1.9991, 1.9992])
    verdict = judge([result(2, 1e-3, 2.1), *low, *high, cliff], base_loss=3.0)
    assert [rival.tied for rival in verdict.rivals[:1]] == [False]
    assert verdict.best is not None
    assert verdict.best.number == 1
    near = judge([result(2, 1e-3, 2.1), *seeded(0, 3e-3, [2.0, 2.003, 1.998]), *high, cliff], base_loss=3.0)
    assert near.best is not None
    assert near.best.number == 0


def test_few_degrees_of_freedom_do_not_make_a_worse_trial_as_good() -> None:
    """Two seeds tie what is five deviations apart; it costs less than the tolerance, but is not recommended."""
    trials = [result(2, 1e-3, 2.4), *seeded(0, 3e-3, [2.005, 2.006]), *seeded(1, 1e-2, [2.0, 2.0])]
    verdict = judge([*trials, result(3, 3e-2, 6.0)], base_loss=3.0)
    assert verdict.noise is not None
    assert verdict.rivals[0].tied
    assert verdict.rivals[0].difference > 3 * verdict.noise.deviation
    assert verdict.best is not None
    assert verdict.best.lr == 1e-2


def test_at_an_edge_no_range_is_called_safe() -> None:
    losses = (2.9, 2.6, 2.3, 2.05, 2.003, 2.0)
    trials = [result(i, lr, loss) for i, (lr, loss) in enumerate(zip(LRS[:6], losses, strict=True))]
    assert judge(trials, base_loss=3.0).safe_range is None
    assert judge([*trials, result(6, 1e-2, 2.02)], base_loss=3.0).safe_range is not None


def test_a_safe_range_is_never_beside_a_rate_that_diverged() -> None:
    losses = (2.9, 2.6, 2.3, 2.05, 2.0, 2.02)
    trials = [result(i, lr, loss) for i, (lr, loss) in enumerate(zip(LRS[:6], losses, strict=True))]
    free = judge([*trials, result(6, 1e-2, 2.15)], base_loss=3.0).safe_range
    assert free is not None
    assert 3e-4 < free.low < 1e-3 < free.high < 1e-2
    walled = judge([*trials, result(6, 1e-2, None, "diverged")], base_loss=3.0).safe_range
    assert walled is not None
    assert 1e-3 in walled
    assert 3e-3 not in walled
    # A curve that is certain of the same loss everywhere: only the unsafe rates end the range.
    flat = LrCurve(np.logspace(-5, -2, 161), np.ones(161), np.zeros((161, 161)))
    everywhere = safe_range(flat, 1e-3, 1.0, ())
    assert everywhere is not None
    assert (everywhere.low, everywhere.high) == pytest.approx((1e-5, 1e-2))
    between = safe_range(flat, 1e-3, 1.0, (1e-4, 3e-3))
    assert between is not None
    assert 1e-4 < between.low < 1.1e-4
    assert 2.8e-3 < between.high < 3e-3


def test_the_basin_is_where_the_formula_has_it() -> None:
    lrs = 10 ** np.arange(-5, -0.9, 0.5)
    losses = {float(lr): 2.0 + 0.2 * (math.log10(lr) + 2.7) ** 2 for lr in lrs}
    basin = fit(losses, dict.fromkeys(losses, 0.005), None)
    assert basin is not None
    assert abs(math.log10(basin.centre) + 2.7) < 0.15
    at = np.interp(np.log10(list(losses)), np.log10(basin.lr), basin.mean)
    assert np.abs(at - list(losses.values())).max() < 0.02
    assert (basin.deviation > 0).all()
    # A rate far too high does not bend the curve; three rates have no shape.
    walled = fit({**losses, 1.0: 9.0}, dict.fromkeys(losses, 0.005), 3.5)
    assert walled is not None
    np.testing.assert_allclose(walled.mean, basin.mean)
    assert fit(dict(list(losses.items())[:3]), {}, None) is None


def test_what_cannot_be_answered_is_said() -> None:
    draw = np.random.default_rng(1)
    equal = [r for i in range(3) for r in seeded(i, 10.0 ** (i - 4), list(2.0 + draw.normal(0, 0.1, 3)))]
    inside = sorted(equal, key=lambda r: r.lr != 1e-3)
    lowered = [dataclasses.replace(r, eval_loss=(r.eval_loss or 0) - 0.1 * (r.lr == 1e-3)) for r in inside]
    assert "within noise of each other" in judge(lowered).inconclusive
    edge = [result(i, 10.0 ** (i - 4), 3.0 - i) for i in range(3)]
    assert judge(edge).inconclusive == (
        "the lowest loss is at the highest learning rate tried, so the best rate may lie beyond"
    )


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


def test_the_chance_of_a_better_rate_is_how_often_there_is_one() -> None:
    """Smooth random curves over three decades, seven noisy losses on each: the stated chances against the truth."""
    draw = np.random.default_rng(5)
    places, fine = np.linspace(-5, -2, 7), np.linspace(-5, -2, 241)
    both = np.append(places, fine)
    noise, gain = 0.05, 0.1
    stated, true = [], []
    for _ in range(150):
        scale = draw.choice([0.6, 0.9, 1.3])
        smooth = np.exp(-((both[:, None] - both) ** 2) / (2 * scale**2))
        curve = draw.multivariate_normal(np.zeros(len(both)), smooth, method="eigh")
        seen = curve[:7] + noise * draw.standard_normal(7)
        losses = dict(zip((10**places).tolist(), seen.tolist(), strict=True))
        best = min(losses, key=losses.__getitem__)
        found = better_rate(losses, dict.fromkeys(losses, noise), None, best, gain)
        assert found is not None
        stated.append(found.chance)
        there = np.interp(np.log10(found.lr), fine, curve[7:])
        true.append(there < np.interp(np.log10(best), fine, curve[7:]) - gain)
    unlikely = np.array(stated) < 0.2
    for part in (unlikely, ~unlikely):
        assert part.sum() > 20
        error = np.sqrt(np.mean(stated, where=part) / part.sum())
        assert abs(np.mean(stated, where=part) - np.mean(true, where=part)) < 3 * error
    assert better_rate({1e-4: 1.0, 1e-3: 0.9, 1e-2: 1.1}, {}, None, 1e-3, 0.1) is None


def test_the_fit_over_the_rate_has_one_value_of_each_other_axis_after_refine() -> None:
    losses = {1e-4: 3.0, 3e-4: 2.5, 1e-3: 2.0, 3e-3: 2.1, 1e-2: 2.6}

    def judged(method: str) -> LrCurve | None:
        base = replace(BASE, {"search.method": method})
        found: list[Result] = []
        for decay, cost, rates in ((0.1, 0.0, tuple(losses)), (0.0, 0.4, (2e-3, 6e-3))):
            for lr in rates:
                values = {"optimizer.lr": lr, "optimizer.weight_decay": decay}
                loss = losses.get(lr, 2.0) + cost
                found.append(Result(len(found), values, replace(base, values), "complete", 10, loss, ""))
        return judge(found, 4.0).lr_curve

    refined, grid = judged("refine"), judged("grid")
    assert refined is not None
    assert grid is not None
    assert np.interp(2e-3, refined.lr, refined.mean) < 2.1
    assert np.interp(2e-3, grid.lr, grid.mean) > 2.2
