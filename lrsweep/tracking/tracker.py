"""What the sweep sees of its tracking: the protocol, and the tracker that does nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lrsweep.training.engines import Measurement


@dataclass(frozen=True)
class DatasetInfo:
    """The data of a sweep, as its runs name it. `fingerprint` is a hex digest of the rows themselves.

    `dropped` rows are left out, as nothing to learn from is left of them within data.max_length; `cut` ones lost their end.
    """

    name: str
    source: str
    fingerprint: str
    train_rows: int
    eval_rows: int
    dropped: int = 0
    cut: int = 0


class Tracker(Protocol):
    """Where the loss curves go. After `start`, nothing here raises or waits for a server, `finish`'s wait excepted."""

    @property
    def uri(self) -> str:
        """The store, its password masked; empty when there is none."""

    @property
    def unsent(self) -> int:
        """Points and run updates that the store has not got."""

    def start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
        """Begins the sweep's parent run, or goes on with the one that `sweep_id` has. Raises StorageError, InputError."""

    def missing(self, ended: Sequence[int]) -> list[int]:
        """Those of these ended trials that the store does not have to their end: a kill may come between trial and store."""

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Begins a trial's run, in the place of any that an earlier attempt at the same trial left."""

    def log(self, measurement: Measurement, at: int | None = None) -> None:
        """Takes what a trial measured, `at` milliseconds since the epoch (None: now); the same once more is the same point."""

    def finish_trial(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        """Ends a trial's run: complete, pruned, diverged, failed or interrupted."""

    def label(self, labels: Mapping[int, str]) -> None:
        """Takes what the trials' curves show, now that all are known; sent with `finish`."""

    def finish(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        """Ends the parent run: complete, failed or interrupted; trials that still run are interrupted.

        May be called at any point after `start`, also while an exception is on its way, and again: the last call holds.
        A folder among the artifacts keeps its name.
        """

    def ui_command(self) -> str:
        """The shell command that opens MLflow's UI on this store; empty when there is none."""

    def compare_url(self) -> str:
        """The page of that UI with all trials' curves in one chart, the best first; empty when there is none."""


class NoTracker:
    """Tracking is off."""

    uri = ""
    unsent = 0

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    start = start_trial = log = finish_trial = label = finish = _nothing

    def missing(self, ended: Sequence[int]) -> list[int]:
        return []

    def _empty(self) -> str:
        return ""

    ui_command = compare_url = _empty
