"""Collapsed: a model that gives every input the same answer."""

import math
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import EXPLODED, Curve, Diagnosis, Floats, Series
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES, falls
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import Trend, rises_beyond_noise, trend

Evidence = dict[str, float | str]
# The sizes of common vocabularies: GPT-2, Llama 2 and 3, T5, BERT, Qwen, Gemma.
_VOCABULARIES = (50257, 50304, 32000, 128256, 32128, 30522, 151936, 256000)
# The numbers of classes of common data sets of images: CIFAR-100 and ImageNet.
_MORE_CLASSES = (100, 1000)
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


@dataclass(frozen=True)
class _Facts:
    """What the rules look at.

    Attributes:
        curve: The run.
        losses: Its training losses; in a table with a row for each epoch, those of its evaluations.
        found: Their trend.
        accuracies: Its accuracies between 0 and 1; None if the log has none.
    """

    curve: Curve
    losses: Series
    found: Trend
    accuracies: Series | None

    @property
    def supervised(self) -> bool:
        """Whether the losses are cross-entropies."""
        return training_kind(self.curve) == "supervised"

    def collapsed(self, reason: str) -> Diagnosis:
        """The diagnosis, with the loss at the end, and the accuracy if the log has one."""
        if self.accuracies is not None and len(self.accuracies):
            return one_answer(self.curve, self.found.end, float(self.accuracies.values[-1]), reason)
        evidence: Evidence = {"last": self.found.end, "reason": reason}
        return Diagnosis("collapsed", evidence, remedies.after_collapse(self.curve))


def collapsed(curve: Curve) -> Diagnosis | None:
    """Collapsed: a classifier that gives every input the same answer.

    Its accuracy is one over the number of classes, and its loss the logarithm of that number; or its accuracy is the
    same to the digit at every evaluation, while the training loss does not fall.
    """
    facts = _facts(curve)
    if facts is None or facts.losses.values[-1] > EXPLODED * max(facts.found.start, facts.found.end):
        return None
    rules = (_ends_at_chance, _never_changes, _settled_at_chance, _froze, _evaluated_at_chance)
    for_flat_losses = (_uniform, _even, _by_chance, _constant)
    for rule in rules if facts.found.fall > 0.1 else (*rules, *for_flat_losses):
        reason = rule(facts)
        if reason:
            return facts.collapsed(reason)
    return None


def _facts(curve: Curve) -> _Facts | None:
    accuracies = accuracies_of(curve)
    losses = curve.loss.finite()
    if len(losses) < FEWEST_LOSSES and accuracies is not None:
        losses = curve.eval_loss.finite()
    if len(losses) > 2 * _ALWAYS and losses.values[0] > 10 * float(np.median(losses.values)):
        losses = Series(losses.steps[1:], losses.values[1:])  # an untrained layer's first outputs
    found = trend(losses)
    if found is None or len(losses) < (FEWEST_LOSSES if accuracies is None else FEWEST_EVALS + 1):
        return None
    return _Facts(curve, losses, found, accuracies)


def _classes(losses: Floats | float, slack: float) -> int | None:
    """The number of classes, up to ten, of which all losses are the logarithm within a share; None if of none."""
    return next((k for k in range(2, 11) if np.all(np.abs(np.divide(losses, math.log(k)) - 1) < slack)), None)


def _many_classes(losses: Floats, slack: float) -> int | None:
    return next((k for k in _MORE_CLASSES if abs(losses / math.log(k) - 1).max() < slack), None)


