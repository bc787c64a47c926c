"""What follows from results: growing grids, rescued trials, replicates; each told, each once."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lrsweep.analysis.diagnosis import Diagnosis
from lrsweep.analysis.lr_curve import BetterRate
from lrsweep.analysis.noise import Noise
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import Rival, judge
from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.config.schema import replace as with_keys
from lrsweep.config.search_method import settle
from lrsweep.orchestration.controller import next_trials
from lrsweep.report.summary import About, Links, Summary
from lrsweep.report.text import sentences
from lrsweep.search.followups import followups, seeds_beside
from lrsweep.search.records import TrialSpec
from lrsweep.search.replication import contenders
from lrsweep.tracking import DatasetInfo
from tests.conftest import SMALL, lrsweep_here

LRS = (1e-7, 3e-7, 1e-6)


def config(*overrides: str, lrs: Sequence[float] = LRS) -> SweepConfig:
    return sweep_config(
        ["+sweep=full_lr", "search=grid", f"space.optimizer.lr={list(lrs)}", "search.replicates=1", *overrides]
    )


def summary(
    config: SweepConfig, losses: Mapping[float, float | None], extra: Sequence[Result] = (), labels: Any = None
) -> Summary:
    """A sweep in which each rate came to its loss; None has diverged."""
    results = [*extra]
    for number, (lr, loss) in enumerate(losses.items()):
        values = {"optimizer.lr": lr}
        status: Any = "complete" if loss is not None else "diverged"
        trial = search_space.trial_config(config, search_space.axes(config)[:0], {}, values)
        role: Any = "search" if lr in config.space["optimizer"]["lr"] else "extension"
        results.append(Result(number, values, trial, status, 60, loss, "", role))
    about = About(DatasetInfo("", "", "", 1, 1), Links("", ""))
    diagnoses = {r.number: Diagnosis((labels or {}).get(r.number, "healthy"), {"reason": ""}) for r in results}
    return Summary(config, tuple(results), judge(results, 5.0), 5.0, diagnoses, about)


def following(config: SweepConfig, found: Summary) -> tuple[list[TrialSpec], str]:
    lrs = [r.values["optimizer.lr"] for r in found.results if r.role == "extension"]
    return next_trials(config, search_space.with_more_lrs(search_space.axes(config), sorted(set(lrs))), found)


def rates(specs: Sequence[TrialSpec]) -> list[float]:
    return [spec.params["optimizer.lr"] for spec in specs]


def test_a_grid_grows_on_the_ladder_until_the_best_is_inside() -> None:
    growing = config("search.extend=true")
    losses: dict[float, float | None] = {lr: 4.0 - i / 10 for i, lr in enumerate(LRS)}
    points, why = following(growing, summary(growing, losses))
    assert rates(points) == [3e-6, 1e-5]
    assert {point.role for point in points} == {"extension"}
    assert "1e-06, is the highest tried: adding 3e-06, 1e-05" in why
    losses |= {3e-6: 3.5, 1e-5: 3.4}
    assert rates(following(growing, summary(growing, losses))[0]) == [3e-5, 1e-4]
    losses |= {3e-5: 3.0, 1e-4: 3.1}
    assert following(growing, summary(growing, losses)) == ([], "")


def test_it_grows_downward_and_in_its_own_ratio_too() -> None:
    growing = config("search.extend=true", lrs=(2e-4, 4e-4, 8e-4))
    down = summary(growing, {2e-4: 1.0, 4e-4: 2.0, 8e-4: 3.0})
    assert rates(following(growing, down)[0]) == [1e-4, 5e-5]


def test_a_grid_with_other_axes_grows_by_whole_columns() -> None:
    growing = config("search.extend=true", "+space.optimizer.weight_decay=[0.0,0.1]")
    results: list[Result] = []
    for point in search_space.grid(search_space.axes(growing)):
        trial = search_space.trial_config(growing, search_space.axes(growing), point)
        loss = -point["optimizer.lr"] * 1e6 + point["optimizer.weight_decay"]
        results.append(Result(len(results), point, trial, "complete", 60, loss, ""))
    found = summary(growing, {}, results)
    points, _ = following(growing, found)
    assert sorted((p.params["optimizer.lr"], p.params["optimizer.weight_decay"]) for p in points) == [
        (3e-6, 0.0),
        (3e-6, 0.1),
        (1e-5, 0.0),
        (1e-5, 0.1),
    ]


def test_it_stops_somewhere_and_only_if_asked() -> None:
    losses: dict[float, float | None] = {lr: 4.0 - i / 10 for i, lr in enumerate(LRS)}
    assert following(config(), summary(config(), losses)) == ([], "")
    growing = config("search.extend=true")
    for i in range(12):
        losses[10.0 ** (i / 2 - 5.5)] = 3.0 - i / 10
    assert following(growing, summary(growing, losses)) == ([], "")


def test_a_grid_that_n_trials_has_cut_does_not_grow_but_goes_on() -> None:
    cut = config("search.extend=true", "search.n_trials=3", lrs=(*LRS, 3e-6, 1e-5))
    found = summary(cut, {lr: 4.0 - i / 10 for i, lr in enumerate(LRS)})
    assert following(cut, found) == ([], "")
    said = (
        "Warning: optimizer.lr=1e-06 is the highest value tried; the true best may lie beyond it. The space extends to "
    )
    assert sentences(found)[0].endswith(f"{said}1e-05: raise search.n_trials.")


@pytest.mark.parametrize(
    ("axis", "values", "said"),
    [
        (
            "data.max_length=[64,128]",
            {"data.max_length": 64},
            "Warning: data.max_length changes what the eval loss is measured on",
        ),
        ("training.batch_size=[4,8]", {"training.batch_size": 4}, "Warning: all trials have the same number of steps"),
        ("data.max_train_rows=[64,128]", {"data.max_train_rows": 64}, ""),
    ],
)
def test_what_does_not_compare_is_said(axis: str, values: dict[str, Any], said: str) -> None:
    asked = sweep_config(["name=x", f"space.{axis}", "search=grid"])
    result = Result(0, values, asked, "complete", 60, 1.0, "")
    found = [line for line in sentences(summary(asked, {}, [result])) if line.startswith("Warning: ")]
    assert [line[: len(said)] for line in found] == ([said] if said else [])


def test_the_lowest_rate_that_blew_up_is_tried_with_remedies_once() -> None:
    rescuing = config("search.rescue=true", lrs=(1e-4, 1e-3, 1e-2, 1e-1))
    found = summary(rescuing, {1e-4: 3.0, 1e-3: 2.0, 1e-2: 6.0, 1e-1: None}, labels={2: "too_high", 3: "diverged"})
    points, why = following(rescuing, found)
    assert rates(points) == [1e-2, 1e-2]
    assert {(point.role, point.of) for point in points} == {("rescue", 2)}
    assert points[0].overrides == {"optimizer.betas": [0.8, 0.999]}
    assert points[1].overrides["scheduler.warmup_ratio"] == 0.2
    assert "trial 2 (lr 0.01) diverged" in why
    axes = search_space.axes(rescuing)
    for point in points:  # the config takes them
        search_space.trial_config(rescuing, axes, point.params, point.overrides)
    rescued = Result(**{**vars(found.results[2]), "number": 9, "role": "rescue", "of": 2})
    again = summary(rescuing, {1e-4: 3.0, 1e-3: 2.0, 1e-2: 6.0}, [rescued], {2: "too_high"})
    assert following(rescuing, again) == ([], "")
    calm = summary(rescuing, {1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.1})
    assert following(rescuing, calm) == ([], "")


def test_the_best_few_get_their_seeds_and_no_more() -> None:
    repeating = config("search.replicates=3", "training.seed=5", lrs=(1e-5, 1e-4, 1e-3, 1e-2))
    losses: dict[float, float | None] = {1e-5: 4.0, 1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5}
    found = summary(repeating, losses)
    points, why = following(repeating, found)
    assert [(point.of, point.overrides["training.seed"]) for point in points] == [
        (2, 6),
        (2, 7),
        (3, 6),
        (3, 7),
        (1, 6),
        (1, 7),
    ]
    assert why == (
        "training trials 2, 3 and 1 with 3 seeds each, to measure the noise: 6 more trials, 360 steps "
        "(search.replicates=1 turns this off)"
    )
    # One of them failed: it counts as tried, and the sweep ends.
    extra = []
    for i, point in enumerate(points):
        assert point.of is not None
        first = found.results[point.of]
        status = "failed" if i == 0 else "complete"
        changes = {"number": 10 + i, "role": "replicate", "of": point.of, "status": status}
        extra.append(Result(**{**vars(first), **changes}))
    assert following(repeating, summary(repeating, losses, extra)) == ([], "")


def repeated(found: Summary, points: Sequence[TrialSpec], losses: Mapping[tuple[int, int], float]) -> list[Result]:
    """The replicates in `points`, each with the loss of its trial and seed."""
    results = []
    for point in points:
        assert point.of is not None
        first = next(r for r in found.results if r.number == point.of)
        seed = point.overrides["training.seed"]
        config = first.config.model_copy(update={"training": first.config.training.model_copy(update={"seed": seed})})
        changes = {"number": 100 + 10 * point.of + seed, "role": "replicate", "of": point.of, "config": config}
        results.append(Result(**{**vars(first), **changes, "eval_loss": losses[point.of, seed]}))
    return results


def test_seeds_are_added_until_the_best_is_told_from_its_rivals() -> None:
    auto = config("search.replicates=auto", lrs=(1e-5, 1e-4, 1e-3, 1e-2))
    losses: dict[float, float | None] = {1e-5: 4.0, 1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5}
    found = summary(auto, losses)
    points, why = following(auto, found)
    assert [(point.of, point.overrides["training.seed"]) for point in points] == [(2, 1), (3, 1), (1, 1)]
    assert why.endswith("to measure the noise: 3 more trials, 180 steps (search.replicates=1 turns this off)")
    clear = repeated(found, points, {(2, 1): 2.01, (3, 1): 2.52, (1, 1): 3.0})
    assert following(auto, summary(auto, losses, clear)) == ([], "")
    # Trial 1 is told from the best with these seeds; trial 3 is not, so only these two go on, up to four seeds.
    close: dict[float, float | None] = {**losses, 1e-2: 2.03}
    found = summary(auto, close)
    extra = repeated(found, points, {(2, 1): 2.05, (3, 1): 2.07, (1, 1): 3.0})
    for seed in (2, 3):
        points, _ = following(auto, summary(auto, close, extra))
        assert [(point.of, point.overrides["training.seed"]) for point in points] == [(2, seed), (3, seed)]
        extra += repeated(found, points, {(2, seed): 2.0 + seed / 50, (3, seed): 2.1 - seed / 50})
    assert following(auto, summary(auto, close, extra)) == ([], "")


def test_there_are_nine_replicates_at_most() -> None:
    found = summary(config(), dict.fromkeys(LRS, 2.0) | {3e-6: 2.0}).verdict.candidates
    best, *others = [dataclasses.replace(candidate, repeated=3) for candidate in found[:3]]
    fourth = found[3]
    noise = Noise(0.01, 6, 4)
    told = [Rival(other, 0.5, 0.1) for other in others]
    # The fourth trial, with one seed, may be as good as the best: it would need three more.
    assert contenders([best, *others, fourth], [*told, Rival(fourth, 0.0, 0.1)], noise, 1.0)[0] == []
    # Three more for each rate that `refine` has added.
    added = dataclasses.replace(fourth, result=dataclasses.replace(fourth.result, role="fit"))
    assert contenders([best, *others, added], [*told, Rival(added, 0.0, 0.1)], noise, 1.0) == ([added], 4)
    fewer = [dataclasses.replace(other, repeated=1) for other in others]
    told = [Rival(other, 0.5, 0.1) for other in fewer]
    assert contenders([best, *fewer, fourth], [*told, Rival(fourth, 0.0, 0.1)], noise, 1.0) == ([fourth], 4)


def test_rivals_that_cost_less_than_the_tolerance_need_no_more_seeds() -> None:
    auto = config("search.replicates=auto", lrs=(1e-5, 1e-4, 1e-3, 1e-2))
    losses: dict[float, float | None] = {1e-5: 4.0, 1e-4: 2.0004, 1e-3: 2.0, 1e-2: 2.0003}
    found = summary(auto, losses)
    points, _ = following(auto, found)
    # They differ by a ten-thousandth of the improvement of 3, more or less.
    extra = repeated(found, points, {(2, 1): 2.0002, (3, 1): 2.0004, (1, 1): 2.0005})
    assert following(auto, summary(auto, losses, extra)) == ([], "")


def refined(losses: Mapping[float, float | None], noise: float, *overrides: str) -> tuple[SweepConfig, Summary]:
    """A refined sweep whose best three trials have a second seed, with a loss that is higher by up to `noise`."""
    refine = sweep_config(["+sweep=full_lr", "search=refine", f"space.optimizer.lr={list(losses)}", *overrides])
    found = summary(refine, losses)
    best = sorted(found.results, key=lambda result: result.eval_loss or 9.0)[:3]
    points = [TrialSpec({}, "replicate", {"training.seed": 1}, result.number) for result in best]
    shifts = {(result.number, 1): (result.eval_loss or 0.0) + noise * i for i, result in enumerate(best)}
    return refine, summary(refine, losses, repeated(found, points, shifts))


# The two lowest are equal, and the loss is far higher beside them: the best rate may be between them.
VALLEY: Mapping[float, float | None] = {1e-5: 4.8, 1e-4: 4.0, 1e-3: 3.0, 1e-2: 3.01, 1e-1: 4.9}


BETWEEN = TrialSpec({"optimizer.lr": 3e-3}, "fit")


def beside(
    new: Sequence[TrialSpec], *overrides: str, extra: Sequence[Result] = ()
) -> tuple[list[tuple[str, int | None, float, int]], str]:
    """Role, origin, rate and seed of what is trained beside new trials of a refined sweep, and the reason."""
    config = sweep_config(["+sweep=full_lr", "search=refine", f"space.optimizer.lr={list(VALLEY)}", *overrides])
    results = [*summary(config, VALLEY).results, *extra]
    specs, why = seeds_beside(config, search_space.axes(config), results, new, len(results))
    return [(s.role, s.of, s.params["optimizer.lr"], s.overrides["training.seed"]) for s in specs], why


def test_the_first_rate_between_brings_the_second_seeds_of_the_best() -> None:
    specs, why = beside([BETWEEN])
    assert specs == [("replicate", 5, 3e-3, 1), ("replicate", 2, 1e-3, 1), ("replicate", 3, 1e-2, 1)]
    assert why.startswith("training it and trials 2 and 3 with 2 seeds each, to measure the noise: 3 more trials, ")
    assert beside([BETWEEN], "training.seed=7")[0][0][-1] == 8


@pytest.mark.parametrize(
    ("new", "overrides"),
    [
        ([], ()),
        ([TrialSpec({"optimizer.lr": 3e-1}, "extension", pause_at=15)], ()),
        ([BETWEEN], ("search.replicates=1",)),
        ([BETWEEN], ("search.replicates=3",)),
        ([BETWEEN], ("search.n_trials=9",)),
        ([BETWEEN], ("search.budget=500",)),
        ([BETWEEN], ("engine=trainer",)),
        ([BETWEEN], ("space.optimizer.weight_decay=[0,0.1]",)),
    ],
    ids=str,
)
def test_seeds_wait_where_they_may_not_be_needed(new: list[TrialSpec], overrides: tuple[str, ...]) -> None:
    assert beside(new, *overrides) == ([], "")


def test_seeds_are_trained_beside_a_rate_only_once() -> None:
    _, found = refined(VALLEY, 0.001)
    assert beside([BETWEEN], extra=[r for r in found.results if r.role == "replicate"]) == ([], "")


def test_refine_tries_a_rate_while_it_may_be_better() -> None:
    config, found = refined(VALLEY, 0.001)
    better = found.verdict.better_rate
    assert better is not None
    assert better.chance > 0.5
    points, why = following(config, found)
    assert [(point.role, point.of) for point in points] == [("fit", None)]
    assert 1.2e-3 < rates(points)[0] < 9e-3
    amount = "by more than 1 % of the improvement"
    assert why.startswith(f"refine: {rates(points)[0]:g} is better than 0.001 {amount} with a chance of ")
    assert why.endswith(": trying it")
    said = f"The chance that another rate is better {amount} is {better.chance:.0%}; the likeliest is "
    assert any(line.startswith(said) for line in sentences(found))
    # They turned out no better: nothing is likely to be.
    more = {5e-4: 3.1, 1.7e-3: 2.995, 3e-3: 2.99, 5.5e-3: 2.996}
    config, found = refined({**VALLEY, **more}, 0.001)
    assert following(config, found) == ([], "")
    assert any(line.startswith(f"The chance that another rate is better {amount} is ") for line in sentences(found))
    assert not any("the likeliest" in line for line in sentences(found))


@pytest.mark.parametrize("limit", ["search.n_trials=8", "search.budget=400"])
def test_refine_tries_no_likelier_rate_beyond_its_limits(limit: str) -> None:
    config, found = refined(VALLEY, 0.001, limit)
    specs, why = following(config, found)
    assert specs == []
    assert why.endswith(f", but {limit} is used up")


@pytest.mark.parametrize("override", ["search.replicates=2", "search.tolerance=0.9"])
def test_refine_tries_no_likelier_rate_without_need(override: str) -> None:
    config, found = refined(VALLEY, 0.001, override)
    assert following(config, found) == ([], "")


def test_refine_tries_four_likelier_rates_at_most() -> None:
    config, found = refined(VALLEY, 0.001)
    assert following(config, found)[0]
    later = []
    for i, lr in enumerate((2e-2, 3e-2, 4e-2, 5e-2)):
        own = with_keys(config, {"optimizer.lr": lr})
        later.append(Result(300 + i, {"optimizer.lr": lr}, own, "complete", 60, 3.02 + 0.4 * i, "", "fit"))
        more = summary(config, VALLEY, [*(r for r in found.results if r.of is not None), *later])
        assert more.verdict.better_rate is not None
        specs, _ = followups(config, search_space.axes(config), more.results, found.verdict, {})
        assert ("fit" in {spec.role for spec in specs}) == (len(later) < 4)


def test_grids_and_sweeps_of_several_axes_try_no_likelier_rate() -> None:
    _, found = refined(VALLEY, 0.001)
    grid = dataclasses.replace(found, config=sweep_config(["+sweep=full_lr", "search=grid"]))
    assert following(grid.config, grid) == ([], "")
    both = [dataclasses.replace(r, values={**r.values, "optimizer.weight_decay": 0.0}) for r in found.results]
    assert judge(both, 5.0).better_rate is None


def test_refine_tries_no_rate_again_that_failed_there() -> None:
    config, found = refined(VALLEY, 0.001)
    rate = rates(following(config, found)[0])[0]
    first = found.results[-1]
    gone = dataclasses.replace(first, number=200, values={"optimizer.lr": rate}, status="failed", eval_loss=None)
    gone = dataclasses.replace(gone, config=with_keys(gone.config, {"optimizer.lr": rate}), role="fit")
    assert following(config, summary(config, VALLEY, [*found.results[:3], gone])) == ([], "")


def test_a_likelier_rate_that_was_tried_gets_one_more_seed_beside_the_best() -> None:
    config, found = refined({1e-4: 3.6, 3e-4: 3.2, 1e-3: 3.0, 3e-3: 3.1, 1e-2: 3.7}, 0.001)
    axes = search_space.axes(config)

    def after(lr: float, seeds: int) -> list[tuple[int | None, int]]:
        better = BetterRate(lr, 0.3)
        candidates = tuple(dataclasses.replace(c, repeated=max(c.repeated, seeds)) for c in found.verdict.candidates)
        verdict = dataclasses.replace(found.verdict, better_rate=better, candidates=candidates)
        specs, why = followups(config, axes, found.results, verdict, {})
        assert not specs or why.endswith(": one more seed for " + ("trial 2" if lr < 2e-3 else "trials 2 and 3"))
        return [(spec.of, spec.overrides["training.seed"]) for spec in specs]

    assert after(3.05e-3, 1) == [(2, 2), (3, 2)]
    assert after(1.05e-3, 1) == [(2, 2)]
    assert after(3.05e-3, 4) == [(2, 5), (3, 5)]
    assert after(3.05e-3, 5) == []


def test_trials_that_another_key_hardly_changes_do_not_measure_the_noise() -> None:
    space = ["space.optimizer.lr=[1e-4,1e-3,1e-2]", "space.optimizer.weight_decay=[0.0,0.01,0.1]"]
    asked = sweep_config(["name=x", "search=grid", *space])
    found = []
    for i, (lr, decay, loss) in enumerate(
        [(1e-3, 0.1, 2.0), (1e-3, 0.01, 2.0001), (1e-3, 0.0, 2.01), (1e-2, 0.0, 2.1), (1e-4, 0.0, 2.2)]
    ):
        values = {"optimizer.lr": lr, "optimizer.weight_decay": decay}
        found.append(Result(i, values, with_keys(asked, values), "complete", 60, loss, ""))
    assert [spec.of for spec in following(asked, summary(asked, {}, found))[0]] == [0, 2, 3]
    # Nor do they get a seed later, although they are not told from the best.
    points, _ = following(asked, summary(asked, {}, found))
    known = summary(asked, {}, found)
    more = repeated(known, points, {(0, 1): 2.05, (2, 1): 2.03, (3, 1): 2.2})
    specs, _ = following(asked, summary(asked, {}, [*found, *more]))
    assert {spec.of for spec in specs} >= {0, 2}
    assert 1 not in {spec.of for spec in specs}
    # Of one rate alone they are all that there is.
    same = [dataclasses.replace(result, eval_loss=2.0 + 1e-5 * result.number) for result in found[:3]]
    assert [spec.of for spec in following(asked, summary(asked, {}, same))[0]] == [0, 1, 2]


def test_one_trial_has_no_rival_and_needs_no_seeds() -> None:
    auto = config("search.replicates=auto", lrs=(1e-3, 1e-2))
    assert following(auto, summary(auto, {1e-3: 2.0, 1e-2: None})) == ([], "")


@pytest.mark.parametrize(
    ("axes", "trials", "method"),
    [
        (["optimizer.lr=[1e-5,1e-4,1e-3]"], 16, "refine"),
        (["optimizer.lr={low: 1e-5, high: 1e-1, log: true}"], 100, "refine"),
        (["optimizer.lr=[1e-5,1e-4,1e-3]", "optimizer.weight_decay=[0,0.1]", "finetune.r=[4,8]"], 16, "refine"),
        (["optimizer.lr={low: 1e-5, high: 1e-1}", "optimizer.weight_decay={low: 0.0, high: 0.1}"], 16, "refine"),
        (["optimizer.weight_decay=[0,0.1]"], 16, "grid"),
        (["optimizer.lr=[1e-5,1e-4,1e-3]", "optimizer.name=[adamw,sgd]"], 16, "grid"),
        (["optimizer.lr=[1e-5,1e-4,1e-3]", "training.max_steps=[30,60]"], 2, "tpe"),
        (["optimizer.lr={low: 1e-5, high: 1e-1, num: 5}", "training.batch_size=[4,8]"], 16, "grid"),
        (["scheduler.warmup_ratio={low: 0, high: 0.1}", "optimizer.weight_decay={low: 0.0, high: 0.1}"], 16, "gp"),
        (["scheduler.warmup_ratio={low: 0, high: 0.1}", "optimizer.weight_decay={low: 0.0, high: 0.1}"], 100, "tpe"),
    ],
)
def test_auto_takes_what_fits_and_says_so(axes: list[str], trials: int, method: str) -> None:
    spaces = [f"space.{axis}" for axis in axes]
    asked = sweep_config(["search=auto", *spaces, f"search.n_trials={trials}"])
    settled, why = settle(asked)
    assert settled.search.method == method
    assert why.startswith(f"search.method=auto: {method} (")
    assert settle(settled) == (settled, "")


def test_auto_does_not_refine_what_cannot_pause() -> None:
    external = ("engine=external", "engine.command='train {config}'", "engine.dialect=trl")
    settled, why = settle(sweep_config(["search=auto", "space.optimizer.lr=[1e-5,1e-4,1e-3]", *external]))
    assert (settled.search.method, why) == ("grid", "search.method=auto: grid (all 3 points fit)")


def test_auto_goes_on_with_the_search_that_there_is() -> None:
    lr = "space.optimizer.lr={low: 1e-5, high: 1e-1, log: true}"
    settled, why = settle(sweep_config(["search=auto", lr, "search.n_trials=100"]), "gp")
    assert (settled.search.method, why) == ("gp", "search.method=auto: gp (as it began)")


def test_a_grid_far_too_low_finds_its_way_into_the_basin(tmp_path: Path) -> None:
    lrs = "space.optimizer.lr=[1e-7,3e-7,1e-6]"
    command = (
        "+sweep=full_lr",
        *SMALL[2:],
        "training.max_steps=8",
        "training.batch_size=4",
        "data.max_length=64",
        "data.max_eval_rows=16",
        lrs,
        "search.extend=true",
        "tracking=none",
    )
    run = lrsweep_here(*command, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "1e-06, is the highest tried: adding 3e-06, 1e-05" in run.stdout
    assert "Added learning rates, because the best one was at the end of the range" in run.stdout
    summary = json.loads((tmp_path / "outputs" / "full_lr" / "summary.json").read_text())
    assert 1e-4 <= summary["best"]["values"]["optimizer.lr"] <= 1e-3
    assert summary["edges"] == []
    assert {trial["role"] for trial in summary["trials"]} == {"search", "extension"}
    again = lrsweep_here(*command, cwd=tmp_path)
    assert f"is already complete: {len(summary['trials'])} trials" in again.stdout
    # More is asked of a finished sweep: it goes on.
    more = lrsweep_here(*command, "search.replicates=auto", cwd=tmp_path)
    assert "with 2 seeds each, to measure the noise: 3 more trials, 24 steps" in more.stdout
    replicated = json.loads((tmp_path / "outputs" / "full_lr" / "summary.json").read_text())
    assert sum(trial["role"] == "replicate" for trial in replicated["trials"]) >= 3
    assert replicated["noise"]["seeds"] >= 2
    assert all(rival["margin"] is not None for rival in replicated["rivals"])
    complete = lrsweep_here(*command, "search.replicates=auto", cwd=tmp_path)
    assert f"is already complete: {len(replicated['trials'])} trials" in complete.stdout
