"""Real sweeps that the verdict was once wrong about, from their curves to the sentences and the export."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrsweep import dialects
from lrsweep.analysis.priors import Factor, Prior
from lrsweep.files.row_losses import RowLosses
from lrsweep.report.text import sentences
from tests.analysis.recorded import Trained, recorded, summary_of


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def guess(lr: float) -> Prior:
    return Prior(lr, (Factor("all of it", lr, "a test"),))


def test_a_real_models_u_has_its_best_inside_and_no_ties() -> None:
    """SmolLM2-135M-Instruct, 40 steps: 1e-3 is best, 1e-5 has hardly moved, 1e-2 is far too high."""
    summary = summary_of(recorded("smollm2_wordnet"), 40, guess(2.3e-4), "search.replicates=1")
    verdict = summary.verdict
    assert verdict.best is not None
    assert verdict.best.lr == 1e-3
    assert verdict.ties == verdict.candidates[:1]
    assert verdict.edges == ()
    safe = verdict.safe_range
    assert safe is not None
    assert 3e-4 < safe.low <= 1e-3 <= safe.high < 1e-2
    assert {r.lr: summary.label(r.number) for r in summary.results if r.lr in (1e-5, 1e-3, 1e-2)} == {
        1e-5: "too_low",
        1e-3: "healthy",
        1e-2: "too_high",
    }
    said = sentences(summary)
    assert said[0].startswith("Best: optimizer.lr=0.001 with eval loss 2.7343")
    known = "0.0195 (1.9% of the improvement) higher. Noise was not measured, so this may be chance: "
    assert any(
        f"{known}search.replicates=auto trains the best three trials with 2 to 4 seeds." in line for line in said
    )
    unfinished = sentences(summary_of(recorded("smollm2_wordnet"), 40))
    assert any(f"{known}no trial has completed with a second seed." in line for line in unfinished)
    assert any("rule of thumb" in line and "was off: 0.00023 is 4.3 times too low" in line for line in said)
    assert not any("tied" in line for line in said)
    assert any(line.startswith("Safe learning rates: ") and "of the improvement" in line for line in said)


def test_the_better_of_two_trials_is_recommended_and_exported() -> None:
    """A small Qwen2, 30 steps, after two extensions: 0.01 ends at 1.65, and 0.03, the highest tried, at 2.19."""
    summary = summary_of(recorded("newcomer_full"), 30, None, "search.extend=true", "finetune=full")
    assert summary.verdict.best is not None
    assert summary.verdict.best.number == 7
    assert summary.verdict.edges == ()
    assert sentences(summary)[0].startswith("Best: optimizer.lr=0.01 with eval loss 1.6451")
    exported = dialects.export(summary, "transformers")
    assert "learning_rate: 0.01\n" in exported
    assert "0.03" not in exported


def test_a_best_at_the_edge_is_told_first_everywhere() -> None:
    trials = recorded("newcomer_full")[:7]
    summary = summary_of(trials, 30, guess(1.2e-4), "finetune=full")
    first = sentences(summary)[0]
    assert first.startswith("Best so far: optimizer.lr=0.003")
    assert "Warning: optimizer.lr=0.003 is the highest value tried; the true best may lie beyond it." in first
    assert summary.verdict.safe_range is None
    for dialect in dialects.DIALECTS:
        if dialect in ("hydra", "transformers"):
            text = dialects.export(summary, dialect)
            comments = [line for line in text.splitlines() if line.startswith("#")]
            assert any("optimizer.lr=0.003 is the highest value tried" in line for line in comments), text
    assert not any("was off" in line or "was right" in line for line in sentences(summary))


def test_the_rules_own_trial_is_not_said_to_be_near_itself() -> None:
    trials = recorded("smollm2_wordnet")
    summary = summary_of(trials, 40, guess(1e-3))
    assert any("was right: its own rate, 0.001, is the best" in line for line in sentences(summary))


@pytest.mark.parametrize(
    ("spread", "count", "said"),
    [
        (0.5, 64, "The rows add more noise than the seeds"),
        (0.005, 64, ""),
        (0.001, 9, "The seeds add more noise than the rows"),
    ],
)
def test_what_the_eval_rows_do_to_the_certainty_is_said(spread: float, count: int, said: str) -> None:
    """Two inner rates 0.02 apart, each with a second seed; the rows differ between them by `spread`."""
    gaps = [0.02 + spread * (1 if i % 2 else -1) for i in range(count)]
    tokens = tuple([10] * count)
    easy = RowLosses(tuple([20.0] * count), tokens)
    hard = RowLosses(tuple(20.0 + 10 * gap for gap in gaps), tokens)
    curve = [(0, 4.0), (10, 3.0), (20, 2.5)]
    trials = [
        Trained(1e-4, [*curve, (40, 2.5)]),
        Trained(3e-4, [*curve, (40, 2.0)], rows=easy),
        Trained(1e-3, [*curve, (40, 2.02)], rows=hard),
        Trained(3e-3, [*curve, (40, 2.6)]),
        Trained(3e-4, [*curve, (40, 2.01)], (), "complete", "replicate", 1, {"training.seed": 1}),
        Trained(1e-3, [*curve, (40, 2.05)], (), "complete", "replicate", 2, {"training.seed": 1}),
    ]
    lines = [line for line in sentences(summary_of(trials, 40)) if f"on these {count} eval rows" in line]
    assert len(lines) == bool(said)
    if said:
        assert said in lines[0]
    few = any(f"only {count} eval rows" in line for line in sentences(summary_of(trials, 40)))
    assert few == (count < 16)


def test_few_evaluations_are_said() -> None:
    said = sentences(summary_of(recorded("smollm2_wordnet"), 40, None, "training.eval_every=20"))
    assert any("each trial was evaluated twice" in line for line in said)
    assert not any("evaluated twice" in line for line in sentences(summary_of(recorded("smollm2_wordnet"), 40)))


LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@st.composite
def sweeps(draw: st.DrawFn) -> list[Trained]:
    """Trials at neighbouring rates with random ends, some with replicates."""
    count = draw(st.integers(1, 8))
    first = draw(st.integers(0, 8 - count))
    loss = st.one_of(st.floats(1.0, 4.2), st.sampled_from([2.0, 2.001, 2.01, 9.0]))
    trials: list[Trained] = []
    for lr in LADDER[first : first + count]:
        status: Any = draw(st.sampled_from(["complete"] * 6 + ["diverged", "pruned"]))
        end = draw(loss)
        middle = draw(st.floats(min(end, 4.0), 4.2))
        trials.append(Trained(lr, [(0, 4.0), (20, middle), (40, end)], status=status))
    complete = [i for i, trial in enumerate(trials) if trial.status == "complete"]
    for of in draw(st.lists(st.sampled_from(complete), unique=True, max_size=3)) if complete else []:
        for seed in range(1, draw(st.integers(2, 3))):
            ended: Any = draw(st.sampled_from(["complete"] * 9 + ["diverged"]))
            end = trials[of].evals[-1][1] + draw(st.floats(-0.05, 0.05))
            trials.append(
                Trained(
                    trials[of].lr, [(0, 4.0), (20, end), (40, end)], (), ended, "replicate", of, {"training.seed": seed}
                )
            )
    return trials


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sweeps(), st.sampled_from(LADDER))
def test_nothing_that_is_said_contradicts_the_rest(trials: list[Trained], prior: float) -> None:
    summary = summary_of(trials, 40, guess(prior))
    verdict, said = summary.verdict, sentences(summary)
    text = "\n".join(said)
    if verdict.best is None:
        assert said == ["No trial completed, so there is no best."]
        return
    assert ("Inconclusive" in text) == bool(verdict.inconclusive)
    if verdict.inconclusive:
        assert "was right" not in text
        assert "was off" not in text
        assert "Safe learning rates" not in text
    # What is recommended, or as good as the best, is not called worse than others.
    labels = {candidate.result.number: summary.label(candidate.result.number) for candidate in verdict.ties}
    assert not {"too_low", "too_high"} & {*labels.values(), summary.label(verdict.best.number)}
    # Ties are claimed only where noise was measured, and then nothing within noise is more than chance.
    if verdict.noise is None:
        assert "Statistically tied" not in text
        assert "more than chance" not in text
    assert not ("Statistically tied" in text and "more than chance" in text)
    # The recommendation costs no more than is said, and leaves danger only if nothing else is as good.
    assert verdict.given_up <= 0.01 * (verdict.improvement or 0.0)
    if verdict.noise is not None:
        assert verdict.given_up <= 3 * verdict.noise.deviation
    if verdict.edges:
        assert said[0].startswith("Best so far")
        assert "Warning: " in said[0]
    safe = verdict.safe_range
    if safe is not None:
        assert verdict.best.lr in safe
        tried = sorted({trial.lr for trial in trials if trial.role == "search"})
        diverged = {trial.lr for trial in trials if trial.status == "diverged"}
        for below, above in itertools.pairwise(tried):
            assert not (below in diverged and above in safe)
            assert not (above in diverged and below in safe)
        if prior in safe:
            assert "was off" not in text
