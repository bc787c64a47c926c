"""How many trials share a pass: what is measured, and what that costs. The clock is the passes' own."""

from pathlib import Path

import pytest

from lrsweep.training.packing.pass_size import PassSizes, _digest


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lrsweep" / "pass_sizes.json"


def test_another_sweep_of_the_same_pack_need_not_measure(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch, each=0.02, trial=0.0002)
    assert PassSizes(tmp_path / "first" / "pass_sizes.json").fastest("key", 8, passes) == 8
    passes.done.clear()
    later = PassSizes(tmp_path / "second" / "pass_sizes.json")
    assert (later.fastest("key", 8, passes), passes.done) == (8, [])
    assert (later.fastest("key", 3, passes), passes.done) == (3, [])
    later.fastest("key", 9, passes)
    assert passes.done, "more trials than were measured"
    passes.done.clear()
    later.fastest("another key", 8, passes)
    assert passes.done


def test_a_sweep_that_is_run_again_has_the_same_sizes_whatever_ran_in_between(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch, each=0.02, trial=0.02)

    def sizes(name: str) -> list[int]:
        sweep = PassSizes(tmp_path / name / "pass_sizes.json")
        return [sweep.fastest("key", active, passes) for active in (2, 5, 3)]

    first = sizes("first")
    passes.each, passes.trial = 0.0002, 0.2  # small passes are as fast now
    PassSizes(tmp_path / "between" / "pass_sizes.json").fastest("key", 12, passes)
    passes.done.clear()
    assert (sizes("again"), passes.done) == (first, [])


def test_what_ran_out_of_memory_is_remembered_in_its_sweep_only(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have had the memory."""
    passes = Passes(monkeypatch, each=0.02, trial=0.0002)
    first = PassSizes(tmp_path / "first" / "pass_sizes.json")
    first.fastest("key", 8, passes)
    first.halve("key", 8)
    assert PassSizes(tmp_path / "first" / "pass_sizes.json").fastest("key", 8, passes) == 4
    assert PassSizes(tmp_path / "second" / "pass_sizes.json").fastest("key", 8, passes) == 8


DAMAGED = ("", "[]", "{", *(f'{{"DIGEST": {entry}}}' for entry in ("3", "[8]", "[8, 8, 8]", '["a", 8]', "[0, 8]")))


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_or_unwritable_cache_is_measured_again(
    content: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("DIGEST", _digest("key 8")))
    passes = Passes(monkeypatch, each=0.02, trial=0.0002)
    assert PassSizes(tmp_path / "sweep" / "pass_sizes.json").fastest("key", 8, passes) == 8
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert PassSizes(tmp_path / "other" / "pass_sizes.json").fastest("key", 8, passes) == 8
