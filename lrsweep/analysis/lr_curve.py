"""A Gaussian-process fit of the eval loss over the logarithm of the learning rate."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Fewer learning rates than these do not show a shape.
_FEWEST = 4
# Errors below this share of the losses' range are not believed.
_LEAST_ERROR = 1e-3
# Number of points on the fitted line.
_POINTS = 161
# The tolerances of a safe range, as shares of the improvement, and the least ratio of its ends.
_TOLERANCES, _WIDE_ENOUGH = (0.01, 0.02, 0.05, 0.1), 1.2
# A kernel that is this much less likely than the likeliest does not count.
_LEAST_WEIGHT = 1e-3
# The 95 % quantile of the normal distribution.
_ONE_SIDED = 1.645
# How smooth a curve is taken to be, as Matérn's nu. With rough curves (5/2) more safe ranges hold; with smooth ones
# (infinity is the squared exponential) the chance of a better rate is closer to how often there is one
# (benchmarks/refine.py).
_ROUGH, _SMOOTH = 2.5, math.inf
# Candidate kernels: variances, in units of the squared range of the losses, and length scales in decades. With a scale
# shorter than the usual grid's half decade, the fit would have a minimum at every point.
_VARIANCES, _SCALES = (0.1, 0.3, 1.0, 3.0, 10.0), (0.4, 0.6, 0.9, 1.3, 2.0, 3.0)


@dataclass(frozen=True)
class LrCurve:
    """The fitted curve on a grid of learning rates.

    Attributes:
        lr: The grid [n], evenly spaced on the log scale from the lowest to the highest learning rate tried.
        mean: Expected eval loss [n] in nats per token.
        covariance: Covariance of that expectation [n, n].
    """

    lr: Floats
    mean: Floats
    covariance: Floats

    @property
    def deviation(self) -> Floats:
        """Standard deviation of the expected loss [n], in nats per token."""
        found: Floats = np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        return found

    @property
    def centre(self) -> float:
        """The learning rate on the grid with the lowest expected loss."""
        return float(self.lr[int(np.argmin(self.mean))])


@dataclass(frozen=True)
class SafeRange:
    """Learning rates that are about as good as the recommended one.

    Attributes:
        low: The lowest of them; it may lie between trials.
        high: The highest of them.
        tolerance: What they may lose, as a share of the improvement: with 95 % they lose no more.
    """

    low: float
    high: float
    tolerance: float

    def __contains__(self, lr: float) -> bool:
        return self.low <= lr <= self.high


@dataclass(frozen=True)
class BetterRate:
    """The learning rate that is likeliest to beat another one by more than a tolerance.

    Attributes:
        lr: The rate.
        chance: How likely it is, from 0 to 1.
    """

    lr: float
    chance: float


def safe_range(curve: LrCurve, recommended: float, improvement: float, unsafe: Collection[float]) -> SafeRange | None:
    """The rates around the recommended one whose loss, by the fit and its band, is within a tolerance with 95 %.

    The tolerance is the smallest of a few, from 1 %, for which the fit is certain of more than the rate itself.

    Args:
        curve: The fit.
        recommended: The recommended learning rate.
        improvement: The loss before training minus the lowest loss, in nats per token.
        unsafe: Tried rates that the range must not reach.

    Returns:
        The range; None if the fit is certain of no range.
    """
    at = int(np.argmin(np.abs(np.log(curve.lr / recommended))))
    excess = curve.mean - curve.mean[at]
    variance = np.diag(curve.covariance) + curve.covariance[at, at] - 2 * curve.covariance[at]
    bound = excess + _ONE_SIDED * np.sqrt(np.maximum(variance, 0.0))
    lowest = max((lr for lr in unsafe if lr < recommended), default=0.0)
    highest = min((lr for lr in unsafe if lr > recommended), default=math.inf)
    allowed = (curve.lr > lowest) & (curve.lr < highest)
    for tolerance in _TOLERANCES:
        good = (bound <= tolerance * improvement) & allowed
        low = at - int(np.argmin(np.append(good[at::-1], False))) + 1
        high = at + int(np.argmin(np.append(good[at:], False))) - 1
        if curve.lr[high] >= _WIDE_ENOUGH * curve.lr[low]:
            return SafeRange(min(float(curve.lr[low]), recommended), max(float(curve.lr[high]), recommended), tolerance)
    return None


def fit(losses: Mapping[float, float], errors: Mapping[float, float], base_loss: float | None) -> LrCurve | None:
    """Fits a Gaussian process to the losses over log10 of the learning rate.

    A loss above the one before training shows only that the rate is far too high. Such losses are left out: a cliff
    would make the whole curve look rough.

    Args:
        losses: Best eval loss of each learning rate, in nats per token.
        errors: Standard deviation of each loss; those that are not known may be missing.
        base_loss: Eval loss before training; None if it is not known.

    Returns:
        The fit; None with fewer than four losses.
    """
    points = _below(losses, base_loss)
    if len(points) < _FEWEST:
        return None
    line = _line(points)
    posteriors = list(_posteriors(points, errors, line, _ROUGH))
    mean = sum(own.weight * own.mean for own in posteriors)
    covariance = sum(own.weight * (own.covariance + np.outer(own.mean - mean, own.mean - mean)) for own in posteriors)
    return LrCurve(10**line, np.asarray(mean), np.asarray(covariance))


def better_rate(
    losses: Mapping[float, float], errors: Mapping[float, float], base_loss: float | None, than: float, gain: float
) -> BetterRate | None:
    """Finds the rate that is likeliest to beat a tried one, between the lowest and the highest rate tried.

    Args:
        losses: Best eval loss of each learning rate, in nats per token.
        errors: Standard deviation of each loss; those that are not known may be missing.
        base_loss: Eval loss before training; None if it is not known.
        than: The tried rate.
        gain: By how much its loss has to be beaten, in nats per token.

    Returns:
        The rate; None with fewer than four losses.
    """
    points = _below(losses, base_loss)
    if len(points) < _FEWEST or than not in points:
        return None
    from scipy.stats import norm

    line = np.append(_line(points), np.log10(than))
    chance = np.zeros(len(line) - 1)
    for own in _posteriors(points, errors, line, _SMOOTH):
        at, cov = own.covariance[-1, -1], own.covariance[-1, :-1]
        variance = np.diag(own.covariance)[:-1] + at - 2 * cov
        # At the tried rate itself nothing is gained, and nothing varies.
        surplus = own.mean[-1] - own.mean[:-1] - gain
        chance += own.weight * norm.cdf(surplus / np.sqrt(np.maximum(variance, 1e-18)))
    likeliest = int(np.argmax(chance))
    return BetterRate(float(10 ** line[likeliest]), float(chance[likeliest]))


@dataclass(frozen=True)
class _Posterior:
    """What one kernel says about the loss on a line of rates.

    Attributes:
        weight: The kernel's likelihood, as a share of all kernels'.
        mean: Expected loss [n] in nats per token.
        covariance: Its covariance [n, n].
    """

    weight: float
    mean: Floats
    covariance: Floats


def _below(losses: Mapping[float, float], base_loss: float | None) -> dict[float, float]:
    return {lr: loss for lr, loss in sorted(losses.items()) if base_loss is None or loss < base_loss}


def _line(points: Mapping[float, float]) -> Floats:
    logs = np.log10(list(points))
    return np.linspace(logs[0], logs[-1], _POINTS)


def _posteriors(
    points: Mapping[float, float], errors: Mapping[float, float], line: Floats, nu: float
) -> Iterator[_Posterior]:
    """What each likely kernel says, at log10 of the rates of `line`.

    A few points do not show which kernel is right, so a few fixed ones count, each with its likelihood as its weight.
    With an optimizer, the last digits would depend on the number of threads, and so would the figure.
    """
    # Importing sklearn takes a second.
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    x, y = np.log10(list(points)), np.array(list(points.values()))
    span = max(float(np.ptp(y)), 1e-12)
    scaled = (y - y.mean()) / span
    alpha = np.array([max(errors.get(lr, 0.0) / span, _LEAST_ERROR) ** 2 for lr in points])
    processes = [
        GaussianProcessRegressor(ConstantKernel(variance) * Matern(scale, nu=nu), alpha=alpha, optimizer=None).fit(
            x[:, None], scaled
        )
        for variance, scale in itertools.product(_VARIANCES, _SCALES)
    ]
    likelihoods = np.array([process.log_marginal_likelihood_value_ for process in processes])
    weights = np.exp(likelihoods - likelihoods.max())
    counted = np.flatnonzero(weights > _LEAST_WEIGHT)
    weights = weights[counted] / weights[counted].sum()
    for i, weight in zip(counted, weights, strict=True):
        mean, covariance = processes[i].predict(line[:, None], return_cov=True)
        yield _Posterior(float(weight), y.mean() + span * mean, span**2 * covariance)
