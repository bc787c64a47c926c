"""What a sweep prints while it trains, in a notebook and where there is no terminal."""

import contextlib
import io

import pytest
from rich.console import Console

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.formatting import format_factor
from lrsweep.report.clock import Clock
from lrsweep.report.screen import NotebookScreen, PlainScreen
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


def test_the_start_does_not_count_once_more_than_the_first_steps_are_known(time: Time) -> None:
    clock = Clock()
    clock.begin(90)
    time.now += 60  # the model is loaded and evaluated
    for number in range(8):
        clock.at(number, 1)
    assert clock.progress() == "8 of 90 steps, 10:15 left"
    time.now += 8
    for number in range(8):
        clock.at(number, 2)
    assert clock.progress() == "16 of 90 steps, 1:14 left"
    time.now += 40  # an evaluation, which other steps will need too
    assert clock.progress() == "16 of 90 steps, 7:24 left"
    clock.begin(30)  # the next round
    assert clock.left() == "0:30"


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


def test_a_notebooks_table_says_the_best_so_far_and_stays() -> None:
    shown: list[str] = []
    screen = NotebookScreen(shown.append)
    screen.note("60 steps to train")
    with contextlib.suppress(KeyboardInterrupt), screen.running(3, 0, 60):
        for number, loss in ((0, 4.0), (1, 3.0), (2, 1.0)):
            screen.trial_started(number, {"optimizer.lr": 10.0 ** (number - 4)}, CONFIG)
            screen.measured(Measurement(number, 60, {"eval_loss": loss}))
        screen.trial_finished(0, "complete", "")
        screen.waited()
        assert "best so far: trial 0 lr=0.0001, eval loss 4.0000" in shown[-1], "the others may still rise"
        screen.trial_finished(1, "complete", "")
        screen.trial_finished(2, "diverged", "loss")
        raise KeyboardInterrupt
    assert "60 steps to train" in shown[-1]
    assert "best so far: trial 1 lr=0.001, eval loss 3.0000" in shown[-1]
    assert "2/3" not in shown[-1]
    assert "3/3" in shown[-1]


def test_factors_have_no_exponent() -> None:
    assert [format_factor(value) for value in (3.14, 9.06, 23.4, 234.5, 12345.0)] == [
        "3.1",
        "9.1",
        "23",
        "230",
        "12000",
    ]
