"""How many trials share a pass: what is measured, and what that costs. The clock is the passes' own."""

import pytest

from lrsweep.training.packing.pass_size import PassSizes


class Passes:
    """Passes that take so many seconds each, and so many for each of their trials."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float, trial: float) -> None:
        self.each, self.trial, self.now = each, trial, 0.0
        self.done: list[int] = []
        monkeypatch.setattr("lrsweep.training.packing.pass_size.time.perf_counter", lambda: self.now)

    def __call__(self, size: int) -> None:
        self.done.append(size)
        self.now += self.each + size * self.trial


def test_fast_passes_are_timed_twice_and_the_largest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch, each=0.02, trial=0.0002)
    assert PassSizes().fastest("key", 8, passes) == 8
    assert passes.done == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]


def test_slow_passes_that_gain_nothing_are_not_tried_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch, each=0.01, trial=1.2)
    assert PassSizes().fastest("key", 9, passes) == 2
    assert passes.done == [1, 1, 1, 2]


def test_what_a_first_pass_compiles_is_not_taken_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on a GPU: the first pass of two trials compiled kernels for 4 s, and then all trials ran one by one."""
    passes = Passes(monkeypatch, each=0.08, trial=0.003)
    compiled: list[int] = []

    def run(size: int) -> None:
        passes(size)
        if size == 2 and not compiled:
            compiled.append(size)
            passes.now += 4.0

    assert PassSizes().fastest("key", 8, run) == 8
    assert passes.done == [1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]


def test_slow_passes_that_gain_are_tried_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch, each=2.0, trial=0.2)
    assert PassSizes().fastest("key", 9, passes) == 9
    assert passes.done == [1, 1, 1, 2, 4, 8, 9]
