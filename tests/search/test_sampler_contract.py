"""What every search method in SAMPLERS has to do."""

from typing import Any

import optuna
import pytest

from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.search.distributions import suggest
from lrsweep.search.samplers import SAMPLERS, sampler

TRIALS = 6
# The trials of a grid and of `refine` are enqueued, and `auto` is settled before the first trial.
SAMPLED = [method for method in SAMPLERS if method not in ("auto", *search_space.GRIDS)]
# CMA-ES takes ranges only.
AXES = {
    "cmaes": ["space.optimizer.lr={low: 1e-5, high: 1e-1, log: true}", "space.optimizer.eps={low: 1e-9, high: 1e-6}"],
}
MIXED = [
    "space.optimizer.lr={low: 1e-5, high: 1e-1, log: true, num: 3}",
    "space.finetune.r={low: 2, high: 16, num: 3}",
    "space.optimizer.betas=[[0.9,0.999],[0.8,0.999]]",
]


def config(method: str) -> SweepConfig:
    return sweep_config([f"search={method}", f"search.n_trials={TRIALS}", *AXES.get(method, MIXED)])


def draws(method: str, seed: int = 0) -> list[dict[str, Any]]:
    """The stored values of some trials, each with a loss that prefers low rates."""
    found = config(method)
    search = found.search.model_copy(update={"seed": seed})
    axes = search_space.axes(found)
    study = optuna.create_study(direction="minimize")
    values = []
    try:
        for number in range(TRIALS):
            study.sampler = sampler(search, number)
            trial = study.ask()
            values.append({axis.key: suggest(trial, axis) for axis in axes})
            study.tell(trial, values[-1]["optimizer.lr"])
    except ImportError as missing:
        pytest.skip(f"search={method}: {missing}")
    return values


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_trial_is_a_valid_config(method: str) -> None:
    found = config(method)
    axes = search_space.axes(found)
    for values in draws(method):
        trial = search_space.trial_config(found, axes, values)
        assert 1e-5 <= trial.optimizer.lr <= 1e-1


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_seed_decides_and_trials_differ(method: str) -> None:
    first = draws(method)
    assert first == draws(method)
    assert len({values["optimizer.lr"] for values in first}) == TRIALS
    assert first != draws(method, seed=7)


@pytest.mark.parametrize("method", SAMPLERS)
def test_it_can_be_chosen_by_name(method: str) -> None:
    assert sweep_config([f"search={method}", "search.n_trials=3"]).search.method == method
