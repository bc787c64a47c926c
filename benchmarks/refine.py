"""Measures `search=refine` on trained curves: `python benchmarks/refine.py`, about half an hour.

Replays sweeps over the embedded tasks of `truth.py` and the tasks of `tasks.py`, at each of their lengths. A sweep's
range has random ends, and all its trials share one seed; the losses between measured rates are interpolated. Regret is
how far the recommended rate's true mean loss is above the lowest in the range, as a share of the improvement. Steps are
counted in whole trials.

- `refine`: the plan of `lrsweep/search/refine.py`, then the rate with the lowest loss; with the verdict, its replicates
  and the rates that it still asks for in columns of their own.
- `rounds`: the time of such a sweep, in trials, where a pack takes no longer than one trial, as on a large GPU.
- The chance that another rate is better by more than 1 % of the improvement: in how many sweeps it ends below 5 %, and
  in how many of those there is such a rate. The calibration compares the chance after the first seeds with how often
  there is one.
- Optuna's Gaussian process, TPE (with and without its median pruner) and a grid with a random phase, with 4 to 24
  trials, and the rate with the lowest loss. For each task, the arm that needs the fewest steps to be within 2 % in 95 %
  of the sweeps. (CMA-ES needs two axes.)

`gemma_sums` and `mistral_names` were set aside while the method was built. Also measured: how the distance to the best
at a quarter of the steps relates to the final one, which the verdict uses for trials that were stopped.
"""

import argparse
import functools
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import RESULTS, about, save, table
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.stats import binomtest

from lrsweep.analysis.ranking import Result, Role, Status
from lrsweep.analysis.verdict import UNLIKELY, Verdict, judge
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.config.search_space import axes
from lrsweep.search.followups import followups, seeds_beside
from lrsweep.search.refine import plan

Floats = NDArray[np.float64]

TUNING = ("embedded_lora", "embedded_full", "llama_docstrings", "qwen2_signatures")
HELD_OUT = ("gemma_sums", "mistral_names")
BUDGETS = (20, 60, 120, 400)
# All tasks were evaluated at each quarter of their steps; a replayed trial has this many.
STEPS = 40
WITHIN, OFTEN = 0.02, 0.95
# search.tolerance, and the bins of the calibration.
TOLERANCE = 0.01
BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)
COUNTS = (4, 5, 6, 7, 8, 10, 12, 16, 24)
# Limits of the search. One that no sweep reaches has second seeds trained after the search, not beside its first fit.
LIMITS: list[str] = []
# Sampler, and whether the median pruner is on.
ARMS = (("grid", False), ("GP", False), ("TPE", False), ("TPE", True))
SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "GP": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=4),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
}
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Task:
    """The measured curves of a task at one length.

    Attributes:
        name: The task and the steps of its trials.
        log_lr: log10 of the measured rates [n].
        base_loss: The loss before training.
        losses: Eval losses at each quarter of the steps [n, seeds, 4]; not finite where a trial diverged.
    """

    name: str
    log_lr: Floats
    base_loss: float
    losses: Floats

    @property
    def seeds(self) -> int:
        return int(self.losses.shape[1])

    @functools.cached_property
    def _between(self) -> PchipInterpolator:
        # The interpolation would not survive an infinite loss; three times the first loss is no better.
        far = 3 * self.base_loss
        return PchipInterpolator(self.log_lr, np.minimum(np.nan_to_num(self.losses, nan=far, posinf=far), far))

    def curve(self, log_lr: float, seed: int) -> tuple[Floats, bool]:
        """A trial's eval losses [4], and whether it diverged as the nearest measured one did."""
        nearest = int(np.argmin(np.abs(self.log_lr - log_lr)))
        at = np.clip(log_lr, self.log_lr[0], self.log_lr[-1])
        return self._between(at)[seed % self.seeds], not np.isfinite(self.losses[nearest, seed % self.seeds]).all()

    @functools.cached_property
    def mean(self) -> tuple[Floats, Floats]:
        """A fine grid of log rates, and the true mean of the final loss at each."""
        fine = np.linspace(self.log_lr[0], self.log_lr[-1], 301)
        return fine, self._between(fine)[:, :, -1].mean(1)

    def regret(self, log_lr: float, low: float, high: float) -> float:
        """How far a rate is above the best of the range, as a share of the improvement."""
        fine, mean = self.mean
        inside = (fine >= low - 1e-9) & (fine <= high + 1e-9)
        return float((np.interp(log_lr, fine, mean) - mean[inside].min()) / (self.base_loss - mean.min()))


