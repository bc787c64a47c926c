"""The tracker against real MLflow stores: SQLite files, and a server that dies and comes back."""

import _thread
import contextlib
import math
import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from lrsweep.config.schema import TrackingConfig
from lrsweep.errors import InputError, StorageError
from lrsweep.tracking import DatasetInfo, NoTracker, Tracker, default_uri, mlflow_tracker, open_tracker, serve_ui
from lrsweep.tracking.mlflow_tracker import MlflowTracker
from lrsweep.tracking.pending import Batch, PendingRun
from lrsweep.tracking.store import Store
from lrsweep.training.engines import Measurement
from tests.browser import MlflowServer, free_port, served

DATA = DatasetInfo("alpaca.json", "alpaca.json", "0123456789abcdef" * 4, train_rows=90, eval_rows=10)
PARAMS = {"optimizer.lr": 1e-5, "optimizer.betas": (0.9, 0.999), "finetune.dora": False, "data.eval_path": None}

Open = Callable[..., Tracker]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mlflow.db without runs: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("empty")
    open_tracker(TrackingConfig(name="mlflow", system_metrics=False), folder)
    return folder / "mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an empty store, and the current one."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder)
    with served(folder) as server:
        yield server


@pytest.fixture
def server(shared_server: MlflowServer) -> MlflowServer:
    """A running server, whatever an earlier test has done to it; each test has its own experiment on it."""
    if not shared_server.running:
        shared_server.start()
    return shared_server


@pytest.fixture
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens trackers on the folder's store, or another; those that a test leaves unfinished are stopped at its end."""
    monkeypatch.setattr(mlflow_tracker, "_SEND_EVERY", 0.1)
    monkeypatch.setattr(mlflow_tracker, "_PAUSES", (0.2,))
    trackers: list[Tracker] = []

    def open_one(**changes: Any) -> Tracker:
        config = TrackingConfig(**{"name": "mlflow", "system_metrics": False, **changes})
        trackers.append(open_tracker(config, folder))
        return trackers[-1]

    yield open_one
    for tracker in trackers:
        if isinstance(tracker, MlflowTracker) and tracker._thread.is_alive():
            tracker._stop.set()
            tracker._thread.join()


def start(
    tracker: Tracker, sweep: str = "lora_lr", sweep_id: str = "id-1", params: Mapping[str, object] | None = None
) -> Tracker:
    tracker.start(sweep, sweep_id, {**PARAMS, **(params or {})}, {"engine": "trainer"}, DATA)
    return tracker


def train(tracker: Tracker, number: int, steps: range) -> None:
    """Logs a falling curve: loss at each step, eval_loss at each tenth."""
    for step in steps:
        tracker.log(Measurement(number, step, {"loss": 5 / (step + 1), "learning_rate": 1e-4}))
        if step % 10 == 0:
            tracker.log(Measurement(number, step, {"eval_loss": 4 / (step + 1)}))


def whole_trial(tracker: Tracker, number: int, steps: int = 20) -> None:
    tracker.start_trial(number, f"{number:04d} lr=0.0001", {"optimizer.lr": 1e-4}, {})
    train(tracker, number, range(steps))
    tracker.finish_trial(number, "complete", {"diagnosis": "healthy"})


