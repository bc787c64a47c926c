"""What a loss curve says: one label, its evidence in numbers, and a remedy in words and as config overrides.

A curve is first judged by itself, then, where its siblings are known (the other trials of a sweep), against them. Every
difference is held against the curve's own noise: the spread of neighbouring points, which a slow trend hardly touches.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Label = Literal[
    "healthy",
    "too_low",
    "too_high",
    "diverged",
    "oscillating",
    "overfitting",
    "over_regularised",
    "inert",
    "unknown",
]
Floats = NDArray[np.float64]

# Fewer points than these say nothing; of evaluations a start and an end are needed.
_FEWEST_LOSSES, _FEWEST_EVALS = 6, 3
# A level is told from another when they are this many standard errors apart.
_ERRORS = 4.0


@dataclass(frozen=True)
class Series:
    """Values [n] at optimizer steps [n], steps rising; empty where nothing was logged."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> "Series":
        """Without the points that are not finite."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])

    def after(self, step: float) -> "Series":
        """The points behind a step."""
        kept = self.steps > step
        return Series(self.steps[kept], self.values[kept])


@dataclass(frozen=True)
class Curve:
    """A run's history, under transformers' names. Losses in nats a token; `weight_decay` where it is known."""

    loss: Series
    eval_loss: Series
    learning_rate: Series
    grad_norm: Series
    weight_decay: float | None = None

    @property
    def peak_lr(self) -> float | None:
        """The highest learning rate of the run."""
        rates = self.learning_rate.finite().values
        return float(rates.max()) if len(rates) else None

    @property
    def warmed_up(self) -> float:
        """The step at which the learning rate is highest for the first time; 0 where it was not logged."""
        rates = self.learning_rate.finite()
        return float(rates.steps[rates.values.argmax()]) if len(rates) else 0.0


@dataclass(frozen=True)
class Advice:
    """What to do: in words, and as config overrides where there are any."""

    text: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """`evidence` holds numbers, steps and a `reason` in words."""

    label: Label
    evidence: Mapping[str, float | str]
    advice: tuple[Advice, ...] = ()


def curve(rows: Iterable[Mapping[str, Any]], weight_decay: float | None = None) -> Curve:
    """A curve from rows with `step` and any of `loss`, `eval_loss`, `learning_rate`, `grad_norm`.

    Of a step logged twice (a run resumed) the last counts. What is no number is left out.
    """
    found: dict[str, dict[float, float]] = {name: {} for name in ("loss", "eval_loss", "learning_rate", "grad_norm")}
    for row in rows:
        step = _number(row.get("step"))
        if step is None or not math.isfinite(step):
            continue
        for name, points in found.items():
            value = _number(row.get(name))
            if value is not None:
                points[step] = value
    series = {}
    for name, points in found.items():
        steps = np.array(sorted(points), dtype=np.float64)
        series[name] = Series(steps, np.array([points[step] for step in steps], dtype=np.float64))
    return Curve(**series, weight_decay=weight_decay)


def diagnose(curve: Curve, siblings: Sequence[Curve] = ()) -> Diagnosis:
    """The curve's label; `siblings` are the other runs of the same sweep. Never raises: what cannot be told is `unknown`."""
    with np.errstate(all="ignore"):
        for rule in (_not_finite, _too_short, _inert, _rises, _overfits, _oscillates):
            found = rule(curve)
            if found is not None:
                return found
        return _against_siblings(curve, siblings) or _hardly_falls(curve) or _healthy(curve)


@dataclass(frozen=True)
class _Levels:
    """Where a series starts and ends, how far either may be off by noise alone, and its smoothed course [m]."""

    first: float
    last: float
    error: float
    noise: float
    course: Series

    @property
    def fall(self) -> float:
        return self.first - self.last


def _levels(series: Series) -> _Levels:
    """Medians over an eighth of the points (three at least, if there are nine) at both ends and along the way."""
    values, n = series.values, len(series)
    width = max(n // 8, 3) if n >= 9 else 1
    noise = _noise(values)
    parts = max(n // width, 1)
    bounds = np.linspace(0, n, parts + 1).astype(int)
    middles = [np.median(values[a:b]) for a, b in itertools.pairwise(bounds)]
    steps = [series.steps[b - 1] for b in bounds[1:]]
    # A median is 1.25 times as uncertain as a mean.
    error = 1.25 * noise * math.sqrt(2 / width)
    return _Levels(float(middles[0]), float(middles[-1]), error, noise, Series(np.array(steps), np.array(middles)))


def _noise(values: Floats) -> float:
    """Standard deviation of a point about its trend, from the second differences' median size.

    A straight trend cancels in them; for white noise their deviation is sqrt(6) times the points'.
    """
    if len(values) < 4:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.diff(values, n=2))) / math.sqrt(6))


