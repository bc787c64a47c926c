"""How many workers one study bears: `python benchmarks/scale.py`, twenty minutes on two cores.

Real: PostgreSQL with its default settings (but for the number of connections), Optuna's storage, our own Study, asked and told
as a worker does it, with a worker's signs of life. Simulated: the training, which is sleep; a trial of 60 s reports
four evaluations. Every worker has a Study, connections and a name of its own; up to eight processes share them as threads, so
that the workers' own arithmetic (Optuna's, in Python) takes place on the cores of this one machine, and the database with it:
on a cluster each worker brings its own.

Part `saturation`: trials of no length at all, as many a second as there can be; part `minutes`: trials of 60 s, not scaled.
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
from tests.executors import postgres

from lrsweep.config import search_space
from lrsweep.config.hydra_compose import sweep_config
from lrsweep.config.schema import SweepConfig
from lrsweep.orchestration.liveness import Liveness, new_worker_name
from lrsweep.orchestration.worker import start_beating
from lrsweep.search.controller_study import Study
from lrsweep.search.records import Record
from lrsweep.search.study_lifecycle import join_study, open_study
from lrsweep.search.sync_halving import EvalReport

WORKERS = (1, 8, 64, 256)
PROCESSES, EVALS = 8, 4
SEARCHES = {
    "tpe": ["+sweep=adamw_tpe"],
    "grid": ["+sweep=lora_lr", f"space.optimizer.lr={[round(1e-6 * 1.01**i, 12) for i in range(1000)]}"],
}


def config_of(search: str, trials: int, url: str) -> SweepConfig:
    words = [*SEARCHES[search], f"name={search}", f"search={search}", f"search.n_trials={trials}"]
    return sweep_config([*words, f"search.storage='{url}'", "pruner=none", "tracking=none"])


def work(config: SweepConfig, folder: Path, seconds: float, start: float) -> dict[str, Any]:
    """One worker until nothing is left; how long each call took, what it told, how long it slept and was there."""
    axes = search_space.axes(config)
    presence = Liveness(folder, new_worker_name())
    study = join_study(config, axes, folder, "none", presence)
    start_beating(study)
    time.sleep(max(0.0, start - time.time()))
    took: dict[str, list[float]] = {"ask": [], "report": [], "tell": []}
    told: list[int] = []
    slept, begun = 0.0, time.monotonic()

    def timed(name: str, call: Any, *arguments: Any) -> Any:
        at = time.monotonic()
        answer = call(*arguments)
        took[name].append(time.monotonic() - at)
        return answer

    while (taken := timed("ask", study.next)) is not None:
        number, point = taken
        loss = 3.0
        for step in range(1, EVALS + 1):
            pause = seconds / EVALS * random.uniform(0.8, 1.2)
            at = time.monotonic()
            time.sleep(pause)
            slept += time.monotonic() - at
            loss = 4.0 - step / EVALS + random.random()
            timed("report", study.report, [EvalReport(number, step, EVALS, 0, loss)])
        timed("tell", study.tell, Record(number, point, "complete", EVALS, loss, "", "sleep"))
        told.append(number)
    took["ask"].pop()  # the one that says that there is nothing left
    there = time.monotonic() - begun
    presence.close()
    return {"took": took, "told": told, "slept": slept, "there": there}


def several(config: SweepConfig, folder: Path, count: int, seconds: float, start: float) -> list[dict[str, Any]]:
    """So many workers as threads of this process."""
    with ThreadPoolExecutor(count) as threads:
        return [done.result() for done in [threads.submit(work, config, folder, seconds, start) for _ in range(count)]]


def measure(url: str, search: str, workers: int, trials: int, seconds: float) -> dict[str, Any]:
    """A sweep of so many trials on so many workers."""
    config = config_of(search, trials, url)
    with tempfile.TemporaryDirectory() as place, connections(url) as most:
        folder = Path(place)
        study = open_study(config, search_space.axes(config), folder, "none")
        keeper = Liveness(folder, new_worker_name())
        study.keep(keeper)
        shares = [len(range(i, workers, PROCESSES)) for i in range(min(PROCESSES, workers))]
        load_before = os.getloadavg()[0]
        # Imports and joining are not what is measured.
        start = time.time() + 20 + workers * 0.4
        with ProcessPoolExecutor(len(shares), multiprocessing.get_context("spawn")) as pool:
            cpu = os.times()
            jobs = [pool.submit(several, config, folder, share, seconds, start) for share in shares]
            while not all(job.done() for job in jobs):
                # As the keeper does.
                study.finished(), study.trials(), study.records()
                time.sleep(1.0)
            done = [one for job in jobs for one in job.result()]
        keeper.close()
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


def check(study: Study, done: Sequence[dict[str, Any]], trials: int) -> dict[str, int]:
    """Trials that are lost (begun or asked for, and not in the study as complete), and told by more than one worker."""
    times = Counter(number for one in done for number in one["told"])
    complete = {record.number for record in study.records() if record.status == "complete"}
    return {"lost": trials - len(complete), "repeated": sum(count - 1 for count in times.values())}


def summary(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("ask", "report", "tell"):
        took = sorted(second for one in done for second in one["took"][name])
        found[f"{name}_ms"] = round(1000 * took[len(took) // 2], 1)
        found[f"{name}_ms_p95"] = round(1000 * took[int(len(took) * 0.95)], 1)
    there, slept = sum(one["there"] for one in done), sum(one["slept"] for one in done)
    found["seconds"] = round(max(one["there"] for one in done), 1)
    found["trials_per_second"] = round(sum(len(one["told"]) for one in done) / max(one["there"] for one in done), 2)
    # Waiting for the study: from the first question, all workers' at once, to the answer that nothing is left; and of that,
    # what comes after a worker's first trial has begun.
    found["idle_percent"] = round(100 * (1 - slept / there), 2)
    began = sum(one["took"]["ask"][0] for one in done if one["took"]["ask"])
    found["idle_percent_once_begun"] = round(100 * (1 - slept / (there - began)), 2)
    return found


@contextlib.contextmanager
def connections(url: str) -> Iterator[list[int]]:
    """How many connections there are, looked at ten times a second."""
    counts, stop = [0], threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.wait(0.1):
                row = connection.execute(
                    "select count(*) from pg_stat_activity where backend_type = 'client backend'"
                ).fetchone()
                counts.append(row[0] - 1 if row else 0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--each", type=int, default=3, help="trials a worker")
    parser.add_argument("--searches", nargs="*", default=["tpe"], choices=sorted(SEARCHES))
    parser.add_argument("--parts", nargs="*", default=["saturation", "minutes"])
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
