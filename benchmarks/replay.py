"""What search.py and verdict.py share: the measured trials of truth.json, as a sweep would meet them."""

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from common import RESULTS

from lrsweep.analysis.ranking import Result
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig, replace

STEPS = 40


@dataclass(frozen=True)
class Truth:
    """One mode's dense trials: log10 of rates [n], eval losses [seeds, n, evaluations], and the steps of those.

    `repeated` are the finals and curves of equal configs: by rate, [repeats, evaluations].
    """

    mode: str
    log_lr: np.ndarray
    evals: np.ndarray
    steps: tuple[int, ...]
    repeated: dict[float, np.ndarray]

    @property
    def seeds(self) -> int:
        return len(self.evals)

    def curve(self, lr: float, seed: int) -> np.ndarray:
        """The eval losses [evaluations] of a trial: between measured rates, on a straight line over log lr."""
        columns = self.evals[seed].T
        return np.array([np.interp(np.log10(lr), self.log_lr, column) for column in columns])

    def mean(self, lr: float) -> float:
        """The true mean of the final loss."""
        return float(np.mean([self.curve(lr, seed)[-1] for seed in range(self.seeds)]))

    @functools.cached_property
    def best(self) -> float:
        """The lowest true mean of the measured rates."""
        return float(self.evals[:, :, -1].mean(0).min())

    @property
    def base_loss(self) -> float:
        """The loss before training."""
        return float(self.evals[0, 0, 0])


def load(mode: str) -> Truth:
    """From results/truth.json."""
    runs = [run for run in json.loads((RESULTS / "truth.json").read_text())["runs"] if run["mode"] == mode]
    steps = tuple(step for step, _ in runs[0]["evals"])
    by_lr: dict[float, dict[int, list[float]]] = defaultdict(dict)
    for run in runs:
        assert run["status"] == "complete"
        by_lr[run["lr"]][run["seed"]] = [loss for _, loss in run["evals"]]
    most = max(map(len, by_lr.values()))
    repeated = {lr: np.array(list(seeds.values())) for lr, seeds in by_lr.items() if len(seeds) == most}
    # A repeated rate that no dense one equals still belongs to the line, with the seeds that the dense ones have.
    dense = sorted(by_lr)
    seeds = min(map(len, by_lr.values()))
    evals = np.array([[by_lr[lr][seed] for lr in dense] for seed in range(seeds)])
    return Truth(mode, np.log10(dense), evals, steps, repeated)


@functools.lru_cache(maxsize=2)
def base(mode: str) -> SweepConfig:
    return sweep_config([f"+sweep={mode}_lr"])


def result(truth: Truth, number: int, lr: float, curve: Sequence[float], status: str = "complete") -> Result:
    """A trial as the verdict sees it."""
    evals = tuple(
        zip(truth.steps[-len(curve) :] if status == "complete" else truth.steps, map(float, curve), strict=False)
    )
    config = replace(base(truth.mode), {"optimizer.lr": float(lr)})
    return Result(number, {"optimizer.lr": float(lr)}, config, status, evals[-1][0], evals[-1][1], "", evals=evals[-6:])  # type: ignore[arg-type]
