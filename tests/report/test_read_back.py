"""A report that is written again from summary.json is the report that the sweep wrote."""

from pathlib import Path

import pytest

from lrsweep.files.paths import SweepFolder
from lrsweep.report.page import page
from lrsweep.report.summary import read_summary
from lrsweep.report.text import sentences
from tests.analysis.recorded import recorded, summary_of


@pytest.mark.parametrize("seconds", [10.46, 10.5049, 59.96, 3599.52])
def test_the_time_is_told_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.chdir(tmp_path)
    ended = summary_of(recorded("smollm2_wordnet"), 40, seconds=seconds)
    again = read_summary(SweepFolder("recorded"))
    assert sentences(again) == sentences(ended)
    assert page(again, {}, "") == page(ended, {}, "")
