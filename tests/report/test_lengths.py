"""What is said of the length of the run does not contradict itself."""

import math
from pathlib import Path

import pytest

from lrsweep.report.text import sentences
from tests.analysis.recorded import Trained, summary_of


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ((3e-3, 3e-3), "Of the rates tried, the best one stays the same as runs get longer: 0.003 for 30 steps, 0.003"),
        ((3e-3, 1e-3), "Of the rates tried, the best one falls as runs get longer: 0.003 for 30 steps, 0.001 for 60"),
    ],
)
def test_the_best_rate_of_each_length_is_that_of_the_rates_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: tuple[float, float], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trials = [
        Trained(
            lr,
            [(0, 4.0), (steps, 2 + 0.3 * math.log10(lr / lowest) ** 2)],
            overrides={"training.max_steps": steps},
        )
        for steps, lowest in zip((30, 60), best, strict=True)
        for lr in (3e-4, 1e-3, 3e-3, 1e-2)
    ]
    found = " ".join(sentences(summary_of(trials, 60, None)))
    assert said in found
