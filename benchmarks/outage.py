"""Stops MLflow's server for a minute in the middle of a sweep: `python benchmarks/outage.py`, ten minutes.

A real server gets a SIGKILL and is started again on the same port. The sweep's trainer sleeps for a fixed time per
step, so that a delay of a few percent is visible on a busy machine, too. With and without the outage, in turn, this
measures the total seconds, and checks that each trial's curves are complete in MLflow, each step once, with the values
of metrics.jsonl.
"""

import argparse
import contextlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

sys.path.insert(0, str(Path(__file__).parents[1]))
from lrsweep.config.schema import TrackingConfig
from lrsweep.files.metrics_log import read_metrics
from lrsweep.tracking import open_tracker
from tests.browser import MlflowServer
from tests.faults.disk import TRAINER

TRIALS, STEPS, EVERY, PAUSE = 4, 120, 10, 0.25
NAMES = ("loss", "eval_loss", "learning_rate")


def sweep(folder: Path, down: float) -> dict[str, Any]:
    """Runs one sweep against its own server, which is down for `down` seconds after the second trial has begun."""
    folder.mkdir()
    open_tracker(TrackingConfig(name="mlflow"), folder)  # creates the store
    server = MlflowServer(folder)
    server.start()

    def outage() -> None:
        second = folder / "outputs" / "outage" / "trials" / "0001"
        while not read_metrics(second):
            time.sleep(0.1)
        server.kill()
        time.sleep(down)
        server.start()

    thread = threading.Thread(target=outage)
    command = [
        sys.executable,
        "-m",
        "lrsweep",
        "name=outage",
        "model.path=none",
        "engine=external",
        "engine.dialect=transformers",
        f"engine.command='{sys.executable} {TRAINER} {{config}} {PAUSE}'",
        "space.optimizer.lr=[1e-4,1e-3,1e-2,1e-1]",
        f"training.max_steps={STEPS}",
        f"training.eval_every={EVERY}",
        "search.prior=false",
        f"tracking.uri={server.uri}",
    ]
    begun = time.monotonic()
    if down:
        thread.start()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    if down:
        thread.join()
    server.kill()
    assert done.returncode == 0, done.stderr
    return {"down": down, "seconds": round(seconds, 1), **_compared(folder)}


def _compared(folder: Path) -> dict[str, int]:
    """Counts points of the trials' files that are missing, duplicate or different in MLflow, and runs not FINISHED."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        runs = dict(
            database.execute(
                "select value, runs.run_uuid from runs join tags on tags.run_uuid = runs.run_uuid"
                " where lifecycle_stage = 'active' and key = 'trial'"
            )
        )
        (unfinished,) = database.execute(
            "select count(*) from runs where lifecycle_stage = 'active' and status != 'FINISHED'"
        ).fetchone()
        missing = twice = other = points = 0
        for number in range(TRIALS):
            there: dict[tuple[str, int], list[float]] = {}
            for key, step, value in database.execute(
                "select key, step, value from metrics where run_uuid = ?", (runs[str(number)],)
            ):
                there.setdefault((key, step), []).append(value)
            for row in read_metrics(folder / "outputs" / "outage" / "trials" / f"{number:04d}"):
                for name in NAMES:
                    if name in row:
                        points += 1
                        found = there.get((name, int(row["step"])), [])
                        missing, twice = missing + (not found), twice + (len(found) > 1)
                        other += bool(found) and found[0] != row[name]
    return {"points": points, "missing": missing, "twice": twice, "other_value": other, "not_finished": unfinished}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--down", type=float, default=60.0, help="seconds without a server")
    parser.add_argument("--out", type=Path, default=RESULTS / "outage.json")
    arguments = parser.parse_args()
    parent = Path(tempfile.mkdtemp(prefix="outage-"))
    runs = []
    for repeat in range(arguments.repeats):
        for down in (0.0, arguments.down):
            runs.append(sweep(parent / f"{repeat}-{down:.0f}", down))
            print(runs[-1], flush=True)
    save(arguments.out, about("mlflow", "optuna"), runs=runs)
    times = {down: statistics.median(r["seconds"] for r in runs if r["down"] == down) for down in (0.0, arguments.down)}
    rows = [
        [f"{r['down']:.0f}", r["seconds"], r["points"], r["missing"], r["twice"], r["other_value"], r["not_finished"]]
        for r in runs
    ]
    print(table(["s down", "s in total", "points", "missing", "twice", "other value", "not finished"], rows))
    print(f"extra time with the outage: {times[arguments.down] / times[0.0] - 1:.1%}")


if __name__ == "__main__":
    main()