def tasks(names: tuple[str, ...]) -> Iterator[Task]:
    """Yields the measured tasks at each length."""
    for name in names:
        if name.startswith("embedded_"):
            yield _embedded(name.removeprefix("embedded_"))
            continue
        arrays = np.load(RESULTS / "tasks" / f"{name}.npz")
        for budget in BUDGETS:
            evals = arrays[f"evals_{budget}"].astype(np.float64)
            yield Task(f"{name} {budget}", np.log10(arrays["lrs"]), float(evals[0, 0, 0]), evals[:, :, 1:])


def _embedded(mode: str) -> Task:
    runs = [run for run in json.loads((RESULTS / "truth.json").read_text())["runs"] if run["mode"] == mode]
    lrs, seeds = sorted({run["lr"] for run in runs}), 3
    by_trial = {(run["lr"], run["seed"]): [loss for _, loss in run["evals"]] for run in runs}
    evals = np.array([[by_trial[lr, seed] for seed in range(seeds)] for lr in lrs])
    return Task(f"embedded_{mode} 40", np.log10(lrs), float(evals[0, 0, 0]), evals[:, :, 1:])


@functools.cache
def base() -> SweepConfig:
    """The config of a sweep."""
    own = ["search=refine", "space.optimizer.lr=[1e-4,1e-3]", f"training.max_steps={STEPS}"]
    return sweep_config(["+sweep=lora_lr", *own, *LIMITS])


def config(lr: float, seed: int) -> SweepConfig:
    """A trial's config."""
    return replace(base(), {"optimizer.lr": lr, "training.seed": seed})


