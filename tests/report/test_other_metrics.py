"""A sweep that is ranked by another number than the eval loss shows that number, with its own sign."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import lrsweep
from lrsweep.analysis.priors import Prior
from lrsweep.cli import list_sweeps
from lrsweep.files.paths import SweepFolder
from lrsweep.report.page import page
from lrsweep.report.text import sentences
from lrsweep.tracking import DatasetInfo, compare_url
from tests.analysis.recorded import Trained, summary_of

NO_PRIOR: Prior | None = None


def test_an_accuracy_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # Scores, as trials keep them: the negative of what is best at its highest.
    trials = [
        Trained(lr, [(0, -0.5), (10, -0.6), (20, -best)])
        for lr, best in ((1e-5, 0.61), (1e-4, 0.7), (1e-3, 0.83), (1e-2, 0.75))
    ]
    ranked = ("search.metric=eval_accuracy", "search.direction=maximize", "search.replicates=1")
    summary = summary_of(trials, 20, NO_PRIOR, *ranked)
    assert "eval_accuracy 0.8300" in sentences(summary)[0]
    shown = page(summary, {}, "")
    assert "0.8300" in shown
    assert not re.search(r"-0\.\d{4}", shown)
    (folder,) = [SweepFolder("recorded")]
    (folder.path / "config.yaml").write_text(json.dumps(summary.config.masked()))
    result = lrsweep.load("recorded")
    assert result.best is not None
    assert result.best.eval_loss == pytest.approx(0.83)
    assert result.trials.eval_accuracy.tolist() == pytest.approx([0.61, 0.7, 0.83, 0.75])
    assert "eval_accuracy 0.8300" in repr(result)
    list_sweeps.run([])
    assert "0.8300" in capsys.readouterr().out


def test_mlflows_page_is_sorted_by_it() -> None:
    url = compare_url("http://x", "1", metric="eval_accuracy", lowest_first=False)
    assert "orderByKey=metrics.%60eval_accuracy%60&orderByAsc=false" in url


def test_nothing_is_said_of_rows_and_a_model_that_only_the_users_command_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trials = [Trained(lr, [(5, 2.5), (10, best)]) for lr, best in ((1e-4, 2.2), (1e-3, 2.0), (1e-2, 2.1))]
    theirs = ("engine=external", "engine.dialect=trl", "engine.command='trl sft --config {config}'")
    ours, other = summary_of(trials, 10, NO_PRIOR), summary_of(trials, 10, NO_PRIOR, *theirs)
    other = dataclasses.replace(
        other, about=dataclasses.replace(other.about, dataset=DatasetInfo("", "", "", train_rows=0, eval_rows=0))
    )
    assert "embedded model" in " ".join(sentences(ours))
    assert "64 eval rows" in page(ours, {}, "")
    for text in (" ".join(sentences(other)), page(other, {}, "")):
        assert "embedded model" not in text
        assert "0 eval row" not in text
