"""Rules for broken runs: not finite, exploded, collapsed, or not training at all.

Each returns a diagnosis, or None if it does not fit. A broken run must never count as healthy, so these come first.
"""

import math

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import CERTAIN, Curve, Diagnosis, Floats, Series, confidence
from lrsweep.analysis.diagnosis.smoothing import FEWEST_EVALS, FEWEST_LOSSES, falls
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import Trend, relative_noise, trend

Evidence = dict[str, float | str]
# A mean loss is never exactly 0, unless the model knows every token by heart: then the losses before are tiny as well.
_NOT_TINY = 0.02
# The sizes of common vocabularies: GPT-2, Llama 2 and 3, T5, BERT, Qwen, Gemma.
_VOCABULARIES = (50257, 50304, 32000, 128256, 32128, 30522, 151936, 256000)
# Numbers of classes that are common.
_CLASSES = (*range(2, 11), 100, 1000)
# An end this many times as high as the start is no matter of noise.
_EXPLODED = 3.0


def not_finite(curve: Curve) -> Diagnosis | None:
    """Diverged: losses or gradients are NaN or infinite at the end. Unknown: they are so now and then."""
    for name, series in (("loss", curve.loss), ("grad_norm", curve.grad_norm)):
        bad = ~np.isfinite(series.values)
        if not len(bad) or not bad[-1]:
            continue
        last_good = np.flatnonzero(~bad)
        # Of the steps from which on nothing is finite, the first.
        at = int(last_good[-1]) + 1 if len(last_good) else 0
        step = float(series.steps[at])
        value = series.values[at]
        when = f"from {curve.place(step)} on" if at < len(bad) - 1 else f"at {curve.place(step)}"
        reason = f"{name} is {value:g} {when}"
        early = at <= 1 and _starts_broken(curve, step)
        return Diagnosis("diverged", {"step": step, "reason": reason}, remedies.after_nan(curve, early))
    return _evaluations_not_finite(curve) or _often_not_finite(curve)


def _evaluations_not_finite(curve: Curve) -> Diagnosis | None:
    """The evaluations become NaN, and no training loss shows that the run goes on."""
    good = np.isfinite(curve.eval_loss.values)
    if not len(good) or good[-1]:
        return None
    at = int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0
    step = float(curve.eval_loss.steps[at])
    if len(curve.loss.finite().after(step)):
        return None
    # One evaluation says too little where others, or training losses, were NaN and came back.
    if at == len(good) - 1 and not (np.isfinite(curve.loss.values).all() and good[:at].all()):
        return None
    reason = f"eval_loss is {curve.eval_loss.values[at]:g} from {curve.place(step)} on"
    return Diagnosis("diverged", {"step": step, "reason": reason}, remedies.after_nan(curve, False))


def _often_not_finite(curve: Curve) -> Diagnosis | None:
    """Unknown: losses are NaN now and then, as with batches without labels, or steps that a loss scaler skipped."""
    bad = ~np.isfinite(curve.loss.values)
    if not bad.any():
        return None
    step = float(curve.loss.steps[bad.argmax()])
    reason = (
        f"loss is not finite at {bad.sum()} of {len(bad)} steps, first at {curve.place(step)}, and finite at the end"
    )
    return Diagnosis("unknown", {"step": step, "reason": reason}, remedies.after_nan(curve, True))


def _starts_broken(curve: Curve, step: float) -> bool:
    """Whether nothing was ever right, or the learning rate was still next to 0 when it went wrong."""
    rates = curve.learning_rate.finite()
    peak = curve.peak_lr or math.inf
    before = rates.values[rates.steps <= step]
    return not len(before) or float(before.max()) <= 0.2 * peak or len(curve.loss.finite()) <= 1


