"""The search methods and pruners that the config can name: Optuna's, and lrsweep's own pruner for packs.

To add a search method, write a `MakeSampler` and add it to `SAMPLERS` under its name. `search.method` accepts the name,
`check_search` builds the sampler before any work, and workers ask it for one trial at a time.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from lrsweep.config.schema import PrunerConfig, SearchConfig, SweepConfig
from lrsweep.config.search_space import GRIDS
from lrsweep.errors import InputError
from lrsweep.search.sync_halving import NoHalving, Rungs, SyncHalving
from lrsweep.training.engines.factory import SEVERAL_AT_ONCE

# The random trials before a Gaussian process takes over. Optuna's default, ten, would be most of a short search.
GP_STARTUP = 4

# Makes a sampler from the config's section `search` and a seed. A new sampler is made for each trial, in any worker: it
# has to take its state from the study, and the seed differs from trial to trial.
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
        # A Sobol sequence continues at the number of trials in the study, and needs the same seed for all of them.
        return QMCSampler(seed=search.seed, warn_independent_sampling=False)


# The methods that `search.method` can name. `auto` is replaced by another method before a study is opened, and the
# trials of a grid and of `refine` are enqueued, so these three sample nothing.
SAMPLERS: Mapping[str, MakeSampler] = {
    "auto": _random,
    "grid": _random,
    "refine": _random,
    "tpe": _tpe,
    "random": _random,
    "qmc": _qmc,
    "gp": _gp,
    "cmaes": _cmaes,
}


def check_search(config: SweepConfig) -> None:
    """Builds the sampler and the pruner once, to report invalid options before any work.

    Raises:
        InputError: The method is unknown or needs a missing package, or the pruner's arguments are invalid.
    """
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
    """The sampler for one trial.

    Args:
        search: The config's section `search`.
        number: How many trials have started. It shifts the seed: otherwise several workers, and resumed sweeps, would
            sample the same values.

    Raises:
        InputError: The method does not exist.
    """
    check_method(search)
    return SAMPLERS[search.method](search, search.seed + number)


def sync_halving(config: SweepConfig) -> SyncHalving | NoHalving:
    """The pruner for packs, or one that stops nothing if the config does not ask for it. Raises InputError."""
    # A Gaussian process learns from complete trials only, and `refine` decides by itself which trials go on.
    automatic = (
        config.pruner.name == "auto"
        and config.search.method not in (*GRIDS, "gp")
        and config.engine.name in SEVERAL_AT_ONCE
    )
    if not automatic and config.pruner.name != "sync_halving":
        return NoHalving()
    try:
        return SyncHalving(Rungs(**config.pruner.kwargs))
    except (TypeError, ValueError) as fault:
        raise InputError(f"pruner.kwargs={config.pruner.kwargs}: {fault}") from None


def pruner(config: PrunerConfig) -> BasePruner:
    """Optuna's pruner that `pruner.name` names, or one that stops nothing. Raises InputError for its arguments."""
    kinds: dict[str, Any] = {
        "median": MedianPruner,
        "successive_halving": SuccessiveHalvingPruner,
        "hyperband": HyperbandPruner,
    }
    try:
        if config.name == "hyperband":
            # Hyperband builds these only once a trial has reached a rung, too late to report invalid arguments.
            SuccessiveHalvingPruner(
                **{name: config.kwargs[name] for name in ("min_resource", "reduction_factor") if name in config.kwargs}
            )
        if config.name in kinds:
            return kinds[config.name](**config.kwargs)  # type: ignore[no-any-return]
        return NopPruner()
    except (TypeError, ValueError) as fault:
        raise InputError(f"pruner.kwargs={config.kwargs}: {fault}") from None
