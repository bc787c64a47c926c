"""Optuna's samplers and pruners, and ours, by the names that the config gives them."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from lrsweep.config.schema import PrunerConfig, SearchConfig, SweepConfig
from lrsweep.errors import InputError
from lrsweep.search.sync_halving import NoHalving, Rungs, SyncHalving

# So many random trials come before a Gaussian process has something to say; Optuna's ten would be most of a short search.
GP_STARTUP = 4

# A sampler from the search's config and a seed of this trial alone.
MakeSampler = Callable[[SearchConfig, int], BaseSampler]


def _tpe(search: SearchConfig, seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _gp(search: SearchConfig, seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=GP_STARTUP)


def _cmaes(search: SearchConfig, seed: int) -> BaseSampler:
    return CmaEsSampler(seed=seed)


def _random(search: SearchConfig, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _qmc(search: SearchConfig, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A Sobol sequence continues by the number of trials, and has to keep its seed.
        return QMCSampler(seed=search.seed, warn_independent_sampling=False)


# The search methods that `search.method` names. A grid is enqueued and `auto` is settled before: nothing is sampled for them.
SAMPLERS: Mapping[str, MakeSampler] = {
    "auto": _random,
    "grid": _random,
    "tpe": _tpe,
    "random": _random,
    "qmc": _qmc,
    "gp": _gp,
    "cmaes": _cmaes,
}


def check_search(config: SweepConfig) -> None:
    """Builds the sampler and the pruner once, so that a bad option shows before any work. Raises InputError."""
    pruner(config.pruner)
    sync_halving(config)
    try:
        sampler(config.search, 0)
    except ImportError as fault:
        raise InputError(
            f"search.method={config.search.method!r}: needs a package that is not installed: {fault}"
        ) from None


def check_method(search: SearchConfig) -> None:
    """Raises InputError for a search method that does not exist."""
    if search.method not in SAMPLERS:
        raise InputError(f"search.method={search.method!r}: no such method (choices: {', '.join(SAMPLERS)})")


def sampler(search: SearchConfig, number: int) -> BaseSampler:
    """What samples trial `number`. The seed moves with it: else workers, and resumed sweeps, would sample the same again."""
    check_method(search)
    return SAMPLERS[search.method](search, search.seed + number)


def sync_halving(config: SweepConfig) -> SyncHalving | NoHalving:
    """The pruner that sees a rung as a whole, or none. Raises InputError."""
    # A Gaussian process learns from complete trials only.
    automatic = (
        config.pruner.name == "auto" and config.search.method not in ("grid", "gp") and config.engine.name != "trainer"
    )
    if not automatic and config.pruner.name != "sync_halving":
        return NoHalving()
    try:
        return SyncHalving(Rungs(**config.pruner.kwargs))
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
