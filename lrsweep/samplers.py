"""Optuna's samplers and pruners, and ours, as the config names them."""

import warnings
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from lrsweep.config import PrunerConfig, SearchConfig, SweepConfig
from lrsweep.errors import InputError
from lrsweep.lockstep import Lockstep, NoLockstep, Rungs

# So many random trials come before a Gaussian process has something to say; Optuna's ten would be most of a short search.
GP_STARTUP = 4


def check_search(config: SweepConfig) -> None:
    """Builds the sampler and the pruner once, so that a bad option shows before any work. Raises InputError."""
    pruner(config.pruner)
    lockstep(config)
    try:
        sampler(config.search, 0)
    except ImportError as fault:
        raise InputError(
            f"search.method={config.search.method!r}: needs a package that is not installed: {fault}"
        ) from None


def sampler(search: SearchConfig, number: int) -> BaseSampler:
    """What draws trial `number`. The seed moves with it: else workers, and resumed sweeps, would draw the same again."""
    seed = search.seed + number
    match search.method:
        case "tpe":
            return TPESampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # A Sobol sequence goes on by the number of trials, and has to keep its seed.
                return QMCSampler(seed=search.seed, warn_independent_sampling=False)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=GP_STARTUP)
        case "cmaes":
            return CmaEsSampler(seed=seed)
        case "random" | "grid" | "auto":  # a grid is enqueued, and auto has been settled: nothing is drawn for them
            return RandomSampler(seed=seed)


def lockstep(config: SweepConfig) -> Lockstep | NoLockstep:
    """The pruner that sees a rung whole, or none. Raises InputError."""
    # A Gaussian process learns from complete trials only.
    automatic = (
        config.pruner.name == "auto" and config.search.method not in ("grid", "gp") and config.engine.name != "trainer"
    )
    if not automatic and config.pruner.name != "lockstep":
        return NoLockstep()
    try:
        return Lockstep(Rungs(**config.pruner.kwargs))
    except (TypeError, ValueError) as fault:
        raise InputError(f"pruner.kwargs={config.pruner.kwargs}: {fault}") from None


def pruner(config: PrunerConfig) -> BasePruner:
    """Optuna's pruner, or one that does nothing. Raises InputError."""
    kinds: dict[str, Any] = {
        "median": MedianPruner,
        "successive_halving": SuccessiveHalvingPruner,
        "hyperband": HyperbandPruner,
    }
    try:
        if config.name == "hyperband":
            # It makes these when a trial has come far enough, and only then says what is wrong.
            SuccessiveHalvingPruner(
                **{name: config.kwargs[name] for name in ("min_resource", "reduction_factor") if name in config.kwargs}
            )
        if config.name in kinds:
            return kinds[config.name](**config.kwargs)  # type: ignore[no-any-return]
        return NopPruner()
    except (TypeError, ValueError) as fault:
        raise InputError(f"pruner.kwargs={config.kwargs}: {fault}") from None
