"""MLflow's server dies in the middle of a sweep and stays away: the sweep ends, says so, and `sync` sends the rest."""

import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrsweep.config.schema import TrackingConfig
from lrsweep.files.metrics_log import read_metrics
from lrsweep.tracking import open_tracker
from tests.browser import served
from tests.conftest import command_line, lrsweep
from tests.faults.disk import TRAINER

SWEEP = (
    "name=outage",
    "model.path=none",
    "engine=external",
    "engine.dialect=transformers",
    "executor=inline",
    f"engine.command='{sys.executable} {TRAINER} {{config}} 0.1'",
    "space.optimizer.lr=[1e-4,1e-3,1e-2]",
    "training.max_steps=20",
    "training.eval_every=5",
    "search.prior=false",
)


def points(folder: Path) -> list[tuple[str, str, int, float]]:
    """Trial, metric, step and value of each point in MLflow."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        return database.execute(
            "select tags.value, metrics.key, step, metrics.value from metrics"
            " join tags on tags.run_uuid = metrics.run_uuid and tags.key = 'trial'"
            " join runs on runs.run_uuid = metrics.run_uuid where lifecycle_stage = 'active'"
        ).fetchall()


def measured(folder: Path) -> set[tuple[str, str, int, float]]:
    """The same from the sweep's own files."""
    return {
        (str(number), key, int(row["step"]), value)
        for number in range(3)
        for row in read_metrics(folder / "outputs" / "outage" / "trials" / f"{number:04d}")
        for key, value in row.items()
        if key != "step"
    }


@pytest.mark.faults
@pytest.mark.parametrize("what", ["removed", "locked"])
def test_what_a_lost_database_kept_back_is_sent_by_sync(what: str, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    process = subprocess.Popen(
        command_line(*SWEEP), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = tmp_path / "outputs" / "outage" / "trials" / "0000"
    while process.poll() is None and not read_metrics(first):
        time.sleep(0.05)
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as other:
        if what == "removed":
            file.unlink()
        else:
            other.execute("BEGIN EXCLUSIVE")
        stdout, stderr = process.communicate(timeout=200)
    assert (process.returncode, stderr) == (0, "")
    assert "points have not reached MLflow" in stdout
    sent = lrsweep("sync", "outage", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    found = points(tmp_path)
    assert len(found) == len(set(found))
    assert set(found) == measured(tmp_path)


@pytest.mark.faults
def test_what_an_outage_kept_back_is_sent_by_sync(tmp_path: Path) -> None:
    open_tracker(TrackingConfig(name="mlflow"), tmp_path)  # makes the store
    with served(tmp_path) as server:
        command = command_line(*SWEEP, f"tracking.uri={server.uri}")
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = tmp_path / "outputs" / "outage" / "trials" / "0000"
        while process.poll() is None and not read_metrics(first):
            time.sleep(0.05)
        server.kill()
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert "points have not reached MLflow" in stdout
        assert "lrsweep sync outage" in stdout
        refused = lrsweep("sync", "outage", cwd=tmp_path)
        assert refused.returncode == 4
        assert "no MLflow server answers there" in refused.stderr
        server.start()
        sent = lrsweep("sync", "outage", cwd=tmp_path)
        assert sent.returncode == 0, sent.stderr
        assert "has all ended trials" in sent.stdout
        again = lrsweep("sync", "outage", cwd=tmp_path)
        assert again.stdout.startswith("outage: sent 0 trials")
    found = points(tmp_path)
    assert len(found) == len(set(found))
    assert set(found) == measured(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        statuses = database.execute("select status from runs where lifecycle_stage = 'active'").fetchall()
    assert statuses == [("FINISHED",)] * 4
