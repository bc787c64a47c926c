"""The tracker on an MLflow store: keeps what is logged, and sends it from a thread of its own."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrsweep.config.schema import TrackingConfig
from lrsweep.tracking.experiment import Experiment
from lrsweep.tracking.pending import PendingRun, now, texts
from lrsweep.tracking.store import Store, one_line
from lrsweep.tracking.system_metrics import SystemMetrics
from lrsweep.tracking.tracker import DatasetInfo
from lrsweep.tracking.ui import compare_url, ui_command
from lrsweep.training.engines import Measurement

log = logging.getLogger(__name__)

# Seconds: between two sends, after the first, second, ... send that failed, and between two samples of the machine.
_SEND_EVERY = 2.0
_PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
_SAMPLE_EVERY = 10.0

# MLflow's answers that no repetition changes; a run that somebody deleted in the UI gets the first.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")


class MlflowTracker:
    """A Tracker on a store that is known to answer.

    New experiments keep their files under `artifacts`, or where the server keeps them (None).
    """

    def __init__(self, store: Store, client: Any, config: TrackingConfig, artifacts: Path | None) -> None:
        self._store = store
        self._client = client
        self._config = config
        self._artifacts = artifacts
        self._trials: dict[int, PendingRun] = {}
        # `_lock` guards the trials, for an instant; `_sending` is held by the one who talks to the store.
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name="lrsweep-tracking", daemon=True)
        self._failures = 0
        self._not_before = 0.0
        self._labels: Mapping[int, str] = {}
        self._session = contextlib.ExitStack()

    @property
    def uri(self) -> str:
        return self._store.shown

    @property
    def unsent(self) -> int:
        return sum(run.waiting for run in self._runs())

    def ui_command(self) -> str:
        return ui_command(self._store)

    def compare_url(self) -> str:
        return compare_url(self._store.uri if self._store.is_server else "http://127.0.0.1:5000", self._experiment.id)

    def start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
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
            there = found.data.params
            # MLflow's params are for ever. What a resumed sweep may change (its total, say) goes on as a tag.
            changed = {key: value for key, value in texts(params).items() if there.get(key, value) != value}
            kept = {key: value for key, value in texts(params).items() if key not in changed}
            self._parent = PendingRun(
                sweep, kept, {**changed, **tags}, dataset, run_id=found.info.run_id, started=found.info.start_time
            )
            self._parent_metrics = dict(found.data.metrics)
            self._experiment.send(self._parent)
            self._machine = SystemMetrics(self._store.uri, found.info.run_id) if self._config.system_metrics else None

    def missing(self, ended: Sequence[int]) -> list[int]:
        with self._store.faults():
            there = self._experiment.ended_trials()
        return [number for number in ended if number not in there]

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        run = PendingRun(title, params, tags, self._dataset, trial=number)
        with self._lock:
            self._trials[number] = run

    def log(self, measurement: Measurement, at: int | None = None) -> None:
        self._trials[measurement.number].measured(measurement, at)

    def finish_trial(self, number: int, status: str, tags: Mapping[str, str]) -> None:
        self._trials[number].finish(status, tags)

    def label(self, labels: Mapping[int, str]) -> None:
        self._labels = labels

    def finish(self, status: str, metrics: Mapping[str, float], artifacts: Sequence[Path]) -> None:
        self._stop.set()
        self._thread.join()
        for run in self._trials.values():
            if run.end is None:
                run.finish("interrupted", {})
        # A sweep finished once more says nothing twice.
        self._parent.add({key: value for key, value in metrics.items() if self._parent_metrics.get(key) != value})
        self._parent.artifacts = list(artifacts)
        self._parent.finish(status, {})
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
        """Sends what waits. When the store does not answer: one warning, and the next attempts come at growing intervals."""
        with self._sending:
            if time.monotonic() < self._not_before:
                return
            try:
                self._send_all()
                if last:
                    self._experiment.label_trials(self._labels)
                    self._experiment.end_stale_trials()
            # Whatever a server, a proxy or a disk comes up with: losing the curves for a while must not end the training.
            except Exception as fault:
                self._not_before = time.monotonic() + _PAUSES[min(self._failures, len(_PAUSES) - 1)]
                self._failures += 1
                if self._failures == 1:
                    log.warning("MLflow at %s does not answer; its points wait here (%s)", self.uri, one_line(fault))
            else:
                if self._failures:
                    log.info("MLflow at %s answers again", self.uri)
                self._failures = 0

    def _send_all(self) -> None:
        self._probe()
        faults = []
        for run in self._runs():
            try:
                self._send(run)
            # One run's fault must not keep the others' points back, unless the store has gone.
            except Exception as fault:
                faults.append(fault)
                self._probe()
        with self._lock:
            self._trials = {number: run for number, run in self._trials.items() if run.waiting or not run.over}
        if faults:
            raise faults[0]

    def _probe(self) -> None:
        """Raises ConnectionError if the server is gone; one that hangs would hold a request for its whole timeout."""
        if not self._store.answers():
            raise ConnectionError("no answer to /health")

    def _send(self, run: PendingRun) -> None:
        if not run.refused:
            with _refusals_of(run):
                self._experiment.send(run)
        # A run that MLflow takes nothing more for should not look as if it were running.
        if run.refused and run.end and not run.over:
            with _refusals_of(run):
                self._experiment.end(run, run.end)
            run.over = True


@contextlib.contextmanager
def _refusals_of(run: PendingRun) -> Iterator[None]:
    """Remembers, and tells once, that MLflow refuses a run."""
    try:
        yield
    except Exception as fault:
        if getattr(fault, "error_code", "") not in _REFUSALS:
            raise
        if not run.refused:
            log.warning("MLflow refuses the run %s; the rest of it stays out (%s)", run.title, one_line(fault))
        run.refused = True
