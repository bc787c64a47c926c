"""Measures how good the rate is that a sweep of at most 12 trials recommends: `python benchmarks/search.py`, minutes.

Replays the measured trials of `results/truth.json` (run `truth.py` first), separately for LoRA and full fine-tuning.
The trials of a sweep share one seed, and its replicates have the others. The range of rates covers up to four decades
and has random ends; a grid has a random phase. Regret is how far the recommended rate's true mean eval loss is above
the lowest true mean, in percent of that.

Arms: lrsweep's verdict on a grid, on a grid with replicates, on a Gaussian process (four trials at a time, as in a
pack, and one by one), on TPE, and on TPE with the sync_halving pruner in packs of four; the Gaussian process and TPE
start at the rule of thumb. For comparison, the rate with the lowest eval loss from Optuna's TPE, Gaussian process,
random search and grid.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from common import RESULTS, about, save, table
from replay import STEPS, Truth, base, load, result

from lrsweep.analysis import priors
from lrsweep.analysis.ranking import Result
from lrsweep.analysis.verdict import judge
from lrsweep.config.schema import SearchConfig
from lrsweep.search import samplers
from lrsweep.search.samplers import GP_STARTUP
from lrsweep.search.sync_halving import EvalReport, Rungs, SyncHalving

TRIALS = 12
WITHIN, OFTEN = 1.0, 0.95
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


class Sweep:
    """One replayed sweep: a seed, a range of rates, and the trained trials."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self.truth = truth
        self.draw = np.random.default_rng(seed)
        self.seed = seed
        self._own = int(self.draw.integers(truth.seeds))
        low, high = truth.log_lr[0], truth.log_lr[-1]
        # Each end is cut by up to a third of a decade.
        self.low, self.high = low + self.draw.uniform(0, 1 / 3), high - self.draw.uniform(0, 1 / 3)
        self.results: list[Result] = []
        self.steps = 0

    def train(self, lr: float, of: Result | None = None) -> Result:
        """Trains a full trial, or a replicate of `of` with another seed."""
        again = 0 if of is None else 1 + sum(r.of == of.number for r in self.results)
        curve = self.truth.curve(lr, (self._own + again) % self.truth.seeds)
        found = result(self.truth, len(self.results), lr, curve)
        if of is not None:
            found = Result(**{**vars(found), "role": "replicate", "of": of.number})
        self.results.append(found)
        self.steps += STEPS
        return found

    def grid(self, count: int) -> list[float]:
        """Returns rates at even distances over the range, with a random phase."""
        distance = (self.high - self.low) / count
        return [float(10**place) for place in self.low + distance * (np.arange(count) + self.draw.uniform())]

    def verdict(self) -> float:
        """Returns the rate that lrsweep recommends."""
        best = judge(self.results, self.truth.base_loss).best
        assert best is not None
        return best.lr

    def lowest(self) -> float:
        """Returns the rate with the lowest loss."""
        return min(self.results, key=lambda r: r.eval_loss or 0.0).lr


# An arm takes a sweep and its number of trials, trains them, and returns a rate.


def our_grid(sweep: Sweep, trials: int) -> float:
    """Returns lrsweep's verdict on a grid."""
    for lr in sweep.grid(trials):
        sweep.train(lr)
    return sweep.verdict()


def our_grid_replicated(sweep: Sweep, trials: int) -> float:
    """Uses two thirds of the trials for a grid, and the others for second and third seeds of its best two."""
    extra = trials // 3
    for lr in sweep.grid(trials - extra):
        sweep.train(lr)
    chosen = judge(sweep.results, sweep.truth.base_loss).ranking[:2]
    for i in range(extra):
        sweep.train(chosen[i % len(chosen)].lr, chosen[i % len(chosen)])
    return sweep.verdict()


def their_grid(sweep: Sweep, trials: int) -> float:
    """Returns the rate with the lowest loss on a grid."""
    for lr in sweep.grid(trials):
        sweep.train(lr)
    return sweep.lowest()


def ours(method: Literal["tpe", "gp"], at_once: int) -> Callable[[Sweep, int], float]:
    """Returns an arm: lrsweep's search and verdict, `at_once` trials at a time, starting at the rule of thumb."""

    def arm(sweep: Sweep, trials: int) -> float:
        search = SearchConfig(method=method, n_trials=trials, seed=sweep.seed)
        study = optuna.create_study()
        study.enqueue_trial({"lr": rule_of_thumb(sweep)})
        for first in range(0, trials, at_once):
            pack = []
            for number in range(first, min(first + at_once, trials)):
                study.sampler = samplers.sampler(search, number)
                trial = study.ask()
                pack.append((trial, trial.suggest_float("lr", 10**sweep.low, 10**sweep.high, log=True)))
            for trial, lr in pack:
                study.tell(trial, sweep.train(lr).eval_loss)
        return sweep.verdict()

    return arm


def theirs(sampler: Callable[[int], Any]) -> Callable[[Sweep, int], float]:
    """Returns an arm: an Optuna sampler, one trial at a time, and the lowest loss."""

    def arm(sweep: Sweep, trials: int) -> float:
        study = optuna.create_study(sampler=sampler(sweep.seed))
        for _ in range(trials):
            trial = study.ask()
            lr = trial.suggest_float("lr", 10**sweep.low, 10**sweep.high, log=True)
            study.tell(trial, sweep.train(lr).eval_loss)
        return sweep.lowest()

    return arm


