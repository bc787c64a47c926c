"""How much a final eval loss varies by chance, and whether two losses differ by more than that."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lrsweep.analysis.scatter import scatter

# Two losses count as different if chance alone would separate them in at most one sweep of twenty.
_CONFIDENCE = 0.95
# The scatter is estimated from this many evaluations at the end of each curve.
_LAST = 4


@dataclass(frozen=True)
class Noise:
    """The run-to-run noise of one trial's final eval loss.

    Attributes:
        deviation: Standard deviation in nats per token.
        degrees: Degrees of freedom of the estimate.
        source: What it was estimated from: replicates with other seeds, or the last evaluations of each curve.
    """

    deviation: float
    degrees: int
    source: Literal["replicates", "last evaluations"]


def estimate(losses: Sequence[Sequence[float]], evals: Sequence[Sequence[tuple[int, float]]]) -> Noise | None:
    """Estimates the noise of a final eval loss from a sweep's trials.

    With replicates it is their pooled standard deviation. Without them it is the scatter of each curve's last
    evaluations about a straight trend, whatever the steps between them (see `scatter`). The trend's own curvature
    counts as noise there, so this estimate is on the high side.

    Args:
        losses: For each trial the final eval losses of its seeds, in nats per token.
        evals: For each trial its last evaluations as (step, eval loss), in order.

    Returns:
        The estimate; None if no trial has replicates and no curve has three finite evaluations.
    """
    repeated = [np.asarray(seeds) for seeds in losses if len(seeds) > 1]
    if repeated:
        degrees = sum(len(seeds) - 1 for seeds in repeated)
        squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in repeated)
        return Noise(math.sqrt(squares / degrees), degrees, "replicates")
    ends = [np.array(curve[-_LAST:], dtype=np.float64).reshape(-1, 2).T for curve in evals]
    found = np.concatenate([scatter(steps, values) for steps, values in ends] or [np.empty(0)])
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    return Noise(float(np.sqrt((found**2).mean())), len(found), "last evaluations")


def same(gap: float, seeds: int, best_seeds: int, noise: Noise, among: int) -> bool:
    """Returns whether noise alone may explain a gap to the best candidate's mean loss.

    This is the Tukey-Kramer test, which uses the studentized range: the best of many candidates is low partly by luck,
    and the more candidates there are, the larger that effect.

    Args:
        gap: The candidate's mean loss minus the best one's, in nats per token.
        seeds: Number of seeds in the candidate's mean.
        best_seeds: Number of seeds in the best candidate's mean.
        noise: The noise of one trial's loss.
        among: Number of candidates compared.
    """
    error: float = noise.deviation * math.sqrt((1 / seeds + 1 / best_seeds) / 2)
    return gap <= _range_quantile(max(among, 2), noise.degrees) * error


@functools.lru_cache(maxsize=256)
def _range_quantile(among: int, degrees: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(_CONFIDENCE, among, degrees))
