"""Collapsed: a model that gives every input the same answer."""

import math

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import Curve, Diagnosis, Floats, Series
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES, falls
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import Trend, trend

Evidence = dict[str, float | str]
# The sizes of common vocabularies: GPT-2, Llama 2 and 3, T5, BERT, Qwen, Gemma.
_VOCABULARIES = (50257, 50304, 32000, 128256, 32128, 30522, 151936, 256000)
# A model of speech or text whose training loss ends below this, in nats, has learned.
_LEARNED = 0.5
# From so many evaluations on, what is the same in all of them is no matter of an early stage or of few digits.
_ALWAYS = 5


def nothing_right(curve: Curve) -> Diagnosis | None:
    """Collapsed: all words of each evaluation are wrong, or no row gets a label."""
    for name, worst, what in (("wer", 1.0, "word error rate"), ("cer", 1.0, "character error rate"), ("f1", 0.0, "F1")):
        series = curve.measures.get(f"eval_{name}", curve.measures.get(name))
        values = None if series is None else series.finite().values
        if values is None or len(values) < _ALWAYS:
            continue
        if name == "f1" and not falls(curve.loss) and values[0] < 0.99 and np.ptp(values) == 0 and _digits(values) >= 3:
            reason = (
                f"the {what} is {values[-1]:.4g} at each of {len(values)} evaluations: every input gets the same answer"
            )
            return Diagnosis("collapsed", {name: float(values[-1]), "reason": reason}, remedies.after_collapse(curve))
        if (abs(values - worst) > 0.01).any():
            continue
        reason = f"the {what} is {values[-1]:.3g} at each of {len(values)} evaluations: no output is right"
        if _still_falls(curve.eval_loss.finite() if len(curve.eval_loss) else curve.loss.finite()):
            return Diagnosis("unknown", {name: float(values[-1]), "reason": f"{reason}, but the loss still falls"})
        losses = trend(curve.loss)
        if losses is not None and losses.fall > 0.5 and losses.end < _LEARNED:
            return None  # it knows the training rows, so its outputs are decoded wrongly, or their measure is broken
        return Diagnosis("collapsed", {name: float(values[-1]), "reason": reason}, remedies.after_collapse(curve))
    return None


