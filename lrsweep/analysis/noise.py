"""How much a final eval loss varies from seed to seed, measured on trials that were trained with several seeds.

Trials with the same seed see the same rows in the same order and start from the same weights, so part of what a seed
does is common to all of them. A two-way layout, trial by seed, takes that part out: what remains is the noise that a
comparison of two trials has. See any text on randomized complete block designs, such as Montgomery, "Design and
Analysis of Experiments", chapter 4.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """The noise of one trial's final eval loss, from seed to seed.

    Attributes:
        deviation: Standard deviation in nats per token, without what a seed adds to all trials alike.
        degrees: Degrees of freedom of the estimate.
        seeds: The most seeds that a trial was trained with.
    """

    deviation: float
    degrees: int
    seeds: int

    @property
    def bound(self) -> float:
        """The deviation, larger by as much as Student's 95 % quantile exceeds the normal one: it is an estimate."""
        from scipy.stats import norm, t

        return self.deviation * float(t.ppf(0.95, self.degrees) / norm.ppf(0.95))


@dataclass(frozen=True)
class SeedModel:
    """The least-squares fit of loss = what the trial has + what the seed adds + noise.

    Attributes:
        means: Each trial's loss at the average seed [n], in nats per token.
        covariance: The covariance of the means [n, n], in units of the noise's variance.
        noise: The noise.
    """

    means: Floats
    covariance: Floats
    noise: Noise

    def margin(self, one: int, other: int, among: int, confidence: float) -> float:
        """How far the means of two trials may differ by chance alone, in nats per token.

        This is the Tukey-Kramer test, which uses the studentized range: the best of many trials is low partly by luck,
        and the more trials there are, the larger that effect.

        Args:
            one: A trial's index.
            other: Another trial's index.
            among: The number of trials compared.
            confidence: How often no two of equal trials differ by more.
        """
        cov = self.covariance
        variance = cov[one, one] + cov[other, other] - 2 * cov[one, other]
        error = self.noise.deviation * math.sqrt(max(variance, 0.0) / 2)
        return _range_quantile(confidence, max(among, 2), self.noise.degrees) * error


def fit_seeds(losses: Sequence[Mapping[int, float]]) -> SeedModel | None:
    """Fits the model; None if no trial has two seeds.

    If seeds are not shared, or only one trial has several, there is no common part to take out, and the fit is the
    means and the pooled standard deviation of each trial's seeds.

    Args:
        losses: Each trial's final eval losses by seed, in nats per token.
    """
    seeds = sorted({seed for of in losses for seed in of})
    cells = [(trial, seeds.index(seed), loss) for trial, of in enumerate(losses) for seed, loss in of.items()]
    most = max((len(of) for of in losses), default=0)
    if most < 2:
        return None
    y = np.array([loss for _, _, loss in cells])
    trials = np.eye(len(losses))[[trial for trial, _, _ in cells]]
    # The effects of the seeds sum to zero.
    effects = (np.eye(len(seeds)) - 1 / len(seeds))[[seed for _, seed, _ in cells]]
    paired = np.hstack([trials, effects])
    rank = int(np.linalg.matrix_rank(paired))
    usable = rank == len(losses) + len(seeds) - 1 and len(cells) > rank
    design = paired if usable else trials
    degrees = len(cells) - (rank if usable else len(losses))
    inverse: Floats = np.asarray(np.linalg.pinv(design.T @ design), dtype=np.float64)
    coefficients: Floats = inverse @ design.T @ y
    residuals = y - design @ coefficients
    noise = Noise(math.sqrt(float(residuals @ residuals) / degrees), degrees, most)
    count = len(losses)
    return SeedModel(coefficients[:count], inverse[:count, :count], noise)


@functools.lru_cache(maxsize=256)
def _range_quantile(confidence: float, among: int, degrees: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(confidence, among, degrees))
