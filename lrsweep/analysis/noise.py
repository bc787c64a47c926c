"""How much a final eval loss moves by chance, and whether two losses differ by more."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Two losses are told apart where chance alone would part them in one sweep of twenty.
_CONFIDENCE = 0.95
# Of a curve's evaluations, the last of which the scatter is taken.
_LAST = 4


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one trial's final eval loss, in nats; `degrees` of freedom behind it; what it was read from."""

    deviation: float
    degrees: int
    source: Literal["replicates", "last evaluations"]


def estimate(losses: Sequence[Sequence[float]], evals: Sequence[Sequence[tuple[int, float]]]) -> Noise | None:
    """The noise of trials whose final losses over their seeds are `losses`, and whose last evaluations are `evals`.

    From replicates it is their pooled deviation. Without them it is the scatter of each curve's last evaluations about a
    straight trend (second differences, whose variance is six times a point's), the trend's own bend included: an
    upper guess. None where neither can be had.
    """
    repeated = [np.asarray(seeds) for seeds in losses if len(seeds) > 1]
    if repeated:
        degrees = sum(len(seeds) - 1 for seeds in repeated)
        squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in repeated)
        return Noise(math.sqrt(squares / degrees), degrees, "replicates")
    bends = [np.diff([loss for _, loss in curve[-_LAST:]], n=2) for curve in evals]
    found = np.concatenate([bend for bend in bends if len(bend)] or [np.empty(0)])
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    return Noise(float(np.sqrt((found**2).mean() / 6)), len(found), "last evaluations")


def same(gap: float, seeds: int, best_seeds: int, noise: Noise, among: int) -> bool:
    """Whether a mean `gap` above the best one of `among` candidates may be chance.

    Tukey and Kramer's range test: the best of many is low by luck too, and the more there are the more so.
    """
    error: float = noise.deviation * math.sqrt((1 / seeds + 1 / best_seeds) / 2)
    return gap <= _range_quantile(max(among, 2), noise.degrees) * error


@functools.lru_cache(maxsize=256)
def _range_quantile(among: int, degrees: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(_CONFIDENCE, among, degrees))
