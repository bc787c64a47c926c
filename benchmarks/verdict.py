"""Measures whether the verdict separates luck from gain: `python benchmarks/verdict.py`, a minute.

Simulates sweeps with real trials from `results/truth.json` (run `truth.py` first). Equal: a sweep's trials are runs of
one config that differ only in their seed, drawn without replacement; the right verdict is that all are tied. Better:
the losses of one trial and its replicates are lowered by five times the standard deviation between seeds; the right
verdict is that this trial wins (the table also shows how often it wins alone). With replicates, the best three trials
get two more seeds each, as with search.replicates=3; without, the noise is estimated from the last evaluations.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, about, save, table
from replay import Floats, Truth, load, result

from lrsweep.analysis.noise import estimate
from lrsweep.analysis.ranking import Result, Verdict, judge, ranked

TRIALS, REPLICATES, FEW, GAIN = 6, 3, 3, 5.0
OFTEN = 0.95


def sweep(truth: Truth, curves: Floats, draw: np.random.Generator, gain: float, *, replicated: bool) -> Verdict:
    """Returns the verdict on a sweep over equal configs; trial 0 is better by `gain`."""
    order = iter(draw.permutation(len(curves)))
    results: list[Result] = []
    for number in range(TRIALS):
        curve = curves[next(order)] - (gain if number == 0 else 0.0)
        results.append(result(truth, number, truth_lr(number), curve))
    if replicated:
        for candidate in ranked(results)[:FEW]:
            of = candidate.result
            for _ in range(REPLICATES - 1):
                curve = curves[next(order)] - (gain if of.number == 0 else 0.0)
                again = result(truth, len(results), of.lr, curve)
                results.append(Result(**{**vars(again), "role": "replicate", "of": of.number}))
    return judge(results, truth.base_loss)


def truth_lr(number: int) -> float:
    """Returns a rate that only serves to distinguish the trials."""
    return float(f"{1e-3 * 10 ** (number / 2):.3g}")


def measure(truth: Truth, lr: float, sweeps: int, *, replicated: bool) -> dict[str, Any]:
    """Returns an entry of the results file."""
    curves = truth.repeated[lr]
    deviation = float(curves[:, -1].std(ddof=1))
    guesses = [estimate([(0.0,)], [list(zip(truth.steps, map(float, curve), strict=True))]) for curve in curves]
    guess = float(np.median([noise.deviation for noise in guesses if noise]))
    draw = np.random.default_rng(0)
    equal = [sweep(truth, curves, draw, 0.0, replicated=replicated) for _ in range(sweeps)]
    better = [sweep(truth, curves, draw, GAIN * deviation, replicated=replicated) for _ in range(sweeps)]
    return {
        "mode": truth.mode,
        "lr": lr,
        "replicated": replicated,
        "seeds": len(curves),
        "deviation": round(deviation, 6),
        "deviation_guessed_from_last_evaluations": round(guess, 6),
        "tied": sum(len(verdict.ties) == TRIALS for verdict in equal) / sweeps,
        "better_wins": sum(verdict.best is not None and verdict.best.number == 0 for verdict in better) / sweeps,
        "better_wins_alone": sum([tie.result.number for tie in v.ties] == [0] for v in better) / sweeps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "verdict.json")
    arguments = parser.parse_args()
    entries = [
        measure(truth, lr, arguments.sweeps, replicated=replicated)
        for replicated in (True, False)
        for truth in (load("lora"), load("full"))
        for lr in truth.repeated
    ]
    rows = [
        [
            f"{e['mode']} lr {e['lr']:g}, {'3 seeds for the best 3' if e['replicated'] else 'no replicates'}",
            f"{e['deviation']:.4f}",
            f"{e['deviation_guessed_from_last_evaluations']:.4f}",
            f"{e['tied']:.0%}",
            f"{e['better_wins']:.0%}",
            f"{e['better_wins_alone']:.0%}",
        ]
        for e in entries
    ]
    print(table(["equal configs", "deviation", "estimated", "tied", "better wins", "alone"], rows))
    for what in ("tied", "better_wins"):
        for replicated in (True, False):
            share = min(e[what] for e in entries if e["replicated"] == replicated)
            kind = "with" if replicated else "without"
            met = "met" if share >= OFTEN else "not met"
            print(f"{what}, {kind} replicates, in the worst case {share:.0%}, target 95 %: {met}")
    save(arguments.out, about("scikit-learn", "scipy") | {"sweeps": arguments.sweeps}, sweeps_of=entries)


if __name__ == "__main__":
    main()
