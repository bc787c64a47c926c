"""Measures whether the verdict holds: `python benchmarks/verdict.py`, about an hour.

Replays sweeps over the tasks in `results/tasks/` (run `tasks.py` first). A sweep tries 5 to 10 neighbouring rates of a
task with one seed, then replicates as search.replicates=auto does. Its losses are the measured means, plus noise drawn
with the measured covariance between the rates (8 seeds), so that what a seed adds to all rates alike is kept and the
true means are known. Four questions, for each task and each budget of steps:

- how far the recommended rate's true mean is from the best tried one's, in units of the improvement;
- how often what is said of the best and its rivals is right: a tie if the true difference is within the stated margin,
  "more than chance" if the true difference has the same sign;
- how often six equal configs are all called tied, with independent noise, and how often the four that
  `search=refine` has trained to the end;
- how often a rate wins that is better than five equal ones by 3 and by 5 standard deviations.

`--tasks NAME ...` replays some tasks only. Two of them were set aside while the statistics were built.
"""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, about, save, table
from numpy.typing import NDArray

from lrsweep.analysis.ranking import Result, Role, Status, ranked
from lrsweep.analysis.verdict import Verdict, compared, judge
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.search.replication import contenders

Floats = NDArray[np.float64]

TUNING = ("llama_docstrings", "qwen2_signatures")
HELD_OUT = ("gemma_sums", "mistral_names")
BUDGETS = (20, 60, 120, 400)
EQUAL, EQUAL_REFINED = 6, 4
GAINS = (3.0, 5.0)


@dataclasses.dataclass(frozen=True)
class Truth:
    """A task at one budget.

    Attributes:
        name: The task.
        budget: Optimizer steps of a trial.
        lrs: The rates [n].
        base_loss: The loss before training.
        mean: Each rate's mean loss over the seeds [n]; inf where a seed diverged.
        residuals: The losses minus the means [n, seeds].
    """

    name: str
    budget: int
    lrs: Floats
    base_loss: float
    mean: Floats
    residuals: Floats

    def draw(self, random: np.random.Generator) -> Floats:
        """Returns the losses of all rates [n] with a new seed."""
        seeds = self.residuals.shape[1]
        found: Floats = self.mean + self.residuals @ random.normal(size=seeds) / np.sqrt(seeds - 1)
        return found

    @property
    def deviation(self) -> float:
        """The noise of the best rate, from seed to seed."""
        return float(np.std(self.residuals[int(np.argmin(self.mean))], ddof=1))


def load(name: str, budget: int) -> Truth:
    """Loads a task at one budget."""
    arrays = np.load(RESULTS / "tasks" / f"{name}.npz")
    evals = arrays[f"evals_{budget}"].astype(np.float64)
    finals = evals[:, :, -1]
    mean = np.where(np.isfinite(finals).all(1), finals.mean(1), np.inf)
    residuals = np.where(np.isfinite(mean)[:, None], finals - np.nan_to_num(mean, posinf=0.0)[:, None], 0.0)
    return Truth(name, budget, arrays["lrs"], float(evals[0, 0, 0]), mean, residuals)


@functools.cache
def config(lr: float, seed: int, method: str) -> SweepConfig:
    """Returns a trial's config."""
    return replace(sweep_config(["+sweep=lora_lr", f"search={method}"]), {"optimizer.lr": lr, "training.seed": seed})


def sweep(lrs: Sequence[float], base_loss: float, draw: Callable[[], Floats], method: str = "grid") -> Verdict:
    """Returns the verdict on a sweep with automatic replicates.

    Args:
        lrs: The rates.
        base_loss: The loss before training.
        draw: Returns the losses of all rates with the next seed.
        method: The search that chose the rates; the rules for replicates depend on it.
    """
    losses = [draw() for _ in range(4)]

    def trial(number: int, rate: int, seed: int, of: int | None) -> Result:
        loss = float(losses[seed][rate])
        status: Status = "complete" if np.isfinite(loss) else "diverged"
        role: Role = "search" if of is None else "replicate"
        own = config(lrs[rate], seed, method)
        return Result(
            number, {"optimizer.lr": lrs[rate]}, own, status, 1, loss if np.isfinite(loss) else None, "", role, {}, of
        )

    results = [trial(rate, rate, 0, None) for rate in range(len(lrs))]
    while True:
        candidates = ranked(results)
        rivals, noise = compared(candidates)
        improvement = base_loss - candidates[0].mean
        chosen, seeds = contenders(candidates, rivals, noise, improvement if improvement > 0 else None)
        new = [(c.result.number, seed) for c in chosen for seed in range(1 + c.repeated, seeds)]
        if not new:
            return judge(results, base_loss)
        for rate, seed in new:
            results.append(trial(len(results), rate, seed, rate))