# The rules, in the order they are asked. Each answers for itself alone.


def _not_finite(curve: Curve) -> Diagnosis | None:
    for name, series in (("loss", curve.loss), ("eval_loss", curve.eval_loss), ("grad_norm", curve.grad_norm)):
        bad = ~np.isfinite(series.values)
        if not bad.any():
            continue
        # An infinite gradient norm here and there is a loss scaler finding its scale.
        if name == "grad_norm" and not bad[-1]:
            continue
        step = float(series.steps[bad.argmax()])
        reason = f"{name} is {series.values[bad.argmax()]} at step {step:g}"
        return Diagnosis("diverged", {"step": step, "reason": reason}, _lower(curve))
    return None


def _too_short(curve: Curve) -> Diagnosis | None:
    if len(curve.loss) >= _FEWEST_LOSSES or len(curve.eval_loss) >= _FEWEST_EVALS:
        return None
    reason = (
        f"{len(curve.loss)} losses and {len(curve.eval_loss)} evaluations are too few: "
        f"{_FEWEST_LOSSES} losses or {_FEWEST_EVALS} evaluations are needed"
    )
    return Diagnosis("unknown", {"losses": len(curve.loss), "evaluations": len(curve.eval_loss), "reason": reason})


def _inert(curve: Curve) -> Diagnosis | None:
    advice = (
        Advice("check that any parameter is trainable, that labels are not all masked, and that gradients flow", {}),
    )
    norms = curve.grad_norm.values
    if len(norms) >= _FEWEST_LOSSES and not norms.any():
        return Diagnosis("inert", {"grad_norm": 0.0, "reason": "every gradient is zero"}, advice)
    for name, series, fewest in (
        ("eval_loss", curve.eval_loss, _FEWEST_EVALS),
        ("loss", curve.loss, _FEWEST_LOSSES),
    ):
        values = series.values
        if len(values) >= fewest and np.ptp(values) <= 1e-6 * abs(values).max():
            reason = f"{name} is {values[0]:.6g} from step {series.steps[0]:g} to step {series.steps[-1]:g}"
            return Diagnosis("inert", {name: float(values[0]), "reason": reason}, advice)
    return None


def _rises(curve: Curve) -> Diagnosis | None:
    """Too high: the smoothed curve comes to lie above its start."""
    for name, series in (("eval_loss", curve.eval_loss), ("loss", curve.loss)):
        if len(series) < _FEWEST_EVALS:
            continue
        levels = _levels(series)
        top = int(levels.course.values.argmax())
        rise = float(levels.course.values[top]) - levels.first
        if top == 0 or rise <= max(_ERRORS * levels.error, 0.02 * abs(levels.first)):
            continue
        if name == "eval_loss" and _falls(curve.loss):
            continue  # that is overfitting, if anything
        evidence: dict[str, float | str] = {
            "first": levels.first,
            "highest": levels.first + rise,
            "step": float(levels.course.steps[top]),
            "last": levels.last,
            "reason": f"{name} rises from {levels.first:.4g} to {levels.first + rise:.4g}",
        }
        return Diagnosis("too_high", evidence, _lower(curve))
    return None


def _falls(series: Series) -> bool:
    if len(series) < _FEWEST_LOSSES:
        return False
    levels = _levels(series)
    return levels.fall > max(_ERRORS * levels.error, 0.005 * abs(levels.first))


def _overfits(curve: Curve) -> Diagnosis | None:
    """The eval loss has turned for good while the training loss goes on falling."""
    evals = curve.eval_loss
    if len(evals) < 4:
        return None
    lowest = int(evals.values.argmin())
    behind = evals.values[lowest + 1 :]
    if len(behind) < 2:
        return None
    low, last = float(evals.values[lowest]), float(evals.values[-1])
    rise, fall = last - low, float(evals.values[0]) - low
    # Held-out rows stay the same, so that evaluations have little noise of their own; a schedule's end wobbles a little.
    if rise <= max(0.01 * abs(low), 0.1 * fall, 2 * _noise(evals.values)) or float(np.median(behind)) <= low + rise / 4:
        return None
    rest = curve.loss.after(evals.steps[lowest])
    if len(rest) >= _FEWEST_LOSSES:
        levels = _levels(rest)
        if levels.fall < -_ERRORS * levels.error:
            return None  # both rise
    elif len(curve.loss) >= _FEWEST_LOSSES and not _falls(curve.loss):
        return None
    step = float(evals.steps[lowest])
    evidence: dict[str, float | str] = {
        "lowest": low,
        "step": step,
        "last": last,
        "reason": f"eval_loss turns at step {step:g} ({low:.4g}) and ends at {last:.4g}, while the training loss does not rise",
    }
    lower = {} if curve.peak_lr is None else {"optimizer.lr": _round(curve.peak_lr / 2)}
    advice = (
        Advice("halve the learning rate", lower),
        Advice("more weight decay", {"optimizer.weight_decay": 0.1}),
        Advice(f"stop earlier: eval_loss was lowest at step {step:g}", {"training.max_steps": max(round(step), 1)}),
    )
    return Diagnosis("overfitting", evidence, advice)


