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
