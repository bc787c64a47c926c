"""What MLflow does not have yet of a run. The sweep's thread adds to it, the tracker's sending thread takes from it."""

import itertools
import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrsweep.files.redaction import mask
from lrsweep.formatting import printable
from lrsweep.tracking.tracker import DatasetInfo
from lrsweep.training.engines import Measurement

# MLflow's limits: entries of all kinds in one log_batch, params or tags in one, and the length of a value.
_MAX_BATCH = 1000
_MAX_NAMES = 100
_MAX_VALUE = 6000

_END = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "diverged": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}

# A point of a curve: key, value, time in milliseconds since the epoch, step.
Point = tuple[str, float, int, int]


@dataclass(frozen=True)
class Batch:
    """A part of a run, no larger than MLflow accepts in one request.

    Attributes:
        points: Points of its curves.
        params: Params by name.
        tags: Tags by name.
    """

    points: Sequence[Point]
    params: Mapping[str, str]
    tags: Mapping[str, str]


class PendingRun:
    """A run with everything that MLflow does not have yet. Times are in milliseconds since the epoch.

    Args:
        title: The run's title.
        params: Its params by name.
        tags: Its tags by name.
        dataset: The sweep's data set.
        trial: The trial's number; None for the sweep's parent run.
        run_id: MLflow's run id; None if MLflow does not have the run yet.
        started: When it started; None is now.

    Attributes:
        artifacts: Files and folders to send.
        end: MLflow's final status, and the time; None while the run goes on.
        over: Whether MLflow has the end.
        refused: Whether MLflow refuses the run, so that only its end is sent.
    """

    def __init__(
        self,
        title: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        dataset: DatasetInfo,
        trial: int | None = None,
        run_id: str | None = None,
        started: int | None = None,
    ) -> None:
        self.title = title
        self.dataset: DatasetInfo | None = dataset
        self.trial = trial
        self.run_id = run_id
        self.started = now() if started is None else started
        self.artifacts: list[Path] = []
        self.end: tuple[str, int] | None = None
        self.over = False
        self.refused = False
        self._lock = threading.Lock()
        self._params = texts(params)
        self._tags = {**texts(tags), "status": "running"}
        self._points: list[Point] = []
        self._non_finite = False

    @property
    def waiting(self) -> int:
        """Number of points that MLflow does not have, plus one if it lacks anything else."""
        updates = self.run_id is None or self._params or self._tags or self.dataset or self.artifacts
        return len(self._points) + bool(updates or (self.end and not self.over))

    def measured(self, measurement: Measurement, at: int | None = None) -> None:
        """Adds a measurement to the curves. The first step with a value that is not finite becomes a tag.

        Args:
            measurement: The measurement.
            at: When it was measured; None is now.
        """
        points = _points(measurement.metrics, measurement.step, at)
        with self._lock:
            self._points += points
            if len(points) < len(measurement.metrics) and not self._non_finite:
                self._non_finite = True
                self._tags["non_finite_step"] = str(measurement.step)

    def add(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Adds metrics at one step, measured now."""
        with self._lock:
            self._points += _points(metrics, step)

    def finish(self, status: str, tags: Mapping[str, str]) -> None:
        """Ends the run; the last call counts.

        Args:
            status: `complete`, `pruned`, `diverged`, `failed` or `interrupted`.
            tags: More tags by name.
        """
        with self._lock:
            self._tags |= {**texts(tags), "status": status}
            self.end = (_END[status], now())
            self.over = False

    def batch(self) -> Batch | None:
        """Returns what to send next; None if everything is sent."""
        with self._lock:
            params = dict(itertools.islice(self._params.items(), _MAX_NAMES))
            tags = dict(itertools.islice(self._tags.items(), _MAX_NAMES))
            points = self._points[: _MAX_BATCH - len(params) - len(tags)]
        return Batch(points, params, tags) if points or params or tags else None

    def ending(self) -> tuple[str, int] | None:
        """Returns the end if it is all that MLflow lacks, else None.

        Training may have added the last points and the end since `batch` returned None, and a run must not look
        complete before it is.
        """
        with self._lock:
            return None if self._points or self._params or self._tags or self.over else self.end

    def ended(self, end: tuple[str, int]) -> None:
        """Records that MLflow has this end."""
        with self._lock:
            self.over = self.end == end

    def sent(self, batch: Batch) -> None:
        """Drops a batch that MLflow has."""
        with self._lock:
            del self._points[: len(batch.points)]
            self._params = dict(self._params.items() - batch.params.items())
            # A tag that got another value in the meantime stays.
            self._tags = dict(self._tags.items() - batch.tags.items())


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """Returns names and values in the form that MLflow accepts, with passwords masked and control characters escaped.

    Values look as in a Hydra override (null, true, [0.9, 0.999]).
    """

    def text(value: object) -> str:
        return printable(mask(value if isinstance(value, str) else json.dumps(value, default=str)))[:_MAX_VALUE]

    return {re.sub(r"[^\w\-. :/]", "_", key): text(value) for key, value in values.items()}


def now() -> int:
    """Returns the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _points(metrics: Mapping[str, float], step: int, at: int | None = None) -> list[Point]:
    """The finite values as points: NaN breaks MLflow's run page, and infinity, stored as 1.8e308, flattens charts."""
    when = now() if at is None else at
    return [(key, float(value), when, step) for key, value in metrics.items() if math.isfinite(value)]
