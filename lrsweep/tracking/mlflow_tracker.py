"""A sweep in MLflow: one experiment, one parent run, one child run a trial. The only module that imports mlflow.

Training never waits for MLflow: what is logged waits in memory until a thread of the tracker's own has sent it.
"""

import contextlib
import fcntl
import http.client
import itertools
import json
import logging
import math
import os
import re
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from lrsweep.config import TrackingConfig
from lrsweep.engines import Measurement
from lrsweep.errors import InputError, LrsweepError, StorageError
from lrsweep.outputs import mask_url

log = logging.getLogger(__name__)

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SERVERS = ("http", "https")

# Set before mlflow is first imported. No retries inside MLflow: there they block for minutes, and they would repeat a
# create whose answer was lost; the tracker repeats what failed itself.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# Seconds: between two sends, after the first, second, ... send that failed, for a server to say that it is there, and
# between two samples of the machine.
_SEND_EVERY = 2.0
_PAUSES = (5.0, 10.0, 20.0, 40.0, 60.0)
_PROBE_TIMEOUT = 1.5
_SAMPLE_EVERY = 10.0

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
# MLflow's answers that no repetition changes; a run that somebody deleted in the UI gets the first.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")


@dataclass(frozen=True)
class DatasetInfo:
    """The data of a sweep, as its runs name it. `fingerprint` is a hex digest of the rows themselves."""

    name: str
    source: str
    fingerprint: str
    train_rows: int
    eval_rows: int


