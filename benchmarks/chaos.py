"""SIGKILLs at random points of sweeps, and what they cost: `python benchmarks/chaos.py --kills 200`, an hour.

Sweeps of a 16-point grid on the embedded model, on 1, 2 and 4 workers, packed and trainer engine in turn. After a training step
has been logged, at a random moment, a kill takes one worker, or the process that keeps the sweep, or all of them; where the
keeper went, the same command is run again, until the sweep is complete; then another one begins, until enough kills have been
dealt. Held after every kill: no completed trial is lost or run again, and what a trial has logged behind its last
checkpoint is at most one interval. Held at the end of a sweep: 16 of 16 complete, each point once; nothing RUNNING in Optuna
or MLflow; in MLflow each trial's curve whole, each step once; the same best and losses as an undisturbed run.
`--arms packed:4 trainer:1` deals with these only, and `--add` keeps the sweeps that the file of results has.

Plain Optuna, for comparison (one worker, a 16-point grid, 4 sweeps a storage, half of each unfinished in 80 s): SQLite, 113
trials left RUNNING after 156 kills; journal file, 16 after 135.
"""

import argparse
import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from common import RESULTS, about, save, table

from lrsweep.files.metrics_log import read_metrics

EVERY, STEPS, POINTS = 4, 16, 16
COMMAND = [
    "name=chaos",
    "space.optimizer.lr=[1e-5,3e-5,1e-4,3e-4,1e-3,2e-3,3e-3,5e-3]",
    "space.optimizer.weight_decay=[0.0,0.1]",
    f"training.max_steps={STEPS}",
    f"training.eval_every={EVERY}",
    "training.checkpoint_seconds=0",
    "training.save_adapter=false",
    "data.max_eval_rows=32",
    "search.preflight=false",
]
ENGINES = {"packed": ["engine=packed", "engine.slots=4"], "trainer": ["engine=trainer"]}
# Engine and number of workers, in turn.
ARMS = [("packed", 1), ("trainer", 2), ("packed", 2), ("trainer", 1), ("packed", 4), ("trainer", 4)]
VICTIMS = {"all": 2, "worker": 2, "keeper": 1}
MOST_A_SWEEP, LATEST = 12, 6.0


class BrokenPromiseError(AssertionError):
    """A promise that did not hold."""


