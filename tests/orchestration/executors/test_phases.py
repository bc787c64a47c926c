"""What the terminal shows of a worker that has nothing to show yet."""

import pytest

from lrsweep.orchestration.executors.phases import PhaseHandler, Phases
from lrsweep.training.phases import NONE, phase


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("lrsweep.orchestration.executors.phases.time.monotonic", lambda: self.now)


def test_only_what_takes_long_is_shown_once_and_then_for_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    time, phases = Time(monkeypatch), Phases()
    with PhaseHandler(phases.begin):
        phase("reading the data")
        time.now += 1
        assert phases.news() == []
        phase("loading the model")
        time.now += 2
        assert phases.news() == ["loading the model"]
        assert phases.news() == []
        time.now += 10
        phase("evaluating")
        time.now += 5
        assert phases.news() == ["evaluating (loading the model took 0:12)"]
        phase(NONE)
        time.now += 60
        assert phases.news() == []
    phase("after the end")
    time.now += 60
    assert phases.news() == []