def _oscillates(curve: Curve) -> Diagnosis | None:
    """Large swings: evaluations that go back on themselves, spikes of the loss, or bursts of the gradient."""
    evals = curve.eval_loss.after(curve.warmed_up / 2) if len(curve.eval_loss) > 6 else curve.eval_loss
    evidence: dict[str, float | str] | None = None
    if len(evals) >= 4:
        moves = np.diff(evals.values)
        back = float(moves[moves > 0].sum())
        turns = int((moves[1:] * moves[:-1] < 0).sum())
        span = float(curve.eval_loss.values[0] - curve.eval_loss.values.min())
        if turns >= 2 and back > max(0.25 * span, 0.01 * abs(float(evals.values[-1]))):
            evidence = {
                "turns": turns,
                "back": back,
                "reason": f"eval_loss turns {turns} times and loses {back:.4g} on the way",
            }
    loss = curve.loss.after(curve.warmed_up)
    if evidence is None and len(loss) >= 20:
        evidence = _swings(loss) or _bursts(curve.grad_norm.after(curve.warmed_up))
    return None if evidence is None else Diagnosis("oscillating", evidence, _calmer(curve))


def _swings(loss: Series) -> dict[str, float | str] | None:
    """Blocks of points that lie further from a smooth course than their own noise explains."""
    values = loss.values
    noise = _noise(values)
    spikes = values - _running_median(values, 5) > max(8 * noise, 0.1 * abs(float(np.median(values))))
    if spikes.sum() >= 2:
        step = float(loss.steps[spikes.argmax()])
        return {
            "spikes": int(spikes.sum()),
            "step": step,
            "reason": f"{spikes.sum()} spikes of the loss, the first at step {step:g}",
        }
    course = _levels(loss).course.values
    if len(course) < 6:
        return None
    moves = np.diff(course)
    back, error = float(moves[moves > 0].sum()), _levels(loss).error
    turns = int((moves[1:] * moves[:-1] < 0).sum())
    if turns >= 3 and back > max(0.5 * float(np.ptp(course)), 2 * _ERRORS * error, 0.03 * abs(float(course[-1]))):
        return {
            "turns": turns,
            "back": back,
            "reason": f"the smoothed loss turns {turns} times and loses {back:.4g} on the way",
        }
    return None


def _bursts(norms: Series) -> dict[str, float | str] | None:
    values = norms.finite().values
    if len(values) < 20:
        return None
    usual = float(np.median(values))
    bursts = values > 20 * usual
    if usual <= 0 or bursts.sum() < 2:
        return None
    step = float(norms.finite().steps[bursts.argmax()])
    return {
        "bursts": int(bursts.sum()), "usual": usual, "highest": float(values.max()), "step": step,
        "reason": f"grad_norm bursts {bursts.sum()} times to over 20 times its median, first at step {step:g}",
    }  # fmt: skip


def _against_siblings(curve: Curve, siblings: Sequence[Curve]) -> Diagnosis | None:
    """Too low, where a sibling at a higher rate fell twice as far; over-regularised, where one with less decay ends lower."""
    mine, rate = _summary(curve), curve.peak_lr
    if mine is None:
        return None
    others = [(other, levels) for other in siblings if (levels := _summary(other)) is not None]
    if rate is not None:
        higher = [
            (levels.fall, other.peak_lr)
            for other, levels in others
            if other.peak_lr is not None and other.peak_lr > 1.5 * rate
        ]
        best, at = max(higher, default=(0.0, None))
        if best > 2 * max(mine.fall, 0.0) and best - mine.fall > max(_ERRORS * mine.error, 0.01 * abs(mine.first)):
            evidence: dict[str, float | str] = {
                "fall": mine.fall, "sibling_fall": best, "sibling_lr": float(at or 0.0),
                "reason": f"it falls by {mine.fall:.4g}, a sibling at {at:.3g} by {best:.4g}",
            }  # fmt: skip
            return Diagnosis("too_low", evidence, _raise(curve))
    decay = curve.weight_decay
    if decay:
        for other, levels in others:
            same_rate = rate is None or other.peak_lr is None or math.isclose(rate, other.peak_lr, rel_tol=1e-6)
            if other.weight_decay is None or other.weight_decay >= decay or not same_rate:
                continue
            eval_gap, loss_gap = _gap(curve.eval_loss, other.eval_loss), _gap(curve.loss, other.loss)
            if eval_gap > 0.01 * abs(levels.last) and loss_gap > 0.01 * abs(levels.last):
                evidence = {
                    "weight_decay": decay, "sibling_weight_decay": other.weight_decay,
                    "eval_gap": eval_gap, "loss_gap": loss_gap,
                    "reason": f"with weight decay {other.weight_decay:g} both losses end lower, eval_loss by {eval_gap:.4g}",
                }  # fmt: skip
                advice = (
                    Advice("no weight decay", {"optimizer.weight_decay": 0.0}),
                    Advice("or very little", {"optimizer.weight_decay": 1e-4}),
                )
                return Diagnosis("over_regularised", evidence, advice)
    return None


