"""A run's loss curve, and what is said of it."""

import math
from collections.abc import Iterable, Mapping
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


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
