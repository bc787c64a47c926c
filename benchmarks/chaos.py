"""Sends SIGKILLs at random points of sweeps and measures the cost: `python benchmarks/chaos.py --kills 200`, an hour.

Runs sweeps of a 16-point grid on the embedded model with 1, 2 and 4 workers, and with the packed and the trainer engine
in turn. Further arms: `external` runs a light trainer, `refine` searches the learning rate coarse to fine, and `pruned`
stops trials early. At a random moment after a training step has been logged, it kills one worker, or the controller, or
all processes. If the controller was killed, the same command runs again, until the sweep is complete. Then the next
sweep starts, until there have been enough kills.

Checked after every kill: no completed trial is lost or repeated, and a trial has logged at most one checkpoint interval
of steps after its last checkpoint. Checked at the end of a sweep: 16 of 16 trials are complete, each point once;
nothing is RUNNING in Optuna or MLflow; each trial's curve in MLflow is complete, each step once; the best trial and the
losses are those of a sweep without kills. A trial whose worker was killed three times between two evaluations is given
up, as documented, and counted. With the external engine, at most one trainer runs for a trial, ever: each
trainer locks its folder. A pruned search ends with its number of trials, complete or pruned; which are pruned depends
on who was there to compare with. `--arms packed:4 trainer:1` runs only these arms, and `--add` keeps the
sweeps in the results file.

Plain Optuna for comparison (one worker, a 16-point grid, 4 sweeps per storage, half of each unfinished after 80 s):
with SQLite, 113 trials stayed RUNNING after 156 kills; with a journal file, 16 after 135.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.faults.disk import TRAINER

EVERY, STEPS, POINTS = 4, 16, 16
COMMAND = [
    "name=chaos",
    f"training.max_steps={STEPS}",
    f"training.eval_every={EVERY}",
    "training.checkpoint_seconds=0",
    "training.save_adapter=false",
    "data.max_eval_rows=32",
    "search.preflight=false",
    "search.replicates=1",
]
_GRID = [
    "space.optimizer.lr=[1e-5,3e-5,1e-4,3e-4,1e-3,2e-3,3e-3,5e-3]",
    "space.optimizer.weight_decay=[0.0,0.1]",
    "search=grid",
]
_RANGE = "space.optimizer.lr={low:1e-5,high:1e-2,log:true}"
ENGINES = {
    "packed": [*_GRID, "engine=packed", "engine.slots=4"],
    "trainer": [*_GRID, "engine=trainer"],
    "external": [
        *_GRID,
        "model.path=none",
        "search.prior=false",
        "engine=external",
        "engine.dialect=transformers",
        "engine.slots=2",
        f"engine.command='{sys.executable} {TRAINER} {{config}} 0.1'",
    ],
    "refine": [_RANGE, "search=refine", "engine=packed", "engine.slots=4"],
    "pruned": [
        _RANGE,
        "engine=packed",
        "engine.slots=4",
        "search=random",
        f"search.n_trials={POINTS}",
        "pruner=sync_halving",
    ],
}
# Those whose trials do not train to their end, or whose number is not known.
SEARCHES = ("refine", "pruned")
# Engine and number of workers; sweeps use them in turn.
ARMS = [
    ("packed", 1),
    ("trainer", 2),
    ("external", 2),
    ("packed", 2),
    ("trainer", 1),
    ("refine", 1),
    ("packed", 4),
    ("trainer", 4),
    ("pruned", 1),
]
# Who is killed, and how often relative to each other. "keeper" is the controller: the name in results files.
VICTIMS = {"all": 2, "worker": 2, "keeper": 1}
# The module that a worker process runs.
WORKER = "lrsweep.orchestration.executors.worker_main"
# Kills per sweep at most; seconds between a logged step and a kill at most.
MOST_A_SWEEP, LATEST = 12, 6.0


class BrokenPromiseError(AssertionError):
    """A check that failed."""


@dataclass
class Sweep:
    """One sweep in its own folder.

    Attributes:
        folder: Its working folder.
        engine: A key of ENGINES.
        workers: Its number of workers.
        kills: Kills so far, by victim.
        runs: How often the command was run.
        lost: For each kill and each running trial, the steps that it must train again.
        done: The completed trials at the last check: parameters and loss.
    """

    folder: Path
    engine: str
    workers: int
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: list[int] = field(default_factory=list)
    done: dict[int, tuple[str, float | None]] = field(default_factory=dict)

    def run(self, most: int, draw: random.Random) -> dict[str, Any]:
        """Runs it to its end, with up to `most` kills; returns its `losses`.

        Raises:
            BrokenPromiseError: A check failed.
        """
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

    def _kill_someone(self, controller: subprocess.Popen[bytes], draw: random.Random) -> None:
        """Kills after a new step has been logged: kills during imports would test nothing."""
        before = self._logged()
        while controller.poll() is None and self._logged() == before:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, LATEST))
        if controller.poll() is not None:
            return
        workers = workers_of(controller)
        (victim,) = draw.choices(list(VICTIMS), list(VICTIMS.values()))
        processes = draw.sample(workers, 1) if victim == "worker" and workers else workers if victim == "all" else []
        # The controller first: it must not notice the death of its workers.
        if victim != "worker":
            controller.kill()
            controller.wait()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.kills[victim] += 1
        if victim == "keeper":
            psutil.wait_procs(workers, timeout=60)  # they checkpoint and exit
        states = {number: state for number, (state, _, _) in self._trials().items()}
        if self.engine == "external":
            return  # the user's trainer has no checkpoints of ours
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
            raise BrokenPromiseError(f"{max(self.lost)} steps must be trained again, more than the interval of {EVERY}")
        self.done = now
        if both := sorted(self.folder.rglob("two")):
            raise BrokenPromiseError(f"two trainers at once in {both[0].parent}")

    def _check_end(self) -> None:
        found = self._trials()
        states = Counter(state for state, _, _ in found.values())
        points = {params for _, params, _ in found.values()}
        searched = self.engine in SEARCHES
        given_up = self.given_up()
        done = {"COMPLETE": POINTS - len(given_up)} | ({"FAIL": len(given_up)} if given_up else {})
        whole_grid = states == done and len(points) == POINTS and 3 * len(given_up) <= self.kills.total()
        ended = states.keys() <= {"COMPLETE", "PRUNED"} and (self.engine == "refine" or states.total() == POINTS)
        if not (ended if searched else whole_grid):
            raise BrokenPromiseError(f"{len(points)} points, {states}")
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db")) as database:
            active = "from runs where lifecycle_stage = 'active'"
            (running,) = database.execute(f"select count(*) {active} and status = 'RUNNING'").fetchone()
            if running:
                raise BrokenPromiseError(f"MLflow: {running} RUNNING")
            curves = database.execute(
                "select run_uuid, key, count(*), count(distinct step) from metrics"
                f" where run_uuid in (select run_uuid {active}) and key in ('loss', 'eval_loss') group by run_uuid, key"
            ).fetchall()
        # A trainer of the user's does not evaluate before step 1.
        evals = STEPS // EVERY + (self.engine != "external")
        whole = {"loss": (STEPS, STEPS), "eval_loss": (evals, evals)}
        cut = [c for c in curves if c[2:] != whole[c[1]]]
        twice = [c for c in curves if c[2] != c[3]]
        # A trial that was given up may have come to no point of either curve.
        if twice or (len(cut) > 2 * len(given_up) and not searched) or len(curves) + 2 * len(given_up) < 2 * len(found):
            raise BrokenPromiseError(f"MLflow: {len(curves)} curves: {Counter(c[1:] for c in curves)}")

    def _summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "outputs" / "chaos" / "summary.json").read_text())
        return found

    def given_up(self) -> list[str]:
        """Returns the points whose worker was killed three times between two evaluations."""
        killed = "died 3 times: killed by SIGKILL"
        return [json.dumps(trial["values"]) for trial in self._summary()["trials"] if killed in (trial["reason"] or "")]

    def losses(self) -> dict[str, Any]:
        """Returns the best trial's parameters, and the loss of every point that was not given up."""
        summary, given_up = self._summary(), self.given_up()
        losses = {json.dumps(trial["values"]): trial["eval_loss"] for trial in summary["trials"]}
        return {
            "best": json.dumps(summary["best"]["values"]),
            "losses": {point: loss for point, loss in losses.items() if point not in given_up},
        }

    def _trial(self, number: int) -> Path:
        return self.folder / "outputs" / "chaos" / "trials" / f"{number:04d}"

    def _logged(self) -> dict[int, list[int]]:
        """Returns the steps in each trial's log."""
        logs = sorted((self.folder / "outputs" / "chaos" / "trials").glob("*/metrics.jsonl"))
        return {int(p.parent.name): [int(r["step"]) for r in read_metrics(p.parent) if "loss" in r] for p in logs}

    def _trials(self) -> dict[int, tuple[str, str, float | None]]:
        """Returns each trial in the study: state, parameters, loss."""
        file = self.folder / "outputs" / "chaos" / "study.db"
        if not file.exists():
            return {}
        # Not read-only: the next connection must roll back what a kill left half written.
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
                return {}  # being created
        for trial, name, value in rows:
            params.setdefault(trial, []).append(f"{name}={value}")
        return {n: (state, " ".join(sorted(params.get(i, []))), values.get(i)) for i, n, state in states}


