"""Small logs with the shapes of published ones, one for each way to be wrong: what must and must not be said."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, norm

from lrsweep.analysis import log_readers
from lrsweep.analysis.diagnosis import Diagnosis, diagnose, no_fault, trend
from lrsweep.analysis.diagnosis.curve import CERTAIN, Curve, curve

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


def judged(
    losses: list[float], *, first: float = 10, epochs: list[float] | None = None, **others: list[float]
) -> Diagnosis:
    """The diagnosis of a log with a loss every ten steps, from step `first` on, and other series beside it."""
    rows: list[dict[str, Any]] = [
        {"step": first + 10 * i, "loss": loss, "learning_rate": 1e-4} for i, loss in enumerate(losses)
    ]
    for name, values in {**others, **({} if epochs is None else {"epoch": epochs})}.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return diagnose(curve(rows))


def evaluated(losses: Iterable[float], **others: list[float]) -> Diagnosis:
    """The diagnosis of a log of evaluations only."""
    rows = [{"step": 10 * i, "eval_loss": loss} for i, loss in enumerate(losses, 1)]
    for name, values in others.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return diagnose(curve(rows))


def noisy(level: float, n: int, spread: float = 0.02) -> list[float]:
    return [level * (1 + spread * math.sin(7.3 * i * i)) for i in range(n)]


def test_a_window_from_the_middle_of_a_run_is_not_accused_of_what_was_before_it() -> None:
    flat = noisy(4.0, 20, 0.002)
    assert judged(flat).label == "too_low"
    assert judged(flat, first=5900).label == "healthy"
    assert judged(flat, epochs=[49.0 + i for i in range(20)]).label == "healthy"
    bump = [5.284, 5.35, 7.2, 7.3, 7.238, *noisy(5.6, 8)]
    assert judged(bump, first=51000).label != "too_high"
    huge = judged(noisy(3e8, 20, 0.3), first=5900)
    assert (huge.label, "far above any cross-entropy" in str(huge.evidence["reason"])) == ("unknown", True)


def test_a_classifier_that_falls_back_to_chance_has_collapsed() -> None:
    losses = [1.0, 0.95, 0.9, 1.0, 0.8, 0.85, 0.75, 0.78, 2.14, *noisy(2.25, 12)]
    accuracies = [0.7, 0.71, 0.73, 0.7, 0.77, 0.75, 0.77, 0.76, 0.21, *noisy(0.15, 12, 0.4)]
    found = judged(losses, accuracy=accuracies)
    assert found.label == "collapsed"
    assert "ln 10" in str(found.evidence["reason"])
    assert judged(losses).label == "too_high"


@pytest.mark.parametrize(
    ("level", "accuracies"),
    [
        (2.32, [16.5, 16.5, 20.5, 27.5, 12.5, 18.5, 22.5, 22.0, 22.0, 25.0]),  # in bits and percent, as in fairseq
        (0.722, [0.494, 0.498, 0.497, 0.501, 0.503, 0.498, 0.5, 0.499, 0.502, 0.5]),  # a little above ln 2
    ],
)
def test_chance_is_seen_in_bits_in_percent_and_above_the_bare_logarithm(level: float, accuracies: list[float]) -> None:
    assert judged(noisy(level, 10, 0.005), accuracy=accuracies).label == "collapsed"
    learned = [0.6 + 0.03 * i for i in range(10)]
    assert judged(noisy(level, 10, 0.005), accuracy=learned).label != "collapsed"


def test_losses_that_end_exactly_at_chance_have_collapsed_however_they_began() -> None:
    assert judged([0.6773, 2.1, 5.335, 10.7, 3.2, 1.1, 0.9, *[0.6931] * 8]).label == "collapsed"


def test_an_epoch_that_repeats_is_inert_and_a_run_that_was_started_again_is_not() -> None:
    epoch = [0.9741, 1.3742, 1.2390, 0.9670, 1.0386, 1.1681, 1.2240, 0.9610]
    assert judged([*epoch, *epoch[:6]]).label == "inert"
    falling = [3.7 - 0.0571 * i for i in range(40)]
    assert judged([*falling, *falling[:8]]).label != "inert"


def test_few_digits_are_equal_by_chance() -> None:
    falls = [3.2, 2.8, 2.5, 2.2, 2.0, 1.9, 1.8, 1.7, 1.65, 1.62]
    assert judged([*falls, *[1.61] * 5]).label == "healthy"
    noise = noisy(1.23, 8, 0.01)
    assert judged(noise, eval_loss=noise, eval_accuracy=[0.68] * 8).label != "collapsed"
    assert judged(noise, eval_loss=noise, eval_accuracy=[0.6833] * 8).label == "collapsed"
    # bfloat16 has 128 numbers between 1 and 2.
    draw = np.random.default_rng(0)
    losses = np.round((1.2 + 2.5 * np.exp(-np.arange(1000) / 150) + draw.normal(0, 0.12, 1000)) * 64) / 64
    assert judged([float(loss) for loss in losses]).label == "healthy"


def test_a_classifier_of_two_that_falls_back_to_chance_has_collapsed() -> None:
    losses = [*noisy(0.3, 10), 0.9, *noisy(0.694, 10, 0.002)]
    assert judged(losses, accuracy=[*noisy(0.9, 10), 0.6, *noisy(0.51, 10)]).label == "collapsed"


def test_a_log_with_too_few_digits_is_not_judged() -> None:
    assert judged([0.0044, 0.0043, 0.0044, 0.0044, 0.0043, 0.0043, 0.0044, 0.0043, 0.0043, 0.0043]).label == "unknown"


def test_zeros_alone_say_nothing() -> None:
    assert judged([0.0] * 5, eval_loss=[0.0] * 5).label == "unknown"
    assert judged([0.0] * 8, accuracy=[0.085] * 8).label == "inert"
    assert judged([2.1, 0.0, 0.0, 0.0, 0.0]).label == "diverged"


def test_a_constant_loss_of_chance_is_a_collapse() -> None:
    assert judged([0.6932] * 8).label == "collapsed"
    assert judged([4.6] * 8).label == "collapsed"
    assert judged([0.65] * 8).label == "inert"


def test_a_run_that_ends_in_a_jump_is_not_called_healthy() -> None:
    losses = [0.6931, 0.4, 0.2, 0.9, 0.1, 0.05, 0.02, 0.01, 0.001]
    assert judged([*losses, 16.4]).label == "unknown"
    assert judged([*losses, 16.4, 0.01, 0.01]).label == "healthy"
    falling = [1.2 + 1.8 * math.exp(-i / 5) for i in range(94)]
    assert judged([*falling, 2.4, 2.5, 2.4, 2.45, 2.4]).label == "unknown"


def test_a_language_model_that_stands_still_at_a_high_loss_is_not_called_healthy() -> None:
    stuck = [18.8, 11.0, 8.0, *noisy(7.41, 27, 0.005)]
    assert judged(stuck).label == "unknown"
    assert judged([loss - 4 for loss in stuck]).label == "healthy"
    # In a window from the middle of a run, too.
    assert judged(noisy(11.55, 17, 0.004), first=750).label == "unknown"


def test_a_loss_that_ends_above_its_first_point_does_not_fall() -> None:
    window = judged([4.53, 4.62, 4.61, *noisy(4.55, 15, 0.002)], first=750)
    assert window.label == "healthy"
    assert str(window.evidence["reason"]).startswith("loss goes from 4.53 to 4.5")


def test_evaluations_alone_that_rise_again_are_overfitting() -> None:
    rising = [2.0, 1.2, 0.8, 0.6, 0.5, 0.6, 0.9, 1.1, 1.3, 1.5, 1.5, 1.6, 1.6, 1.7]
    assert evaluated(rising).label == "overfitting"
    assert evaluated([0.7, 0.65, 0.59, *np.linspace(0.6, 2.9, 20)]).label == "overfitting"
    few = evaluated([7.07, 6.22, 6.0, 6.82, 8.08])
    assert few.label == "unknown"
    assert "not clear enough for overfitting" in str(few.evidence["reason"])
    assert evaluated([0.7, 0.9, 1.5, 2.2, 2.6, 2.9, 2.8, 2.9]).label == "diverged"


def test_four_evaluations_in_order_are_no_noise() -> None:
    evals = [4.231, 2.0, 1.6, 1.486, 1.50, 1.53, 1.56, 1.596]
    losses = [4.2, 1.9, 1.4, 1.06, 1.0, 0.93, 0.88, 0.82]
    assert judged(losses, eval_loss=evals).label == "overfitting"
    assert judged(losses, eval_loss=[*evals[:4], 1.5, 1.49, 1.56, 1.55]).label == "healthy"
    # Of ten that rise by less, one may be out of order.
    slow = [6.02, 5.37, 5.0, 4.76, 4.69, 4.673, 4.683, 4.681, 4.694, 4.702, 4.719, 4.724, 4.752, 4.775, 4.783, 4.802]
    assert judged(list(np.linspace(5.9, 2.8, 16)), eval_loss=slow).label == "overfitting"
    mixed = [*slow[:6], 4.802, 4.702, 4.775, 4.683, 4.752, 4.694, 4.783, 4.681, 4.724, 4.719]
    assert judged(list(np.linspace(5.9, 2.8, 16)), eval_loss=mixed).label == "healthy"


def test_a_noisy_rise_counts_if_kendalls_test_sees_it() -> None:
    falling = [1.372, 1.261, 1.155, 1.11, 1.057, 1.01, 1.009, 0.99]
    losses = list(np.linspace(1.8, 0.65, 38))
    noise = [0.035 * math.sin(7.3 * i * i) for i in range(30)]
    rising = [1.02 + 0.0045 * i + noise[i] for i in range(30)]
    assert judged(losses, eval_loss=[*falling, *rising]).label == "overfitting"
    flat = [1.05 + noise[i] for i in range(30)]
    assert judged(losses, eval_loss=[*falling, *flat]).label == "healthy"


@pytest.mark.parametrize("n", [7, 30, 150])
def test_the_test_for_rises_is_kendalls(n: int) -> None:
    draw = np.random.default_rng(n)
    for slope in (0.0, 0.02, 0.1):
        values = draw.normal(0, 1, n) + slope * np.arange(n)
        tau = kendalltau(np.arange(n), values, method="asymptotic")
        assert 2 * trend.ascending(values) - 1 == pytest.approx(tau.statistic)
        # 3 deviations are a probability of 0.0027, counting both sides.
        assert trend.rises_beyond_noise(values) == bool(tau.statistic > 0 and tau.pvalue < 2 * norm.sf(3))


def test_noise_alone_rises_beyond_noise_once_in_a_thousand_times_however_long_it_is() -> None:
    draw = np.random.default_rng(0)
    for n in (50, 250, 390):
        assert sum(trend.rises_beyond_noise(draw.normal(0, 1, n)) for _ in range(1000)) <= 6


def test_a_training_loss_that_a_table_repeats_says_nothing() -> None:
    evals = [0.3946, 0.3746, 0.4288, 0.5352, 0.5768]
    rows = [{"step": 195 * i, "eval_loss": loss, "loss": 0.3644} for i, loss in enumerate(evals, 1)]
    found = diagnose(curve([*({key: row[key] for key in ("step", "eval_loss")} for row in rows[:2]), *rows[2:]]))
    assert found.label == "overfitting"
    assert "while the training loss falls" not in str(found.evidence["reason"])


def test_a_classifier_that_settles_at_chance_has_collapsed_whatever_it_began_with() -> None:
    losses = [1.641, 1.004, 0.805, 0.751, 0.726, 0.712, *[0.6935] * 28, *np.linspace(0.693, 0.690, 10)]
    right = [0.51 + 0.01 * math.sin(3 * i) for i in range(len(losses))]
    assert judged(losses, accuracy=right).label == "collapsed"
    assert judged(losses, accuracy=[0.9] * len(losses)).label != "collapsed"
    slow = list(np.linspace(0.6945, 0.6875, 13))
    assert judged(slow, eval_loss=slow, eval_accuracy=list(np.linspace(0.53, 0.57, 13))).label != "collapsed"


def test_a_constant_that_is_no_loss_has_diverged() -> None:
    assert evaluated([2.73563e31] * 8).label == "diverged"


def test_a_classifier_that_gives_one_answer_has_collapsed_in_a_table_of_epochs_too() -> None:
    assert evaluated([1.1016, 1.0993, 1.099, 1.0986, 1.0983], eval_accuracy=[0.3333] * 5).label == "collapsed"
    assert evaluated([1.351, 0.9606, 0.9693, 1.0445, 1.0005], eval_accuracy=[0.54] * 5).label == "collapsed"
    assert evaluated([1.351, 0.9606, 0.9693, 1.0445], eval_accuracy=[0.54] * 4).label != "collapsed"
    assert evaluated([1.1016, 1.0993, 1.099, 1.0986, 1.0983]).label != "collapsed"
    # What it learns in training may not show in few digits.
    assert (
        judged(list(np.linspace(1.23, 1.07, 10)), eval_loss=[1.8] * 10, eval_accuracy=[0.5] * 10).label != "collapsed"
    )


def test_a_speech_model_with_no_word_right_has_collapsed() -> None:
    stuck = [2.935, 2.94, 2.932, 2.931, 2.93, 2.933]
    assert evaluated(stuck, wer=[1.0] * 6).label == "collapsed"
    assert evaluated(stuck, wer=[1.0, 1.0, 1.0, 1.0, 1.0, 0.93]).label != "collapsed"
    assert evaluated([13.7, 3.1, 3.0, 3.0], wer=[1.0] * 4).label != "collapsed"
    assert evaluated([0.34, 0.32, 0.28, 0.275, 0.273], eval_f1=[0.0] * 5).label == "collapsed"
    assert evaluated([0.511, 0.5256, 0.5305, 0.5583, 0.5193], eval_f1=[0.9546] * 5).label == "collapsed"
    assert evaluated([0.511, 0.5256, 0.5305, 0.5583, 0.5193], eval_f1=[0.95] * 5).label != "collapsed"


def test_an_early_stage_is_no_collapse() -> None:
    falling = [1.5, 1.1, 0.8, 0.6, 0.5, 0.4]
    assert judged(falling, eval_loss=falling, eval_f1=[0.0] * 6).label == "unknown"
    assert evaluated([0.69 - 0.05 * i for i in range(6)], eval_accuracy=[0.7] * 6).label == "healthy"


def test_losses_below_zero_and_beyond_all_bounds_are_no_reason_to_stop() -> None:
    assert judged([0.5] * 4, eval_loss=[-0.5, -0.3, 0.2, 0.4]).label in ("unknown", "healthy")
    assert evaluated([1.0, 1e308, 7.5, 1e10]).label != "healthy"


def test_of_some_noisy_evaluations_the_lowest_is_low_by_luck() -> None:
    accused = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        evals = (1.5 + 0.8 * np.exp(-np.arange(12) / 1.5)) * (1 + draw.normal(0, 0.04, 12))
        accused += judged(list(np.linspace(2, 1, 12)), eval_loss=list(evals)).label == "overfitting"
    assert accused <= 4


def test_a_collapse_is_seen_after_a_first_loss_of_any_size() -> None:
    stuck = [373572.0, *[0.6885] * 30]
    found = judged(stuck, eval_loss=[0.6893] * 31, eval_accuracy=[0.5446] * 31)
    assert found.label == "collapsed"


def test_of_dense_evaluations_a_tenth_is_no_overfitting_unless_they_are_in_order() -> None:
    swings = [0.62 + 0.04 * math.sin(7.3 * i * i) for i in range(37)]
    hovering = [6.2, 3.5, 1.0, 0.65, 0.59, 0.578, *swings]
    assert judged(list(np.linspace(3.0, 0.05, 43)), eval_loss=hovering).label == "healthy"
    rising = [6.2, 3.5, 1.0, 0.65, 0.59, 0.578, *(0.58 + 0.0035 * i for i in range(37))]
    assert judged(list(np.linspace(3.0, 0.05, 43)), eval_loss=rising).label == "overfitting"


def test_a_run_that_does_not_move_is_not_called_healthy() -> None:
    flat = [2.158, 2.16, 2.15, 2.155, 2.157, 2.152, 2.156, 2.154, 2.153, 2.155]
    assert judged(flat, eval_loss=flat).label == "unknown"
    assert judged(flat, first=5900, eval_loss=flat).label == "healthy"
    worse = list(np.linspace(2.189, 2.224, 10))
    assert judged(list(np.linspace(2.2, 2.1, 10)), eval_loss=worse).label == "unknown"


def test_a_table_that_repeats_its_loss_is_not_inert() -> None:
    evals = [4.3, 3.9, 3.7, 3.6, 3.5, 3.45, 3.4]
    assert judged([4.2244] * 7, eval_loss=evals).label != "inert"
    assert judged([4.2244] * 7, eval_loss=[4.30, 4.31, 4.30, 4.29, 4.31, 4.30, 4.30]).label == "inert"


def test_a_loss_that_froze_after_its_first_step_is_inert() -> None:
    assert judged([335.5530, *[335.5533] * 20]).label == "inert"
    assert judged([335.5530, *[335.5533 - 0.001 * i for i in range(20)]]).label != "inert"


def test_rows_that_are_known_by_heart_have_no_rate_that_is_too_high() -> None:
    losses = [0.0006, 0.0011, 0.0047, 0.003, 0.004, 0.0031, 0.0025, 0.0021, 0.0018, 0.0015]
    assert judged(losses, eval_loss=list(np.linspace(0.71, 0.72, 10))).label != "too_high"


def test_what_is_learned_by_heart_from_the_start_is_not_called_healthy() -> None:
    losses = [5.3, 5.1, 4.8, 4.5, 4.2, 4.0, 3.9, 3.82]
    assert judged(losses, eval_loss=[5.33, 5.36, 5.32, 5.4, 5.35, 5.38, 5.36, 5.37]).label == "unknown"
    assert judged(losses, eval_loss=[5.33, 5.2, 5.1, 5.05, 5.0, 4.98, 4.97, 4.97]).label == "healthy"


def test_a_single_zero_counts_after_an_explosion() -> None:
    before = noisy(1.28, 12, 0.01)
    assert judged([*before, 34023.8, 0.0]).label == "diverged"
    assert judged([*before, 1.3, 0.0]).label != "diverged"


def test_nan_at_the_end_counts_below_zero_too() -> None:
    running = [-2.5e5, -1.9e6, -5.2e6, -9.8e6, -1.5e7, -1.9e7]
    assert judged(running).label == "unknown"
    assert judged([*running, math.nan, math.nan, math.nan]).label == "diverged"


def test_a_rising_eval_loss_of_a_model_that_knows_its_rows_by_heart_is_no_divergence() -> None:
    evals = [2.1, 8.0, 20.0, 41.0, 60.0, 55.0, 70.0, 58.0]
    assert judged([0.010, 0.012, 0.009, 0.011, 0.010, 0.012, 0.010, 0.011], eval_loss=evals).label != "diverged"
    assert judged(noisy(2.2, 8), eval_loss=evals).label == "diverged"


def test_a_loss_that_swung_and_settled_does_not_oscillate() -> None:
    swings = [0.9, 0.5, 1.4, 0.6, 1.2, 0.5, 1.1, 0.45, 0.4, 0.35, 0.3, 0.29, 0.28]
    training = [3.0, 2.9, 3.1, 3.0, 2.9, 3.0, 3.1, 2.9, 3.0, 3.0, 2.9, 3.0, 3.0]
    assert judged(training, eval_loss=swings).label != "oscillating"
    assert judged(training, eval_loss=[*swings[:7], 0.5, 1.3, 0.6, 1.2, 0.5, 0.8]).label == "oscillating"


def test_one_nan_evaluation_at_the_end_says_too_little_where_nan_came_and_went() -> None:
    training = [2.2 - 0.05 * i for i in range(10)]
    evals = [3.82, 3.9, 3.98, 4.05, 4.1, 4.18, 4.25, 4.35, 4.45, math.nan]
    assert judged(training, eval_loss=evals).label == "diverged"
    assert judged([*training[:4], math.nan, *training[5:]], eval_loss=evals).label != "diverged"


def test_a_constant_loss_with_one_answer_for_all_has_collapsed() -> None:
    assert judged([8.06] * 10, accuracy=[0.52, *[0.5] * 9]).label == "collapsed"
    assert judged([0.0266] * 10, accuracy=[0.9983] * 10).label == "inert"
    assert judged([8.06] * 10).label == "inert"


def test_losses_of_zero_beside_evaluations_of_zero_are_no_nan() -> None:
    assert judged([0.0] * 8, eval_loss=[0.0] * 8).label == "unknown"
    assert judged([1.3, 1.2, *[0.0] * 8]).label == "diverged"


def test_noise_that_may_hide_a_fall_is_no_low_rate() -> None:
    falling = [4.283 - 0.03 * i + 0.25 * math.sin(7.3 * i * i) for i in range(12)]
    assert judged(falling).label == "healthy"


def test_a_repeated_loss_beside_evaluations_that_rise_each_time_is_not_inert() -> None:
    evals = [4.65 + 0.011 * i for i in range(15)]
    assert judged([4.2244] * 15, eval_loss=evals).label != "inert"


def test_a_constant_loss_of_as_many_classes_as_a_text_has_places_is_a_collapse() -> None:
    assert evaluated([5.9506] * 10).label == "collapsed"  # ln 384


def test_a_speech_model_that_knows_its_rows_has_not_collapsed_whatever_its_words_are_measured_by() -> None:
    evals = [0.9, 0.5, 0.55, 0.62, 0.7, 0.8, 0.9, 1.0, 1.05, 1.1]
    train = list(np.geomspace(2.5, 0.014, 10))
    assert judged(train, eval_loss=evals, eval_wer=[1.0] * 10).label == "overfitting"
    assert (
        judged([7.0, 3.1, *noisy(2.95, 8, 0.01)], eval_loss=[*noisy(2.9, 10, 0.005)], eval_wer=[1.0] * 10).label
        == "collapsed"
    )


def test_a_few_losses_that_hardly_fall_are_no_low_rate_by_themselves() -> None:
    warming_up = [10.875 - 0.168 * (i / 13) ** 2 for i in range(14)]
    assert judged(warming_up).label != "too_low"
    evals = [10.875, 10.84, 10.80, 10.77, 10.73]
    rows = [{"step": 10 * i, "eval_loss": loss, "learning_rate": 1e-5} for i, loss in enumerate(evals)]
    untrained = diagnose(curve(rows))
    assert untrained.label == "too_low"


def test_evaluations_a_little_above_the_first_are_not_enough_to_accuse_the_rate() -> None:
    evals = [5.093, 5.20, 5.26, 5.31, 5.29, 5.27, 5.28, 5.29, 5.28, 5.28, 5.283]
    train = [5.77, *[5.50] * 10]
    assert judged(train, eval_loss=evals).label != "too_high"


def test_zeros_among_losses_that_no_model_has_are_a_divergence() -> None:
    assert judged([0.0, 1085325.8, 27.4, 0.0, 4e7, 308.5, 0.0, 5.4e10, 201.1, 49.1, 1.3e7]).label == "diverged"


def test_a_run_that_froze_at_the_share_of_its_largest_class_has_collapsed() -> None:
    losses = [3.479 + 0.2 * math.exp(-i / 1.3) for i in range(15)]
    rare = [0.0326, 0.0524, 0.0503, *[0.0550 + 0.0005 * (i % 3) for i in range(12)]]
    assert judged(losses, eval_loss=losses, eval_accuracy=rare).label == "collapsed"
    assert judged(losses, eval_loss=losses, eval_accuracy=[0.5 + x for x in rare]).label != "collapsed"


def test_evaluations_of_two_classes_at_chance_have_collapsed_without_an_accuracy_too() -> None:
    evals = [0.7053, 0.6936, 0.6940, 0.6931, 0.6935, 0.6966, 0.6934, 0.6931, 0.6932, 0.6931, 0.6933, 0.6932]
    train = [3.957, 0.6998, 0.6979, 0.694, 0.7039, 0.6928, 1.0736, 0.6933, 0.6933, 0.6932, 0.6931, 0.6932]
    assert judged(train, eval_loss=evals).label == "collapsed"


def test_a_noisy_run_that_began_with_a_lucky_row_is_not_accused() -> None:
    draw = np.random.default_rng(0)
    losses = [0.9511, *(1.2 + draw.normal(0, 0.13, 49))]
    assert judged(losses).label in ("unknown", "healthy")


def test_a_running_sum_and_zeros_among_huge_losses_are_not_judged() -> None:
    sums = [float(loss * batch) for loss in (2.0, 1.5, 1.2, 1.0) for batch in (1, 50, 100, 150)]
    epochs = [float(epoch) for epoch in range(4) for _ in range(4)]
    assert judged(sums, epochs=epochs).label == "unknown"
    assert judged([3278.6, 0.0, 778.3, *[0.0] * 7]).label == "unknown"


def test_a_loss_that_froze_after_a_large_first_step_is_inert() -> None:
    assert judged([34.65, *[3.6976] * 9]).label == "inert"
    assert judged([34.65, *[3.6976] * 5]).label != "inert"


def test_a_rise_that_comes_back_is_mentioned_and_is_no_accusation() -> None:
    climbs = [0.5 + 0.05 * i for i in range(12)]
    assert judged(climbs).label == "too_high"
    found = judged([*climbs, *[1.05 - 0.06 * i for i in range(4)], *noisy(0.8, 6)])
    assert found.label == "unknown"
    assert "not clear enough for too_high" in str(found.evidence["reason"])
    # A larger one is too much for a hard part of the data.
    assert judged([0.5, 0.6, *noisy(3.5, 10), *noisy(1.9, 6)]).label in ("too_high", "diverged")


def test_an_end_far_above_the_start_is_an_explosion_though_it_comes_back() -> None:
    peak = [10.9, 10.2, 9.8, 30.0, 182.0, 160.0, 121.0, 90.0, 61.0, 45.0, *noisy(40.0, 5)]
    assert judged(peak).label == "diverged"
    table = judged([0.35, 0.22, 0.18, 0.16, 1.6e18], eval_loss=[5.1, 3.3, 3.1, 3.0, 1.9e7])
    assert table.label == "diverged"


def test_an_accuracy_that_is_lost_again_is_not_called_healthy() -> None:
    accuracies = [0.45, 0.58, 0.67, 0.73, 0.78, 0.8, 0.61, 0.58, 0.57, 0.56]
    losses = [1.2 - 0.04 * i for i in range(10)]
    found = judged(losses, eval_loss=losses, eval_accuracy=accuracies)
    assert (found.label, "lost more than half" in str(found.evidence["reason"])) == ("unknown", True)
    assert judged(losses, eval_loss=losses, eval_accuracy=sorted(accuracies)).label == "healthy"


def test_a_loss_that_ends_above_its_start_is_not_called_too_low() -> None:
    assert judged([x + 0.03 * i for i, x in enumerate(noisy(15.5, 20, 0.02))]).label in ("unknown", "too_high")
    assert judged(noisy(15.5, 20, 0.004)).label == "too_low"


def test_a_log_that_does_not_say_its_rate_is_not_accused_of_it() -> None:
    climbs = [{"step": 10 * i, "loss": 0.5 + 0.05 * i} for i in range(1, 13)]
    found = diagnose(curve(climbs))
    assert found.label == "unknown"
    assert str(found.evidence["reason"]).startswith("loss rises from")
    assert "does not say its learning rate" in str(found.evidence["reason"])
    assert diagnose(curve([row | {"learning_rate": 3e-4} for row in climbs])).label == "too_high"


def training(losses: list[float]) -> Curve:
    return curve([{"step": i, "loss": loss} for i, loss in enumerate(losses, 1)])


def test_many_losses_that_are_the_same_where_there_is_room_are_inert() -> None:
    noise = np.random.default_rng(0).normal(0, 0.008, 34)
    assert diagnose(training([4.69 + float(one) for one in noise])).label == "inert"
    # Two decimals, and hundreds of rows.
    assert diagnose(training([round(5.55 + 0.005 * (i % 3 - 1), 2) for i in range(480)])).label == "inert"
    # A small fall that is no noise: something is learned.
    assert diagnose(training([4.69 - 0.0001 * i for i in range(40)])).label != "inert"
    falling = [{"step": i, "loss": 4.69 + float(one)} for i, one in enumerate(noise)]
    falling += [{"step": i, "eval_loss": 4.7 - 0.0002 * i} for i in (0, 10, 20, 30)]
    assert diagnose(curve(falling)).label != "inert"
    # Beside a run that learns, it may as well be the rate.
    still = curve([{"step": i, "loss": 4.69 + float(one), "learning_rate": 1e-7} for i, one in enumerate(noise)])
    learns = curve([{"step": i, "loss": 4.69 - i / 20, "learning_rate": 1e-3} for i in range(34)])
    assert diagnose(still, [learns]).label == "too_low"
    # A low loss may be all that there is to learn.
    assert diagnose(training([1.1 + float(one) / 10 for one in noise])).label != "inert"


def test_losses_beyond_any_loss_again_and_again_are_a_divergence() -> None:
    assert diagnose(training([7e15, 0.08, 0.09, 3e15, 0.06, 0.07, 0.05])).label == "diverged"
    # Long ago, or once at the start, it may be a bad step.
    assert diagnose(training([7e6, 3.0, 5e6, 2.5, *(2.2 - 0.001 * i for i in range(900))])).label != "diverged"
    assert diagnose(training([7e6, 3.0, 2.5, 2.2, 2.0, 1.9, 1.8, 1.7])).label != "diverged"


def test_a_loss_without_a_bound_below_that_runs_off_is_a_divergence() -> None:
    found = diagnose(training([1.5, 0.6, 0.1, -5.0, -1e3, -1e5, -1e7, -2e8, -1e9, -2e9]))
    assert found.label == "diverged"
    assert "no bound below" in found.evidence["reason"]  # type: ignore[operator]
    assert diagnose(training([700.0, 300.0, 10.0, -200.0, -600.0, -900.0, -1200.0, -1300.0])).label == "unknown"


def test_swings_with_new_stages_of_the_rate_are_not_oscillation() -> None:
    def stage(i: int) -> float:
        return 0.2 + 0.0001 * i + 2.0 * math.exp(-(i % 40) / 8)

    rows = [{"step": i, "loss": stage(i), "learning_rate": 1e-4 * (1 - (i % 40) / 40) + 1e-9} for i in range(200)]
    assert diagnose(curve(rows)).label != "oscillating"
    one_rate = [{**row, "learning_rate": 1e-4} for row in rows]
    assert diagnose(curve(one_rate)).label == "oscillating"


def test_swings_that_do_not_come_back_are_a_rate_that_is_too_high() -> None:
    losses = [0.95 + 0.01 * (i % 3) for i in range(90)]
    losses[0] = 2.3
    losses[45] = losses[60] = losses[75] = 8.0
    after = [2.2 + 3.4 * math.exp(-i / 12) for i in range(40)]
    rows = [{"step": 10 * i, "loss": loss, "learning_rate": 3e-4} for i, loss in enumerate(losses + after, 1)]
    assert diagnose(curve(rows)).label == "too_high"


def test_a_small_rise_beside_all_that_was_learned_is_no_overfitting() -> None:
    """It is a tenth of the level, and a two-hundredth of the way down."""
    draw = np.random.default_rng(1)
    rows = []
    for i in range(400):
        rows.append({"step": i, "loss": 5.0 * math.exp(-i / 300) + 1, "eval_loss": 12.0 if i == 0 else 0.0})
        if i:
            rows[-1]["eval_loss"] = 0.42 + 0.045 * min(i / 60, 1) + float(draw.normal(0, 0.002))
    assert diagnose(curve(rows)).label == "healthy"
    low_start = [{**row, "eval_loss": 0.6 if row["step"] == 0 else row["eval_loss"]} for row in rows]
    assert diagnose(curve(low_start)).label == "overfitting"


def test_a_loss_that_grows_while_evaluations_fall_is_not_accused() -> None:
    rows = [
        {"step": i, "loss": 2e-4 + 1e-3 * i, "learning_rate": 1e-4, "grad_norm": 0.04 + 0.025 * i} for i in range(30)
    ]
    rows += [{"step": i, "eval_loss": 0.013 + 0.016 * math.exp(-i / 6)} for i in range(0, 30, 3)]
    assert diagnose(curve(rows)).label == "healthy"
    alone = [row for row in rows if "loss" in row]
    assert diagnose(curve(alone)).label == "diverged"


def test_evaluations_before_an_explosion_do_not_hide_it() -> None:
    rows = [{"step": i, "loss": 2.0 * math.exp(-i / 30), "learning_rate": 1e-4} for i in range(60)]
    rows += [{"step": i, "eval_loss": 2.1 * math.exp(-i / 30)} for i in range(0, 60, 10)]
    assert diagnose(curve(rows)).label == "healthy"
    rows += [{"step": i, "loss": 40.0 + i % 3, "learning_rate": 1e-4} for i in range(60, 90)]
    assert diagnose(curve(rows)).label == "diverged"


def test_a_rise_with_its_gradient_is_a_rate_that_is_too_high() -> None:
    losses = [1.36, 0.48, 0.58, 0.70, 0.66, 1.04, 0.66, 0.68, 0.86, 0.82]
    norms = [0.24, 0.27, 1.36, 1.28, 17.2, 7.1, 21.8, 23.0, 3.8, 14.4]
    rows = [{"step": i, "loss": loss, "learning_rate": 5e-4} for i, loss in enumerate(losses, 1)]
    assert diagnose(curve(rows)).label != "too_high"
    grown = [{**row, "grad_norm": norm} for row, norm in zip(rows, norms, strict=True)]
    found = diagnose(curve(grown))
    assert found.label == "too_high"
    assert "and the gradient's norm grows from " in str(found.evidence["reason"])


def test_a_loss_that_never_leaves_that_of_a_guess_is_not_called_healthy() -> None:
    falling = [{"step": i, "loss": 0.6931 - 0.00009 * i, "eval_loss": 0.693 - 0.00008 * i} for i in range(40)]
    found = diagnose(curve(falling))
    assert found.label == "unknown"  # it learns a little, so it has not collapsed
    pinned = [{"step": i, "loss": 0.7059 if i == 0 else 0.6931 - 0.00005 * max(i - 40, 0)} for i in range(190)]
    pinned += [{"step": i, "eval_loss": 0.6953 - 0.00003 * i} for i in range(0, 190, 10)]
    found = diagnose(curve(pinned))
    assert found.label == "unknown"
    assert "it never leaves ln 2, the loss of a guess" in str(found.evidence["reason"])
    texts = [{"step": i, "loss": 1.15 - 0.0015 * i, "eval_loss": 1.14 - 0.0015 * i} for i in range(40)]
    assert diagnose(curve(texts)).label == "healthy"
    learning = [{"step": i, "loss": 0.7 - 0.0005 * i} for i in range(190)]
    assert diagnose(curve(learning)).label == "healthy"


def test_a_loss_that_breaks_and_never_comes_back_is_a_divergence_whatever_its_rate() -> None:
    """The log says no learning rate, so a rise alone says nothing."""
    losses = [30 + 3 * math.exp(-i / 30) for i in range(120)]
    broken = [*losses, *(62 + 134 * math.exp(-i / 6) for i in range(60))]
    assert diagnose(training(broken)).label == "diverged"
    assert diagnose(training([*losses, *(31 + 134 * math.exp(-i / 6) for i in range(60))])).label != "diverged"
    at_once = [7.9, *(45 + 8 * math.sin(i) for i in range(48))]
    assert diagnose(training(at_once)).label == "diverged"
    # New rows, or a new part of the loss: it jumps as well, and then falls.
    stages = [2.0, 1.44, 1.06, 0.81, 0.64, 0.53, 0.45, 0.4, 0.37, 0.35]
    assert diagnose(training([*stages, *(0.8 + 0.8 * math.exp(-i / 3) for i in range(10))])).label != "diverged"


def test_losses_that_end_one_far_above_the_other_run_away() -> None:
    calm = [*[0.4 - 0.01 * i for i in range(25)], 1.0, 0.3, 9.9, 6.2]
    assert diagnose(training([*calm, 3.1e4, 2e15])).label == "diverged"
    assert diagnose(training([*calm, 5.0, 2e15])).label == "unknown"  # one may be a bad batch


def test_losses_next_to_the_chance_of_many_classes_have_collapsed() -> None:
    noise = np.random.default_rng(3).normal(0, 0.004, 46)
    stuck = [7.4046, *(math.log(1000) + float(one) for one in noise)]
    assert diagnose(training(stuck)).label == "collapsed"
    # Losses of texts differ more from batch to batch.
    text = [7.4046, *(math.log(1000) + 20 * float(one) for one in noise)]
    assert diagnose(training(text)).label != "collapsed"


def test_one_answer_is_no_matter_where_the_loss_explodes() -> None:
    rows: list[dict[str, float]] = [{"step": i, "loss": 6.9 - 0.0005 * i, "eval_accuracy": 0.001} for i in range(40)]
    assert diagnose(curve(rows)).label == "collapsed"
    rows += [
        {"step": i, "loss": loss, "eval_loss": loss, "eval_accuracy": 0.001} for i, loss in ((40, 27.0), (41, 648.0))
    ]
    assert diagnose(curve(rows)).label != "collapsed"


def test_a_training_loss_that_only_seems_to_fall_is_no_overfitting() -> None:
    """Its noise is 3 %, so that it often ends a little lower than it was beside the lowest evaluation."""
    evals = [0.105] * 11 + [0.08, 0.01, 0.01, 0.03, 0.003, 6e-4, 0.002] + [6e-4] * 4 + [0.06, 0.085, *[0.095] * 8]
    labels = []
    for seed in range(100):
        losses = np.random.default_rng(seed).normal(0.1015, 0.003, 32)
        rows = [{"step": i, "loss": float(losses[i]), "eval_loss": evals[i]} for i in range(32)]
        labels.append(diagnose(curve(rows)).label)
    assert labels.count("overfitting") <= 5
    falling = [{**row, "loss": 0.1 * math.exp(-row["step"] / 20)} for row in rows]
    assert diagnose(curve(falling)).label == "overfitting"


def test_noise_of_the_training_loss_does_not_hide_overfitting() -> None:
    labels = []
    for seed in range(25):
        noise = np.random.default_rng(seed).normal(0, 0.15, 200)
        rows = [{"step": i, "loss": 2.0 - 0.007 * min(i, 100) - 0.001 * max(i - 100, 0) + noise[i]} for i in range(200)]
        rows += [{"step": i, "eval_loss": 1.25 + 0.35 * (1 - i / 100) ** 2} for i in range(0, 200, 10)]
        labels.append(diagnose(curve(rows)).label)
    assert labels.count("overfitting") >= 20


def test_both_losses_rising_is_no_overfitting_however_dense_the_evaluations() -> None:
    def level(i: int) -> float:
        return 4.5 * math.exp(-i / 3) + 0.65 + 0.4 * (1 - math.exp(-i / 60))

    rows = [{"step": i, "loss": level(i), "eval_loss": 1.1 * level(i)} for i in range(600)]
    assert diagnose(curve(rows)).label != "overfitting"


def test_what_is_known_by_heart_and_never_shows_in_evaluations_is_overfitting() -> None:
    rows = [{"step": i, "loss": 5.0 * math.exp(-i / 5), "eval_loss": 5.0 + 1.5 * i} for i in range(20)]
    assert diagnose(curve(rows)).label == "overfitting"
    learning = [{**row, "loss": 5.0 - 0.1 * row["step"]} for row in rows]
    assert diagnose(curve(learning)).label != "overfitting"


def test_evaluations_below_the_training_loss_show_what_is_learned() -> None:
    rows = [{"step": i, "loss": 2.3 if i == 1 else 0.25 - 0.001 * i} for i in range(1, 50)]
    below = [{"step": 10 * i, "eval_loss": loss} for i, loss in enumerate((0.111, 0.105, 0.095, 0.094, 0.12), 1)]
    assert diagnose(curve([*rows, *below])).label == "healthy"
    above = [{**row, "eval_loss": 20 * row["eval_loss"]} for row in below]
    assert diagnose(curve([*rows, *above])).label == "unknown"


def test_a_training_loss_that_rises_is_not_called_healthy() -> None:
    rows = [{"epoch": i, "loss": loss} for i, loss in enumerate((0.74, 1.34, 1.60, 1.60), 1)]
    evals = [{"epoch": i, "eval_loss": loss} for i, loss in enumerate((4.65, 1.02, 1.08, 1.47), 1)]
    numbered = [{"step": row["epoch"], **row} for row in (*rows, *evals)]
    assert diagnose(curve(numbered)).label == "unknown"
    lower = [{**row, "eval_loss": 1.0} if row.get("eval_loss") == 1.47 else row for row in numbered]
    assert diagnose(curve(lower)).label == "healthy"


def test_losses_that_end_at_the_chance_of_a_hundred_classes_have_collapsed() -> None:
    evals = [4.928, 5.22, 5.01, 4.8, *[4.605170 + 1e-5 * (i % 3) for i in range(30)]]
    rows = [{"step": i, "loss": loss, "eval_loss": loss} for i, loss in enumerate(evals)]
    assert diagnose(curve(rows)).label == "collapsed"
    passing = [{"step": i, "loss": 5.0 - 0.03 * i, "eval_loss": 5.0 - 0.03 * i} for i in range(34)]
    assert diagnose(curve(passing)).label == "healthy"


def test_a_part_of_a_log_that_does_not_move_is_not_called_healthy() -> None:
    noise = np.random.default_rng(0).uniform(0, 1, 18)
    assert diagnose(curve([{"step": 220 + i, "loss": 43.5 + 0.1 * noise[i]} for i in range(18)])).label == "unknown"
    assert diagnose(curve([{"step": 220 + i, "loss": 2.5 + 0.006 * noise[i]} for i in range(18)])).label == "healthy"
    assert diagnose(curve([{"step": 220 + i, "loss": 43.5 - i + noise[i]} for i in range(18)])).label == "healthy"


def test_one_accuracy_at_all_evaluations_is_not_called_healthy() -> None:
    rows = [{"epoch": i, "step": i, "eval_loss": 1.7 + 2.2 * math.exp(-i), "eval_accuracy": 0.2} for i in range(10, 18)]
    rows += [{"epoch": i, "step": i, "loss": 2.5 - 0.05 * i} for i in range(10, 18)]
    assert diagnose(curve(rows)).label == "unknown"
    better = [{**row, "eval_accuracy": 0.01 * row["step"]} if "eval_loss" in row else row for row in rows]
    assert diagnose(curve(better)).label == "healthy"


def test_swings_that_have_come_to_nothing_are_not_called_healthy() -> None:
    swings = Diagnosis("oscillating", {"reason": "loss rises 20 times and falls again"}, confidence=0.7)
    assert no_fault.healthy(training([350.0, 4e3, 900.0, 2e3, 90.0, 3e3, 400.0, 310.0]), swings).label == "unknown"
    assert no_fault.healthy(training([350.0, 4e3, 900.0, 2e3, 300.0, 900.0, 90.0, 80.0]), swings).label == "healthy"


def test_a_start_that_is_low_by_luck_is_no_rise() -> None:
    """A start is the median of three points, so it has more noise than an end of many."""
    labels = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0, 0.05, 60)
        rows = [{"step": i, "loss": 1.0 + float(one), "learning_rate": 1e-3} for i, one in enumerate(noise)]
        labels.append(diagnose(curve(rows)).label)
    assert labels.count("too_high") <= 1


def test_the_smallest_loss_that_there_is_is_not_called_healthy() -> None:
    assert diagnose(training([3.04, 2.1, 1.3, 0.8, 0.44, *[1.1921e-07] * 5])).label == "unknown"
    assert diagnose(training([3.04, 2.1, 1.3, 0.8, 0.44, *[2.1921e-07] * 5])).label == "healthy"


def test_a_high_loss_that_ends_above_its_first_is_not_called_healthy() -> None:
    losses = [9.5, 10.5, 10.7, 10.1, 10.2, 9.2, 8.2, 7.7, 7.8, 8.0, 9.7, 9.9]
    assert diagnose(training(losses)).label == "unknown"
    assert diagnose(training([*losses[:-2], 7.9, 7.6])).label == "healthy"