def zero(curve: Curve) -> Diagnosis | None:
    """Diverged: the loss is exactly 0 from a step on.

    In a log of transformers, a loss is the mean of the losses that are not NaN; if all are, it is exactly 0.
    """
    values = curve.loss.finite().values
    zeros = int((np.cumsum(values[::-1] != 0) == 0).sum())
    # One 0 counts right after a loss a hundred times as high as usual.
    if zeros < 2 and not (zeros == 1 and len(values) > 3 and values[-2] > 100 * abs(float(np.median(values)))):
        return None
    if training_kind(curve) == "preference" and _finite_margins(curve):
        return None  # the margins are so large that nothing is left to learn
    evals = curve.eval_loss.values
    if len(evals) and np.isfinite(evals).all() and evals[-1] < 0.001:
        return None  # evaluations would be NaN
    before = values[: len(values) - zeros]
    norms = curve.grad_norm.values
    if not len(before) and len(norms) and not norms.any():
        return None  # inert
    if len(before) and (
        # It was 0 and came back, or was next to 0 before: small losses, rounded. Finite gradients say the same.
        not before.all()
        or before[-5:].min() < _NOT_TINY * max(float(np.median(before[:5])), 1.0)
        or (len(norms) and np.isfinite(norms[-1]) and norms[-1] > 0)
    ):
        return None
    step = float(curve.loss.finite().steps[len(before)])
    reason = f"loss is exactly 0 from {curve.place(step)} on, which is how transformers logs NaN"
    early = len(before) <= 1
    return Diagnosis("diverged", {"step": step, "reason": reason}, remedies.after_nan(curve, early))


def _finite_margins(curve: Curve) -> bool:
    margins = curve.measures.get("rewards/margins")
    return (
        margins is not None and len(margins) > 0 and bool(np.isfinite(margins.values[-1])) and margins.values[-1] != 0
    )