@dataclass
class Sweep:
    """One sweep in a folder of its own, and what has been done to it."""

    folder: Path
    engine: str
    workers: int
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: list[int] = field(default_factory=list)
    done: dict[int, tuple[str, float | None]] = field(default_factory=dict)

    def run(self, most: int, draw: random.Random) -> dict[str, Any]:
        """Runs it to its end through up to `most` kills. Raises BrokenPromiseError."""
        while True:
            process = self._start()
            while process.poll() is None and self.kills.total() < most:
                self._kill_someone(process, draw)
                self._check()
            code = process.wait()
            self._check()
            if code == 0:
                self._check_end()
                return self.losses()
            if code > 0:
                raise BrokenPromiseError(f"exit {code}; see {self.folder / 'console.log'}")

    def _start(self) -> subprocess.Popen[bytes]:
        self.runs += 1
        command = [sys.executable, "-m", "lrsweep", *COMMAND, *ENGINES[self.engine], f"executor.workers={self.workers}"]
        with open(self.folder / "console.log", "ab") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)

    def _kill_someone(self, keeper: subprocess.Popen[bytes], draw: random.Random) -> None:
        """Armed by a step that is new: kills during imports prove nothing."""
        before = self._logged()
        while keeper.poll() is None and self._logged() == before:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, LATEST))
        if keeper.poll() is not None:
            return
        workers = workers_of(keeper)
        (victim,) = draw.choices(list(VICTIMS), list(VICTIMS.values()))
        processes = draw.sample(workers, 1) if victim == "worker" and workers else workers if victim == "all" else []
        # The keeper first: it must not see its workers die.
        if victim != "worker":
            keeper.kill()
            keeper.wait()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.kills[victim] += 1
        if victim == "keeper":
            psutil.wait_procs(workers, timeout=60)  # they checkpoint, and go
        states = {number: state for number, (state, _, _) in self._trials().items()}
        self.lost += [
            rows[-1] - kept_step(self._trial(number))
            for number, rows in self._logged().items()
            if rows and states.get(number) == "RUNNING"
        ]

    def _check(self) -> None:
        now = {n: (params, value) for n, (state, params, value) in self._trials().items() if state == "COMPLETE"}
        for number, trial in self.done.items():
            if now.get(number) != trial:
                raise BrokenPromiseError(f"trial {number} was complete as {trial} and is now {now.get(number)}")
        if max(self.lost, default=0) > EVERY:
            raise BrokenPromiseError(f"{max(self.lost)} steps to train again, more than the interval of {EVERY}")
        self.done = now

    def _check_end(self) -> None:
        found = self._trials()
        states = sorted(state for state, _, _ in found.values())
        points = {params for _, params, _ in found.values()}
        if states != ["COMPLETE"] * POINTS or len(points) != POINTS:
            raise BrokenPromiseError(f"{len(points)} points, {Counter(states)}")
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            active = "from runs where lifecycle_stage = 'active'"
            (running,) = database.execute(f"select count(*) {active} and status = 'RUNNING'").fetchone()
            curves = database.execute(
                "select run_uuid, key, count(*), count(distinct step) from metrics"
                f" where run_uuid in (select run_uuid {active}) and key in ('loss', 'eval_loss') group by run_uuid, key"
            ).fetchall()
        whole = {"loss": (STEPS, STEPS), "eval_loss": (STEPS // EVERY + 1, STEPS // EVERY + 1)}
        if running or len(curves) != 2 * POINTS or any((n, steps) != whole[key] for _, key, n, steps in curves):
            raise BrokenPromiseError(
                f"MLflow: {running} RUNNING; {len(curves)} curves: {Counter(c[1:] for c in curves)}"
            )

    def losses(self) -> dict[str, Any]:
        """The best trial's parameters, and the loss of every point."""
        summary = json.loads((self.folder / "outputs" / "chaos" / "summary.json").read_text())
        return {
            "best": json.dumps(summary["best"]["values"]),
            "losses": {json.dumps(trial["values"]): trial["eval_loss"] for trial in summary["trials"]},
        }

    def _trial(self, number: int) -> Path:
        return self.folder / "outputs" / "chaos" / "trials" / f"{number:04d}"

    def _logged(self) -> dict[int, list[int]]:
        """The steps that each trial's log holds."""
        logs = sorted((self.folder / "outputs" / "chaos" / "trials").glob("*/metrics.jsonl"))
        return {int(p.parent.name): [int(r["step"]) for r in read_metrics(p.parent) if "loss" in r] for p in logs}

    def _trials(self) -> dict[int, tuple[str, str, float | None]]:
        """Of each trial in the study: state, parameters, loss."""
        file = self.folder / "outputs" / "chaos" / "study.db"
        if not file.exists():
            return {}
        # Not read-only: what a kill left half written is rolled back by whoever opens it next.
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as database:
            try:
                states = database.execute(
                    "select trial_id, number, state from trials where state != 'WAITING'"
                ).fetchall()
                values = dict(database.execute("select trial_id, value from trial_values").fetchall())
                params: dict[int, list[str]] = {}
                rows = database.execute("select trial_id, param_name, param_value from trial_params").fetchall()
            except sqlite3.OperationalError as fault:
                if "no such table" not in str(fault):
                    raise
                return {}  # being made
        for trial, name, value in rows:
            params.setdefault(trial, []).append(f"{name}={value}")
        return {n: (state, " ".join(sorted(params.get(i, []))), values.get(i)) for i, n, state in states}


def workers_of(keeper: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Its worker processes; one may end while it is looked at."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(keeper.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one
                found += (
                    [process] if "lrsweep.orchestration.executors.worker_main" in " ".join(process.cmdline()) else []
                )
    return found


def kept_step(trial: Path) -> int:
    """The step of a trial's last checkpoint."""
    for name in ("checkpoint", "checkpoint.previous"):
        with contextlib.suppress(OSError, ValueError):
            json.loads((trial / name / "manifest.json").read_text())
            return int(json.loads((trial / name / "state.json").read_text())["step"])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", default=[f"{engine}:{workers}" for engine, workers in ARMS])
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    parser.add_argument("--add", action="store_true")
    arguments = parser.parse_args()
    arms = [(engine, int(workers)) for engine, workers in (arm.split(":") for arm in arguments.arms)]
    draw = random.Random(arguments.seed)
    earlier: list[dict[str, Any]] = json.loads(arguments.out.read_text())["sweeps"] if arguments.add else []
    entries: list[dict[str, Any]] = []
    parent = Path(tempfile.mkdtemp(prefix="chaos-"))

    def sweep(name: str, engine: str, workers: int) -> Sweep:
        folder = parent / name
        folder.mkdir()
        return Sweep(folder, engine, workers)

    undisturbed = {
        engine: sweep(f"undisturbed-{engine}", engine, 1).run(0, draw)
        for engine in sorted({engine for engine, _ in arms})
    }
    kills = 0
    while kills < arguments.kills:
        engine, workers = arms[len(entries) % len(arms)]
        one = sweep(str(len(entries)), engine, workers)
        begun = time.monotonic()
        try:
            end = one.run(min(MOST_A_SWEEP, arguments.kills - kills), draw)
            apart = max(abs(end["losses"][point] - loss) for point, loss in undisturbed[engine]["losses"].items())
            if end["best"] != undisturbed[engine]["best"] or apart > 1e-3:
                raise BrokenPromiseError(
                    f"best {end['best']}, undisturbed {undisturbed[engine]['best']}; {apart} apart"
                )
        except BrokenPromiseError as broken:
            sys.exit(f"{engine}, {workers} workers, after {dict(one.kills)}: {broken}; see {one.folder}")
        kills += one.kills.total()
        entries.append(
            {
                "engine": engine,
                "workers": workers,
                "kills": dict(one.kills),
                "runs": one.runs,
                "steps_again": sum(one.lost),
                "most_steps_again": max(one.lost, default=0),
                "losses_apart": apart,
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
        print(f"{kills} kills: {entries[-1]}", flush=True)
        save(arguments.out, about("optuna", "mlflow"), sweeps=[*earlier, *entries])
    kills += sum(sum(entry["kills"].values()) for entry in earlier)
    entries = [*earlier, *entries]
    rows = [
        [
            engine,
            workers,
            len(own),
            *(sum(e["kills"].get(v, 0) for e in own) for v in VICTIMS),
            sum(e["steps_again"] for e in own),
            max(e["most_steps_again"] for e in own),
            f"{max(e['losses_apart'] for e in own):.1e}",
        ]
        for engine, workers in ARMS
        if (own := [e for e in entries if (e["engine"], e["workers"]) == (engine, workers)])
    ]
    header = ["engine", "workers", "sweeps", *VICTIMS, "steps again", "most for a trial", "losses apart"]
    print(table(header, rows))
    print(f"{kills} kills: 0 completed trials lost, 0 repeated, 16 of 16 in every sweep, 0 RUNNING, the same best")
    print("plain Optuna, one worker: SQLite 113 trials left RUNNING after 156 kills; journal file 16 after 135")


if __name__ == "__main__":
    main()
