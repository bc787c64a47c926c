"""The learning rate for a longer run: the best rate falls as a power of the steps.

The exponent is measured where a sweep has runs of several lengths, and otherwise taken from J. Bjorck et al., "Scaling
Optimal LR Across Token Horizons", ICLR 2025, arXiv 2409.19913: -0.32. With few lengths the two are combined.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrsweep.analysis.lr_curve import LrCurve, fit
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import Verdict
from lrsweep.config.schema import SweepConfig
from lrsweep.config.search_space import LR

# The exponent, and how far those of other models and tasks lie from it: chosen, wide enough for the four tasks of
# benchmarks/horizon.py.
_EXPONENT, _EXPONENT_DEVIATION = -0.32, 0.15
# In decades: how far the best rate lies from the power law even if it is measured well.
_MISFIT = 0.1
# Without a length of its own, the result is given for a run this many times as long as the longest.
_LONGER = 8
_DRAWS = 400
# The 97.5 % quantile of the normal distribution.
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Optimum:
    """The best learning rate for one length of run.

    Attributes:
        steps: The length in optimizer steps.
        lr: The best rate by the fitted curve.
        deviation: Standard deviation of its logarithm, in decades.
    """

    steps: int
    lr: float
    deviation: float


@dataclass(frozen=True)
class LongerRun:
    """The learning rate for a run that is longer than the trials.

    Attributes:
        steps: The run's length in optimizer steps.
        lr: Its best learning rate.
        low: The lower end of the interval that holds the best rate with 95 %.
        high: The upper end.
        exponent: The power of the steps with which the best rate moves.
        lengths: The lengths from which it was measured; only one if the exponent is a rule of thumb.
    """

    steps: int
    lr: float
    low: float
    high: float
    exponent: float
    lengths: tuple[int, ...]


def longer_run(
    config: SweepConfig, results: Sequence[Result], verdict: Verdict, base_loss: float | None
) -> LongerRun | None:
    """The rate for `training.horizon`; if the lengths are searched and it is null, for eight times the longest.

    Args:
        config: The sweep's config.
        results: The finished trials.
        verdict: Their verdict.
        base_loss: Eval loss before training, in nats per token; None if it is not known.

    Returns:
        The rate; None if no longer run is asked for, or no length has its best rate inside the range.
    """
    best = verdict.best
    if best is None or LR not in best.values:
        return None
    longest = best.config.training.max_steps
    if not config.lengths_searched:
        target = config.training.horizon or 0
        if target <= longest or verdict.inconclusive or verdict.lr_curve is None:
            return None
        return extrapolated([Optimum(longest, best.lr, _minimum(verdict.lr_curve)[1])], target)
    target = config.training.horizon or _LONGER * longest
    if target <= longest:
        return None
    complete = [r for r in results if r.status == "complete" and r.eval_loss is not None and r.role != "replicate"]
    by_length: dict[int, dict[float, float]] = {}
    for result in complete:
        assert result.eval_loss is not None
        losses = by_length.setdefault(result.config.training.max_steps, {})
        losses[result.lr] = min(result.eval_loss, losses.get(result.lr, math.inf))
    found = [optimum(steps, losses, base_loss) for steps, losses in sorted(by_length.items())]
    return extrapolated([known for known in found if known is not None], target)


def optimum(steps: int, losses: dict[float, float], base_loss: float | None) -> Optimum | None:
    """The best rate for one length; None if it is at an end of what was tried, or too few rates were tried.

    Args:
        steps: The length in optimizer steps.
        losses: The best eval loss of each learning rate, in nats per token.
        base_loss: Eval loss before training, in nats per token; None if it is not known.
    """
    best = min(losses, key=lambda lr: (losses[lr], lr))
    curve = fit(losses, {}, base_loss)
    if curve is None or best in (min(losses), max(losses)):
        return None
    return Optimum(steps, *_minimum(curve))


def extrapolated(optima: Sequence[Optimum], steps: int) -> LongerRun | None:
    """The best rate for `steps` by the power law through the optima; None without any.

    It is a Bayesian linear regression of log lr on log steps: the exponent's prior is normal, the level's is flat.
    """
    if not optima:
        return None
    x = np.log10([optimum.steps / steps for optimum in optima])
    y = np.log10([optimum.lr for optimum in optima])
    weights = np.array([1 / (optimum.deviation**2 + _MISFIT**2) for optimum in optima])
    design = np.stack([np.ones_like(x), x], 1)
    precision = design.T @ (weights[:, None] * design) + np.diag([0.0, _EXPONENT_DEVIATION**-2])
    covariance = np.linalg.inv(precision)
    level, exponent = covariance @ (design.T @ (weights * y) + np.array([0.0, _EXPONENT * _EXPONENT_DEVIATION**-2]))
    # At x = 0 the run has the steps that are asked for.
    reach = _TWO_SIDED * math.sqrt(covariance[0, 0] + _MISFIT**2)
    lr, low, high = (float(f"{10**value:.3g}") for value in (level, level - reach, level + reach))
    return LongerRun(steps, lr, low, high, float(exponent), tuple(optimum.steps for optimum in optima))


def _minimum(curve: LrCurve) -> tuple[float, float]:
    """The rate at which the curve is lowest, and the deviation of its logarithm in decades, from draws of the curve."""
    values, vectors = np.linalg.eigh(curve.covariance)
    draws = np.random.default_rng(0).standard_normal((_DRAWS, len(values)))
    curves = curve.mean + (draws * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    places = np.log10(curve.lr)[curves.argmin(1)]
    return curve.centre, float(places.std())
