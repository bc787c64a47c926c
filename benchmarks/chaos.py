"""SIGKILLs at random points of sweeps, and what they cost: `python benchmarks/chaos.py --kills 200`, an hour.

Sweeps of a 16-point grid on the embedded model, one worker, packed and trainer engine in turn. A process is killed at a random
moment after it has trained its first step, and the same command is run again, until the sweep is complete; then another one
begins, until enough kills have been dealt. Held after every kill: no completed trial is lost or run again. Held at the end of a
sweep: 16 of 16 complete, each point once, nothing RUNNING in Optuna or MLflow, the same best and losses as an undisturbed
run. Lost work is the steps that a trial had logged behind its last checkpoint; at most one interval a kill is allowed.

Plain Optuna, for comparison (one worker, a 16-point grid, 4 sweeps a storage, half of each unfinished in 80 s): SQLite, 113
trials left RUNNING after 156 kills; journal file, 16 after 135.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

from lrsweep.outputs import read_metrics

EVERY, POINTS = 4, 16
COMMAND = [
    "name=chaos", "space.optimizer.lr=[1e-5,3e-5,1e-4,3e-4,1e-3,2e-3,3e-3,5e-3]", "space.optimizer.weight_decay=[0.0,0.1]",
    "training.max_steps=16", f"training.eval_every={EVERY}", "training.checkpoint_seconds=0", "training.save_adapter=false",
    "data.max_eval_rows=32", "search.preflight=false",
]  # fmt: skip
ENGINES = {"packed": ["engine=packed", "engine.slots=4"], "trainer": ["engine=trainer"]}


class BrokenPromiseError(AssertionError):
    """A promise that did not hold."""


def start(folder: Path, engine: str) -> subprocess.Popen[bytes]:
    log = open(folder / "console.log", "ab")  # noqa: SIM115 - the process keeps it
    command = [sys.executable, "-m", "lrsweep", *COMMAND, *ENGINES[engine]]
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def trials(folder: Path) -> dict[int, tuple[str, str, float | None]]:
    """Of each trial in the study: state, parameters, loss."""
    file = folder / "outputs" / "chaos" / "study.db"
    if not file.exists():
        return {}
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        try:
            states = database.execute("select trial_id, number, state from trials where state != 'WAITING'").fetchall()
            values = dict(database.execute("select trial_id, value from trial_values").fetchall())
            params: dict[int, list[str]] = {}
            for trial, name, value in database.execute("select trial_id, param_name, param_value from trial_params"):
                params.setdefault(trial, []).append(f"{name}={value}")
        except sqlite3.OperationalError:
            return {}  # being made
    database.close()
    return {n: (state, " ".join(sorted(params.get(i, []))), values.get(i)) for i, n, state in states}


def mlflow_running(folder: Path) -> int:
    with sqlite3.connect(folder / "mlflow.db") as database:
        query = "select count(*) from runs where lifecycle_stage = 'active' and status = 'RUNNING'"
        (count,) = database.execute(query).fetchone()
    database.close()
    return int(count)


def steps(folder: Path) -> dict[int, list[int]]:
    """The steps that each trial's log holds."""
    logs = sorted((folder / "outputs" / "chaos" / "trials").glob("*/metrics.jsonl"))
    return {
        int(log.parent.name): [int(row["step"]) for row in read_metrics(log.parent) if "loss" in row] for log in logs
    }


def complete(found: dict[int, tuple[str, str, float | None]]) -> dict[int, tuple[str, float | None]]:
    return {number: (params, value) for number, (state, params, value) in found.items() if state == "COMPLETE"}


