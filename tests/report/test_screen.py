"""What a sweep prints while it trains, where there is no terminal."""

import io

import pytest
from rich.console import Console

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.report.screen import Clock, PlainScreen
from lrsweep.training.engines import Measurement

CONFIG = sweep_config(["+sweep=lora_lr", "training.max_steps=60"])


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("lrsweep.report.screen.time.monotonic", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def test_the_time_left_counts_the_steps_that_are_really_left(time: Time) -> None:
    clock = Clock()
    clock.begin(120)
    assert clock.left() == "?"
    clock.at(0, 20)
    time.now += 20
    assert clock.left() == "1:40"
    clock.ended(0, 60)  # pruned: its other 40 steps will not be trained
    assert clock.left() == "1:00"


def test_what_a_resumed_trial_had_done_before_is_no_speed(time: Time) -> None:
    clock = Clock()
    clock.begin(20)
    clock.at(0, 20)
    clock.begin(40)  # it paused at 20, and goes on to 60; its log is read again from the start
    clock.at(0, 10)
    clock.at(0, 20)
    clock.at(0, 30)
    time.now += 10
    assert clock.progress() == "10 of 40 steps, 0:30 left"


def test_half_a_minute_without_a_line_prints_the_progress(time: Time) -> None:
    out = io.StringIO()
    plain = PlainScreen(Console(file=out, width=80))
    with plain.running(1, 0, 60):
        plain.trial_started(0, {"optimizer.lr": 1e-3}, CONFIG)
        plain.measured(Measurement(0, 1, {"loss": 4.0}))
        time.now += 29
        plain.waited()
        assert out.getvalue() == ""
        time.now += 1
        plain.waited()
        plain.waited()
        assert out.getvalue() == "1 of 60 steps, 29:30 left\n"
        time.now += 29
        plain.note("a line")
        time.now += 29
        plain.waited()
        assert out.getvalue().splitlines()[-1] == "a line"
