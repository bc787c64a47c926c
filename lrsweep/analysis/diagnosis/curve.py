"""A run's loss curve and its diagnosis: the data types."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Label = Literal[
    "healthy",
    "too_low",
    "too_high",
    "diverged",
    "collapsed",
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


NOTHING = Series(np.empty(0), np.empty(0))


@dataclass(frozen=True)
class Curve:
    """A run's history. The series have the names under which transformers logs them.

    Attributes:
        loss: Training loss in nats per token.
        eval_loss: Eval loss in nats per token; of several eval sets, the one that was evaluated most often.
        learning_rate: The learning rate.
        grad_norm: Norm of the gradient before clipping.
        weight_decay: The optimizer's weight decay; None if it is not known.
        eval_name: The name of the eval set if there are several, as in `eval_NAME_loss`; else empty.
        other_evals: The losses on the other eval sets, by name.
        measures: Other series that tell what kind of training it is and how it went, by name: accuracies, rewards.
        epoch: The epoch at each step.
        restarts: How often the log started again from the beginning; what came before is left out.
        counted: Whether the steps are counted rows, because the log has no steps.
    """

    loss: Series
    eval_loss: Series
    learning_rate: Series
    grad_norm: Series
    weight_decay: float | None = None
    eval_name: str = ""
    other_evals: Mapping[str, Series] = field(default_factory=dict)
    measures: Mapping[str, Series] = field(default_factory=dict)
    epoch: Series = field(default_factory=lambda: NOTHING)
    restarts: int = 0
    counted: bool = False

    @property
    def begins(self) -> bool:
        """Whether the log shows the run from its beginning, as far as steps and epochs tell."""
        steps = (self.loss if len(self.loss) else self.eval_loss).steps
        return _from_the_start(self.epoch.values) and (self.counted or _from_the_start(steps))

    @property
    def peak_lr(self) -> float | None:
        """The highest learning rate of the run; None if it was not logged."""
        rates = self.learning_rate.finite().values
        return float(rates.max()) if len(rates) else None

    def place(self, step: float) -> str:
        """A step in words: "step 300", or with its epoch if the log counts rows only."""
        if not self.counted:
            return f"step {step:.10g}"
        at = np.flatnonzero(self.epoch.steps <= step)
        epoch = f" (epoch {self.epoch.values[at[-1]]:g})" if len(at) else ""
        return f"row {step:.10g}{epoch}"

    def number(self, step: float) -> str:
        """A step in words, as the end of a range that begins with `place`."""
        return self.place(step).split(" ", 1)[1]

    def summary(self) -> str:
        """What there is to judge, in words: the series, their steps, and what was left out."""
        sets = "".join(f", {name or 'eval'}" for name in self.other_evals)
        parts = [
            f"{len(series)} {name} ({self._span(series)})"
            for name, series in (("training losses", self.loss), (f"evaluations{self._of_set(sets)}", self.eval_loss))
            if len(series)
        ]
        if self.restarts:
            times = "once" if self.restarts == 1 else f"{self.restarts} times"
            parts.append(f"the last run in a log that starts again {times}")
        return "; ".join(parts)

    def _span(self, series: Series) -> str:
        first, last = float(series.steps[0]), float(series.steps[-1])
        return f"{self.place(first)} to {self.number(last)}" if last > first else self.place(first)

    def _of_set(self, others: str) -> str:
        return f" on {self.eval_name}{others}" if self.eval_name else ""

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
        confidence: How certain the label is, from 0 to 1; below `CERTAIN` a fault is only mentioned.
    """

    label: Label
    evidence: Mapping[str, float | str]
    advice: tuple[Advice, ...] = ()
    confidence: float = 1.0


# A fault is a label only with this confidence or more.
CERTAIN = 0.9
# An end this many times as high as the start is no matter of noise.
EXPLODED = 3.0


def confidence(size: float, bound: float) -> float:
    """Returns how certain a finding of some size is: `CERTAIN` at the bound, 0.975 at twice the bound, 0.6 at half."""
    if not size > 0 or bound > 10 * size:
        return 0.0
    return max(1 - (1 - CERTAIN) * (bound / size) ** 2, 0.0) if bound > 0 else 1.0


