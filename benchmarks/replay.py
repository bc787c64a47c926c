"""Replays the measured trials of truth.json as a sweep would see them, for search.py and verdict.py."""

import functools
import json
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from common import RESULTS
from numpy.typing import NDArray

from lrsweep.analysis.ranking import Result, Status
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace

STEPS = 40
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """The measured trials of one mode.

    Attributes:
        mode: `lora` or `full`.
        log_lr: log10 of the measured learning rates [n].
        evals: Eval losses [seeds, n, evaluations].
        steps: The step of each evaluation.
        repeated: Eval losses of equal configs [repeats, evaluations], by learning rate.
    """

    mode: str
    log_lr: Floats
    evals: Floats
    steps: tuple[int, ...]
    repeated: dict[float, Floats]

    @property
    def seeds(self) -> int:
        """The number of seeds of every rate."""
        return len(self.evals)

    def curve(self, lr: float, seed: int) -> Floats:
        """Returns a trial's eval losses [evaluations], interpolated linearly over log lr between measured rates."""
        columns = self.evals[seed].T
        return np.array([np.interp(np.log10(lr), self.log_lr, column) for column in columns])

    def mean(self, lr: float) -> float:
        """Returns the true mean of the final loss at a rate."""
        return float(np.mean([self.curve(lr, seed)[-1] for seed in range(self.seeds)]))

    @functools.cached_property
    def best(self) -> float:
        """The lowest true mean among the measured rates."""
        return float(self.evals[:, :, -1].mean(0).min())

    @property
    def base_loss(self) -> float:
        """The loss before training."""
        return float(self.evals[0, 0, 0])


def load(mode: str) -> Truth:
    """Loads a mode's trials from results/truth.json."""
    runs = [run for run in json.loads((RESULTS / "truth.json").read_text())["runs"] if run["mode"] == mode]
    steps = tuple(step for step, _ in runs[0]["evals"])
    by_lr: dict[float, dict[int, list[float]]] = defaultdict(dict)
    for run in runs:
        assert run["status"] == "complete"
        by_lr[run["lr"]][run["seed"]] = [loss for _, loss in run["evals"]]
    most = max(map(len, by_lr.values()))
    repeated = {lr: np.array(list(seeds.values())) for lr, seeds in by_lr.items() if len(seeds) == most}
    # A repeated rate that is not among the dense ones is part of the grid, too, with as many seeds as those.
    dense = sorted(by_lr)
    seeds = min(map(len, by_lr.values()))
    evals = np.array([[by_lr[lr][seed] for lr in dense] for seed in range(seeds)])
    return Truth(mode, np.log10(dense), evals, steps, repeated)


@functools.lru_cache(maxsize=2)
def base(mode: str) -> SweepConfig:
    """Returns the config of the mode's default sweep."""
    return sweep_config([f"+sweep={mode}_lr"])


def result(truth: Truth, number: int, lr: float, curve: Floats, status: Status = "complete") -> Result:
    """Returns a trial as the verdict sees it.

    Args:
        truth: The mode's measured trials.
        number: The trial's number.
        lr: Its learning rate.
        curve: Its eval losses [evaluations]; of a pruned trial the first ones.
        status: How it ended.
    """
    evals = tuple(
        (step, float(loss))
        for step, loss in zip(
            truth.steps[-len(curve) :] if status == "complete" else truth.steps, curve.tolist(), strict=False
        )
    )
    config = replace(base(truth.mode), {"optimizer.lr": float(lr)})
    return Result(number, {"optimizer.lr": float(lr)}, config, status, evals[-1][0], evals[-1][1], "", evals=evals[-6:])
