"""Axes as Optuna distributions, and the value that a trial has on an axis."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lrsweep.config.search_space import Axis, Choices, to_stored


def distribution(axis: Axis) -> BaseDistribution:
    """The axis as an Optuna distribution."""
    if isinstance(axis, Choices):
        if axis.grows:
            # Optuna allows a study's range to change, but not its list of choices. Learning rates are above 0.
            return FloatDistribution(float(min(axis.values)), float(max(axis.values)), log=True)
        return CategoricalDistribution([to_stored(value) for value in axis.values])
    if axis.integer:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def suggest(trial: optuna.Trial, axis: Axis) -> Any:
    """The trial's value on the axis, as Optuna stores it; a value that the trial already has stays."""
    spread = distribution(axis)
    if isinstance(spread, CategoricalDistribution):
        return trial.suggest_categorical(axis.key, spread.choices)
    if isinstance(spread, IntDistribution):
        return trial.suggest_int(axis.key, spread.low, spread.high, log=spread.log, step=spread.step)
    assert isinstance(spread, FloatDistribution)
    return trial.suggest_float(axis.key, spread.low, spread.high, log=spread.log, step=spread.step)