def our_pruned(sweep: Sweep, trials: int) -> float:
    """Searches with TPE in packs of four; at each rung, the worse half stops."""
    study = optuna.create_study()
    search = SearchConfig(method="tpe", n_trials=trials, seed=sweep.seed)
    study.enqueue_trial({"lr": rule_of_thumb(sweep)})
    halving = SyncHalving(Rungs())
    warmup = base(sweep.truth.mode).scheduler.warmup(STEPS)
    numbers = iter(range(trials))
    while pack := [number for number, _ in zip(numbers, range(4), strict=False)]:
        asked, lrs = {}, {}
        for n in pack:
            study.sampler = samplers.sampler(search, n)
            asked[n] = study.ask()
            lrs[n] = asked[n].suggest_float("lr", 10**sweep.low, 10**sweep.high, log=True)
        curves = {n: sweep.truth.curve(lr, sweep._own) for n, lr in lrs.items()}
        running = list(pack)
        for i, step in enumerate(sweep.truth.steps):
            if step == 0:
                continue
            sweep.steps += (step - sweep.truth.steps[i - 1]) * len(running)
            evals = [EvalReport(n, step, STEPS, warmup, float(curves[n][i])) for n in running]
            for n in halving.report(evals) if step < STEPS else ():
                running.remove(n)
                sweep.results.append(result(sweep.truth, n, lrs[n], curves[n][: i + 1], "pruned"))
                asked[n].report(float(curves[n][i]), step)
                study.tell(asked[n], state=optuna.trial.TrialState.PRUNED)
        for n in running:
            sweep.results.append(result(sweep.truth, n, lrs[n], curves[n]))
            study.tell(asked[n], float(curves[n][-1]))
    return sweep.verdict()


def rule_of_thumb(sweep: Sweep) -> float:
    """Returns the rate of lrsweep's rule of thumb, within the sweep's range."""
    config = base(sweep.truth.mode)
    known = priors.read_size(config.model)
    assert known is not None
    return float(np.clip(priors.prior(config, *known).lr, 10**sweep.low, 10**sweep.high))


def tpe(seed: int) -> Any:
    return optuna.samplers.TPESampler(seed=seed)


def gp(seed: int) -> Any:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=GP_STARTUP)


def random_search(seed: int) -> Any:
    return optuna.samplers.RandomSampler(seed=seed)


# "lockstep" is the sync_halving pruner: the name in results files.
ARMS: dict[str, Callable[[Sweep, int], float]] = {
    "lrsweep grid": our_grid,
    "lrsweep grid, a third replicates": our_grid_replicated,
    "lrsweep gp": ours("gp", GP_STARTUP),
    "lrsweep gp, one by one": ours("gp", 1),
    "lrsweep tpe": ours("tpe", 1),
    "lrsweep tpe, lockstep pruner": our_pruned,
    "Optuna grid": their_grid,
    "Optuna gp": theirs(gp),
    "Optuna tpe": theirs(tpe),
    "Optuna random": theirs(random_search),
}


# A Gaussian process takes a third of a second per trial: these arms run a fifth of the sweeps.
SLOW = ("lrsweep gp", "lrsweep gp, one by one", "Optuna gp")


def measure(truth: Truth, arm: str, trials: int, sweeps: int) -> dict[str, Any]:
    """Returns an entry of the results file: the regrets of `sweeps` sweeps (fewer for a slow arm)."""
    regrets, steps = [], []
    sweeps = sweeps // 5 if arm in SLOW else sweeps
    for seed in range(sweeps):
        sweep = Sweep(truth, seed)
        lr = ARMS[arm](sweep, trials)
        regrets.append(100 * (truth.mean(lr) / truth.best - 1))
        steps.append(sweep.steps)
    within = sum(regret <= WITHIN for regret in regrets) / sweeps
    return {
        "mode": truth.mode,
        "arm": arm,
        "trials": trials,
        "steps": round(statistics.mean(steps)),
        "within_1_percent": within,
        "median_regret_percent": round(statistics.median(regrets), 3),
        "p95_regret_percent": round(float(np.quantile(regrets, 0.95)), 3),
        "regret_percent_per_100_steps": round(100 * statistics.mean(regrets) / statistics.mean(steps), 4),
    }


def show(entries: Sequence[dict[str, Any]]) -> None:
    for mode in dict.fromkeys(entry["mode"] for entry in entries):
        rows = [
            [
                e["arm"],
                e["trials"],
                e["steps"],
                f"{e['within_1_percent']:.1%}",
                f"{e['median_regret_percent']:.2f}",
                f"{e['p95_regret_percent']:.2f}",
                f"{e['regret_percent_per_100_steps']:.3f}",
            ]
            for e in entries
            if e["mode"] == mode
        ]
        header = [mode, "trials", "steps", "within 1 %", "regret, median %", "95th", "mean per 100 steps"]
        print(f"\n{table(header, rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--only", choices=list(ARMS), nargs="+", help="only these arms; writes no file")
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json")
    arguments = parser.parse_args()
    entries = []
    for mode in ("lora", "full"):
        truth = load(mode)
        found = [
            measure(truth, arm, trials, arguments.sweeps)
            for trials in (TRIALS // 2, TRIALS)
            for arm in arguments.only or ARMS
        ]
        show(found)
        entries += found
    for entry in entries:
        if entry["arm"].startswith("lrsweep grid") and entry["trials"] == TRIALS:
            verdict = "met" if entry["within_1_percent"] >= OFTEN else "not met"
            share = f"within 1 % in {entry['within_1_percent']:.1%}, target 95 %"
            print(f"{entry['mode']}, {entry['arm']}: {share}: {verdict}")
    if not arguments.only:
        save(arguments.out, about("optuna", "scikit-learn") | {"sweeps": arguments.sweeps}, arms=entries)


if __name__ == "__main__":
    main()
