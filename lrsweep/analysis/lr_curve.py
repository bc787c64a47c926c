"""Eval loss over the logarithm of the learning rate, fitted with a band."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Fewer rates than these have no shape.
_FEWEST = 4
# Points of the fitted line, and how far the rate of a real run may be off what was asked for, as a factor either way.
_POINTS = 161
_ABOUT = 2.0
# Of the fit: variances, in those of the losses, and length scales in decades. Shorter than the usual grid's half decade, the
# fit would have a minimum at every point.
_VARIANCES, _SCALES = (0.1, 0.3, 1.0, 3.0, 10.0), (0.4, 0.6, 0.9, 1.3, 2.0, 3.0)


@dataclass(frozen=True)
class LrCurve:
    """The fit at learning rates `lr` [n]: loss `mean` [n] with standard deviation `deviation` [n], in nats."""

    lr: Floats
    mean: Floats
    deviation: Floats

    @property
    def centre(self) -> float:
        """The learning rate that risks least."""
        return float(self.lr[int(np.argmin([self.risk(lr) for lr in self.lr]))])

    def risk(self, lr: float) -> float:
        """The mean over half to twice `lr` of the loss, one deviation up: what is steep or unknown nearby counts against it."""
        near = (self.lr >= lr / _ABOUT) & (self.lr <= lr * _ABOUT)
        return float((self.mean + self.deviation)[near].mean())


def fit(
    losses: Mapping[float, float], diverged: Sequence[float], noise: float | None, base_loss: float | None
) -> LrCurve | None:
    """A Gaussian process over log10 lr, through the `losses` at their learning rates; None with fewer than four rates.

    What lies above the loss before training (`base_loss`, in nats) tells no more than that it is bad, and stands there
    with the `diverged` rates: a cliff of any height would otherwise bend the whole curve. `noise` is the standard
    deviation of a loss.
    """
    if len(losses) + len(diverged) < _FEWEST or len(losses) < 2:
        return None
    # sklearn takes a second to import.
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
    # Matern's once-differentiable paths do not swing below the points beside a cliff, as smoother ones do. Of a few scales
    # the likeliest is taken: an optimizer's last digits would depend on the number of threads, and the picture on them.
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
