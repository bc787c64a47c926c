"""A run's loss curve and its diagnosis: the data types."""

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
    """A logged series; empty if nothing was logged.

    Attributes:
        steps: Optimizer steps [n], strictly increasing.
        values: The value at each step [n].
    """

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def finite(self) -> "Series":
        """The series without the points that are not finite."""
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])

    def after(self, step: float) -> "Series":
        """The points after a step."""
        kept = self.steps > step
        return Series(self.steps[kept], self.values[kept])


@dataclass(frozen=True)
class Curve:
    """A run's history. The series have the names under which transformers logs them.

    Attributes:
        loss: Training loss in nats per token.
        eval_loss: Eval loss in nats per token.
        learning_rate: The learning rate.
        grad_norm: Norm of the gradient before clipping.
        weight_decay: The optimizer's weight decay; None if it is not known.
    """

    loss: Series
    eval_loss: Series
    learning_rate: Series
    grad_norm: Series
    weight_decay: float | None = None

    @property
    def peak_lr(self) -> float | None:
        """The highest learning rate of the run; None if it was not logged."""
        rates = self.learning_rate.finite().values
        return float(rates.max()) if len(rates) else None

    @property
    def warmed_up(self) -> float:
        """The first step at which the learning rate is highest; 0 if it was not logged."""
        rates = self.learning_rate.finite()
        return float(rates.steps[rates.values.argmax()]) if len(rates) else 0.0


@dataclass(frozen=True)
class Advice:
    """A remedy.

    Attributes:
        text: The remedy for people.
        overrides: The same as config overrides, by dotted key; empty if it cannot be given as overrides.
    """

    text: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """What a curve shows.

    Attributes:
        label: The label.
        evidence: Numbers and steps that the label is based on, and a `reason` for people.
        advice: Remedies, the most promising first; empty for a healthy run.
    """

    label: Label
    evidence: Mapping[str, float | str]
    advice: tuple[Advice, ...] = ()


def curve(rows: Iterable[Mapping[str, Any]], weight_decay: float | None = None) -> Curve:
    """Builds a curve from log rows.

    Args:
        rows: Rows with `step` and any of `loss`, `eval_loss`, `learning_rate` and `grad_norm`. If a step was logged
            twice, as in a resumed run, the last value counts. Values that are not numbers are left out.
        weight_decay: The run's weight decay; None if it is not known.
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