def _ends_at_chance(facts: _Facts) -> str:
    """The last third of the losses is the logarithm of a number of classes."""
    tail = facts.losses.values[-max(len(facts.losses) // 3, 5) :]
    classes = (_classes(tail, 0.001) or _many_classes(tail, 0.0002)) if _digits(tail) >= 4 else None
    if classes is None or not facts.supervised:
        return ""
    return (
        f"the last {len(tail)} losses are {facts.found.end:.4g}, which is ln {classes}: {classes} classes have the "
        "same chance"
    )


def _never_changes(facts: _Facts) -> str:
    """A low accuracy is the same from the first evaluation on, though the loss moves, and does not fall."""
    if facts.accuracies is None:
        return ""
    losses, right = trend(facts.curve.loss), facts.accuracies.values
    if _still_falls(facts.curve.eval_loss.finite()) or (losses is not None and losses.fall > 0.1):
        return ""
    moves = float(np.ptp(facts.losses.values)) > 0.1 * float(np.median(facts.losses.values))
    if not moves or len(right) < _ALWAYS or np.ptp(right) > 0 or not 0 < float(right[-1]) < 0.75:
        return ""
    return f"the accuracy is {right[-1]:.4g} at each of {len(right)} evaluations: every input gets the same answer"


def _still_falls(losses: Series) -> bool:
    """Whether the second half of the losses falls by more than a tenth."""
    return len(losses) > 1 and float(losses.values[-1]) < 0.9 * float(losses.values[len(losses) // 2])


def _settled_at_chance(facts: _Facts) -> str:
    """The run has stood at chance for most of its time, after whatever it began with."""
    if facts.accuracies is None:
        return ""
    losses, accuracies = facts.losses.values, facts.accuracies.values
    later, right = losses[len(losses) // 4 :], accuracies[len(accuracies) // 4 :]
    if len(later) < 2 * _ALWAYS or len(right) < _ALWAYS:
        return ""
    classes = _classes(later, 0.02)
    if classes is None or _classes(float(np.median(later)), 0.002) != classes or np.median(right) >= 1.15 / classes:
        return ""
    return f"the loss has stood next to ln {classes} for {len(later)} rows: {classes} classes are not told apart"


def _froze(facts: _Facts) -> str:
    """The run has stood still at a loss with hardly an answer right."""
    if facts.accuracies is None:
        return ""
    losses, accuracies = facts.losses.values, facts.accuracies.values
    later, right = losses[len(losses) // 2 :], accuracies[len(accuracies) // 2 :]
    still = len(later) >= _ALWAYS and float(np.ptp(later)) < 5e-4 * float(later[-1]) and float(later[-1]) > 1
    if not still or float(np.max(right)) > 0.2 or float(np.ptp(right)) > 0.002:
        return ""
    return f"the loss stands at {later[-1]:.4g} and the accuracy at {right[-1]:.3g} in the last {len(later)} rows"


def _evaluated_at_chance(facts: _Facts) -> str:
    """All evaluations but the first are those of two classes that are not told apart."""
    evals = facts.curve.eval_loss.finite().values
    later = evals[1:]
    if not facts.supervised or len(later) < 2 * _ALWAYS or _digits(evals) < 3:
        return ""
    if _classes(later, 0.01) != 2 or _classes(float(np.median(later)), 0.001) != 2:
        return ""
    return f"{len(later)} evaluations are next to {math.log(2):.4g}, which is ln 2: 2 classes are not told apart"


def _uniform(facts: _Facts) -> str:
    """The loss stays at the logarithm of the size of a vocabulary."""
    end = facts.found.end
    size = next((size for size in _VOCABULARIES if abs(end / math.log(size) - 1) < 0.003), None)
    if size is None or abs(facts.found.fall) >= 0.01:
        return ""
    return f"loss stays at {end:.4g}, which is ln {size}: each token of the vocabulary is as likely as another"


def _even(facts: _Facts) -> str:
    """The loss stays at the logarithm of a number of classes, and its noise is small.

    The losses of a model that tells texts apart differ from batch to batch; those of a constant answer do not.
    """
    classes = _classes(facts.found.end, 0.005)
    steady = abs(facts.found.fall) < 0.02 and facts.found.point_noise < 0.02
    if classes is None:
        # Of more classes the logarithms are close to each other, so all losses but the first must be next to one.
        later = facts.losses.values[1:]
        classes = _many_classes(later, 0.003)
        steady = len(later) >= 2 * _ALWAYS and abs(float(np.median(later)) / math.log(classes or 2) - 1) < 0.0005
    if classes is None or not steady or not facts.supervised:
        return ""
    if rises_beyond_noise(-facts.curve.eval_loss.finite().values):
        return ""  # it learns, if little: a collapsed model does not
    return (
        f"loss stays at {facts.found.end:.4g}, which is ln {classes}: {classes} classes are told apart no better than "
        "by chance"
    )


def _by_chance(facts: _Facts) -> str:
    """The accuracy is one over the number of classes, and the loss that number's logarithm, or stays a little above."""
    if facts.accuracies is None or not len(facts.accuracies):
        return ""
    accuracies, end = facts.accuracies.values, facts.found.end
    settled = accuracies[len(accuracies) // 3 :]
    flat = abs(facts.found.fall) < 0.05
    accuracy = float(accuracies.mean() if flat else np.median(settled[-max(len(settled) // 2, 1) :]))
    classes = round(1 / accuracy) if accuracy > 0 else 0
    if not 2 <= classes <= 1000 or abs(accuracy * classes - 1) > 0.06:
        return ""
    # Some trainers log losses in bits.
    chances = {f"ln {classes}": math.log(classes), f"log2 {classes}": math.log2(classes)}
    level = min(chances, key=lambda name: abs(end / chances[name] - 1))
    over = end / chances[level]
    constant = flat and len(settled) >= 3 and bool((abs(settled * classes - 1) < 0.06).all())
    if not 0.96 < over < (1.1 if constant else 1.04):
        return ""
    return (
        f"loss ends at {end:.4g}, next to {level}, and the accuracy is {accuracy:.3g}: the {classes} classes are told "
        "apart no better than by chance"
    )


def _constant(facts: _Facts) -> str:
    """The accuracy is the same to the digit at every evaluation; or it was good, and the loss is that of chance now."""
    if facts.accuracies is None or not len(facts.accuracies):
        return ""
    accuracies, end = facts.accuracies.values, facts.found.end
    settled = accuracies[len(accuracies) // 3 :]
    accuracy = float(accuracies[-1])
    same = len(settled) >= 3 and float(np.ptp(settled)) == 0 and _digits(settled) >= 3
    if same and 0 < accuracy < 0.99 and facts.found.fall < 0.05:
        return (
            f"the accuracy is {accuracy:.4g} at each of the last {len(settled)} evaluations, and the loss stays at "
            f"{end:.4g}: every input gets the same answer"
        )
    last = accuracies[-max(len(accuracies) // 4, 2) :]
    accuracy, best = float(np.median(last)), float(np.median(np.sort(accuracies)[-3:]))
    chances = ((2, 1.2), (3, 1.2), (10, 2.0), (100, 2.0), (1000, 2.0))
    lost = next(
        (k for k, slack in chances if abs(end / math.log(k) - 1) < 0.04 and accuracy < slack / k < best / slack), None
    )
    if lost is not None and facts.found.low <= 0.6 * end:
        return (
            f"the accuracy falls from {best:.3g} to {accuracy:.3g}, and the loss rises to {end:.4g}, next to "
            f"ln {lost}: the {lost} classes are told apart no better than by chance"
        )
    # The same answer from some evaluation on, to the digit, where there had been better ones.
    worse = facts.found.end >= 2 * facts.found.low and best >= 1.5 * accuracy
    if worse and len(last) >= 3 and float(np.ptp(last)) == 0 and _digits(last) >= 3:
        return f"the accuracy falls from {best:.3g} to {accuracy:.4g} and stays there to the digit"
    return ""


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
