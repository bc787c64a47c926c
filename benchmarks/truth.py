"""Measures the ground truth of the embedded task: `python benchmarks/truth.py`, about twenty minutes.

Trains at 25 learning rates with 3 seeds each, with LoRA and full fine-tuning, and at one rate of each mode with 16
seeds, which shows how much equal configs differ. Uses the packed engine and the default sweep's settings, but with 40
steps, 64 eval rows and an evaluation every 10 steps. Writes every trial's eval losses by step to `results/truth.json`;
`search.py` and `verdict.py` replay them.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, about, save

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace
from lrsweep.training.engines import Measurement, Outcome, Stop, Trial
from lrsweep.training.engines.packed import PackedEngine

LRS = {"lora": np.logspace(-5, -1, 25), "full": np.logspace(-6, -2, 25)}
SEEDS = 3
# A rate near each mode's best.
REPEATED = {"lora": (3.162e-3,), "full": (3.162e-4,)}
REPEATS = 16
# Shorter than the default sweep's trials and with fewer eval rows, because there are many.
TRIAL = ("training.max_steps=40", "training.eval_every=10", "data.max_eval_rows=64")


class Host:
    """Hands out the trials, and keeps their eval losses."""

    def __init__(self, configs: Iterator[SweepConfig], folder: Path) -> None:
        self._trials = enumerate(configs)
        self._folder = folder
        self.runs: dict[int, dict[str, Any]] = {}

    def next_trial(self) -> Trial | None:
        number, config = next(self._trials, (0, None))
        if config is None:
            return None
        optimizer = config.optimizer
        self.runs[number] = {
            "mode": config.finetune.mode,
            "lr": optimizer.lr,
            "seed": config.training.seed,
            "status": "",
            "evals": [],
        }
        return Trial(number, config, self._folder / str(number))

    def report(self, measurements: Sequence[Measurement]) -> dict[int, Stop]:
        for measurement in measurements:
            if "eval_loss" in measurement.metrics:
                self.runs[measurement.number]["evals"].append(
                    [measurement.step, round(measurement.metrics["eval_loss"], 6)]
                )
        return {}

    def finish(self, outcome: Outcome) -> None:
        run = self.runs[outcome.number]
        run["status"] = outcome.status
        print(f"{outcome.number}: {run['mode']} lr {run['lr']:.3g} seed {run['seed']}: {run['evals'][-1]}", flush=True)


def configs(smoke: bool) -> Iterator[SweepConfig]:
    """Yields the dense rates first, then the repeated ones with the seeds that are still missing."""
    own = ["training.save_adapter=false", "training.checkpoint_seconds=null", *TRIAL]
    bases = {mode: sweep_config([f"+sweep={mode}_lr", *own]) for mode in LRS}
    for mode, base in bases.items():
        lrs = [float(f"{lr:.4g}") for lr in LRS[mode]]
        dense = itertools.product(range(SEEDS), lrs)
        repeated = itertools.product(range(REPEATS), REPEATED[mode])
        wanted = dict.fromkeys([*dense, *repeated])
        for seed, lr in list(wanted)[: 4 if smoke else None]:
            yield replace(base, {"optimizer.lr": lr, "training.seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="only four trials of each mode, as a quick test")
    parser.add_argument("--out", type=Path, default=RESULTS / "truth.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host = Host(configs(arguments.smoke), Path(folder))
        PackedEngine("auto", rank=8).run(host)
    save(arguments.out, about("torch", "transformers", "peft"), runs=list(host.runs.values()))


if __name__ == "__main__":
    main()
