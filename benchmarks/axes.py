"""Which search finds the best rate, beta2 and weight decay with the fewest trials: `python benchmarks/axes.py`.

`--measure` trains the truth first, about half an hour: the embedded model by LoRA and whole, 40 steps each, at 9
learning rates x 4 beta2 x 4 weight decays with 3 seeds. It writes `results/axes/MODE.npz`, the final eval losses
[rates, beta2, weight decays, seeds].

The replay interpolates the losses of one seed linearly over the logarithms of the rate, of 1 - beta2 and of the weight
decay. Each sweep has a seed and random ends of the rate's range. Regret is how far the true mean at the config that a
search recommends is above the lowest mean, in percent of what the best config improves over the base. For each search:
the fewest trials after which 95 % of the sweeps have a regret of at most 2 %.

Searches: Optuna's samplers (the lowest loss is recommended), lrsweep's `gp` and `tpe`, which start at the rule of
thumb, and lrsweep's `refine`, which ends by itself. Pauses count: a trial stopped at a quarter is a quarter of a trial.
"""

import argparse
import functools
import itertools
import json
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import RESULTS, about, save, table
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from refine import Task
from refine import tasks as refine_tasks
from scipy.interpolate import RegularGridInterpolator
from tasks import Host

from lrsweep.analysis import priors
from lrsweep.analysis.ranking import Result, Status
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.config.search_method import starts
from lrsweep.config.search_space import Choices, to_stored
from lrsweep.search.axis_by_axis import plan
from lrsweep.search.records import TrialSpec
from lrsweep.search.samplers import GP_STARTUP
from lrsweep.training.engines.packed import PackedEngine

STEPS, SEEDS, MOST = 40, 2, 32
CHUNK = 48  # trials between two writes
LRS = {"lora": np.logspace(-4, -4 / 3, 9), "full": np.logspace(-5, -7 / 3, 9)}
# The distances of beta2 from 1, and the weight decays.
FORGETTING, DECAYS = (0.1, 0.03, 0.01, 0.001), (0.001, 0.01, 0.1, 1.0)
WITHIN, OFTEN = 2.0, 0.95
Floats = NDArray[np.float64]
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


Point = tuple[float, float, float]


# The truth


def config_of(mode: str) -> SweepConfig:
    return sweep_config(
        [
            f"+sweep={mode}_lr", "training=short", f"training.max_steps={STEPS}", f"training.eval_every={STEPS}",
            "training.save_adapter=false", "training.checkpoint_seconds=null", "name=axes",
        ]
    )  # fmt: skip


def measure(mode: str, path: Path) -> None:
    base = config_of(mode)
    configs = [
        replace(
            base,
            {
                "optimizer.lr": float(f"{lr:.4g}"),
                "optimizer.betas": (base.optimizer.betas[0], 1 - forgetting),
                "optimizer.weight_decay": decay,
                "training.seed": seed,
            },
        )
        for lr, forgetting, decay, seed in itertools.product(LRS[mode], FORGETTING, DECAYS, range(SEEDS))
    ]
    finals = np.full(len(configs), np.nan, dtype=np.float32)
    start, base_loss = 0, np.nan
    if path.exists():
        found = np.load(path)
        finals, start, base_loss = found["finals"].ravel(), int(found["done"]), float(found["base"])
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(LRS[mode]), len(FORGETTING), len(DECAYS), SEEDS)
    for first in range(start, len(configs), CHUNK):
        began = time.monotonic()
        chunk = configs[first : first + CHUNK]
        with tempfile.TemporaryDirectory() as folder:
            host = Host(chunk, Path(folder))
            PackedEngine(8, rank=8, pass_sizes=Path(folder) / "pass_sizes.json").run(host)
        for number in range(len(chunk)):
            if host.status[number] == "complete":
                finals[first + number] = host.evals[number][-1][1]
        base_loss = host.evals[0][0][1]
        done = first + len(chunk)
        np.savez_compressed(path, finals=finals.reshape(shape), base=np.float32(base_loss), done=done)
        print(f"{mode}: {done} of {len(configs)} trials, {time.monotonic() - began:.0f} s", flush=True)


