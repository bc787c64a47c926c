"""A sweep of 16 grid points by a trainer that computes nothing, and what has to be true of it once it has run."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import command_line

TRAINER = Path(__file__).with_name("light_trainer.py")
POINTS = 16
STEPS = 8


def grid(seconds_a_step: float = 0.05) -> list[str]:
    """The command line of 16 grid points, each STEPS steps long."""
    return [
        "+sweep=lora_lr",
        "name=grid",
        "model.path=none",
        "search.prior=false",
        "space.optimizer.lr=[1e-5,3e-5,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2]",
        "space.optimizer.weight_decay=[0.0,0.1]",
        f"training.max_steps={STEPS}",
        "training.eval_every=2",
        "engine=external",
        "engine.dialect=transformers",
        f"engine.command='{sys.executable} {TRAINER} {{config}} {seconds_a_step}'",
    ]


@dataclass
class Sweep:
    """A sweep as a process, in `folder`."""

    process: subprocess.Popen[str]
    folder: Path
    name: str = "grid"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs" / self.name

    def wait(self, seconds: float = 240) -> tuple[int, str]:
        """Its exit code, and all it said."""
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def wait_for_trials(self, count: int, seconds: float = 120) -> None:
        """Returns once so many trials have ended."""
        until = time.monotonic() + seconds
        while len(list(self.outputs.glob("trials/*/outcome.json"))) < count:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < until, f"fewer than {count} trials in {seconds} s"
            time.sleep(0.05)

    def workers(self) -> list[int]:
        """The processes that train this sweep's trials."""
        found = [pid for pid in children("lrsweep.orchestration.executors.worker_main") if cwd(pid) == self.folder]
        # What a worker starts is a copy of it for a moment.
        return [pid for pid in found if parent(pid) not in found]


def start(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Sweep:
    """Starts a sweep; the caller waits for it."""
    process = subprocess.Popen(
        command_line(*arguments),
        cwd=folder,
        env={**os.environ, "COLUMNS": "160", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Sweep(process, folder)


def children(words: str) -> list[int]:
    """The processes with these words in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words.encode() in path.read_bytes().replace(b"\0", b" "):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def cwd(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None


def kill_one(sweep: Sweep) -> None:
    """Kills a worker; what it is training notices by itself."""
    os.kill(sweep.workers()[-1], signal.SIGKILL)


def check_complete(folder: Path, points: int = POINTS) -> dict[str, Any]:
    """Every grid point once, all complete, the best the best there is, and all of it in MLflow; the summary."""
    ours = folder / "outputs" / "grid"
    summary: dict[str, Any] = json.loads((ours / "summary.json").read_text())
    values = Counter(json.dumps(trial["values"]) for trial in summary["trials"])
    assert len(values) == points
    assert set(values.values()) == {1}
    assert {trial["status"] for trial in summary["trials"]} == {"complete"}
    assert sorted(trial["number"] for trial in summary["trials"]) == list(range(points))
    for trial in summary["trials"]:
        lr, decay = trial["values"]["optimizer.lr"], trial["values"]["optimizer.weight_decay"]
        assert abs(trial["eval_loss"] - (3.1 + (math.log10(lr) + 3) ** 2 + decay)) < 1e-9
    assert summary["best"]["values"] == {"optimizer.lr": 1e-3, "optimizer.weight_decay": 0.0}
    check_mlflow(folder, points)
    return summary


def begun(folder: Path) -> dict[int, int]:
    """How often each trial's trainer has been started."""
    found = (folder / "outputs" / "grid" / "trials").glob("*/run/begun")
    return {int(path.parts[-3]): len(path.read_text().splitlines()) for path in found}


def check_mlflow(folder: Path, trials: int) -> None:
    """One finished run for each trial, with every point of its curves, once."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = dict(
            database.execute(
                "select t.value, r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'trial' "
                "where r.lifecycle_stage = 'active' and r.status = 'FINISHED'"
            ).fetchall()
        )
        unfinished = database.execute(
            "select count(*) from runs where status = 'RUNNING' and lifecycle_stage = 'active'"
        ).fetchone()[0]
        points: Sequence[tuple[str, str, int]] = database.execute(
            "select run_uuid, key, step from metrics where key in ('loss', 'eval_loss')"
        ).fetchall()
    assert sorted(int(number) for number in runs) == list(range(trials))
    assert unfinished == 0
    steps: dict[tuple[str, str], list[int]] = {}
    for run, key, step in points:
        steps.setdefault((run, key), []).append(step)
    for run in runs.values():
        assert sorted(steps[run, "loss"]) == list(range(1, STEPS + 1))
        assert sorted(steps[run, "eval_loss"]) == list(range(2, STEPS + 1, 2))