def collapsed(curve: Curve) -> Diagnosis | None:
    """Collapsed: a classifier that gives every input the same answer.

    Its accuracy is one over the number of classes, and its loss the logarithm of that number; or its accuracy is the
    same to the digit at every evaluation, while the training loss does not fall.
    """
    accuracies = accuracies_of(curve)
    series = curve.loss.finite()
    if len(series) < FEWEST_LOSSES and accuracies is not None:
        series = curve.eval_loss.finite()  # as in a table with a row for each epoch
    if len(series) > 2 * _ALWAYS and series.values[0] > 10 * float(np.median(series.values)):
        series = Series(series.steps[1:], series.values[1:])  # an untrained layer's first outputs
    found = trend(series)
    if found is None or len(series) < (FEWEST_LOSSES if accuracies is None else FEWEST_EVALS + 1):
        return None
    end, supervised = found.end, training_kind(curve) == "supervised"
    tail = series.values[-max(len(series) // 3, 5) :]
    near = (k for k in range(2, 11) if (abs(tail / math.log(k) - 1) < 0.001).all())
    exact = next(near, None) if _digits(tail) >= 4 else None
    if exact is not None and supervised:
        reason = f"the last {len(tail)} losses are {end:.4g}, which is ln {exact}: {exact} classes have the same chance"
        return Diagnosis("collapsed", {"last": end, "reason": reason}, remedies.after_collapse(curve))
    losses = trend(curve.loss)
    learns = _still_falls(curve.eval_loss.finite()) or (losses is not None and losses.fall > 0.1)
    if accuracies is not None and not learns and _never_changes(accuracies.values, series.values):
        accuracy = float(accuracies.values[-1])
        reason = (
            f"the accuracy is {accuracy:.4g} at each of {len(accuracies)} evaluations: every input gets the same answer"
        )
        return one_answer(curve, end, accuracy, reason)
    if accuracies is not None and (reason := _settled_at_chance(series, accuracies)):
        return one_answer(curve, end, float(accuracies.values[-1]), reason)
    if accuracies is not None and (reason := _froze(series, accuracies)):
        return one_answer(curve, end, float(accuracies.values[-1]), reason)
    if supervised and (reason := _evaluated_at_chance(curve.eval_loss.finite().values)):
        return Diagnosis("collapsed", {"last": end, "reason": reason}, remedies.after_collapse(curve))
    if found.fall > 0.1:
        return None
    vocabulary = next((size for size in _VOCABULARIES if abs(end / math.log(size) - 1) < 0.003), None)
    if vocabulary is not None and abs(found.fall) < 0.01:
        reason = (
            f"loss stays at {end:.4g}, which is ln {vocabulary}: each token of the vocabulary is as likely as another"
        )
        return Diagnosis("collapsed", {"last": end, "reason": reason}, remedies.after_collapse(curve))
    even = next((classes for classes in range(2, 11) if abs(end / math.log(classes) - 1) < 0.005), None)
    # The losses of a model that tells texts apart differ from batch to batch; those of a constant answer do not.
    if even is not None and abs(found.fall) < 0.02 and found.point_noise < 0.02 and supervised:
        reason = f"loss stays at {end:.4g}, which is ln {even}: {even} classes are told apart no better than by chance"
        return Diagnosis("collapsed", {"last": end, "reason": reason}, remedies.after_collapse(curve))
    if accuracies is None or not len(accuracies):
        return None
    return _by_chance(curve, accuracies, end, found) or _constant(curve, accuracies, end, found)


def _still_falls(losses: Series) -> bool:
    """Whether the second half of the losses falls by more than a tenth."""
    return len(losses) > 1 and float(losses.values[-1]) < 0.9 * float(losses.values[len(losses) // 2])


def _settled_at_chance(losses: Series, accuracies: Series) -> str:
    """Why the run has stood at chance for most of its time, after whatever it began with; empty if it has not."""
    later, right = losses.values[len(losses) // 4 :], accuracies.values[len(accuracies) // 4 :]
    if len(later) < 2 * _ALWAYS or len(right) < _ALWAYS:
        return ""
    for classes in range(2, 11):
        near = abs(later / math.log(classes) - 1)
        if (near < 0.02).all() and np.median(near) < 0.002 and float(np.median(right)) < 1.15 / classes:
            return (
                f"the loss has stood next to ln {classes} for {len(later)} rows: {classes} classes are not told apart"
            )
    return ""


def _froze(losses: Series, accuracies: Series) -> str:
    """Why the run has stood still at a loss with hardly an answer right; empty if it has not."""
    later, right = losses.values[len(losses) // 2 :], accuracies.values[len(accuracies) // 2 :]
    still = len(later) >= _ALWAYS and float(np.ptp(later)) < 5e-4 * float(later[-1]) and float(later[-1]) > 1
    if not still or float(np.max(right)) > 0.2 or float(np.ptp(right)) > 0.002:
        return ""
    return f"the loss stands at {later[-1]:.4g} and the accuracy at {right[-1]:.3g} in the last {len(later)} rows"


def _evaluated_at_chance(evals: Floats) -> str:
    """Why all evaluations are those of two classes that are not told apart; empty if they are not."""
    near = abs(evals[1:] / math.log(2) - 1)
    if len(near) < 2 * _ALWAYS or _digits(evals) < 3 or (near > 0.01).any() or float(np.median(near)) > 0.001:
        return ""
    return f"{len(near)} evaluations are next to {math.log(2):.4g}, which is ln 2: 2 classes are not told apart"


def _by_chance(curve: Curve, accuracies: Series, end: float, found: Trend) -> Diagnosis | None:
    """The accuracy is one over the number of classes, and the loss that number's logarithm, or stays a little above."""
    settled = accuracies.values[len(accuracies) // 3 :]
    flat = abs(found.fall) < 0.05
    accuracy = float(accuracies.values.mean() if flat else np.median(settled[-max(len(settled) // 2, 1) :]))
    classes = round(1 / accuracy) if accuracy > 0 else 0
    if not 2 <= classes <= 1000 or abs(accuracy * classes - 1) > 0.06:
        return None
    # Some trainers log losses in bits.
    chances = {f"ln {classes}": math.log(classes), f"log2 {classes}": math.log2(classes)}
    level = min(chances, key=lambda name: abs(end / chances[name] - 1))
    over = end / chances[level]
    constant = flat and len(settled) >= 3 and bool((abs(settled * classes - 1) < 0.06).all())
    if not 0.96 < over < (1.1 if constant else 1.04):
        return None
    reason = (
        f"loss ends at {end:.4g}, next to {level}, and the accuracy is {accuracy:.3g}: the {classes} classes are told "
        "apart no better than by chance"
    )
    return one_answer(curve, end, accuracy, reason)


def _constant(curve: Curve, accuracies: Series, end: float, found: Trend) -> Diagnosis | None:
    """The accuracy is the same to the digit at every evaluation; or it was good, and the loss is that of chance now."""
    settled = accuracies.values[len(accuracies) // 3 :]
    accuracy = float(accuracies.values[-1])
    same = len(settled) >= 3 and float(np.ptp(settled)) == 0 and _digits(settled) >= 3
    if same and 0 < accuracy < 0.99 and found.fall < 0.05:
        reason = (
            f"the accuracy is {accuracy:.4g} at each of the last {len(settled)} evaluations, and the loss stays at "
            f"{end:.4g}: every input gets the same answer"
        )
        return one_answer(curve, end, accuracy, reason)
    last = accuracies.values[-max(len(accuracies) // 4, 2) :]
    accuracy, best = float(np.median(last)), float(np.median(np.sort(accuracies.values)[-3:]))
    chances = ((2, 1.2), (3, 1.2), (10, 2.0), (100, 2.0), (1000, 2.0))
    lost = next(
        (k for k, slack in chances if abs(end / math.log(k) - 1) < 0.04 and accuracy < slack / k < best / slack), None
    )
    if lost is None or found.low > 0.6 * end:
        # The same answer from some evaluation on, to the digit, where there had been better ones.
        if (
            len(last) < 3
            or float(np.ptp(last)) > 0
            or _digits(last) < 3
            or found.end < 2 * found.low
            or best < 1.5 * accuracy
        ):
            return None
        reason = f"the accuracy falls from {best:.3g} to {accuracy:.4g} and stays there to the digit"
        return one_answer(curve, end, accuracy, reason)
    reason = (
        f"the accuracy falls from {best:.3g} to {accuracy:.3g}, and the loss rises to {end:.4g}, next to ln {lost}: "
        f"the {lost} classes are told apart no better than by chance"
    )
    return one_answer(curve, end, accuracy, reason)


def _never_changes(accuracies: Floats, losses: Floats) -> bool:
    """Whether a low accuracy is the same from the first evaluation on, though the loss moves."""
    moves = float(np.ptp(losses)) > 0.1 * float(np.median(losses))
    return moves and len(accuracies) >= _ALWAYS and float(np.ptp(accuracies)) == 0 and 0 < float(accuracies[-1]) < 0.75


def _digits(values: Floats) -> int:
    """Digits after the point, as far as the log has them: of so few as two, numbers are equal by chance."""
    return max(len(repr(float(value)).partition(".")[2]) for value in values)


def one_answer(curve: Curve, end: float, accuracy: float, reason: str) -> Diagnosis:
    """The diagnosis of a model with one answer, and its accuracy."""
    evidence: Evidence = {"last": end, "accuracy": accuracy, "reason": reason}
    return Diagnosis("collapsed", evidence, remedies.after_collapse(curve))


def accuracies_of(curve: Curve) -> Series | None:
    """The run's accuracies between 0 and 1, of evaluations if there are any; None if the log has none."""
    for name in ("eval_accuracy", "accuracy", "eval_acc", "acc"):
        if name in curve.measures:
            found = curve.measures[name].finite()
            highest = float(found.values.max()) if len(found) else 0.0
            if highest > 100:
                return None
            return Series(found.steps, found.values / 100) if highest > 1 else found
    return None
