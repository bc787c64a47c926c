"""The interface between a sweep and its tracking: the protocol, and the tracker for `tracking=none`.

To add a tracker, write a class with the methods of `Tracker`, create it in `lrsweep.tracking.open_tracker` for a new
value of `tracking.name`, and add that value to `TrackingConfig` and to the config group `conf/tracking`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lrsweep.training.engines import Measurement


@dataclass(frozen=True)
class DatasetInfo:
    """A sweep's data set, as its runs record it.

    Attributes:
        name: Its name.
        source: Its path or hub id.
        fingerprint: A hex digest of the rows.
        train_rows: Number of training rows.
        eval_rows: Number of held-out rows.
        dropped: Number of rows left out, since no label tokens remain within `data.max_length`.
        cut: Number of rows truncated to `data.max_length`.
    """

    name: str
    source: str
    fingerprint: str
    train_rows: int
    eval_rows: int
    dropped: int = 0
    cut: int = 0


class Tracker(Protocol):
    """Records a sweep's parameters, loss curves and results.

    `start` is called first, then `missing`; then `start_trial`, `log` and `finish_trial` for each trial, where the
    calls for several trials alternate; `label` and `finish` come last. All calls come from one thread. After `start`,
    only `missing` may raise for a fault of the store, and only `missing` and `finish` may wait for it: training must
    neither end nor stall because of tracking.
    """

    @property
    def uri(self) -> str:
        """The store's URI with its password masked; empty if there is no store."""

    @property
    def unsent(self) -> int:
        """Number of points and run updates that have not reached the store; 0 if all are saved."""

    def start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
        """Starts the sweep's parent run, or resumes the one with the same `sweep_id`.

        Args:
            sweep: The sweep's name, the run's title.
            sweep_id: Identifies the sweep across resumes.
            params: The config's values by dotted key.
            tags: Tags of the run.
            dataset: The sweep's data set.

        Raises:
            InputError: The tracking config is not valid for the store.
            StorageError: The store does not respond.
        """

    def missing(self, ended: Sequence[int]) -> list[int]:
        """Returns the ended trials that the store does not hold completely, such as after a kill.

        Args:
            ended: Numbers of trials that have ended.

        Raises:
            StorageError: The store does not respond.
        """

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Starts a trial's run. It replaces the run of an earlier attempt at the trial, in this process or another.

        Args:
            number: The trial's number.
            title: The run's title.
            params: The trial's values by dotted key.
            tags: Tags of the run.
        """

    def log(self, measurement: Measurement, at: int | None = None) -> None:
        """Records a measurement of a started trial.

        Recording the same measurement with the same time again must not add a second point.

        Args:
            measurement: The trial's number, the step, and metrics by name; values may be NaN or infinite.
            at: When it was measured, in milliseconds since the epoch; None is now.
        """

    def finish_trial(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        """Ends a trial's run.

        Args:
            number: The trial's number.
            status: `complete`, `pruned`, `diverged`, `failed` or `interrupted`.
            tags: More tags of the run.
        """

    def label(self, tags: Mapping[int, Mapping[str, str]]) -> None:
        """Sets what the trials' runs say about them in the end, which `finish` sends.

        Args:
            tags: Tags by trial number. `description` is Markdown, for the run's page.
        """

    def finish(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Ends the parent run and sends everything that is left. Trials that still run become `interrupted`.

        It may be called at any time after `start`, also while an exception propagates, and more than once: the last
        call counts.

        Args:
            status: `complete`, `failed` or `interrupted`.
            metrics: The sweep's results by name.
            artifacts: Files and folders to attach to the run. A folder keeps its name.
            tags: More tags of the parent run. `description` is Markdown, for the run's page; in it, a file of
                `artifacts` is linked as `artifact:NAME`.
        """

    def ui_command(self) -> str:
        """Returns a shell command that opens the store's UI; empty if there is none."""

    def compare_page(self, axes: Sequence[str], metric: str, *, lowest_first: bool) -> str:
        """Sets up the UI's page that compares all trials, after `start`; returns its URL, empty if there is none.

        Args:
            axes: The searched keys.
            metric: What to sort the trials by.
            lowest_first: Whether the lowest comes first, or the highest.
        """


class NoTracker:
    """The tracker for `tracking=none`: records nothing."""

    uri = ""
    unsent = 0

    def _nothing(self, *_: object, **__: object) -> None:
        pass

    start = start_trial = log = finish_trial = label = finish = _nothing

    def missing(self, ended: Sequence[int]) -> list[int]:
        """Returns an empty list: nothing needs to be sent."""
        return []

    def _empty(self, *_: object, **__: object) -> str:
        return ""

    ui_command = compare_page = _empty