@dataclass
class Sweep:
    """One replayed sweep: its range and seed, the steps spent, in whole trials, and the time."""

    task: Task
    number: int
    spent: float = 0.0
    results: dict[int, Result] = field(default_factory=dict)
    # How many seeds were trained beside the first rate that the parabola asks for.
    beside: int = 0
    # The time that it takes, in trials, where a pack takes no longer than one trial.
    rounds: float = 0.0

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.number)
        self.seed = int(self.draw.integers(self.task.seeds))
        ends = self.draw.uniform(0, 1 / 3, 2)
        self.low, self.high = self.task.log_lr[0] + ends[0], self.task.log_lr[-1] - ends[1]

    def train(self, number: int, lr: float, quarters: int, role: Role = "search", of: int | None = None) -> None:
        """Trains a trial until it has done this many quarters of its steps."""
        seed = 0 if of is None else 1 + sum(result.of == of for result in self.results.values())
        losses, diverged = self.task.curve(float(np.log10(lr)), self.seed + seed)
        before = self.results[number].step * 4 // STEPS if number in self.results else 0
        self.spent += (quarters - before) / 4
        status: Status = "diverged" if diverged else "complete" if quarters == 4 else "pruned"
        evals = tuple((STEPS * (i + 1) // 4, float(losses[i])) for i in range(quarters))
        loss = None if diverged else evals[-1][1]
        own = config(lr, seed)
        self.results[number] = Result(
            number, {"optimizer.lr": lr}, own, status, evals[-1][0], loss, "", role, {}, of, evals
        )


def refined(sweep: Sweep) -> float:
    """The rate with the lowest loss after `refine`, as its log."""
    count = max(6, int(np.ceil(2 * (sweep.high - sweep.low))) + 1)
    for number, place in enumerate(np.linspace(sweep.low, sweep.high, count)):
        sweep.train(number, float(f"{10**place:.6g}"), 1)
    sweep.rounds += 0.25
    while True:
        paused = [number for number, result in sweep.results.items() if result.status == "pruned"]
        results = list(sweep.results.values())
        found = plan(base(), results, paused, sweep.task.base_loss)
        if not found.goes_on:
            return _lowest(sweep)
        seeds, _ = seeds_beside(base(), axes(base()), results, found.new, len(results))
        sweep.beside += len(seeds)
        lengths = [0.75] * len(found.resumed) + [1.0 if spec.pause_at is None else 0.25 for spec in found.new]
        sweep.rounds += max(lengths)
        for number in found.resumed:
            sweep.train(number, sweep.results[number].lr, 4)
        for spec in (*found.new, *seeds):
            quarters = 4 if spec.pause_at is None else 1
            sweep.train(len(sweep.results), spec.params["optimizer.lr"], quarters, spec.role, spec.of)


def _lowest(sweep: Sweep) -> float:
    complete = [r for r in sweep.results.values() if r.status == "complete" and r.role != "replicate"]
    return float(np.log10(min(complete, key=lambda result: result.eval_loss or 0.0).lr))


def with_verdict(sweep: Sweep) -> Iterator[Verdict]:
    """The verdicts after the replicates, and after each rate that may be better; the last one ends the sweep."""
    judged = 0
    while True:
        results = list(sweep.results.values())
        verdict = judge(results, sweep.task.base_loss)
        new = plan(base(), results, (), sweep.task.base_loss).new
        new = new or tuple(followups(base(), axes(base()), results, verdict, {})[0])
        if not new or (new[0].role == "fit" and judged < len(results)):
            judged = len(results)
            yield verdict
        if not new:
            return
        sweep.rounds += 1.0
        for spec in new:
            sweep.train(len(sweep.results), spec.params["optimizer.lr"], 4, spec.role, spec.of)


@dataclass(frozen=True)
class Promise:
    """The stated chance that another rate is better than the lowest by more than the tolerance, and whether one is."""

    chance: float
    missed: bool


def promise(sweep: Sweep, verdict: Verdict) -> Promise | None:
    """What a verdict promises, and whether it is so; None if it promises nothing."""
    if verdict.better_rate is None:
        return None
    lowest = float(np.log10(verdict.candidates[0].result.lr))
    return Promise(verdict.better_rate.chance, sweep.task.regret(lowest, sweep.low, sweep.high) > TOLERANCE)


def theirs(sweep: Sweep, sampler: str, trials: int, prune: bool) -> float:
    """The rate with the lowest loss of an Optuna study, as its log."""
    if sampler == "grid":
        apart = (sweep.high - sweep.low) / trials
        places = [float(place) for place in sweep.low + apart * (np.arange(trials) + sweep.draw.uniform())]
        made: optuna.samplers.BaseSampler = optuna.samplers.GridSampler({"log_lr": places}, seed=sweep.number)
    else:
        made = SAMPLERS[sampler](sweep.number)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner()
    study = optuna.create_study(sampler=made, pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        losses, _ = sweep.task.curve(trial.suggest_float("log_lr", sweep.low, sweep.high), sweep.seed)
        for quarter, loss in enumerate(losses, start=1):
            sweep.spent += 0.25
            trial.report(float(loss), quarter)
            if quarter < len(losses) and trial.should_prune():
                raise optuna.TrialPruned
        return float(losses[-1])

    study.optimize(objective, n_trials=trials)
    return float(study.best_params["log_lr"])


def of_refine(task: Task, sweeps: int) -> dict[str, Any]:
    """What `refine` costs on a task, how far it is from the best, and what it promises."""
    regrets, steps, after, whole, rounds, held = [], [], [], [], [], []
    first: list[Promise | None] = []
    last: list[Promise | None] = []
    for number in range(sweeps):
        sweep = Sweep(task, number)
        regrets.append(task.regret(refined(sweep), sweep.low, sweep.high))
        steps.append(sweep.spent - sweep.beside)
        promises = []
        for verdict in with_verdict(sweep):
            promises.append(promise(sweep, verdict))
        first.append(promises[0])
        last.append(promises[-1])
        assert verdict.recommended is not None
        after.append(task.regret(float(np.log10(verdict.recommended.result.lr)), sweep.low, sweep.high))
        whole.append(sweep.spent)
        rounds.append(sweep.rounds)
        if verdict.safe_range is not None:
            fine, mean = task.mean
            safe = verdict.safe_range
            inside = (fine >= np.log10(safe.low)) & (fine <= np.log10(safe.high))
            limit = np.interp(np.log10(verdict.recommended.result.lr), fine, mean)
            limit += safe.tolerance * (task.base_loss - mean.min())
            held.append(not inside.any() or bool(mean[inside].max() <= limit))
    sure = [made for made in last if made is not None and made.chance < UNLIKELY]
    return {
        "task": task.name,
        "within_2_percent": _share(regrets),
        "regret_95": round(float(np.quantile(regrets, OFTEN)), 4),
        "trials_worth": round(float(np.mean(steps)), 2),
        "within_with_verdict": _share(after),
        "trials_with_replicates": round(float(np.mean(whole)), 2),
        "rounds_with_replicates": round(float(np.mean(rounds)), 2),
        "sure": round(len(sure) / sweeps, 3),
        "sure_and_missed": round(float(np.mean([made.missed for made in sure])), 4) if sure else None,
        "safe_ranges": len(held),
        "safe_right": round(float(np.mean(held)), 3) if held else None,
        "promises": _binned(first),
    }


def _binned(promises: Sequence[Promise | None]) -> list[list[float]]:
    """For each bin of the stated chance: how many sweeps, the sum of what they state, and how many missed."""
    made = [one for one in promises if one is not None]
    bins = np.digitize([one.chance for one in made], BINS[1:-1])
    return [
        [
            float(np.sum(bins == i)),
            round(float(sum(one.chance for one, at in zip(made, bins, strict=True) if at == i)), 4),
            float(sum(one.missed for one, at in zip(made, bins, strict=True) if at == i)),
        ]
        for i in range(len(BINS) - 1)
    ]


def calibration(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was stated after the first seeds, and how often it was so, over tasks; with an interval of 95 %."""
    found = []
    for held_out in (False, True):
        of = np.array([e["promises"] for e in entries if e["held_out"] == held_out and "promises" in e])
        if not len(of):
            continue
        for (low, high), (count, stated, missed) in zip(itertools.pairwise(BINS), of.sum(0), strict=True):
            if count:
                ends = binomtest(int(missed), int(count)).proportion_ci(method="wilson")
                found.append(
                    {
                        "held_out": held_out,
                        "bin": [low, high],
                        "sweeps": int(count),
                        "stated": round(stated / count, 4),
                        "missed": round(missed / count, 4),
                        "missed_interval": [round(float(ends.low), 4), round(float(ends.high), 4)],
                    }
                )
    return found


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the stated chance against how often it was so."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    plot = figure.subplots()
    plot.plot([0, 1], [0, 1], color="0.8")
    for held_out, name in ((False, "tasks for tuning"), (True, "tasks set aside")):
        bins = [entry for entry in found if entry["held_out"] == held_out]
        stated, missed = ([entry[key] for entry in bins] for key in ("stated", "missed"))
        low = [entry["missed"] - entry["missed_interval"][0] for entry in bins]
        high = [entry["missed_interval"][1] - entry["missed"] for entry in bins]
        plot.errorbar(stated, missed, yerr=np.maximum([low, high], 0), marker="o", capsize=3, label=name)
    plot.set(xlabel="stated chance of a rate that is better by more than 1 %", ylabel="share of the sweeps with one")
    plot.legend()
    figure.savefig(path, metadata={"Date": None})


def _share(regrets: list[float]) -> float:
    return round(float(np.mean(np.array(regrets) <= WITHIN)), 4)


def of_optuna(task: Task, sweeps: int) -> dict[str, Any]:
    """Optuna's arm that needs the fewest steps to be within 2 % often enough."""
    best: dict[str, Any] = {"optuna": f"none up to {COUNTS[-1]} trials", "optuna_trials_worth": None}
    for sampler, prune in ARMS:
        for trials in COUNTS:
            known = best["optuna_trials_worth"]
            if known is not None and trials / (2 if prune else 1) >= known:
                break  # pruned trials save less than half
            runs = [Sweep(task, number) for number in range(sweeps)]
            regrets = [task.regret(theirs(run, sampler, trials, prune), run.low, run.high) for run in runs]
            worth = round(float(np.mean([run.spent for run in runs])), 2)
            if _share(regrets) >= OFTEN:
                if known is None or worth < known:
                    name = f"{sampler}{' + median pruner' * prune}, {trials} trials"
                    best = {"optuna": name, "optuna_trials_worth": worth, "optuna_within": _share(regrets)}
                break
    return best


def behind(task: Task) -> dict[str, Any]:
    """How far rates are behind the best at the end, by how far they were at a quarter; and how the best one moves."""
    ratios = []
    for seed in range(task.seeds):
        losses = task.losses[:, seed]
        alive = np.isfinite(losses).all(1)
        best = int(np.argmin(np.where(alive, losses[:, -1], np.inf)))
        early, final = (losses[:, i] - losses[best, i] for i in (0, -1))
        improvement = task.base_loss - losses[best, -1]
        counted = alive & (early > 0.1 * improvement) & (losses[:, 0] < task.base_loss)
        ratios += list(final[counted] / early[counted])
    mean = np.nan_to_num(task.losses.mean(1), nan=np.inf)
    early_best, final_best = (task.log_lr[int(np.argmin(mean[:, i]))] for i in (0, -1))
    return {
        "later_over_early": round(float(np.mean(ratios)), 2),
        "deviation": round(float(np.std(ratios)), 2),
        "best_moves_by_decades": round(float(final_best - early_best), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--optuna-sweeps", type=int, default=40, help="0 keeps the known figures")
    parser.add_argument("--seeds-last", action="store_true", help="train second seeds after the search")
    parser.add_argument("--tasks", nargs="*", default=TUNING + HELD_OUT, help="which tasks; the others' entries stay")
    parser.add_argument("--out", type=Path, default=RESULTS / "refine.json")
    arguments = parser.parse_args()
    if arguments.seeds_last:
        LIMITS.append("search.n_trials=1000")
    known = json.loads(arguments.out.read_text())["tasks"] if arguments.out.exists() else []
    entries = [entry for entry in known if entry["task"].split()[0] not in arguments.tasks]
    for task in tasks(tuple(arguments.tasks)):
        entry = of_refine(task, arguments.sweeps)
        if arguments.optuna_sweeps:
            entry |= of_optuna(task, arguments.optuna_sweeps)
        else:
            before = [known_entry for known_entry in known if known_entry["task"] == task.name]
            entry |= {key: value for key, value in before[0].items() if key.startswith("optuna")} if before else {}
        entries.append(entry | behind(task) | {"held_out": task.name.split()[0] in HELD_OUT})
        print(entries[-1], flush=True)
        counts = {"sweeps": arguments.sweeps, "optuna_sweeps": arguments.optuna_sweeps}
        calibrated = calibration(entries)
        save(arguments.out, about("optuna", "scikit-learn", "scipy") | counts, tasks=entries, calibration=calibrated)
    columns = [key for key in entries[0] if key not in ("held_out", "promises")]
    print(table(columns, [[entry.get(key) for key in columns] for entry in entries]))
    print(table(list(calibrated[0]), [list(entry.values()) for entry in calibrated]))
    draw(calibrated, arguments.out.with_name(arguments.out.stem + "_calibration.svg"))


if __name__ == "__main__":
    main()
