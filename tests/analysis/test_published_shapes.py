"""Small logs with the shapes of published ones, one for each way to be wrong: what must and must not be said."""

from pathlib import Path
from typing import Any

import pytest

from lrsweep.analysis import log_readers
from lrsweep.analysis.diagnosis import Diagnosis, diagnose
from lrsweep.analysis.diagnosis.curve import CERTAIN

CURVES = Path(__file__).parents[1] / "fixtures" / "curves"
EXPECTED = {
    "01_zero_tail.json": "diverged",
    "02_null_tail.json": "diverged",
    "03_string_nan_tail.json": "diverged",
    "04_exploded_reads_too_low.json": "diverged",
    "05_rising_noisy_reads_too_low.json": "unknown",
    "06_blown_up_at_step_2.json": "diverged",
    "07_three_epoch_overfit.json": "overfitting",
    "08_memorised_overfit.json": "overfitting",
    "09_dense_evals_overfit.json": "overfitting",
    "10_dense_evals_plateau.json": "healthy",
    "11_proportional_noise.json": "healthy",
    "12_bump_then_better.json": "healthy",
    "13_eval_bump.json": "healthy",
    "14_one_nan_eval.json": "healthy",
    "15_all_evals_nan.json": "unknown",
    "16_grpo.json": "unknown",
    "17_nan_from_first_step.json": "diverged",
    "18_epochs_repeat_exactly.json": "inert",
    "19_two_eval_sets_mixed.json": "healthy",
    "20_restarted_log_appended.jsonl": "healthy",
    "21_chance_level.json": "collapsed",
    "22_quick_fall_plateau.json": "healthy",
    "23_hf_strings.jsonl": "healthy",
    "24_console.txt": "healthy",
    "25_running_log.txt": "healthy",
    "26_log_history_list.json": "healthy",
    "27_bom.json": "healthy",
    "28_wandb.csv": "healthy",
}


def nowhere(run_id: str) -> list[Any]:
    raise AssertionError(run_id)


def found(name: str) -> Diagnosis:
    return diagnose(log_readers.read(str(CURVES / name), nowhere))


def test_every_file_has_an_expectation() -> None:
    assert sorted(EXPECTED) == sorted(path.name for path in CURVES.iterdir())


@pytest.mark.parametrize("name", EXPECTED)
def test_the_label(name: str) -> None:
    diagnosis = found(name)
    assert diagnosis.label == EXPECTED[name], diagnosis.evidence["reason"]
    assert diagnosis.confidence >= CERTAIN


def reason(name: str) -> str:
    return str(found(name).evidence["reason"])


def advice(name: str) -> str:
    return " ".join(f"{one.text} {dict(one.overrides)}" for one in found(name).advice)


def test_the_reasons_say_what_was_seen() -> None:
    assert "exactly 0 from step 130 on" in reason("01_zero_tail.json")
    assert "from step 80 on" in reason("02_null_tail.json")
    assert "never rises" not in reason("05_rising_noisy_reads_too_low.json")
    assert "not clear enough for too_high" in reason("05_rising_noisy_reads_too_low.json")
    assert "GRPO and PPO, where the loss is no measure" in reason("16_grpo.json")
    assert "every 8 rows" in reason("18_epochs_repeat_exactly.json")
    assert "ln 3" in reason("21_chance_level.json")
    assert "overfitting would not be seen" in reason("23_hf_strings.jsonl")
    assert float(found("09_dense_evals_overfit.json").evidence["step"]) == pytest.approx(1700, abs=200)


def test_the_remedies_fit_the_cause() -> None:
    for name in ("04_exploded_reads_too_low.json", "06_blown_up_at_step_2.json"):
        assert "raise the learning rate" not in advice(name)
    # A step down from 5.0 is no remedy.
    assert "'optimizer.lr': 0.0001" in advice("06_blown_up_at_step_2.json")
    for name in ("15_all_evals_nan.json", "17_nan_from_first_step.json"):
        assert "lower the learning rate" not in advice(name)
        assert "masked" in advice(name)
    assert "bf16 instead of fp16" in advice("17_nan_from_first_step.json")
    assert "attention implementation" in advice("17_nan_from_first_step.json")
    assert "'training.max_steps': 1000" in advice("07_three_epoch_overfit.json")