@dataclass(frozen=True)
class Truth:
    """The measured losses of one mode.

    Attributes:
        mode: `lora` or `full`.
        finals: The losses [rates, beta2, weight decays, seeds]; those that diverged have the highest.
        base: The loss before training.
    """

    mode: str
    finals: Floats
    base: float

    @classmethod
    def load(cls, mode: str) -> "Truth":
        found = np.load(RESULTS / "axes" / f"{mode}.npz")
        finals = found["finals"].astype(float)
        return cls(mode, np.where(np.isnan(finals), np.nanmax(finals), finals), float(found["base"]))

    def loss(self, point: Sequence[float], seed: int | None = None) -> float:
        """The loss of one seed, or the mean, at log10 of the rate, of 1 - beta2 and of the weight decay."""
        values = self.finals.mean(-1) if seed is None else self.finals[..., seed]
        axes = (np.log10(LRS[self.mode]), -np.log10(FORGETTING), np.log10(DECAYS))
        lr, forgetting, decay = point
        return float(RegularGridInterpolator(axes, values)((lr, -forgetting, decay)))

    def regret(self, point: Sequence[float]) -> float:
        """In percent of what the best config improves over the base."""
        best = self.finals.mean(-1).min()
        return float(100 * (self.loss(point) - best) / (self.base - best))


# The searches: each returns the points in the order in which it tries them


@dataclass(frozen=True)
class Sweep:
    """A seed, and the range of rates.

    Attributes:
        truth: The losses.
        number: The sweep's number.
        seed: The seed of its trials.
        low: log10 of the lowest rate.
        high: log10 of the highest rate.
    """

    truth: Truth
    number: int
    seed: int
    low: float
    high: float

    @classmethod
    def draw(cls, truth: Truth, number: int) -> "Sweep":
        draw = np.random.default_rng(number)
        lrs = np.log10(LRS[truth.mode])
        # Each end is cut by up to a third of a decade.
        low, high = lrs[0] + draw.uniform(0, 1 / 3), lrs[-1] - draw.uniform(0, 1 / 3)
        return cls(truth, number, int(draw.integers(SEEDS)), float(low), float(high))

    def loss(self, point: Sequence[float]) -> float:
        return self.truth.loss(point, self.seed)

    @property
    def defaults(self) -> tuple[float, float, float]:
        """The rate of the rule of thumb within the range, and the preset's beta2 and weight decay."""
        config = config_of(self.truth.mode)
        size = priors.read_size(config.model)
        assert size is not None
        rate = float(np.clip(np.log10(priors.prior(config, *size).lr), self.low, self.high))
        decay = max(config.optimizer.weight_decay, DECAYS[0])
        return rate, float(np.log10(1 - config.optimizer.betas[1])), float(np.log10(decay))


# Every point that a search tries, with what it has spent by then, in whole trials.
Tried = list[tuple[float, Point]]


def by_optuna(make: Callable[[int], BaseSampler], *, prior: bool = False) -> Callable[[Sweep], Tried]:
    def search(sweep: Sweep) -> Tried:
        space: dict[str, BaseDistribution] = {
            "lr": FloatDistribution(sweep.low, sweep.high),
            "forgetting": FloatDistribution(np.log10(FORGETTING[-1]), np.log10(FORGETTING[0])),
            "decay": FloatDistribution(np.log10(DECAYS[0]), np.log10(DECAYS[-1])),
        }
        study = optuna.create_study(sampler=make(sweep.number))
        if prior:
            study.enqueue_trial(dict(zip(space, sweep.defaults, strict=True)))
        tried: Tried = []
        for number in range(MOST):
            trial = study.ask(space)
            point = (trial.params["lr"], trial.params["forgetting"], trial.params["decay"])
            tried.append((number + 1, point))
            study.tell(trial, sweep.loss(point))
        return tried

    return search