def disturbed(engine: str, folder: Path, most: int, draw: random.Random) -> dict[str, Any]:
    """One sweep with up to `most` kills. Raises BrokenPromiseError."""
    kills = lost = most_lost = runs = 0
    done: dict[int, tuple[str, float | None]] = {}
    while True:
        process = start(folder, engine)
        runs += 1
        before = steps(folder)
        begun = time.monotonic()
        if kills < most:
            # Armed by the first step of this process: kills during imports prove nothing.
            while process.poll() is None and steps(folder) == before and time.monotonic() - begun < 300:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 6))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
        process.wait()
        found = trials(folder)
        now = complete(found)
        for number, trial in done.items():
            if now.get(number) != trial:
                raise BrokenPromiseError(
                    f"{engine}: trial {number} was complete as {trial} and is now {now.get(number)}"
                )
        for number, seen in steps(folder).items():
            if found.get(number, ("", "", None))[0] == "RUNNING" and seen:
                again = seen[-1] - kept_step(folder / "outputs" / "chaos" / "trials" / f"{number:04d}")
                lost, most_lost = lost + again, max(most_lost, again)
        if most_lost > EVERY:
            raise BrokenPromiseError(
                f"{engine}: {most_lost} steps were trained again, more than the interval of {EVERY}"
            )
        done = now
        if process.returncode == 0:
            break
        if process.returncode > 0:
            raise BrokenPromiseError(f"{engine}: exit {process.returncode}; see {folder / 'console.log'}")
    states = [state for state, _, _ in found.values()]
    points = {params for _, params, _ in found.values()}
    if states != ["COMPLETE"] * POINTS or len(points) != POINTS:
        raise BrokenPromiseError(f"{engine}: {len(points)} points, states {sorted(set(states))}, {len(states)} trials")
    if mlflow_running(folder):
        raise BrokenPromiseError(f"{engine}: runs are left RUNNING in MLflow")
    losses = {number: value for number, (_, value) in sorted(done.items())}
    return {
        "engine": engine, "kills": kills, "runs": runs, "steps_again": lost, "most_steps_again_a_trial": most_lost,
        "best": summary(folder)["best"]["trial"], "losses": losses,
    }  # fmt: skip


def kept_step(trial: Path) -> int:
    """The step of a trial's last checkpoint."""
    for name in ("checkpoint", "checkpoint.previous"):
        if (trial / name / "manifest.json").is_file():
            return int(json.loads((trial / name / "state.json").read_text())["step"])
    return 0


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "outputs" / "chaos" / "summary.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as parent:
        undisturbed = {}
        for engine in ENGINES:
            folder = Path(parent) / f"undisturbed-{engine}"
            folder.mkdir()
            undisturbed[engine] = disturbed(engine, folder, 0, draw)
        kills = 0
        while kills < arguments.kills:
            engine = list(ENGINES)[len(entries) % len(ENGINES)]
            folder = Path(parent) / str(len(entries))
            folder.mkdir()
            entry = disturbed(engine, folder, min(12, arguments.kills - kills), draw)
            kills += entry["kills"]
            reference = undisturbed[engine]
            apart = max(abs(entry["losses"][n] - value) for n, value in reference["losses"].items())
            if entry["best"] != reference["best"] or apart > 1e-3:
                raise BrokenPromiseError(
                    f"{engine}: best {entry['best']}, undisturbed {reference['best']}; losses {apart} apart"
                )
            entries.append({key: value for key, value in entry.items() if key != "losses"} | {"losses_apart": apart})
            print(f"{kills} kills: {entries[-1]}", flush=True)
            save(arguments.out, about("optuna", "mlflow"), sweeps=entries)
    rows = [
        [engine, len(own), sum(e["kills"] for e in own), sum(e["steps_again"] for e in own),
         max(e["most_steps_again_a_trial"] for e in own), f"{max(e['losses_apart'] for e in own):.1e}"]
        for engine in ENGINES
        if (own := [e for e in entries if e["engine"] == engine])
    ]  # fmt: skip
    header = ["engine", "sweeps", "kills", "steps trained again", "most for one trial", "losses apart"]
    print(table(header, rows))
    print("lost 0, repeated 0, 16 of 16 in every sweep, 0 RUNNING; the same best")


if __name__ == "__main__":
    main()
