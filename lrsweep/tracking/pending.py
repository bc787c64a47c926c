"""What is known of a run and has not reached MLflow yet. Training adds to it, the sending thread takes from it."""

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
from lrsweep.tracking.tracker import DatasetInfo
from lrsweep.training.engines import Measurement

# MLflow's limits for one log_batch (metrics, params and tags count together), and for the length of a value.
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

# A value of a curve: key, value, milliseconds since the epoch, step.
Point = tuple[str, float, int, int]


@dataclass(frozen=True)
class Batch:
    """As much of a run as MLflow takes at once."""

    points: Sequence[Point]
    params: Mapping[str, str]
    tags: Mapping[str, str]


class PendingRun:
    """A run, and what of it MLflow has not got yet. Times are milliseconds since the epoch.

    `run_id` is None until MLflow has made the run; `end` is MLflow's status and the time, `over` once it has those. Of a
    `refused` run, MLflow takes nothing but the end.
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
        """What MLflow has not got: each point counts, everything else together counts as one."""
        updates = self.run_id is None or self._params or self._tags or self.dataset or self.artifacts
        return len(self._points) + bool(updates or (self.end and not self.over))

    def measured(self, measurement: Measurement, at: int | None = None) -> None:
        """Adds to the curves. The first step with a value that is not finite becomes a tag."""
        points = _points(measurement.metrics, measurement.step, at)
        with self._lock:
            self._points += points
            if len(points) < len(measurement.metrics) and not self._non_finite:
                self._non_finite = True
                self._tags["non_finite_step"] = str(measurement.step)

    def add(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Adds what the run measured of itself."""
        with self._lock:
            self._points += _points(metrics, step)

    def finish(self, status: str, tags: Mapping[str, str]) -> None:
        """Ends the run, also one that has ended otherwise before: complete, pruned, diverged, failed or interrupted."""
        with self._lock:
            self._tags |= {**texts(tags), "status": status}
            self.end = (_END[status], now())
            self.over = False

    def batch(self) -> Batch | None:
        """What to send next; None when all is sent."""
        with self._lock:
            params = dict(itertools.islice(self._params.items(), _MAX_NAMES))
            tags = dict(itertools.islice(self._tags.items(), _MAX_NAMES))
            points = self._points[: _MAX_BATCH - len(params) - len(tags)]
        return Batch(points, params, tags) if points or params or tags else None

    def ending(self) -> tuple[str, int] | None:
        """The end, if that is all that MLflow has not got.

        Training may have added the last points, and the end, since `batch` found nothing: a run must not look whole before
        it is.
        """
        with self._lock:
            return None if self._points or self._params or self._tags or self.over else self.end

    def ended(self, end: tuple[str, int]) -> None:
        """MLflow has this end."""
        with self._lock:
            self.over = self.end == end

    def sent(self, batch: Batch) -> None:
        """Forgets what MLflow has."""
        with self._lock:
            del self._points[: len(batch.points)]
            self._params = dict(self._params.items() - batch.params.items())
            # A tag that was set anew meanwhile stays.
            self._tags = dict(self._tags.items() - batch.tags.items())


def texts(values: Mapping[str, object]) -> dict[str, str]:
    """Names and values as MLflow takes them; values as a Hydra override writes them (null, true, [0.9, 0.999])."""

    def text(value: object) -> str:
        return mask(value if isinstance(value, str) else json.dumps(value, default=str))[:_MAX_VALUE]

    return {re.sub(r"[^\w\-. :/]", "_", key): text(value) for key, value in values.items()}


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _points(metrics: Mapping[str, float], step: int, at: int | None = None) -> list[Point]:
    """The finite values. NaN breaks MLflow's run page, and infinity it stores as 1.8e308, which flattens every chart."""
    when = now() if at is None else at
    return [(key, float(value), when, step) for key, value in metrics.items() if math.isfinite(value)]
