"""Draws training logs with the shapes and statistics of published ones, and with a known fault or none.

What published logs have in common, and drawn ones therefore too: noise that is proportional to the loss (1 to 25 % of
it from one logged step to the next, more for classifiers), batches whose losses have a long upper tail, losses rounded
to four digits, a steep start within a few steps or none, steps down at each epoch, 10 to thousands of points, and few
evaluations, dense ones, or none.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = list[dict[str, Any]]
Draw = np.random.Generator


def noisy(draw: Draw, level: Floats, noise: float, tail: float = 0.0) -> Floats:
    """A level with proportional noise; a share `tail` of the points are hard batches, up to several times as high."""
    factors = np.exp(noise * draw.normal(size=len(level)))
    hard = draw.random(len(level)) < tail
    factors[hard] *= np.exp(np.abs(draw.normal(0.5, 0.4, size=int(hard.sum()))))
    return np.asarray(np.round(level * factors, 4))


def decay(draw: Draw, n: int, start: float, end: float) -> Floats:
    """A fall from start to end: as a power law, exponentially, or within the first few points."""
    t = np.arange(n) / max(n - 1, 1)
    shape = draw.integers(3)
    if shape == 0:
        return end + (start - end) * (1 + 30 * t) ** -0.7
    return end + (start - end) * np.exp(-t * (5 if shape == 1 else 60))


def points(draw: Draw, most: int = 3000) -> int:
    """A number of points between 10 and `most`, with all orders of magnitude alike."""
    return int(math.exp(draw.uniform(math.log(10), math.log(most))))


def logged(losses: Floats, evals: dict[str, Floats] | None = None, rate: float = 2e-5, every: int = 10) -> Rows:
    """Rows of a Trainer: losses each `every` steps, evaluations evenly among them to the end."""
    n = len(losses)
    rows: Rows = [
        {"step": every * (i + 1), "loss": float(v), "learning_rate": rate * (1 - i / n)} for i, v in enumerate(losses)
    ]
    for name, values in (evals or {}).items():
        for i, value in enumerate(values, 1):
            rows.append({"step": every * max(round(i * n / len(values)), 1), name: float(value)})
    return rows


def evaluations(draw: Draw, n: int, start: float, end: float) -> Floats:
    """An eval loss that falls to a plateau: two to five evaluations, or dense ones with a scatter of up to 2 %."""
    count = int(draw.integers(2, 6)) if draw.random() < 0.6 else max(min(n // 2, int(draw.integers(20, 100))), 3)
    values = decay(draw, count, start, end)
    return np.asarray(values * np.exp(draw.uniform(0.001, 0.02) * draw.normal(size=count)) if count > 5 else values)


def fine_tune(draw: Draw) -> Rows:
    """Supervised fine-tuning of a pretrained model: a modest fall to a plateau."""
    n, start = points(draw), draw.uniform(0.8, 3.0)
    end = start * draw.uniform(0.4, 0.9)
    losses = noisy(draw, decay(draw, n, start, end), draw.uniform(0.01, 0.25), draw.choice([0.0, 0.02]))
    return logged(losses, {"eval_loss": evaluations(draw, n, end * 1.2, end * 1.05)} if draw.random() < 0.5 else None)


def classifier(draw: Draw) -> Rows:
    """A classifier: from the logarithm of the number of classes to next to nothing, with hard batches."""
    n, start = points(draw), math.log(draw.integers(2, 20))
    losses = noisy(draw, decay(draw, n, start, start * draw.uniform(0.005, 0.4)), draw.uniform(0.1, 0.6), 0.05)
    return logged(losses)


def epochs(draw: Draw) -> Rows:
    """Several epochs without evaluations: the training loss steps down where an epoch begins."""
    count, size = int(draw.integers(3, 8)), int(draw.integers(8, 120))
    level = draw.uniform(0.8, 2.5) * np.repeat(draw.uniform(0.6, 0.9) ** np.arange(count), size)
    return logged(noisy(draw, level, draw.uniform(0.02, 0.15)))


def sorted_rows(draw: Draw) -> Rows:
    """Rows sorted by length: the loss goes up and down with each pass, about a slow fall."""
    n, period = int(draw.integers(40, 400)), int(draw.integers(8, 20))
    wave = 1 + draw.uniform(0.1, 0.2) * (np.arange(n) % period / period - 0.5)
    return logged(noisy(draw, wave * decay(draw, n, 2.0, 1.5), 0.05))


def several_sets(draw: Draw) -> Rows:
    """Two eval sets at different levels, both falling."""
    n = int(draw.integers(20, 400))
    sets = {f"eval_{name}_loss": np.linspace(level, 0.8 * level, 5) for name, level in (("a", 1.4), ("b", 3.0))}
    return logged(noisy(draw, decay(draw, n, 1.8, 1.2), 0.1), sets)


def started_again(draw: Draw) -> Rows:
    """A run that broke, and after it in the same log one that did not."""
    n = int(draw.integers(15, 300))
    broken = logged(np.concatenate([noisy(draw, decay(draw, n, 2.0, 1.2), 0.05), np.full(5, np.nan)]))
    return broken + logged(noisy(draw, decay(draw, n, 2.0, 1.2), 0.05))


def bump(draw: Draw) -> Rows:
    """A short rise in the middle that the run recovers from."""
    n = int(draw.integers(60, 600))
    level = decay(draw, n, 2.0, 0.8)
    at = int(draw.integers(n // 4, n // 2))
    level[at : at + max(n // 20, 2)] *= draw.uniform(1.2, 2.0)
    return logged(noisy(draw, level, 0.05))


def memorised(draw: Draw) -> Rows:
    """A small classification task, known by heart: the last losses are 0 by rounding."""
    n = int(draw.integers(20, 300))
    return logged(noisy(draw, 0.7 * np.exp(-np.linspace(0, draw.uniform(6, 14), n)), draw.uniform(0.2, 0.8)))


def small_eval_set(draw: Draw) -> Rows:
    """Evaluations on few rows, which move by percents about a plateau, while the training loss falls a little."""
    n, count = int(draw.integers(20, 200)), int(draw.integers(3, 12))
    evals = draw.uniform(0.2, 1.5) * (1 + 0.02 * draw.normal(size=count))
    return logged(noisy(draw, decay(draw, n, 0.9, 0.8), 0.1), {"eval_loss": np.asarray(evals)})


HEALTHY: tuple[Callable[[Draw], Rows], ...] = (
    fine_tune,
    classifier,
    epochs,
    sorted_rows,
    several_sets,
    started_again,
    bump,
    memorised,
    small_eval_set,
)


def overfit(draw: Draw) -> Rows:
    """The eval loss turns after a third of the run and rises by a fifth or more while the training loss falls."""
    n, count = int(draw.integers(30, 400)), int(draw.choice([4, 6, 10, 60]))
    t, low = np.linspace(0, 1, count), draw.uniform(0.2, 1.5)
    evals = low * (1 + 0.5 * np.maximum(0.35 - t, 0) + draw.uniform(0.4, 1.5) * np.maximum(t - 0.35, 0))
    evals = evals * np.exp(0.005 * draw.normal(size=count)) if count > 10 else evals
    return logged(noisy(draw, decay(draw, n, 1.5 * low, 0.1 * low), 0.1), {"eval_loss": np.asarray(evals)})


def nan_tail(draw: Draw) -> Rows:
    """NaN, or the 0 that transformers logs for it, from somewhere on."""
    n = points(draw, 500)
    losses = noisy(draw, decay(draw, n, 2.0, 1.2), 0.1)
    losses[int(draw.integers(1, n - 2)) :] = draw.choice([np.nan, 0.0])
    return logged(losses)


def explosion(draw: Draw) -> Rows:
    """The loss jumps to several times its start, and stays there."""
    n = int(draw.integers(12, 500))
    level = decay(draw, n, 2.0, 1.5)
    level[int(draw.integers(2, max(n // 2, 3))) :] = 2.0 * 10 ** draw.uniform(0.8, 6)
    return logged(noisy(draw, level, 0.1), rate=3e-4)


def blown_up(draw: Draw) -> Rows:
    """The loss falls, jumps up at a third of the run, and stays well above where it was."""
    n = int(draw.integers(30, 500))
    level = decay(draw, n, 2.0, 0.8)
    level[n // 3 :] = draw.uniform(1.5, 1.9)
    return logged(noisy(draw, level, 0.05), rate=3e-4)


def at_chance(draw: Draw) -> Rows:
    """A classifier that never leaves chance level."""
    n, classes = int(draw.integers(20, 300)), int(draw.integers(2, 10))
    rows = logged(noisy(draw, np.full(n, math.log(classes)), 0.008))
    return [*rows, *({"step": 10 * n * i // 4, "eval_accuracy": 1 / classes} for i in range(1, 5))]


def untrained(draw: Draw) -> Rows:
    """Nothing is trained, so each epoch has the losses of the first."""
    size = int(draw.integers(5, 60))
    return logged(np.tile(noisy(draw, np.full(size, 1.4), 0.2), int(draw.integers(2, 6))))


BROKEN: dict[Callable[[Draw], Rows], tuple[str, ...]] = {
    overfit: ("overfitting",),
    nan_tail: ("diverged",),
    explosion: ("diverged",),
    blown_up: ("too_high",),
    at_chance: ("collapsed",),
    untrained: ("inert",),
}
