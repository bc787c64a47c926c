"""The labels of a sweep's curves agree with what the sweep found."""

import json
from pathlib import Path

import pytest

from lrsweep.analysis.priors import Prior
from tests.analysis.recorded import Trained, summary_of

NO_PRIOR: Prior | None = None
# A LoRA sweep of SmolLM2-135M-Instruct (+sweep=smollm2_lora), without its seeds.
RECORDED = Path(__file__).parent.parent / "fixtures" / "labels" / "smollm2.json"


def test_no_rate_above_the_best_is_called_too_low(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recorded = json.loads(RECORDED.read_text())
    summary = summary_of([Trained(**trial) for trial in recorded], 32, NO_PRIOR)
    found = {result.lr: summary.label(result.number) for result in summary.results}
    assert found == {
        1e-4: "too_low",
        3e-4: "too_low",
        1e-3: "healthy",
        1.7e-3: "healthy",
        3e-3: "healthy",
        1e-2: "too_high",
        3e-2: "too_high",
    }


def test_trials_with_another_loss_are_no_measure_of_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials of the default sweep at one rate: DFT takes the eval loss up, and that says nothing of the rate."""
    monkeypatch.chdir(tmp_path)
    plain = Trained(
        3e-3,
        [(0, 4.55), (4, 4.34), (8, 4.14), (12, 4.09), (16, 4.08)],
        [
            (1, 4.13),
            (2, 4.32),
            (3, 4.04),
            (4, 4.03),
            (5, 3.94),
            (6, 4.0),
            (7, 3.76),
            (8, 3.81),
            (9, 3.74),
            (10, 4.36),
            (11, 4.04),
            (12, 3.58),
            (13, 3.6),
            (14, 3.6),
            (15, 3.99),
            (16, 3.68),
        ],
    )
    evals = [(0, 4.55), (4, 4.45), (8, 4.61), (12, 4.87), (16, 4.93)]
    losses = [
        (1, 4.13),
        (2, 4.32),
        (3, 4.07),
        (4, 4.1),
        (5, 4.03),
        (6, 4.19),
        (7, 4.03),
        (8, 4.17),
        (9, 4.11),
        (10, 4.71),
        (11, 4.71),
        (12, 4.37),
        (13, 4.46),
        (14, 4.42),
        (15, 4.82),
        (16, 4.55),
    ]
    alike = Trained(3e-3, evals, losses)
    other = Trained(3e-3, evals, losses, overrides={"training.loss": "dft"})
    assert summary_of([plain, alike], 16, NO_PRIOR).label(1) == "too_low"
    assert summary_of([plain, other], 16, NO_PRIOR).label(1) != "too_low"
