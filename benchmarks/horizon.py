"""Measures the rate for a run eight times as long: `python benchmarks/horizon.py`, about five minutes.

Replays sweeps over the tasks in `results/tasks/` (run `tasks.py` first): 5 to 8 neighbouring rates around the best
of 24 steps,
one random seed of the 8 that were measured, in runs of 12, 24 and 48 steps. The rate for a run of 400 steps follows
from the power law through the three best rates. Compares it with keeping the best rate of the longest runs, and with
moving that by the exponent of Bjorck et al. (arXiv 2409.19913) alone. The regret is how far a rate's loss after 400
steps is above the lowest, by a line through the measured means over log lr, in units of the improvement.

Two tasks were set aside while the numbers in `lrsweep/analysis/horizon.py` were chosen.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, about, save, table

from lrsweep.analysis.horizon import LongerRun, extrapolated, optimum

TUNING = ("llama_docstrings", "qwen2_signatures")
HELD_OUT = ("gemma_sums", "mistral_names")
LENGTHS, LONG = (12, 24, 48), 400
GOOD = 0.02


class Truth:
    """What was measured of a task."""

    def __init__(self, name: str) -> None:
        data = np.load(RESULTS / "tasks" / f"{name}.npz")
        self.lrs = data["lrs"].astype(float)
        self.base_loss = float(np.nanmean(data[f"evals_{LONG}"][:, :, 0]))
        self.finals = {steps: data[f"evals_{steps}"][:, :, -1].astype(float) for steps in (*LENGTHS, LONG)}
        long = self.finals[LONG]
        self._mean = np.where(np.isfinite(long).all(1), long.mean(1), np.nan)
        self._lowest = float(np.nanmin(self._mean))

    def regret(self, lr: float) -> float:
        """How much worse a rate is than the best for the long run, as a share of the improvement."""
        there = np.isfinite(self._mean)
        loss = np.interp(np.log(lr), np.log(self.lrs[there]), self._mean[there])
        return float(loss - self._lowest) / (self.base_loss - self._lowest)

    def exponent(self) -> float:
        """The power of the steps with which the best rate of the measured means moves, over all lengths."""
        best = []
        for finals in self.finals.values():
            there = np.isfinite(finals).all(1)
            losses = dict(zip(self.lrs[there].tolist(), finals[there].mean(1).tolist(), strict=True))
            found = optimum(0, losses, self.base_loss)
            best.append(np.nan if found is None else np.log10(found.lr))
        known = np.isfinite(best)
        return float(np.polyfit(np.log10(list(self.finals))[known], np.array(best)[known], 1)[0])

    def sweep(self, random: np.random.Generator) -> dict[int, dict[float, float]]:
        """A sweep's losses by length and rate."""
        count = int(random.integers(5, 9))
        best = int(np.nanargmin(np.nanmean(self.finals[LENGTHS[1]], 1)))
        start = int(np.clip(random.integers(best - count + 2, best), 0, len(self.lrs) - count))
        chosen = range(start, start + count)
        seed = int(random.integers(self.finals[LONG].shape[1]))
        return {
            steps: {
                float(self.lrs[i]): float(self.finals[steps][i, seed])
                for i in chosen
                if np.isfinite(self.finals[steps][i, seed])
            }
            for steps in LENGTHS
        }


def replay(name: str, sweeps: int) -> dict[str, Any]:
    """Returns the table's row of a task."""
    truth, random = Truth(name), np.random.default_rng(0)
    regrets: dict[str, list[float]] = {"power law": [], "unchanged": [], "rule alone": []}
    inside, exponents = [], []
    best_long = float(truth.lrs[int(np.nanargmin(truth.finals[LONG].mean(1)))])
    unknown = 0
    for _ in range(sweeps):
        found = truth.sweep(random)
        optima = [o for o in (optimum(steps, losses, truth.base_loss) for steps, losses in found.items()) if o]
        answer: LongerRun | None = extrapolated(optima, LONG)
        if answer is None or not optima:
            unknown += 1
            continue
        last = optima[-1]
        regrets["power law"].append(truth.regret(answer.lr))
        regrets["unchanged"].append(truth.regret(last.lr))
        regrets["rule alone"].append(truth.regret(last.lr * (LONG / last.steps) ** -0.32))
        inside.append(answer.low <= best_long <= answer.high)
        exponents.append(answer.exponent)
    row: dict[str, Any] = {"task": name, "sweeps": sweeps, "no_answer": unknown}
    for arm, values in regrets.items():
        row[f"{arm}: within 2 %"] = round(float(np.mean(np.array(values) <= GOOD)), 3)
        row[f"{arm}: median"] = round(float(np.median(values)), 4)
        row[f"{arm}: 95th"] = round(float(np.quantile(values, 0.95)), 4)
    return row | {
        "interval holds the best": round(float(np.mean(inside)), 3),
        "exponent": round(float(np.median(exponents)), 2),
        "exponent of the means": round(truth.exponent(), 2),
        "held_out": name in HELD_OUT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=[*TUNING, *HELD_OUT])
    parser.add_argument("--sweeps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS / "horizon.json")
    arguments = parser.parse_args()
    rows = [replay(name, arguments.sweeps) for name in arguments.tasks]
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    save(arguments.out, about("scikit-learn", "scipy") | {"lengths": LENGTHS, "long": LONG}, tasks=rows)


if __name__ == "__main__":
    main()
