"""A Gaussian-process fit of the eval loss over the logarithm of the learning rate."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Fewer learning rates than these do not show a shape.
_FEWEST = 4
# Number of points on the fitted line.
_POINTS = 161
# The best learning rate of the full run is assumed to be within this factor of the trials' best, either way.
_ABOUT = 2.0
# Candidate kernels: variances, in units of the squared range of the losses, and length scales in decades. With a scale
# shorter than the usual grid's half decade, the fit would have a minimum at every point.
_VARIANCES, _SCALES = (0.1, 0.3, 1.0, 3.0, 10.0), (0.4, 0.6, 0.9, 1.3, 2.0, 3.0)


@dataclass(frozen=True)
class LrCurve:
    """The fitted curve on a grid of learning rates.

    Attributes:
        lr: The grid [n], evenly spaced on the log scale from the lowest to the highest learning rate tried.
        mean: Expected eval loss [n] in nats per token.
        deviation: Standard deviation of that expectation [n], in nats per token.
    """

    lr: Floats
    mean: Floats
    deviation: Floats

    @property
    def centre(self) -> float:
        """The learning rate on the grid with the lowest risk."""
        return float(self.lr[int(np.argmin([self.risk(lr) for lr in self.lr]))])

    def risk(self, lr: float) -> float:
        """Mean of `mean + deviation` between half and twice a learning rate, in nats per token.

        A region that is steep or little explored raises the risk.

        Args:
            lr: A learning rate within the grid.
        """
        near = (self.lr >= lr / _ABOUT) & (self.lr <= lr * _ABOUT)
        return float((self.mean + self.deviation)[near].mean())


def fit(
    losses: Mapping[float, float], diverged: Sequence[float], noise: float | None, base_loss: float | None
) -> LrCurve | None:
    """Fits a Gaussian process with a Matern-3/2 kernel to the losses over log10 of the learning rate.

    A loss above the one before training shows only that the rate is bad. Such losses are clipped to just above that
    loss, and diverged rates are put there too; otherwise a few very high losses would bend the whole curve.

    Args:
        losses: Best eval loss of each learning rate, in nats per token.
        diverged: Learning rates of diverged trials without a loss.
        noise: Standard deviation of one loss; None if it is not known.
        base_loss: Eval loss before training; None if it is not known, which clips at the highest loss.

    Returns:
        The fit; None with fewer than four learning rates, or fewer than two losses.
    """
    if len(losses) + len(diverged) < _FEWEST or len(losses) < 2:
        return None
    # Importing sklearn takes a second.
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    best, worst = min(losses.values()), max(losses.values())
    top = base_loss + 0.1 * (base_loss - best) if base_loss is not None and base_loss > best else worst
    points = {lr: min(loss, top) for lr, loss in losses.items()} | dict.fromkeys(diverged, top)
    x = np.log10(sorted(points))
    y = np.array([points[lr] for lr in sorted(points)])
    span = max(float(np.ptp(y)), 1e-12)
    scaled = (y - y.mean()) / span
    alpha = max((noise or 0.0) / span, 1e-3) ** 2
    # A Matern-3/2 process, differentiable once, does not overshoot below the points next to a cliff, as smoother ones
    # do. The likeliest of a few fixed kernels is used: the last digits of an optimizer's result would depend on the
    # number of threads, and so would the figure.
    processes = [
        GaussianProcessRegressor(ConstantKernel(variance) * Matern(scale, nu=1.5), alpha=alpha, optimizer=None).fit(
            x[:, None], scaled
        )
        for variance, scale in itertools.product(_VARIANCES, _SCALES)
    ]
    process = max(processes, key=lambda fitted: fitted.log_marginal_likelihood_value_)
    line = np.linspace(x[0], x[-1], _POINTS)
    mean, deviation = process.predict(line[:, None], return_std=True)
    return LrCurve(10**line, y.mean() + span * mean, span * deviation)
