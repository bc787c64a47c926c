"""The tracker for an MLflow store: keeps logged values in memory and sends them from its own thread."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsweep.config.schema import TrackingConfig
from lrsweep.errors import StorageError
from lrsweep.tracking import charts
from lrsweep.tracking.experiment import Experiment, mlflow_tags
from lrsweep.tracking.pending import PendingRun, now, texts
from lrsweep.tracking.store import Store, one_line
from lrsweep.tracking.system_metrics import SystemMetrics
from lrsweep.tracking.tracker import DatasetInfo
from lrsweep.tracking.ui import compare_url, runs_filter, ui_command, view_url
from lrsweep.training.engines import Measurement

log = logging.getLogger(__name__)

# Seconds between two sends, after the first, second, ... failed send, and between two samples of the machine's load.
_SEND_EVERY = 2.0
_PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
_SAMPLE_EVERY = 10.0

# MLflow's error codes for which a retry cannot help. A run that was deleted in the UI gets the first one.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")


class MlflowTracker:
    """A `Tracker` for an MLflow store.

    Args:
        store: The store, which responds.
        client: MLflow's client for it.
        config: The tracking config.
        artifacts: Where new experiments keep their files; None is where the server keeps them.
    """

    def __init__(self, store: Store, client: Any, config: TrackingConfig, artifacts: Path | None) -> None:
        self._store = store
        self._client = client
        self._config = config
        self._artifacts = artifacts
        self._trials: dict[int, PendingRun] = {}
        # `_lock` guards `_trials` and is held only briefly; the thread that calls the store holds `_sending`.
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name="lrsweep-tracking", daemon=True)
        self._failures = 0
        self._not_before = 0.0
        self._final_tags: Mapping[int, Mapping[str, str]] = {}
        self._session = contextlib.ExitStack()

    @property
    def uri(self) -> str:
        """The store's URI with its password masked."""
        return self._store.shown

    @property
    def unsent(self) -> int:
        """Number of points and run updates that MLflow does not have yet."""
        return sum(run.waiting for run in self._runs())

    def ui_command(self) -> str:
        """Returns the shell command that opens MLflow's UI."""
        return ui_command(self._store)

    def compare_page(self, axes: Sequence[str], metric: str, *, lowest_first: bool) -> str:
        """Saves the view of the experiment's page in the experiment; returns the page's URL."""
        server = self._store.uri if self._store.is_server else "http://127.0.0.1:5000"
        sweep_id, shown = self._experiment.sweep_id, runs_filter(self._experiment.sweep_id)
        view = charts.view(shown, axes, metric, lowest_first=lowest_first)
        try:
            with self._store.faults(), self._store.exclusive():
                self._store.probe()
                self._experiment.set_tag(f"{charts.TAG}{sweep_id}", view)
        except StorageError:
            return compare_url(server, self._experiment.id, shown, metric, lowest_first=lowest_first)
        return view_url(server, self._experiment.id, sweep_id)

    def start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
        """Starts or resumes the parent run, and starts the sending thread. Raises InputError, StorageError."""
        self._dataset = dataset
        self._session.enter_context(self._store.session())
        try:
            self._start(sweep, sweep_id, params, tags, dataset)
        except BaseException:
            self._session.close()
            raise
        self._thread.start()

    def _start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
        with self._store.faults(), self._store.exclusive():
            self._experiment = Experiment(self._client, self._config.experiment or sweep, self._artifacts, sweep_id)
            found = self._experiment.parent(sweep)
            logged = found.data.params
            # MLflow's params cannot be changed. A value that a resumed sweep changes (its total, say) becomes a tag.
            changed = {key: value for key, value in texts(params).items() if logged.get(key, value) != value}
            kept = {key: value for key, value in texts(params).items() if key not in changed}
            self._parent = PendingRun(
                sweep, kept, {**changed, **tags}, dataset, run_id=found.info.run_id, started=found.info.start_time
            )
            self._parent_metrics = dict(found.data.metrics)
            self._experiment.send(self._parent)
            self._machine = SystemMetrics(self._store.uri, found.info.run_id) if self._config.system_metrics else None

    def missing(self, ended: Sequence[int]) -> list[int]:
        """Returns the ended trials whose runs have not ended in MLflow. Raises StorageError."""
        with self._store.faults():
            complete = self._experiment.ended_trials()
        return [number for number in ended if number not in complete]

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Adds a run, which replaces the trial's earlier runs."""
        run = PendingRun(title, charts.with_log_lr(params), tags, self._dataset, trial=number)
        with self._lock:
            self._trials[number] = run

    def log(self, measurement: Measurement, at: int | None = None) -> None:
        """Adds a measurement to its trial's run."""
        self._trials[measurement.number].measured(measurement, at)

    def finish_trial(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        """Ends a trial's run."""
        self._trials[number].finish(status, tags)

    def label(self, tags: Mapping[int, Mapping[str, str]]) -> None:
        """Keeps the trials' last tags for `finish`."""
        self._final_tags = {number: mlflow_tags(found, "") for number, found in tags.items()}

    def finish(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Stops the sending thread, sends everything that is left, and ends the parent run."""
        self._stop.set()
        self._thread.join()
        for run in self._trials.values():
            if run.end is None:
                run.finish("interrupted", {})
        # A sweep that is finished again must not log its results a second time.
        self._parent.add({key: value for key, value in metrics.items() if self._parent_metrics.get(key) != value})
        self._parent.artifacts = list(artifacts)
        self._parent.finish(status, mlflow_tags(tags or {}, self._parent.run_id or ""))
        self._not_before = 0.0
        # The last call may come after an earlier one has closed the session.
        with self._store.session():
            self._attempt(last=True)
        self._session.close()

    def _runs(self) -> list[PendingRun]:
        with self._lock:
            return [*self._trials.values(), self._parent]

    def _keep_sending(self) -> None:
        sample_at = time.monotonic()
        while not self._stop.wait(_SEND_EVERY):
            if self._machine and time.monotonic() >= sample_at:
                sample_at += _SAMPLE_EVERY
                # Steps are seconds since the sweep first began.
                self._parent.add(self._machine.sample(), (now() - self._parent.started) // 1000)
            self._attempt()

    def _attempt(self, last: bool = False) -> None:
        """Sends what is pending. If the store does not respond, warns once and retries at growing intervals."""
        with self._sending:
            if time.monotonic() < self._not_before:
                return
            try:
                self._send_all()
                if last:
                    self._experiment.label_trials(self._final_tags)
                    self._experiment.end_stale_trials()
            # A server, proxy or disk may raise anything, and a tracking failure must not end the training.
            except Exception as fault:
                self._not_before = time.monotonic() + _PAUSES[min(self._failures, len(_PAUSES) - 1)]
                self._failures += 1
                if self._failures == 1:
                    log.warning("MLflow at %s does not respond; keeping its points (%s)", self.uri, one_line(fault))
            else:
                if self._failures:
                    log.info("MLflow at %s responds again", self.uri)
                self._failures = 0

    def _send_all(self) -> None:
        self._store.probe()
        faults = []
        for run in self._runs():
            try:
                self._send(run)
            # A fault of one run must not stop the others, unless the store is down.
            except Exception as fault:
                faults.append(fault)
                self._store.probe()
        with self._lock:
            self._trials = {number: run for number, run in self._trials.items() if run.waiting or not run.over}
        if faults:
            raise faults[0]

    def _send(self, run: PendingRun) -> None:
        if not run.refused:
            with _refusals_of(run):
                self._experiment.send(run)
        # A run for which MLflow accepts nothing more should not look as if it were still running.
        if run.refused and run.end and not run.over:
            with _refusals_of(run):
                self._experiment.end(run, run.end)
            run.over = True


@contextlib.contextmanager
def _refusals_of(run: PendingRun) -> Iterator[None]:
    """Marks a run as refused if MLflow refuses it, and warns once."""
    try:
        yield
    except Exception as fault:
        if getattr(fault, "error_code", "") not in _REFUSALS:
            raise
        if not run.refused:
            log.warning("MLflow refuses the run %s; the rest of it is not sent (%s)", run.title, one_line(fault))
        run.refused = True