def exploded(curve: Curve) -> Diagnosis | None:
    """Diverged: the loss ends far above its start, or at a level that no step before it had."""
    for name, series in (("loss", curve.loss), ("eval_loss", curve.eval_loss)):
        found = series.finite()
        if len(found) < 4 or (name == "eval_loss" and _learns(curve, float(found.values[0]))):
            continue
        if name == "eval_loss" and not len(curve.loss) and found.values.min() < 0.95 * found.values[0]:
            continue  # it had learned, so this is overfitting until training losses say otherwise
        first = float(found.values[0])
        last = float(np.median(found.values[-max(len(found) // 8, 1 if name == "eval_loss" else 2) :]))
        rise = last / first if first > 0 else 0.0
        sure = confidence(rise - 1, max(_EXPLODED - 1, 6 * relative_noise(found)))
        # It does not come back: on a log scale, the end is more than half of the way up, and so is nearly all before.
        late = found.values[-max(len(found) // 4, 2) :]
        stays = (
            last > math.sqrt(first * float(found.values.max())) and np.quantile(late, 0.1, method="lower") > 1.5 * first
        )
        if rise > 1 and sure >= CERTAIN and stays:
            above = found.values > math.sqrt(first * last)
            step = float(found.steps[above.argmax()])
            reason = (
                f"{name} explodes from {first:.4g} to {last:.4g} and stays there, first above at {curve.place(step)}"
            )
            evidence: Evidence = {"first": first, "last": last, "step": step, "reason": reason}
            return Diagnosis("diverged", evidence, remedies.lower_lr(curve), sure)
    return None


def _one_answer(accuracies: Floats) -> bool:
    """Whether a low accuracy never changes, but perhaps after its first value."""
    return float(np.ptp(accuracies[1:])) < 1e-3 and float(accuracies[-1]) < 0.75


def _learns(curve: Curve, first: float) -> bool:
    """Whether the training loss falls, or is far below the first eval loss: then high evaluations are overfitting."""
    losses = curve.loss.finite().values
    return falls(curve.loss) or (
        len(losses) > 0 and float(np.median(losses[-max(len(losses) // 4, 1) :])) < 0.5 * first
    )


def inert(curve: Curve) -> Diagnosis | None:
    """Inert: all gradients are zero, a loss never changes, or the losses of each epoch are those of the first."""
    norms, losses = curve.grad_norm.values, curve.loss.values
    # Losses of exactly 0 beside them leave no doubt.
    if len(norms) >= (FEWEST_LOSSES if losses.any() else 3) and not norms.any():
        return Diagnosis("inert", {"grad_norm": 0.0, "reason": "every gradient is zero"}, remedies.CHECK)
    for name, series, fewest in (("eval_loss", curve.eval_loss, FEWEST_EVALS), ("loss", curve.loss, FEWEST_LOSSES)):
        values = series.finite().values
        if len(values) >= fewest and np.ptp(values) <= 1e-6 * abs(values).max():
            if name == "eval_loss" and falls(curve.loss):
                continue  # it learns: the evaluation is what does not change
            reason = f"{name} is {values[0]:.6g} from step {series.steps[0]:g} to step {series.steps[-1]:g}"
            accuracies = _accuracies(curve)
            if accuracies is not None and len(accuracies) >= 3 and _one_answer(accuracies.values):
                reason += f", with an accuracy of {accuracies.values[-1]:.3g}: every input gets the same answer"
                return _collapsed(curve, float(values[0]), float(accuracies.values[-1]), reason)
            classes = next((k for k in _CLASSES if abs(values[0] / math.log(k) - 1) < 0.002), None)
            if classes is not None and training_kind(curve) == "supervised":
                reason += f", which is ln {classes}: {classes} classes have the same chance"
                return Diagnosis(
                    "collapsed", {"last": float(values[0]), "reason": reason}, remedies.after_collapse(curve)
                )
            return Diagnosis("inert", {name: float(values[0]), "reason": reason}, remedies.CHECK)
    period = _period(curve.loss.finite().values)
    if period:
        reason = f"the losses repeat to the digit every {period} rows: nothing that is trained changes them"
        return Diagnosis("inert", {"period": float(period), "reason": reason}, remedies.CHECK)
    return None


def _period(losses: Floats) -> int:
    """The number of rows after which all losses repeat exactly, at least six of them; 0 if they do not."""
    n = len(losses)
    for period in (np.flatnonzero(losses[2 : n - FEWEST_LOSSES + 1] == losses[:1]) + 2).tolist():
        same = losses[period:] == losses[:-period]
        # Six losses that repeat in order are no coincidence.
        if not same.all() or n - period < FEWEST_LOSSES or len(np.unique(losses[period:])) < min(period, 4):
            continue
        # A seeded run that was started again repeats itself as well; it had learned before.
        first = Series(np.arange(period, dtype=np.float64), losses[:period])
        if 2 * period <= n or not falls(first):
            return int(period)
    return 0


def collapsed(curve: Curve) -> Diagnosis | None:
    """Collapsed: a classifier that gives every input the same answer.

    Its accuracy is one over the number of classes, and its loss the logarithm of that number; or its accuracy is the
    same to the digit at every evaluation, while the training loss does not fall.
    """
    accuracies = _accuracies(curve)
    series = curve.loss.finite()
    if len(series) < FEWEST_LOSSES and accuracies is not None:
        series = curve.eval_loss.finite()  # as in a table with a row for each epoch
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
    learns = losses is not None and losses.fall > 0.1
    if accuracies is not None and not learns and _never_changes(accuracies.values, series.values):
        accuracy = float(accuracies.values[-1])
        reason = (
            f"the accuracy is {accuracy:.4g} at each of {len(accuracies)} evaluations: every input gets the same answer"
        )
        return _collapsed(curve, end, accuracy, reason)
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
    return _collapsed(curve, end, accuracy, reason)


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
        return _collapsed(curve, end, accuracy, reason)
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
        return _collapsed(curve, end, accuracy, reason)
    reason = (
        f"the accuracy falls from {best:.3g} to {accuracy:.3g}, and the loss rises to {end:.4g}, next to ln {lost}: "
        f"the {lost} classes are told apart no better than by chance"
    )
    return _collapsed(curve, end, accuracy, reason)


def _never_changes(accuracies: Floats, losses: Floats) -> bool:
    """Whether a low accuracy is the same from the first evaluation on, though the loss moves: not for few digits."""
    moves = float(np.ptp(losses)) > 0.1 * float(np.median(losses))
    return moves and len(accuracies) >= 5 and float(np.ptp(accuracies)) == 0 and 0 < float(accuracies[-1]) < 0.75


def _digits(values: Floats) -> int:
    """Digits after the point, as far as the log has them: of so few as two, numbers are equal by chance."""
    return max(len(repr(float(value)).partition(".")[2]) for value in values)


def _collapsed(curve: Curve, end: float, accuracy: float, reason: str) -> Diagnosis:
    evidence: Evidence = {"last": end, "accuracy": accuracy, "reason": reason}
    return Diagnosis("collapsed", evidence, remedies.after_collapse(curve))


def _accuracies(curve: Curve) -> Series | None:
    for name in ("eval_accuracy", "accuracy", "eval_acc", "acc"):
        if name in curve.measures:
            found = curve.measures[name].finite()
            highest = float(found.values.max()) if len(found) else 0.0
            if highest > 100:
                return None
            return Series(found.steps, found.values / 100) if highest > 1 else found
    return None