def workers_of(controller: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Returns the controller's worker processes; any of them may end meanwhile."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(controller.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # also raised for a zombie
                if WORKER in " ".join(process.cmdline()):
                    found.append(process)
    return found


def kept_step(trial: Path) -> int:
    """Returns the step of a trial's last checkpoint; 0 without one."""
    for name in ("checkpoint", "checkpoint.previous"):
        with contextlib.suppress(OSError, ValueError):
            json.loads((trial / name / "manifest.json").read_text())
            return int(json.loads((trial / name / "state.json").read_text())["step"])
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in total")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--arms", nargs="+", default=[f"{engine}:{workers}" for engine, workers in ARMS], metavar="ENGINE:WORKERS"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json")
    parser.add_argument("--add", action="store_true", help="keep the sweeps in the results file")
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
            alone = undisturbed[engine]
            given_up = one.given_up()
            pairs = [
                (end["losses"].get(point), loss) for point, loss in alone["losses"].items() if point not in given_up
            ]
            if engine == "pruned":
                # Which trials are stopped, and what is sampled next, depends on what is there to compare with.
                pairs, alone = [], end
            apart = max([abs((own or 0) - (loss or 0)) for own, loss in pairs], default=0.0)
            if (end["best"] != alone["best"] and alone["best"] not in given_up) or apart > 1e-3:
                raise BrokenPromiseError(f"best {end['best']}, without kills {alone['best']}; losses differ by {apart}")
        except BrokenPromiseError as broken:
            sys.exit(f"{engine}, {workers} workers, after {dict(one.kills)}: {broken}; see {one.folder}")
        kills += one.kills.total()
        entries.append(
            {
                "engine": engine,
                "workers": workers,
                "kills": dict(one.kills),
                "runs": one.runs,
                "given_up": len(given_up),
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
            sum(e.get("given_up", 0) for e in own),
            sum(e["steps_again"] for e in own),
            max(e["most_steps_again"] for e in own),
            f"{max(e['losses_apart'] for e in own):.1e}",
        ]
        for engine, workers in ARMS
        if (own := [e for e in entries if (e["engine"], e["workers"]) == (engine, workers)])
    ]
    header = [
        "engine",
        "workers",
        "sweeps",
        *VICTIMS,
        "given up",
        "repeated steps",
        "most per trial",
        "losses differ by",
    ]
    print(table(header, rows))
    print(f"{kills} kills: 0 completed trials lost, 0 repeated, all others whole, 0 RUNNING, the same best trial")
    print("plain Optuna, one worker: SQLite 113 trials left RUNNING after 156 kills; journal file 16 after 135")


if __name__ == "__main__":
    main()
