"""The pruner for packs: it sees a rung whole, whatever the order, and minds warm-up and NaN."""

import itertools
import math

import pytest

from lrsweep.search.sync_halving import EvalReport, Rungs, SyncHalving


def reports(losses: dict[int, float], step: int = 4, warmup: int = 0) -> list[EvalReport]:
    return [EvalReport(number, step, 16, warmup, loss) for number, loss in losses.items()]


def test_the_better_half_goes_on_whatever_the_order() -> None:
    losses = {0: 4.0, 1: 1.0, 2: 3.0, 3: 2.0}
    for order in itertools.permutations(losses):
        assert SyncHalving(Rungs()).report(reports({number: losses[number] for number in order})) == {0, 2}


def test_a_trial_is_judged_once_a_rung() -> None:
    halving = SyncHalving(Rungs())
    halving.report(reports({0: 1.0, 1: 2.0}))
    assert halving.report(reports({0: 9.0}, step=5)) == frozenset()
    # The next rung is at half of the steps, and looks at the value then.
    assert halving.report(reports({0: 9.0, 2: 1.0}, step=8)) == {0}


def test_late_comers_are_compared_with_all_who_were_there() -> None:
    halving = SyncHalving(Rungs())
    halving.report(reports({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}))
    assert halving.report(reports({4: 3.5})) == {4}
    assert halving.report(reports({5: 1.5})) == frozenset()


def test_warm_up_is_waited_for() -> None:
    halving = SyncHalving(Rungs())
    assert halving.report(reports({0: 1.0, 1: 2.0}, step=4, warmup=6)) == frozenset()
    assert halving.report(reports({0: 1.0, 1: 2.0}, step=7, warmup=6)) == {1}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_worst(bad: float) -> None:
    assert SyncHalving(Rungs()).report(reports({0: bad, 1: 100.0})) == {0}


def test_equals_go_on_together() -> None:
    assert SyncHalving(Rungs()).report(reports({0: 1.0, 1: 1.0, 2: 1.0})) == frozenset()


@pytest.mark.parametrize("kwargs", [{"first_rung": 0.0}, {"first_rung": 1.0}, {"reduction_factor": 1}])
def test_rungs_that_make_no_sense_are_refused(kwargs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Rungs(**kwargs)  # type: ignore[arg-type]
