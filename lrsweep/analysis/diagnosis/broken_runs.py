"""Diverged: losses or gradients that are not finite, losses of 0, and explosions.

Each rule returns a diagnosis, or None if it does not fit. A broken run must never count as healthy, so these rules, and
those of `inert_runs` and `collapse`, come first.
"""

import math

import numpy as np

from lrsweep.analysis.diagnosis import remedies
from lrsweep.analysis.diagnosis.curve import CERTAIN, EXPLODED, Curve, Diagnosis, confidence
from lrsweep.analysis.diagnosis.smoothing import FEWEST_LOSSES, evaluations_fall, falls
from lrsweep.analysis.diagnosis.training_kind import training_kind
from lrsweep.analysis.diagnosis.trend import relative_noise

Evidence = dict[str, float | str]
# A mean loss is never exactly 0, unless the model knows every token by heart: then the losses before are tiny as well.
_NOT_TINY = 0.02
# Beside exact zeros, no mean of losses is as large as these: the median, and the highest.
_NO_MEDIAN, _NO_LOSS = 100.0, 1e6
# No log density, summed over all of an input, falls to less than the negative of this.
_NO_DENSITY = 1e8
# Of fewer losses, one that is low by chance is no level.
_MANY = 12


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
    if np.count_nonzero(values == 0) >= 2 and np.median(values) > _NO_MEDIAN and values.max() > _NO_LOSS:
        reason = f"the loss jumps between exactly 0 and {values.max():.4g}"
        return Diagnosis("diverged", {"highest": float(values.max()), "reason": reason}, remedies.lower_lr(curve))
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


def runs_off(curve: Curve) -> Diagnosis | None:
    """Diverged: a loss that has no bound below falls without end."""
    losses = curve.loss.finite()
    if len(losses) < FEWEST_LOSSES:
        return None
    first, last = float(losses.values[0]), float(np.median(losses.values[-max(len(losses) // 8, 2) :]))
    if last > -_NO_DENSITY or abs(first) > _NO_MEDIAN:
        return None
    reason = f"loss runs off from {first:.4g} to {last:.4g}: it has no bound below"
    return Diagnosis("diverged", {"first": first, "last": last, "reason": reason}, remedies.CHECK)


def jumps(curve: Curve) -> Diagnosis | None:
    """Diverged: the loss is beyond any loss again and again, and small in between."""
    losses = curve.loss.finite()
    beyond = np.flatnonzero(losses.values > _NO_LOSS)
    # Two at the very start, and nothing wrong after them, may be bad first steps.
    if len(beyond) < 2 or (len(beyond) == 2 and 3 * beyond[-1] < len(losses)):
        return None
    first, last = int(beyond[0]), int(beyond[-1])
    between = float(losses.values[first : last + 1].min())
    if between > _NO_MEDIAN:
        return None
    step, highest = float(losses.steps[first]), float(losses.values.max())
    reason = f"the loss jumps between {between:.4g} and {highest:.4g}, first at {curve.place(step)}"
    evidence: Evidence = {"lowest": between, "highest": highest, "step": step, "reason": reason}
    return Diagnosis("diverged", evidence, remedies.lower_lr(curve))


def breaks(curve: Curve) -> Diagnosis | None:
    """Diverged: within a step or a few the loss jumps far above all that was, and ends above its start."""
    losses = curve.loss.finite()
    values = losses.values
    if len(values) < _MANY or values.min() <= 0 or evaluations_fall(curve):
        return None
    last = float(np.median(values[-(len(values) // 8) :]))
    # The lowest loss from each point on.
    lowest_to_come = np.minimum.accumulate(values[::-1])[::-1]
    for at in range(1, len(values) - len(values) // 4):
        before = values[max(at - 5, 0) : at]
        level = float(np.median(before))
        highest = float(values[at : at + 3].max())
        # A few first points are hardly a level, so what is above them has to be far above.
        bound = 1.5 if at > 3 else EXPLODED
        # A loss with a new part, or on new rows, jumps as well, and then falls.
        if highest > EXPLODED * level and lowest_to_come[at] > bound * float(before.max()) and last > 1.5 * values[0]:
            step = float(losses.steps[at])
            reason = f"loss jumps from {level:.4g} to {highest:.4g} at {curve.place(step)}, and ends at {last:.4g}"
            evidence: Evidence = {"first": level, "highest": highest, "last": last, "step": step, "reason": reason}
            return Diagnosis("diverged", evidence, remedies.lower_lr(curve))
    return None


def runs_away(curve: Curve) -> Diagnosis | None:
    """Diverged: the last losses are one far above the other, and above all before them."""
    losses = curve.loss.finite()
    if len(losses) < FEWEST_LOSSES or losses.values.min() < 0:
        return None
    before, last_but_one, last = losses.values[:-2], float(losses.values[-2]), float(losses.values[-1])
    if last < _NO_MEDIAN or last < EXPLODED * last_but_one or last_but_one < EXPLODED * float(before.max()):
        return None
    reason = f"loss runs away: {before[-1]:.4g}, {last_but_one:.4g} and {last:.4g} are the last ones"
    return Diagnosis("diverged", {"last": last, "reason": reason}, remedies.lower_lr(curve))


def exploded(curve: Curve) -> Diagnosis | None:
    """Diverged: the loss ends far above its start, or at a level that no step before it had."""
    for name, series in (("loss", curve.loss), ("eval_loss", curve.eval_loss)):
        found = series.finite()
        if len(found) < 4 or (name == "eval_loss" and _learns(curve, float(found.values[0]))):
            continue
        if name == "loss" and evaluations_fall(curve):
            continue  # it may be a sum whose weights grow
        if name == "eval_loss" and not len(curve.loss) and found.values.min() < 0.95 * found.values[0]:
            continue  # it had learned, so this is overfitting until training losses say otherwise
        # One low batch is no start.
        first = float(found.values[0] if len(found) < 12 else max(found.values[0], np.median(found.values[:3])))
        if first <= 0:
            continue  # no cross-entropy
        last = float(np.median(found.values[-max(len(found) // 8, 1 if name == "eval_loss" else 2) :]))
        rise = last / first
        sure = confidence(rise - 1, max(EXPLODED - 1, 6 * relative_noise(found)))
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


def _learns(curve: Curve, first: float) -> bool:
    """Whether the training loss falls, or is far below the first eval loss: then high evaluations are overfitting."""
    losses = curve.loss.finite().values
    return falls(curve.loss) or (
        len(losses) > 0 and float(np.median(losses[-max(len(losses) // 4, 1) :])) < 0.5 * first
    )