def _gap(series: Series, other: Series) -> float:
    """How far one ends above another; 0 where either was not logged, or noise could be the reason."""
    if len(series) < _FEWEST_EVALS or len(other) < _FEWEST_EVALS:
        return 0.0
    mine, theirs = _levels(series), _levels(other)
    gap = mine.last - theirs.last
    return gap if gap > _ERRORS * max(mine.error, theirs.error) else 0.0


def _hardly_falls(curve: Curve) -> Diagnosis | None:
    """Too low by itself: it hardly moves."""
    levels = _summary(curve)
    assert levels is not None
    if levels.fall > max(_ERRORS * levels.error / 2, 0.02 * abs(levels.first)):
        return None
    reason = f"it falls from {levels.first:.4g} to {levels.last:.4g} only, and never rises"
    return Diagnosis("too_low", {"first": levels.first, "last": levels.last, "reason": reason}, _raise(curve))


def _healthy(curve: Curve) -> Diagnosis:
    levels = _summary(curve)
    assert levels is not None
    reason = f"it falls from {levels.first:.4g} to {levels.last:.4g}"
    return Diagnosis("healthy", {"first": levels.first, "last": levels.last, "reason": reason})


def _summary(curve: Curve) -> _Levels | None:
    """The levels of the eval loss, or of the training loss where evaluations are too few."""
    for series, fewest in ((curve.eval_loss, _FEWEST_EVALS), (curve.loss, _FEWEST_LOSSES)):
        finite = series.finite()
        if len(finite) >= fewest:
            levels = _levels(finite)
            if series is curve.eval_loss:
                # The rows are the same each time: the first value and the last are what they are.
                return _Levels(float(finite.values[0]), float(finite.values[-1]), 0.0, levels.noise, levels.course)
            return levels
    return None


def _running_median(values: Floats, width: int) -> Floats:
    padded = np.pad(values, width // 2, mode="edge")
    found: Floats = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    return found


# Remedies


def _lower(curve: Curve) -> tuple[Advice, ...]:
    lower = {} if curve.peak_lr is None else {"optimizer.lr": rung(curve.peak_lr, -1)}
    return (
        Advice("lower the learning rate", lower),
        Advice("or warm up longer", {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None}),
        Advice("or beta1 = 0.8", {"optimizer.betas": [0.8, 0.999]}),
    )


def _calmer(curve: Curve) -> tuple[Advice, ...]:
    lower, wider = {}, {}
    if curve.peak_lr is not None:
        lower = {"optimizer.lr": rung(curve.peak_lr, -1)}
        wider = {"optimizer.lr": _round(curve.peak_lr * math.sqrt(2))}
    return (
        Advice("lower the learning rate", lower),
        Advice("or twice the batch, with the learning rate times the square root of 2", wider),
        Advice("or warm up longer", {"scheduler.warmup_ratio": 0.1, "scheduler.warmup_steps": None}),
    )


def _raise(curve: Curve) -> tuple[Advice, ...]:
    higher = {} if curve.peak_lr is None else {"optimizer.lr": rung(curve.peak_lr, 1)}
    return (Advice("raise the learning rate, step by step", higher),)


def rung(lr: float, by: int) -> float:
    """The learning rate `by` rungs up (or down) the ladder 1e-5, 3e-5, 1e-4, 3e-4, ..."""
    ladder = sorted(float(f"{digit}e{power}") for power in range(-12, 3) for digit in (1, 3))
    # Within a tenth of a rung it stands on that rung; past the ladder's ends it keeps its ratio.
    beyond = [step for step in ladder if step > 1.1 * lr] if by > 0 else [s for s in reversed(ladder) if s < lr / 1.1]
    return beyond[abs(by) - 1] if abs(by) <= len(beyond) else _round(lr * math.sqrt(10) ** by)


def _round(lr: float) -> float:
    return float(f"{lr:.2g}")


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