class Tracker(Protocol):
    """Where the loss curves go. After `start`, nothing here raises or waits for a server, `flush` and `finish` excepted."""

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

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Begins a trial's run, in the place of any that an earlier attempt at the same trial left."""

    def log(self, measurement: Measurement, timestamp_ms: int | None = None) -> None:
        """Takes what a trial measured. The same values, step and timestamp sent again add nothing."""

    def flush(self) -> None:
        """Sends now what waits, unless the store has just failed to answer."""

    def finish_trial(
        self, number: int, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Ends a trial's run: complete, pruned, diverged, failed or interrupted. `metrics` are its summary."""

    def finish(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Ends the parent run: complete, failed or interrupted. A folder among the artifacts keeps its name."""

    def ui_command(self) -> str:
        """The shell command that opens MLflow's UI on this store; empty when there is none."""

    def compare_url(self, port: int = 5000) -> str:
        """The page of that UI with all trials' curves in one chart, the best first; empty when there is none."""


def default_uri(folder: Path | None = None) -> str:
    """The store of a working folder (None: the current one): its mlflow.db, which a bare `mlflow ui` finds there."""
    return f"sqlite:///{(folder or Path()).resolve() / 'mlflow.db'}"


def open_tracker(config: TrackingConfig, folder: Path) -> Tracker:
    """The tracker that the config asks for, its store reached and, if new, created; `folder` is the working folder.

    Raises InputError for a uri that is no store, StorageError when the store does not answer.
    """
    if config.name == "none":
        return NoTracker()
    uri = _absolute(config.uri or default_uri(folder), folder)
    shown, uri = mask_url(uri), _without_password(uri)
    with _faults_of(shown):
        if _is_web(uri) and not _answers(uri):
            raise StorageError(f"tracking.uri={shown}: no MLflow server answers there; start it or set tracking=none")
        alone = _alone(uri)
        with alone():
            client = _client(uri)
            # MLflow reaches the store, and migrates an empty database, at the first question.
            client.search_experiments(max_results=1)
    artifacts = None if _is_web(uri) else folder.resolve() / "mlruns"
    return MlflowTracker(client, uri, shown, config.experiment, artifacts, alone, config.system_metrics)


def compare_url(server: str, experiment_id: str) -> str:
    """The chart page of an experiment. MLflow opens it on its GenAI side and with the trials folded away under their
    parent, where charts leave them out; sorted by a metric, it unfolds them.
    """
    page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs"
    return (
        f"{page}?workflowType=machine_learning&compareRunsMode=CHART&orderByKey=metrics.%60eval_loss%60&orderByAsc=true"
    )


def serve_ui(uri: str, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Runs MLflow's UI on a database store until a signal (0) or its own end (its exit code). For the main thread.

    Raises InputError for a store that has a UI already, or does not exist.
    """
    uri = _absolute(uri, Path())
    if _is_web(uri):
        raise InputError(f"{mask_url(uri)}: this server has the UI itself; open it in a browser")
    if (database := _sqlite_file(uri)) and not database.is_file():
        raise InputError(f"{database}: no such store; run a sweep first, or name another store")
    # The uri goes through the environment: a password in the arguments is there for all users to see. One worker and no
    # job runner: this is a viewer for one person.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **_ENVIRONMENT, **os.environ}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    # In a session of its own: MLflow passes signals on to its workers, and one that gets Ctrl-C twice prints tracebacks.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        server.send_signal(signal.SIGKILL if stopped else signal.SIGTERM)
        stopped = True

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        code = server.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return 0 if stopped else code


class NoTracker:
    """Tracking is off."""

    uri = ""
    unsent = 0

    def start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
        pass

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        pass

    def log(self, measurement: Measurement, timestamp_ms: int | None = None) -> None:
        pass

    def flush(self) -> None:
        pass

    def finish_trial(
        self, number: int, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None
    ) -> None:
        pass

    def finish(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        pass

    def ui_command(self) -> str:
        return ""

    def compare_url(self, port: int = 5000) -> str:
        return ""


# A value of a curve: key, value, milliseconds since the epoch, step.
_Point = tuple[str, float, int, int]


@dataclass
class _Run:
    """A run of MLflow's, and what of it MLflow has not got yet. Times are milliseconds since the epoch."""

    title: str
    started: int
    trial: int | None = None
    run_id: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[_Point] = field(default_factory=list)
    datasets: list[Any] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    # MLflow's status and the time; `over` once both are there.
    end: tuple[str, int] | None = None
    over: bool = False
    refused: bool = False
    non_finite: bool = False

    @property
    def waiting(self) -> int:
        """What MLflow has not got: each point counts, everything else together counts as one."""
        updates = self.run_id is None or self.params or self.tags or self.datasets or self.artifacts
        return len(self.points) + bool(updates or (self.end and not self.over))


class MlflowTracker:
    """A Tracker on an MLflow store. `uri` carries no password of a server's, `shown` none at all.

    New experiments keep their files under `artifacts`, or where the server keeps them (None). `alone` keeps other
    processes from creating the same runs meanwhile.
    """

    def __init__(
        self,
        client: Any,
        uri: str,
        shown: str,
        experiment: str | None,
        artifacts: Path | None,
        alone: Callable[[], AbstractContextManager[None]],
        system_metrics: bool,
    ) -> None:
        self._client = client
        self._uri = uri
        self._shown = shown
        self._experiment = experiment
        self._artifacts = artifacts
        self._alone = alone
        self._system_metrics = system_metrics
        self._trials: dict[int, _Run] = {}
        # `_lock` guards what waits, for an instant; `_sending` is held by the one who talks to the store.
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._failures = 0
        self._not_before = 0.0

    @property
    def uri(self) -> str:
        return self._shown

    @property
    def unsent(self) -> int:
        with self._lock:
            return sum(run.waiting for run in (self._parent, *self._trials.values()))

    def ui_command(self) -> str:
        if _is_web(self._uri):
            return shlex.join(["python", "-m", "webbrowser", self._shown])
        return shlex.join(["mlflow", "ui", "--backend-store-uri", self._shown, "--host", "127.0.0.1"])

    def compare_url(self, port: int = 5000) -> str:
        server = self._shown if _is_web(self._uri) else f"http://127.0.0.1:{port}"
        return compare_url(server, self._experiment_id)

    def start(
        self, sweep: str, sweep_id: str, params: Mapping[str, object], tags: Mapping[str, str], dataset: DatasetInfo
    ) -> None:
        self._sweep_id = sweep_id
        self._datasets = _dataset_inputs(dataset)
        with _faults_of(self._shown), self._alone():
            self._experiment_id = self._find_or_create_experiment(self._experiment or sweep)
            found = self._find_or_create_parent(sweep)
            self._parent = _Run(sweep, found.info.start_time, run_id=found.info.run_id, datasets=list(self._datasets))
            self._parent_metrics = dict(found.data.metrics)
            for key, value in _texts(params).items():
                # MLflow's params are for ever. What a resumed sweep may change (its total, say) goes on as a tag.
                names = self._parent.params if found.data.params.get(key, value) == value else self._parent.tags
                names[key] = value
            self._parent.tags |= {**_texts(tags), "status": "running"}
            self._send(self._parent)
            self._monitors = _monitors(self._uri, found.info.run_id) if self._system_metrics else []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, name="lrsweep-tracking", daemon=True)
        self._thread.start()

    def start_trial(self, number: int, title: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        run = _Run(title, _now(), trial=number, params=_texts(params), datasets=list(self._datasets))
        run.tags = {**_texts(tags), "status": "running"}
        with self._lock:
            self._trials[number] = run

    def log(self, measurement: Measurement, timestamp_ms: int | None = None) -> None:
        points = _points(measurement.metrics, _now() if timestamp_ms is None else timestamp_ms, measurement.step)
        with self._lock:
            run = self._trials[measurement.number]
            run.points += points
            if len(points) < len(measurement.metrics) and not run.non_finite:
                run.non_finite = True
                run.tags["non_finite_step"] = str(measurement.step)

    def flush(self) -> None:
        self._attempt()

    def finish_trial(
        self, number: int, status: str, tags: Mapping[str, str], metrics: Mapping[str, float] | None = None
    ) -> None:
        with self._lock:
            run = self._trials[number]
            run.points += _points(metrics or {}, _now(), 0)
            run.tags |= {**_texts(tags), "status": status}
            run.end = (_END[status], _now())

    def finish(
        self,
        status: str,
        metrics: Mapping[str, float],
        artifacts: Sequence[Path],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        for number in [number for number, run in self._trials.items() if run.end is None]:
            self.finish_trial(number, "interrupted", {})
        self._stop.set()
        self._thread.join()
        with self._lock:
            # A sweep finished once more says nothing twice.
            news = {key: value for key, value in metrics.items() if self._parent_metrics.get(key) != value}
            self._parent.points += _points(news, _now(), 0)
            self._parent.tags |= {**_texts(tags or {}), "status": status}
            self._parent.artifacts = list(artifacts)
            self._parent.end = (_END[status], _now())
        self._not_before = 0.0
        self._attempt(last=status == "complete")

    def _keep_sending(self) -> None:
        sample_at = time.monotonic()
        while not self._stop.wait(_SEND_EVERY):
            if time.monotonic() >= sample_at:
                sample_at += _SAMPLE_EVERY
                self._sample()
            self._attempt()

    def _sample(self) -> None:
        """Adds the machine's load to the parent run; its steps are seconds since the sweep first began."""
        now = _now()
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                metrics = {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            # A container may hide what a probe reads, and says so in its own way.
            except Exception as fault:
                self._monitors.remove(monitor)
                log.info("no more system metrics from %s (%s)", type(monitor).__name__, _line(fault))
                continue
            with self._lock:
                self._parent.points += _points(metrics, now, (now - self._parent.started) // 1000)

    def _attempt(self, last: bool = False) -> None:
        """Sends what waits. When the store does not answer: one warning, and the next attempts come at growing intervals."""
        with self._sending:
            if time.monotonic() < self._not_before:
                return
            try:
                self._send_all()
                if last:
                    self._end_stale_trials()
            # Whatever a server, a proxy or a disk comes up with: losing the curves for a while must not end the training.
            except Exception as fault:
                self._not_before = time.monotonic() + _PAUSES[min(self._failures, len(_PAUSES) - 1)]
                self._failures += 1
                if self._failures == 1:
                    log.warning(
                        "MLflow at %s does not answer; the points wait in memory (%s)", self._shown, _line(fault)
                    )
            else:
                if self._failures:
                    log.info("MLflow at %s answers again", self._shown)
                self._failures = 0

    def _send_all(self) -> None:
        self._probe()
        with self._lock:
            runs = [*self._trials.values(), self._parent]
        faults = []
        for run in runs:
            try:
                if not run.refused:
                    self._send(run)
            # One run's fault must not keep the others' points back, unless the store has gone.
            except Exception as fault:
                if getattr(fault, "error_code", "") in _REFUSALS:
                    run.refused = True
                    log.warning("MLflow refuses the run %s; the rest of it stays out (%s)", run.title, _line(fault))
                else:
                    faults.append(fault)
                    self._probe()
        with self._lock:
            self._trials = {number: run for number, run in self._trials.items() if run.waiting or not run.over}
        if faults:
            raise faults[0]

    def _probe(self) -> None:
        """Raises ConnectionError if the server is gone; one that hangs would hold a request for its whole timeout."""
        if _is_web(self._uri) and not _answers(self._uri):
            raise ConnectionError("no answer to /health")

    def _send(self, run: _Run) -> None:
        """Makes MLflow's run equal to ours. Each part is forgotten once it is there; repeating any part is harmless."""
        from mlflow.entities import Metric, Param, RunTag

        if run.run_id is None:
            run.run_id = self._create_trial(run)
        while run.points or run.params or run.tags:
            with self._lock:
                params = dict(itertools.islice(run.params.items(), _MAX_NAMES))
                tags = dict(itertools.islice(run.tags.items(), _MAX_NAMES))
                points = run.points[: _MAX_BATCH - len(params) - len(tags)]
            self._client.log_batch(
                run.run_id,
                metrics=[Metric(*point) for point in points],
                params=[Param(*param) for param in params.items()],
                tags=[RunTag(*tag) for tag in tags.items()],
            )
            with self._lock:
                del run.points[: len(points)]
                run.params = dict(run.params.items() - params.items())
                # A tag that was set anew meanwhile stays.
                run.tags = dict(run.tags.items() - tags.items())
        if run.datasets:
            self._client.log_inputs(run.run_id, datasets=run.datasets)
            run.datasets = []
        if run.end and not run.over:
            status, at = run.end
            self._client.set_terminated(run.run_id, status, at)
            run.over = True
        while run.artifacts:
            path = run.artifacts[0]
            if path.is_dir():
                self._client.log_artifacts(run.run_id, str(path), path.name)
            else:
                self._client.log_artifact(run.run_id, str(path))
            del run.artifacts[0]

    def _create_trial(self, run: _Run) -> str:
        """A new child run. Those of earlier attempts at the trial, and of an attempt whose answer was lost, are deleted."""
        mine = f"tags.`lrsweep.sweep_id` = '{self._sweep_id}' AND tags.trial = '{run.trial}'"
        for earlier in self._client.search_runs([self._experiment_id], mine):
            self._client.delete_run(earlier.info.run_id)
        tags = {**self._identity(), "mlflow.parentRunId": str(self._parent.run_id), "trial": str(run.trial)}
        created = self._client.create_run(self._experiment_id, run.started, tags, run.title)
        return str(created.info.run_id)

    def _find_or_create_parent(self, sweep: str) -> Any:
        mine = f"tags.`lrsweep.sweep_id` = '{self._sweep_id}' AND tags.`lrsweep.run` = 'sweep'"
        found = self._client.search_runs([self._experiment_id], mine, max_results=1, order_by=["start_time ASC"])
        if not found:
            return self._client.create_run(
                self._experiment_id, _now(), {**self._identity(), "lrsweep.run": "sweep"}, sweep
            )
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0]

    def _find_or_create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            # Without a location, MLflow takes mlruns in whatever folder the process happens to be in.
            location = self._artifacts and str(self._artifacts / re.sub(r"[^\w-]+", "-", name))
            try:
                return str(self._client.create_experiment(name, location))
            except MlflowException:
                # Somebody else may just have made it.
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise InputError(
                f"tracking.experiment={name}: deleted in MLflow; set another name, or bring it back with "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    def _end_stale_trials(self) -> None:
        """Ends runs that a killed worker left running: the sweep is complete, so nobody works on them."""
        stale = (
            f"tags.`lrsweep.sweep_id` = '{self._sweep_id}' AND tags.mlflow.parentRunId = '{self._parent.run_id}' "
            "AND attributes.status = 'RUNNING'"
        )
        for run in self._client.search_runs([self._experiment_id], stale):
            self._client.set_tag(run.info.run_id, "status", "interrupted")
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _identity(self) -> dict[str, str]:
        return {"lrsweep.sweep_id": self._sweep_id, "mlflow.source.name": "lrsweep", "mlflow.source.type": "LOCAL"}


def _client(uri: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # MLflow's models use what SQLAlchemy has deprecated; that is between those two.
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=uri)


def _dataset_inputs(dataset: DatasetInfo) -> list[Any]:
    """The data as MLflow's dataset inputs. It tells datasets apart by name and digest, so each part has its own name."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def part(name: str, context: str, rows: int) -> Any:
        entity = Dataset(
            name=f"{dataset.name[:400]} ({name})",
            digest=dataset.fingerprint[:12],
            source_type="local" if Path(dataset.source).exists() else "external",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps({"num_rows": rows}),
        )
        return DatasetInput(entity, [InputTag("mlflow.data.context", context)])

    return [part("train", "training", dataset.train_rows), part("eval", "eval", dataset.eval_rows)]


def _monitors(uri: str, run_id: str) -> list[Any]:
    """MLflow's probes of CPU, memory, disk, network and, with nvidia-ml-py, GPU.

    Its own thread for them gives up for good at a server's first fault, so the tracker's asks them instead.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    try:
        return list(SystemMetricsMonitor(run_id, tracking_uri=uri).monitors)
    except Exception as fault:
        log.info("no system metrics (%s)", _line(fault))
        return []


def _points(metrics: Mapping[str, float], timestamp_ms: int, step: int) -> list[_Point]:
    """The finite values. NaN breaks MLflow's run page, and infinity it stores as 1.8e308, which flattens every chart."""
    return [(key, float(value), timestamp_ms, step) for key, value in metrics.items() if math.isfinite(value)]


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Names and values as MLflow takes them; values as a Hydra override writes them (null, true, [0.9, 0.999])."""

    def text(value: object) -> str:
        return mask_url(value if isinstance(value, str) else json.dumps(value, default=str))[:_MAX_VALUE]

    return {re.sub(r"[^\w\-. :/]", "_", key): text(value) for key, value in values.items()}


def _scheme(uri: str) -> str:
    return uri.split(":", 1)[0].split("+", 1)[0]


def _is_web(uri: str) -> bool:
    return _scheme(uri) in _SERVERS


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if _scheme(uri) == "sqlite" else None


def _absolute(uri: str, folder: Path) -> str:
    """The uri, a relative SQLite path in it resolved against `folder`. Raises InputError for what is no store."""
    rule = "a store is sqlite:///FILE, postgresql://..., mysql://..., mssql://... or http(s)://HOST:PORT"
    if _scheme(uri) not in _DATABASES + _SERVERS or (_is_web(uri) and not urlsplit(uri).hostname):
        raise InputError(f"tracking.uri={mask_url(uri)}: {rule}")
    if _scheme(uri) != "sqlite":
        return uri
    file = uri.removeprefix("sqlite:///")
    if file in (uri, "", ":memory:"):
        raise InputError(f"tracking.uri={uri}: {rule}")
    return f"sqlite:///{folder.resolve() / file}"


def _without_password(uri: str) -> str:
    """A server's uri with its user and password moved to where MLflow looks for them: it prints the uri in its errors."""
    parts = urlsplit(uri)
    if not _is_web(uri) or parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _answers(url: str) -> bool:
    """Whether a web server is there and in order; one that wants a login or a certificate is."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_PROBE_TIMEOUT):
            return True
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code < 500
    except urllib.error.URLError as fault:
        return isinstance(fault.reason, ssl.SSLError)
    except (OSError, http.client.HTTPException):
        return False


def _alone(uri: str) -> Callable[[], AbstractContextManager[None]]:
    """What keeps the processes of one SQLite store apart; a server's are kept apart by the server."""
    file = _sqlite_file(uri)
    return contextlib.nullcontext if file is None else lambda: _locked(file.with_name(f"{file.name}.lock"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until this process has the file to itself; the kernel lets go of it however the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _faults_of(shown: str) -> Iterator[None]:
    """Makes one line of whatever a store, its driver or the way to it raises."""
    try:
        yield
    except LrsweepError:
        raise
    except Exception as fault:
        raise StorageError(f"tracking.uri={shown}: {_line(fault)}") from fault


def _line(fault: Exception) -> str:
    text = mask_url(" ".join(str(fault).split())) or type(fault).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _now() -> int:
    return time.time_ns() // 1_000_000