def measure(truth: Truth, sweeps: int) -> dict[str, Any]:
    """Returns what sweeps over the task's rates say, and whether it is right."""
    random = np.random.default_rng(0)
    improvement = truth.base_loss - truth.mean.min()
    regrets, worse_by_3, extra = [], 0, []
    said: dict[str, list[bool]] = {"tie": [], "chance": [], "range": []}
    widths = []
    for _ in range(sweeps):
        stride = int(random.integers(1, 3))
        count = int(random.integers(5, len(truth.lrs) + 1)) if stride == 1 else 5
        first = int(random.integers(len(truth.lrs) - stride * (count - 1)))
        chosen = np.arange(first, first + stride * count, stride)
        mean = truth.mean[chosen]
        lrs = [float(lr) for lr in truth.lrs[chosen]]
        verdict = sweep(lrs, truth.base_loss, lambda: truth.draw(random)[chosen])  # noqa: B023 - called at once
        true = dict(zip(lrs, mean, strict=True))
        best = verdict.recommended
        assert best is not None
        regrets.append((true[best.result.lr] - mean.min()) / improvement)
        lowest = verdict.candidates[0]
        extra.append(sum(candidate.repeated for candidate in verdict.candidates))
        if verdict.noise is not None:
            worse_by_3 += verdict.given_up >= 3 * verdict.noise.deviation
        for rival in verdict.rivals:
            difference = true[rival.candidate.result.lr] - true[lowest.result.lr]
            assert rival.margin is not None
            if rival.tied:
                said["tie"].append(bool(abs(difference - rival.difference) <= rival.margin))
            else:
                said["chance"].append(bool(difference > 0))
        if verdict.safe_range is not None:
            safe = verdict.safe_range
            limit = true[best.result.lr] + safe.tolerance * improvement
            said["range"].append(
                bool(max(m for lr, m in zip(truth.lrs, truth.mean, strict=True) if lr in safe) <= limit)
            )
            widths.append(np.log10(safe.high / safe.low))
    return {
        "task": truth.name,
        "steps": truth.budget,
        "noise_share": round(float(truth.deviation / improvement), 4),
        "regret_within_2_percent": round(float(np.mean(np.array(regrets) <= 0.02)), 4),
        "worst_regret": round(float(max(regrets)), 4),
        "worse_by_3_deviations": int(worse_by_3),
        "extra_trials": round(float(np.mean(extra)), 2),
        **{
            f"{name}_{what}": (len(of) if what == "said" else round(float(np.mean(of)), 4) if of else None)
            for name, of in said.items()
            for what in ("said", "right")
        },
        "range_decades": round(float(np.median(widths)), 2) if widths else None,
    }


def equal(truth: Truth, sweeps: int, gain: float, count: int = EQUAL, method: str = "grid") -> float:
    """Returns how often equal configs are all tied, or how often one wins that is better by `gain` deviations."""
    random = np.random.default_rng(1)
    at = int(np.argmin(truth.mean))
    spread = truth.residuals[at] / np.std(truth.residuals[at], ddof=1) * truth.deviation
    lrs = [float(f"{1e-4 * 10 ** (i / 2):.3g}") for i in range(count)]
    better = 2  # inside the grid

    def draw() -> Floats:
        # The measured residuals, jittered: normal noise of the same deviation would be kinder than the real one.
        noise = random.choice(spread, count) * np.sqrt(0.5) + random.normal(0, truth.deviation * np.sqrt(0.5), count)
        found: Floats = truth.mean[at] + noise - gain * truth.deviation * (np.arange(count) == better)
        return found

    hits = 0
    for _ in range(sweeps):
        verdict = sweep(lrs, truth.base_loss, draw, method)
        if gain:
            hits += verdict.best is not None and verdict.best.lr == lrs[better]
        else:
            hits += all(rival.tied for rival in verdict.rivals)
    return hits / sweeps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--tasks", nargs="*", default=TUNING + HELD_OUT, help="which tasks; the others' entries stay")
    parser.add_argument("--equal-sweeps", type=int, default=1000, help="sweeps of equal configs")
    parser.add_argument("--gain-sweeps", type=int, default=200, help="sweeps with one better config")
    parser.add_argument("--out", type=Path, default=RESULTS / "verdict.json")
    arguments = parser.parse_args()
    entries = []
    if arguments.out.exists():
        known = json.loads(arguments.out.read_text())["sweeps_of"]
        entries = [entry for entry in known if entry.get("task") in {*TUNING, *HELD_OUT} - {*arguments.tasks}]
    for name, budget in itertools.product(arguments.tasks, BUDGETS):
        if f"evals_{budget}" not in np.load(RESULTS / "tasks" / f"{name}.npz"):
            print(f"{name}: not measured for {budget} steps")
            continue
        truth = load(name, budget)
        entry = measure(truth, arguments.sweeps)
        entry["held_out"] = name in HELD_OUT
        entry["equal_tied"] = equal(truth, arguments.equal_sweeps, 0.0)
        entry["equal_tied_refined"] = equal(truth, arguments.equal_sweeps, 0.0, EQUAL_REFINED, "refine")
        for gain in GAINS:
            entry[f"better_by_{gain:g}_wins"] = equal(truth, arguments.gain_sweeps, gain)
        entries.append(entry)
        print(entry, flush=True)
    columns = [key for key in entries[0] if key != "held_out"]
    print(table(columns, [[entry[key] for key in columns] for entry in entries]))
    known_about = about("scikit-learn", "scipy")
    counts = {
        "sweeps": arguments.sweeps,
        "equal_sweeps": arguments.equal_sweeps,
        "gain_sweeps": arguments.gain_sweeps,
    }
    save(arguments.out, known_about | counts, sweeps_of=entries)


if __name__ == "__main__":
    main()