def refined(sweep: Sweep) -> Tried:
    """lrsweep's `refine`: its plans, followed.

    The losses at a quarter of the steps are those of `truth.py`, which has trained the same model on the same rows.
    """
    config = replace(config_of(sweep.truth.mode), {"search.method": "refine", "search.n_trials": None})
    beta1 = config.optimizer.betas[0]
    count = max(6, math.ceil(2 * (sweep.high - sweep.low)) + 1)
    axes = (
        Choices(
            "optimizer.lr", tuple(float(f"{lr:.6g}") for lr in np.logspace(sweep.low, sweep.high, count)), grows=True
        ),
        Choices("optimizer.betas", tuple([beta1, round(1 - forgetting, 6)] for forgetting in FORGETTING)),
        Choices("optimizer.weight_decay", DECAYS),
    )
    results: dict[int, Result] = {}
    early = early_losses(sweep.truth.mode)
    tried: Tried = []
    spent = 0.0

    def train(number: int, spec: TrialSpec, quarters: int) -> None:
        nonlocal spent
        lr, betas, decay = (spec.params[axis.key] for axis in axes)
        point = (float(np.log10(lr)), float(np.log10(1 - json.loads(betas)[1])), float(np.log10(decay)))
        spent += (quarters - (1 if number in results else 0)) / 4
        evals = [(STEPS // 4, float(early.curve(point[0], sweep.seed)[0][0]))]
        if quarters == 4:
            evals.append((STEPS, sweep.loss(point)))
            tried.append((spent, point))
        values = {axis.key: axis.value(spec.params[axis.key]) for axis in axes[1:]} | {"optimizer.lr": lr}
        status: Status = "complete" if quarters == 4 else "pruned"
        own = replace(config, values)
        results[number] = Result(number, values, own, status, *evals[-1], "", spec.role, evals=tuple(evals))

    for number, params in enumerate(starts(config, axes)):
        train(number, TrialSpec(params), 1)
    while True:
        paused = [number for number, result in results.items() if result.status == "pruned"]
        found = plan(config, axes, list(results.values()), paused, sweep.truth.base)
        if not found.goes_on:
            return tried
        for number in found.resumed:
            values = results[number].values
            train(number, TrialSpec({axis.key: to_stored(values[axis.key]) for axis in axes}), 4)
        for spec in found.new:
            train(len(results), spec, 4 if spec.pause_at is None else 1)


@functools.cache
def early_losses(mode: str) -> Task:
    return next(refine_tasks((f"embedded_{mode}",)))


SEARCHES: dict[str, Callable[[Sweep], Tried]] = {
    "Optuna, random": by_optuna(lambda seed: RandomSampler(seed=seed)),
    "Optuna, Sobol": by_optuna(lambda seed: QMCSampler(seed=seed, warn_independent_sampling=False)),
    "Optuna, TPE": by_optuna(lambda seed: TPESampler(seed=seed)),
    "Optuna, TPE, multivariate": by_optuna(lambda seed: TPESampler(seed=seed, multivariate=True)),
    "Optuna, CMA-ES": by_optuna(lambda seed: CmaEsSampler(seed=seed)),
    "Optuna, Gaussian process": by_optuna(lambda seed: GPSampler(seed=seed)),
    "lrsweep, tpe": by_optuna(lambda seed: TPESampler(seed=seed), prior=True),
    "lrsweep, gp": by_optuna(lambda seed: GPSampler(seed=seed, n_startup_trials=GP_STARTUP), prior=True),
    "lrsweep, refine": refined,
}


def replay(truth: Truth, name: str, sweeps: int) -> dict[str, Any]:
    """The share of the sweeps within WITHIN, and the 95th percentile of the regret, after each number of trials."""
    regrets, ends = np.full((sweeps, MOST), np.inf), []
    for number in range(sweeps):
        sweep = Sweep.draw(truth, number)
        lowest = np.inf
        for spent, point in SEARCHES[name](sweep):
            if (loss := sweep.loss(point)) < lowest:
                lowest = loss
                regrets[number, math.ceil(spent) - 1 :] = truth.regret(point)
        ends.append(spent)
    within = (regrets <= WITHIN).mean(0)
    # From there on it stays so.
    short = [i for i in range(MOST) if within[i] < OFTEN]
    needed = (short[-1] + 2) if short else 1
    return {
        "mode": truth.mode,
        "search": name,
        "trials_needed": needed if needed <= MOST else None,
        "trials_in_all": round(float(np.mean(ends)), 1),
        "within_2_percent": {str(n): round(float(within[n - 1]), 3) for n in (8, 12, 16, 24, 32)},
        "regret_95": {str(n): round(float(np.quantile(regrets[:, n - 1], 0.95)), 2) for n in (8, 12, 16, 24, 32)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="train the truth, as far as it is missing")
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "axes.json")
    arguments = parser.parse_args()
    entries, rows = [], []
    for mode in LRS:
        path = RESULTS / "axes" / f"{mode}.npz"
        if arguments.measure:
            measure(mode, path)
        truth = Truth.load(mode)
        for name in SEARCHES:
            found = replay(truth, name, arguments.sweeps)
            entries.append(found)
            needed = found["trials_needed"] or f"> {MOST}"
            rows.append([f"{mode}: {name}", needed, *found["within_2_percent"].values(), *found["regret_95"].values()])
            print(rows[-1], flush=True)
            save(arguments.out, about("optuna", "scipy") | {"sweeps": arguments.sweeps}, searches=entries)
    counts = ("8", "12", "16", "24", "32")
    print(table(["search", "trials", *(f"within, {n}" for n in counts), *(f"regret, {n}" for n in counts)], rows))


if __name__ == "__main__":
    main()
