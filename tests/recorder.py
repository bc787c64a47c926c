"""A host for engines under test: it gives its trials, keeps what it hears, and may stop them at a step."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.training.engines import Engine, Measurement, Outcome, Stop, Trial

TINY = (
    "+sweep=lora_lr",
    "training.max_steps=6",
    "training.eval_every=3",
    "training.batch_size=2",
    "data.max_eval_rows=8",
    "data.max_train_rows=64",
    "data.max_length=48",
    "optimizer.lr=1e-3",
    "training.save_adapter=false",
)


@functools.cache  # a config never changes, and composing one takes a tenth of a second
def tiny(*overrides: str) -> SweepConfig:
    """A trial of six steps on the embedded model."""
    return sweep_config([*TINY, *overrides])


class Recorder:
    """The host."""

    def __init__(
        self, folder: Path, configs: Sequence[SweepConfig], stop_at: int | None = None, why: Stop = "paused"
    ) -> None:
        self._folder = folder
        self._given = 0
        self._trials: list[Trial] = []
        for config in configs:
            self.add(config)
        self._stop_at = stop_at
        self._why = why
        self.heard: list[Measurement] = []
        self.outcomes: list[Outcome] = []

    def add(self, config: SweepConfig) -> None:
        """Adds a trial."""
        self._trials.append(Trial(self._given, config, self._folder / str(self._given)))
        self._given += 1

    def next_trial(self) -> Trial | None:
        return self._trials.pop(0) if self._trials else None

    def report(self, measurements: Sequence[Measurement]) -> Mapping[int, Stop]:
        self.heard += measurements
        return {m.number: self._why for m in measurements if self._stop_at is not None and m.step >= self._stop_at}

    def finish(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def curve(self, name: str, number: int = 0) -> dict[int, float]:
        """A trial's values of one metric, by step."""
        return {m.step: m.metrics[name] for m in self.heard if m.number == number and name in m.metrics}


def train(engine: Engine, folder: Path, *configs: SweepConfig, stop_at: int | None = None) -> Recorder:
    """What the engine says of these trials."""
    host = Recorder(folder, configs, stop_at)
    engine.run(host)
    return host