def wait_until_sent(tracker: Tracker) -> None:
    deadline = time.monotonic() + 20
    while tracker.unsent and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.unsent == 0


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the tracker has warned of."""
    return [record.message for record in caplog.records if record.name.startswith("lrsweep.tracking")]


class Reader:
    """What MLflow itself says is in a store."""

    def __init__(self, uri: str, sweep: str = "lora_lr") -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri)
        self.experiment = self.client.get_experiment_by_name(sweep)
        runs = self.client.search_runs([self.experiment.experiment_id])
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        self.children = sorted(children, key=lambda run: int(run.data.tags["trial"]))

    @property
    def parent(self) -> Any:
        (only,) = self.parents
        return only

    def trial(self, number: int) -> Any:
        (only,) = [run for run in self.children if run.data.tags["trial"] == str(number)]
        return only

    def curve(self, number: int, key: str) -> list[tuple[int, float]]:
        """Every stored point, duplicates included."""
        history = self.client.get_metric_history(self.trial(number).info.run_id, key)
        return sorted((point.step, point.value) for point in history)

    def files(self, path: str = "") -> set[str]:
        return {file.path for file in self.client.list_artifacts(self.parent.info.run_id, path or None)}


def expected(key: str, steps: range) -> list[tuple[int, float]]:
    if key == "loss":
        return [(step, 5 / (step + 1)) for step in steps]
    return [(step, 4 / (step + 1)) for step in steps if step % 10 == 0]


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_a_sweep_reads_back(
    store: str, opened: Open, folder: Path, server: MlflowServer, capfd: pytest.CaptureFixture[str]
) -> None:
    best = folder / "outputs" / "best"
    (best / "adapter").mkdir(parents=True)
    (best / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "config.yaml").write_text("name: lora_lr\n")
    uri = default_uri(folder) if store == "sqlite" else server.uri
    tracker = start(opened(uri=None if store == "sqlite" else uri))
    capfd.readouterr()
    whole_trial(tracker, 0)
    # More points than one batch holds.
    whole_trial(tracker, 1, steps=1200)
    tracker.start_trial(2, "0002 lr=1", {"optimizer.lr": 1.0}, {})
    tracker.finish_trial(2, "diverged", {"reason": "loss"})
    tracker.label({0: {"diagnosis": "too_low", "description": "**too low**", "rank": "2"}})
    shown = {"description": "The best.\n\n![figure](artifact:loss.png)"}
    tracker.finish("complete", {"best_eval_loss": 0.2}, [folder / "config.yaml", best], shown)
    assert tracker.unsent == 0
    assert capfd.readouterr() == ("", "")

    read = Reader(uri)
    assert read.parent.info.run_name == "lora_lr"
    assert read.parent.info.status == "FINISHED"
    assert read.parent.data.params == {
        "optimizer.lr": "1e-05",
        "optimizer.betas": "[0.9, 0.999]",
        "finetune.dora": "false",
        "data.eval_path": "null",
    }
    assert read.parent.data.metrics == {"best_eval_loss": 0.2}
    wanted = {"engine": "trainer", "lrsweep.sweep_id": "id-1", "status": "complete"}
    assert wanted.items() <= read.parent.data.tags.items()
    assert read.files() == {"config.yaml", "best"}
    assert read.files("best/adapter") == {"best/adapter/adapter_config.json"}

    assert [run.info.run_name for run in read.children] == ["0000 lr=0.0001", "0001 lr=0.0001", "0002 lr=1"]
    assert {run.info.status for run in read.children} == {"FINISHED"}
    assert len({run.data.tags["mlflow.runColor"] for run in read.children}) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in read.children} == {read.parent.info.run_id}
    assert read.trial(0).data.params == {"optimizer.lr": "0.0001", "optimizer.lr log10": "-4.0"}
    wanted = {"diagnosis": "too_low", "status": "complete", "mlflow.note.content": "**too low**", "rank": "2"}
    assert wanted.items() <= read.trial(0).data.tags.items()
    address = f"get-artifact?run_uuid={read.parent.info.run_id}&path=loss.png"
    assert read.parent.data.tags["mlflow.note.content"] == f"The best.\n\n![figure]({address})"
    assert {"reason": "loss", "status": "diverged"}.items() <= read.trial(2).data.tags.items()
    for number, steps in ((0, range(20)), (1, range(1200))):
        for key in ("loss", "eval_loss"):
            assert read.curve(number, key) == expected(key, steps)

    for run in (read.parent, read.trial(0)):
        inputs = {entry.tags[0].value: entry.dataset for entry in run.inputs.dataset_inputs}
        assert {context: dataset.profile for context, dataset in inputs.items()} == {
            "training": '{"num_rows": 90}',
            "eval": '{"num_rows": 10}',
        }
        assert {dataset.digest for dataset in inputs.values()} == {DATA.fingerprint[:12]}
    if store == "sqlite":
        assert Path(read.experiment.artifact_location) == folder / "mlruns" / "lora_lr"


def test_curves_arrive_while_training(opened: Open, folder: Path) -> None:
    tracker = start(opened())
    tracker.start_trial(0, "0000", {}, {})
    train(tracker, 0, range(3))
    wait_until_sent(tracker)
    assert Reader(default_uri(folder)).curve(0, "loss") == expected("loss", range(3))
    assert Reader(default_uri(folder)).trial(0).info.status == "RUNNING"


def test_running_a_finished_sweep_again_adds_nothing(opened: Open, folder: Path) -> None:
    def once() -> tuple[Any, ...]:
        tracker = start(opened())
        if not Reader(default_uri(folder)).children:
            whole_trial(tracker, 0)
        tracker.finish("complete", {"best_eval_loss": 0.2}, [folder / "config.yaml"])
        assert tracker.unsent == 0
        read = Reader(default_uri(folder))
        history = read.client.get_metric_history(read.parent.info.run_id, "best_eval_loss")
        inputs = len(read.parent.inputs.dataset_inputs)
        return (
            read.parent.info.run_id,
            len(read.children),
            len(history),
            inputs,
            read.files(),
            read.parent.info.status,
        )

    (folder / "config.yaml").write_text("name: lora_lr\n")
    first = once()
    assert once() == first
    assert first[1:] == (1, 1, 2, {"config.yaml"}, "FINISHED")


def test_a_resumed_sweep_goes_on_in_its_run_and_tells_what_changed(opened: Open, folder: Path) -> None:
    start(opened(), params={"search.n_trials": 2}).finish("interrupted", {}, [])
    assert Reader(default_uri(folder)).parent.info.status == "KILLED"
    start(opened(), params={"search.n_trials": 4})
    read = Reader(default_uri(folder))
    assert read.parent.info.status == "RUNNING"
    assert read.parent.data.params["search.n_trials"] == "2"
    assert read.parent.data.tags["search.n_trials"] == "4"


def test_another_sweep_of_the_name_has_its_own_runs(opened: Open, folder: Path) -> None:
    for sweep_id in ("id-1", "id-2"):
        tracker = start(opened(), sweep_id=sweep_id)
        whole_trial(tracker, 0)
        tracker.finish("complete", {}, [])
    read = Reader(default_uri(folder))
    assert len(read.parents) == len(read.children) == 2


def test_a_restarted_trial_takes_the_place_of_the_killed_one(opened: Open, folder: Path) -> None:
    killed = start(opened())
    killed.start_trial(0, "0000", {}, {})
    whole_trial(killed, 1)
    train(killed, 0, range(15))
    wait_until_sent(killed)

    again = start(opened())
    whole_trial(again, 0, steps=20)
    again.finish("complete", {}, [])
    read = Reader(default_uri(folder))
    assert len(read.children) == 2
    assert read.curve(0, "loss") == expected("loss", range(20))
    assert read.trial(0).info.status == "FINISHED"


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_inputs", "set_terminated"])
def test_what_is_sent_again_after_a_lost_answer_is_there_once(
    call: str, opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(opened())
    assert isinstance(tracker, MlflowTracker)
    carry_out = getattr(tracker._client, call)
    calls: list[str] = []

    def lose_the_first_answer(*arguments: object, **named: object) -> object:
        answer = carry_out(*arguments, **named)
        calls.append(call)
        if len(calls) == 1:
            raise ConnectionError("reset by peer")
        return answer

    monkeypatch.setattr(tracker._client, call, lose_the_first_answer)
    whole_trial(tracker, 0)
    wait_until_sent(tracker)
    tracker.finish("complete", {}, [])
    assert len(calls) >= 2
    read = Reader(default_uri(folder))
    assert read.curve(0, "loss") == expected("loss", range(20))
    assert len(read.trial(0).inputs.dataset_inputs) == 2
    assert {run.info.status for run in (read.parent, *read.children)} == {"FINISHED"}


def test_values_that_are_not_finite_leave_a_tag_instead(opened: Open, folder: Path) -> None:
    tracker = start(opened())
    tracker.start_trial(0, "0000 lr=1", {}, {})
    for step, loss in enumerate((3.0, 5.0, math.inf, math.nan)):
        tracker.log(Measurement(0, step, {"loss": loss, "learning_rate": 0.1}))
    tracker.finish_trial(0, "diverged", {})
    tracker.finish("failed", {"best_eval_loss": math.nan}, [])
    read = Reader(default_uri(folder))
    assert read.curve(0, "loss") == [(0, 3.0), (1, 5.0)]
    assert [step for step, _ in read.curve(0, "learning_rate")] == [0, 1, 2, 3]
    assert read.trial(0).data.tags["non_finite_step"] == "2"
    assert set(read.trial(0).data.metrics) == {"loss", "learning_rate"}
    assert read.parent.info.status == "FAILED"
    assert read.parent.data.metrics == {}


def test_how_trials_end(opened: Open, folder: Path) -> None:
    tracker = start(opened())
    ends = {"complete": "FINISHED", "pruned": "FINISHED", "diverged": "FINISHED", "failed": "FAILED"}
    for number, status in enumerate(ends):
        tracker.start_trial(number, status, {}, {})
        tracker.finish_trial(number, status, {})
    # This one is still running when a signal comes.
    tracker.start_trial(4, "interrupted", {}, {})
    tracker.finish("interrupted", {}, [])
    read = Reader(default_uri(folder))
    told = {run.data.tags["status"]: run.info.status for run in read.children}
    assert told == {**ends, "interrupted": "KILLED"}
    assert read.parent.info.status == "KILLED"


@pytest.mark.parametrize(("status", "ended"), [("failed", "FAILED"), ("interrupted", "KILLED")])
@pytest.mark.parametrize("done", range(7))
def test_a_sweep_may_break_off_anywhere(status: str, ended: str, done: int, opened: Open, folder: Path) -> None:
    tracker = start(opened())
    steps: list[Callable[[], None]] = [
        lambda: tracker.start_trial(0, "0000", {}, {}),
        lambda: train(tracker, 0, range(15)),
        lambda: tracker.finish_trial(0, "complete", {}),
        lambda: wait_until_sent(tracker),
        lambda: tracker.start_trial(1, "0001", {}, {}),
        lambda: tracker.finish("complete", {"best_eval_loss": 1.0}, []),
    ]

    def host_program() -> None:
        try:
            for step in steps[:done]:
                step()
            tracker.log(Measurement(99, 0, {}))
        except BaseException:
            tracker.finish(status, {}, [])
            raise

    with pytest.raises(KeyError):
        host_program()
    assert tracker.unsent == 0
    read = Reader(default_uri(folder))
    assert (read.parent.info.status, read.parent.data.tags["status"]) == (ended, status)
    assert [run.info.status for run in read.children] == ["FINISHED" if done >= 3 else "KILLED", "KILLED"][
        : len(read.children)
    ]
    assert len(read.children) == (done >= 1) + (done >= 5)
    # The same command goes on in it.
    start(opened()).finish("complete", {}, [])
    assert Reader(default_uri(folder)).parent.info.status == "FINISHED"


def test_a_run_that_mlflow_refuses_ends_all_the_same(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(opened())
    tracker.start_trial(0, "0000", {}, {})
    tracker.log(Measurement(0, 0, {"no such % name": 1.0}))
    whole_trial(tracker, 1)
    tracker.finish_trial(0, "failed", {})
    tracker.finish("failed", {"nor % this": 1.0}, [])
    read = Reader(default_uri(folder))
    assert [run.info.status for run in (read.parent, *read.children)] == ["FAILED", "FAILED", "FINISHED"]
    assert [message.split(";")[0] for message in warnings_of(caplog)] == [
        "MLflow refuses the run 0000",
        "MLflow refuses the run lora_lr",
    ]


def test_a_complete_sweep_leaves_no_run_running(opened: Open, folder: Path) -> None:
    killed = start(opened())
    killed.start_trial(0, "0000", {}, {})
    wait_until_sent(killed)
    start(opened()).finish("complete", {}, [])
    read = Reader(default_uri(folder))
    assert read.trial(0).info.status == "KILLED"
    assert read.trial(0).data.tags["status"] == "interrupted"


def test_a_server_that_dies_and_comes_back_gets_every_point_once(
    opened: Open, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(opened(uri=server.uri), sweep="outage")
    whole_trial(tracker, 0)
    tracker.start_trial(1, "0001", {"optimizer.lr": 0.1}, {})
    train(tracker, 1, range(30))
    wait_until_sent(tracker)
    train(tracker, 1, range(30, 60))
    server.kill()
    train(tracker, 1, range(60, 600))
    tracker.finish_trial(1, "complete", {})
    whole_trial(tracker, 2)
    # The server is still dead: training did not wait for it.
    assert tracker.unsent > 540
    time.sleep(1.5)
    assert len(warnings_of(caplog)) == 1
    server.start()
    wait_until_sent(tracker)
    whole_trial(tracker, 3)
    tracker.finish("complete", {}, [])
    assert tracker.unsent == 0
    read = Reader(server.uri, "outage")
    assert len(read.children) == 4
    assert {run.info.status for run in (read.parent, *read.children)} == {"FINISHED"}
    for number, steps in ((0, range(20)), (1, range(600)), (2, range(20)), (3, range(20))):
        for key in ("loss", "eval_loss"):
            assert read.curve(number, key) == expected(key, steps)


def test_a_sweep_ends_without_its_server(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(opened())
    assert isinstance(tracker, MlflowTracker)
    monkeypatch.setattr(tracker, "_store", Store(f"http://127.0.0.1:{free_port()}", folder))
    whole_trial(tracker, 0)
    tracker.finish("complete", {}, [])
    # 20 of loss, 20 of learning_rate, 2 of eval_loss; the two runs themselves.
    assert tracker.unsent == 44
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("what", ["locked", "removed", "overwritten"])
def test_a_database_that_is_lost_meanwhile_keeps_nobody_waiting(
    what: str, opened: Open, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrsweep.tracking.store._LOCK_TIMEOUT", 0.2)
    tracker = start(opened())
    whole_trial(tracker, 0)
    wait_until_sent(tracker)
    file = folder / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as other:
        if what == "locked":
            other.execute("BEGIN EXCLUSIVE")
        elif what == "removed":
            file.unlink()
        else:
            file.write_bytes(b"not a database " * 10_000)
        for number in range(1, 5):
            whole_trial(tracker, number)
        assert "viewStateShareKey" not in tracker.compare_page(["optimizer.lr"], "eval_loss", lowest_first=True)
        # MLflow tries a locked database for half a minute, for each of the five runs.
        limit = threading.Timer(20, _thread.interrupt_main)
        limit.start()
        tracker.finish("complete", {}, [])
        limit.cancel()
    assert tracker.unsent >= 4 * 42
    assert len(warnings_of(caplog)) == 1
    assert file.exists() == (what != "removed")


def test_a_run_deleted_meanwhile_costs_only_itself(
    opened: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(opened())
    for number in (0, 1):
        tracker.start_trial(number, f"{number:04d}", {}, {})
    wait_until_sent(tracker)
    read = Reader(default_uri(folder))
    read.client.delete_run(read.trial(0).info.run_id)
    for _ in range(2):
        for number in (0, 1):
            train(tracker, number, range(5))
        time.sleep(0.3)
    tracker.finish("complete", {}, [])
    (warning,) = warnings_of(caplog)
    assert warning.startswith("MLflow refuses the run 0000; ")
    assert len(Reader(default_uri(folder)).curve(1, "loss")) == 10


@pytest.mark.parametrize("there", ["nothing", "a server that hangs"])
def test_no_server_is_one_line_at_once(there: str, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if there == "a server that hangs":
            listener.listen()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(StorageError) as raised:
            open_tracker(TrackingConfig(name="mlflow", uri=uri), tmp_path)
    assert str(raised.value) == f"tracking.uri={uri}: no MLflow server answers there; start it or set tracking=none"


@pytest.mark.parametrize(
    "uri", ["./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:", "http://", "ftp://x"]
)
def test_what_is_no_store_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tracking.uri=.*: a store is sqlite:///FILE, postgresql://"):
        open_tracker(TrackingConfig(name="mlflow", uri=uri), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(StorageError, match=rf"^tracking.uri=sqlite:///{tmp_path}/mlflow.db: [^\n]+$"):
        open_tracker(TrackingConfig(name="mlflow"), tmp_path)


def test_a_run_does_not_end_before_its_last_point_is_there(opened: Open, folder: Path) -> None:
    """A kill between the two would leave a run that looks whole, and is not."""
    tracker = start(opened())
    assert isinstance(tracker, MlflowTracker)

    class Overtaken(PendingRun):
        """Training measures and ends just after everything had been sent."""

        def batch(self) -> Batch | None:
            found = super().batch()
            if found is None and self.end is None:
                self.measured(Measurement(0, 6, {"eval_loss": 1.0}))
                self.finish("complete", {})
            return found

    run = Overtaken("0000", {}, {}, DATA, trial=0)
    for status, points in (("RUNNING", []), ("FINISHED", [(6, 1.0)])):
        tracker._experiment.send(run)
        read = Reader(default_uri(folder))
        assert (read.trial(0).info.status, read.curve(0, "eval_loss")) == (status, points)
    tracker.finish("complete", {}, [])


def test_a_deleted_experiment_is_told_with_its_cure(opened: Open, folder: Path) -> None:
    start(opened(experiment="tuning")).finish("complete", {}, [])
    read = Reader(default_uri(folder), "tuning")
    read.client.delete_experiment(read.experiment.experiment_id)
    cure = f"mlflow experiments restore --experiment-id {read.experiment.experiment_id}$"
    with pytest.raises(InputError, match=f"^tracking.experiment=tuning: deleted in MLflow.*{cure}"):
        opened(experiment="tuning")


def test_no_password_is_shown(
    opened: Open, server: MlflowServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    secret = server.uri.replace("http://", "http://me:hunter%402@")
    tracker = start(opened(uri=secret), sweep="secret", params={"tracking.uri": secret})
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hunter@2"
    assert isinstance(tracker, MlflowTracker)
    monkeypatch.setattr(tracker._store, "responds", lambda: True)
    nobody = Store(secret.replace(str(server.port), str(free_port())), Path())
    monkeypatch.setattr(tracker._experiment, "_client", nobody._client())
    whole_trial(tracker, 0)
    tracker.finish("complete", {}, [])
    read = Reader(server.uri, "secret")
    assert read.parent.data.params["tracking.uri"] == tracker.uri == server.uri.replace("http://", "http://me:***@")
    assert len(caplog.records) >= 1
    assert "hunter" not in tracker.ui_command() + caplog.text + str(read.parent.data)
    with pytest.raises(StorageError) as raised:
        open_tracker(TrackingConfig(name="mlflow", uri=f"http://me:hunter2@127.0.0.1:{free_port()}"), Path())
    assert "hunter2" not in str(raised.value)


def test_the_ui_command_is_for_a_shell(tmp_path: Path, empty_store: Path) -> None:
    folder = tmp_path / "my sweeps; rm"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    command = open_tracker(TrackingConfig(name="mlflow"), folder).ui_command()
    uri = f"sqlite:///{folder}/mlflow.db"
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]


def test_system_metrics_are_written_and_stop(
    opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    tracker = start(opened(system_metrics=True))
    monkeypatch.setattr("psutil.disk_usage", lambda path: 1 / 0)
    time.sleep(0.5)
    tracker.finish("complete", {}, [])
    metrics = Reader(default_uri(folder)).parent.data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(metrics)
    assert [
        thread.name for thread in threading.enumerate() if "lrsweep" in thread.name or "System" in thread.name
    ] == []


def test_no_tracking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = open_tracker(TrackingConfig(name="none"), tmp_path)
    assert isinstance(tracker, NoTracker)
    start(tracker)
    whole_trial(tracker, 0)
    tracker.finish("complete", {}, [])
    assert (tracker.uri, tracker.unsent, tracker.ui_command(), tracker.compare_page([], "")) == ("", 0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_three_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from lrsweep.config.schema import TrackingConfig\n"
        "from lrsweep.tracking import DatasetInfo, open_tracker\n"
        "tracker = open_tracker(TrackingConfig(name='mlflow'), Path())\n"
        "tracker.start('lora_lr', 'id-1', {'a': 1}, {}, DatasetInfo('d', 'd', '00', 1, 1))\n"
        "tracker.start_trial(int(sys.argv[1]), 'x', {}, {})\n"
        "tracker.finish('interrupted', {}, [])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    # Not a word on the terminal either, of migrations or otherwise.
    assert [(worker.communicate(timeout=120)[0], worker.returncode) for worker in workers] == [("", 0)] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    read = Reader(default_uri(tmp_path))
    assert len(read.parents) == 1
    assert sorted(run.data.tags["trial"] for run in read.children) == ["0", "1", "2"]


def test_ctrl_c_ends_the_ui_quietly(server: MlflowServer) -> None:
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert "Traceback" not in server.stop()
    assert server.process.returncode == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_ui_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mlflow.db: no such store; run a sweep first"):
        serve_ui(default_uri(tmp_path))
    with pytest.raises(InputError, match=r"^http://me:\*\*\*@127.0.0.1:5000: this server has its own UI"):
        serve_ui("http://me:hunter2@127.0.0.1:5000")
