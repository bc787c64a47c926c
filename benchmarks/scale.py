"""Measures how many workers one study supports: `python benchmarks/scale.py`, twenty minutes on two cores.

Real: PostgreSQL with its default settings (except for the number of connections), Optuna's storage, and lrsweep's
WorkerStudy, used as a worker uses it, with heartbeats. Simulated: the training, which is a sleep; a trial of 60 s
reports four evaluations. Every worker has its own WorkerStudy, connections and name. The workers are threads of up to
eight processes, so their own computations (Optuna's, in Python) share the cores of this one machine with the database;
on a cluster each worker has its own.

Part `saturation`: trials of no length, as many per second as possible. Part `minutes`: trials of 60 s, in real time.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psycopg
from common import RESULTS, about, save, table

from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.orchestration.liveness import Liveness, new_worker_name
from lrsweep.orchestration.worker import start_beating
from lrsweep.search.controller_study import ControllerStudy
from lrsweep.search.records import Record
from lrsweep.search.study_lifecycle import join_study, open_study
from lrsweep.search.sync_halving import EvalReport
from tests.orchestration.executors import postgres

WORKERS = (1, 8, 64, 256)
PROCESSES, EVALS = 8, 4
SEARCHES = {
    "tpe": ["+sweep=adamw_tpe"],
    "grid": ["+sweep=lora_lr", f"space.optimizer.lr={[round(1e-6 * 1.01**i, 12) for i in range(1000)]}"],
}


def config_of(search: str, trials: int, url: str) -> SweepConfig:
    """Returns the config of a sweep of `trials` trials with this search method and its study at `url`."""
    overrides = [*SEARCHES[search], f"name={search}", f"search={search}", f"search.n_trials={trials}"]
    return sweep_config([*overrides, f"search.storage='{url}'", "pruner=none", "tracking=none"])


def work(config: SweepConfig, folder: Path, seconds: float, start: float) -> dict[str, Any]:
    """Runs one worker until no trial is left.

    Returns:
        The seconds of each call, the numbers of the trials it finished, and how long it slept and ran.
    """
    axes = search_space.axes(config)
    liveness = Liveness(folder, new_worker_name())
    study = join_study(config, axes, folder, "none", liveness)
    start_beating(study, liveness.worker)
    time.sleep(max(0.0, start - time.time()))
    took: dict[str, list[float]] = {"ask": [], "report": [], "tell": []}
    finished: list[int] = []
    slept, begun = 0.0, time.monotonic()

    def timed(name: str, call: Any, *arguments: Any) -> Any:
        at = time.monotonic()
        answer = call(*arguments)
        took[name].append(time.monotonic() - at)
        return answer

    while (taken := timed("ask", study.next)) is not None:
        number, spec = taken
        loss = 3.0
        for step in range(1, EVALS + 1):
            pause = seconds / EVALS * random.uniform(0.8, 1.2)
            at = time.monotonic()
            time.sleep(pause)
            slept += time.monotonic() - at
            loss = 4.0 - step / EVALS + random.random()
            timed("report", study.report, [EvalReport(number, step, EVALS, 0, loss)])
        timed("tell", study.tell, Record(number, spec, "complete", EVALS, loss, "", "sleep"))
        finished.append(number)
    took["ask"].pop()  # the last one, which found no trial left
    ran = time.monotonic() - begun
    liveness.close()
    return {"took": took, "finished": finished, "slept": slept, "ran": ran}


def several(config: SweepConfig, folder: Path, count: int, seconds: float, start: float) -> list[dict[str, Any]]:
    """Runs `count` workers as threads of this process."""
    with ThreadPoolExecutor(count) as threads:
        return [done.result() for done in [threads.submit(work, config, folder, seconds, start) for _ in range(count)]]


def measure(url: str, search: str, workers: int, trials: int, seconds: float) -> dict[str, Any]:
    """Runs a sweep of `trials` trials on `workers` workers; returns an entry of the results file."""
    config = config_of(search, trials, url)
    with tempfile.TemporaryDirectory() as place, connections(url) as most:
        folder = Path(place)
        study = open_study(config, search_space.axes(config), folder, "none")
        controller = Liveness(folder, new_worker_name())
        study.open(controller.worker, {})
        shares = [len(range(i, workers, PROCESSES)) for i in range(min(PROCESSES, workers))]
        load_before = os.getloadavg()[0]
        # Imports and joining the study are not measured.
        start = time.time() + 20 + workers * 0.4
        with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn")) as pool:
            cpu = os.times()
            jobs = [pool.submit(several, config, folder, share, seconds, start) for share in shares]
            while not all(job.done() for job in jobs):
                # As the controller does.
                study.finished(), study.trials(), study.records()
                time.sleep(1.0)
            done = [one for job in jobs for one in job.result()]
        controller.close()
        used = os.times()
        row = {
            "search": search,
            "workers": workers,
            "trials": trials,
            "trial_seconds": seconds,
            **check(study, done, trials),
            **summary(done),
            "most_connections": max(most),
            "load": [round(load_before, 1), round(os.getloadavg()[0], 1)],
            "cpu_seconds": round(
                used.children_user + used.children_system - cpu.children_user - cpu.children_system, 1
            ),
        }
        postgres.empty(url)
    return row


def check(study: ControllerStudy, done: Sequence[dict[str, Any]], trials: int) -> dict[str, int]:
    """Counts trials that are lost (not complete in the study), and that were finished by more than one worker."""
    times = Counter(number for one in done for number in one["finished"])
    complete = {record.number for record in study.records() if record.status == "complete"}
    return {"lost": trials - len(complete), "repeated": sum(count - 1 for count in times.values())}


def summary(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the times and rates of an entry of the results file."""
    found: dict[str, Any] = {}
    for name in ("ask", "report", "tell"):
        took = sorted(second for one in done for second in one["took"][name])
        found[f"{name}_ms"] = round(1000 * took[len(took) // 2], 1)
        found[f"{name}_ms_p95"] = round(1000 * took[int(len(took) * 0.95)], 1)
    ran, slept = sum(one["ran"] for one in done), sum(one["slept"] for one in done)
    longest = max(one["ran"] for one in done)
    found["seconds"] = round(longest, 1)
    found["trials_per_second"] = round(sum(len(one["finished"]) for one in done) / longest, 2)
    # Time spent waiting for the study: from the first call, made by all workers at once, to the call that finds no
    # trial left; and the part of it after a worker's first trial has begun.
    found["idle_percent"] = round(100 * (1 - slept / ran), 2)
    began = sum(one["took"]["ask"][0] for one in done if one["took"]["ask"])
    found["idle_percent_once_begun"] = round(100 * (1 - slept / (ran - began)), 2)
    return found


@contextlib.contextmanager
def connections(url: str) -> Iterator[list[int]]:
    """Counts the connections to the database ten times a second, in the list that it yields."""
    counts, stop = [0], threading.Event()

    def count() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.wait(0.1):
                row = connection.execute(
                    "select count(*) from pg_stat_activity where backend_type = 'client backend'"
                ).fetchone()
                counts.append(row[0] - 1 if row else 0)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS, help="numbers of workers, one sweep each")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a trial in part minutes")
    parser.add_argument("--each", type=int, default=3, help="trials per worker in part minutes")
    parser.add_argument("--searches", nargs="*", default=["tpe"], choices=sorted(SEARCHES))
    parser.add_argument("--parts", nargs="*", default=["saturation", "minutes"], choices=["saturation", "minutes"])
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with postgres.server("max_connections=600") as url:
        for part in arguments.parts:
            for search in arguments.searches:
                for workers in arguments.workers:
                    trials = max(48, workers) if part == "saturation" else arguments.each * workers
                    seconds = 0.0 if part == "saturation" else arguments.seconds
                    rows.append({"part": part, **measure(url, search, workers, trials, seconds)})
                    print(json.dumps(rows[-1]), flush=True)
    columns = (
        "part",
        "search",
        "workers",
        "trials",
        "lost",
        "repeated",
        "trials_per_second",
        "ask_ms",
        "ask_ms_p95",
        "report_ms",
        "tell_ms",
        "tell_ms_p95",
        "idle_percent",
        "idle_percent_once_begun",
        "most_connections",
    )
    print(table(columns, [[row[column] for column in columns] for row in rows]))
    save(arguments.out, about("optuna", "sqlalchemy", "psycopg"), rows=rows)


if __name__ == "__main__":
    main()