# A log that goes back to a step before this share of the run has started again; later, a checkpoint was resumed.
_START = 0.1
# Parts of the loss that trainers log beside it, named like losses on eval sets.
_PARTS = re.compile(r"eval_(nll|sft|odds_ratio|aux|router|policy|value|rewards?|logps|logits)(_|/|$)")
MEASURE = re.compile(
    r"(eval_)?(rewards?(/(chosen|rejected|margins|accuracies))?|kl|objective/kl|reward_std|completion_length"
    r"|completions/mean_length|accuracy|mean_token_accuracy|f1|acc|wer|cer)$"
)


def curve(rows: Iterable[Mapping[str, Any]], weight_decay: float | None = None) -> Curve:
    """Builds a curve from log rows.

    Args:
        rows: Rows with `step` (or `row`, a count of rows) and any of `loss`, `eval_loss`, `eval_NAME_loss`,
            `learning_rate`, `grad_norm` and `epoch`. Where the log goes back to an earlier step, as in a resumed run,
            what it says from there on replaces what it said before. Values that are not numbers are left out.
        weight_decay: The run's weight decay; None if it is not known.
    """
    log = _Points()
    for row in rows:
        log.add(row)
    evals = {key: points for key, points in log.points.items() if _is_eval(key)}
    if "eval_loss" in evals:
        evals = {"eval_loss": evals["eval_loss"]}
    main = max(evals, key=lambda key: len(evals[key]), default="eval_loss")
    return Curve(
        **{key: log.series(key) for key in ("loss", "learning_rate", "grad_norm", "epoch")},
        eval_loss=log.series(main),
        weight_decay=weight_decay,
        eval_name=_set_name(main),
        other_evals={_set_name(key): log.series(key) for key in evals if key != main},
        measures={key: log.series(key) for key in log.points if MEASURE.match(key)},
        restarts=log.restarts,
        counted=log.counted,
    )


class _Points:
    """The points of a log's series, by name and step, as rows come in."""

    def __init__(self) -> None:
        self.points: dict[str, dict[float, float]] = {}
        self.restarts = 0
        self.counted = False
        self._last: dict[str, float] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        step = _number(row.get("step", row.get("row")))
        if step is None or not math.isfinite(step):
            return
        self.counted = self.counted or "step" not in row
        for key in ("loss", "eval_loss"):
            if _number(row.get(key)) is not None:
                if step < self._last.get(key, -math.inf):
                    self._rewind(step)
                self._last[key] = step
        for key, value in row.items():
            if key in _SERIES or _is_eval(key) or MEASURE.match(key):
                found = _number(value)
                if found is not None:
                    self.points.setdefault(key, {})[step] = found

    def _rewind(self, step: float) -> None:
        """Drops what the log said from a step on; all of it, if the log starts again."""
        end = max(self._last.values())
        fresh = step <= max(_START * end, 1)
        self.restarts += fresh
        for points in self.points.values():
            for later in [at for at in points if fresh or at >= step]:
                del points[later]
        self._last = {key: last for key, last in self._last.items() if not fresh and last < step}

    def series(self, key: str) -> Series:
        points = self.points.get(key, {})
        steps = np.array(sorted(points), dtype=np.float64)
        return Series(steps, np.array([points[step] for step in steps], dtype=np.float64))


def _from_the_start(counts: Floats) -> bool:
    """Whether steps or epochs begin within four of their gaps."""
    gaps = np.diff(counts)
    gaps = gaps[gaps > 0]
    return len(gaps) < 2 or float(counts[0]) <= 4 * float(np.median(gaps))


_SERIES = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch")


def _is_eval(key: str) -> bool:
    return key.startswith("eval_") and key.endswith("loss") and _PARTS.match(key) is None


def _set_name(key: str) -> str:
    return key.removeprefix("eval_").removesuffix("loss").rstrip("_")


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
