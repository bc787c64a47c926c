"""Measures what search.replicates=auto costs the default sweep: `python benchmarks/replicates.py`, about ten minutes.

Runs the default sweep (`refine`), and the same rates as a whole grid, with replicates and without in turn, each in a
fresh process, and counts steps and seconds. Writes `results/replicates.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

SEARCHES = ("refine", "grid")


def sweep(search: str, replicates: str) -> dict[str, Any]:
    """Runs a sweep; returns its trials, steps and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "lrsweep", "+sweep=lora_lr", f"search={search}", f"search.replicates={replicates}"],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - started
        trials = json.loads((Path(folder) / "outputs/lora_lr/summary.json").read_text())["trials"]
    return {
        "search": search,
        "replicates": replicates,
        "trials": len(trials),
        "steps": sum(trial["step"] for trial in trials),
        "seconds": round(seconds, 1),
    }


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """What replicates cost: the runs without them and with them, in turn."""
    once, auto = runs[::2], runs[1::2]
    return {
        "more_steps": round(auto[0]["steps"] / once[0]["steps"] - 1, 3),
        "more_seconds_median": round(
            statistics.median(b["seconds"] / a["seconds"] - 1 for a, b in zip(once, auto, strict=True)), 3
        ),
        "more_seconds_by_the_fastest": round(
            min(run["seconds"] for run in auto) / min(run["seconds"] for run in once) - 1, 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "replicates.json")
    arguments = parser.parse_args()
    runs = [
        sweep(search, replicates)
        for _ in range(arguments.repeats)
        for search in SEARCHES
        for replicates in ("1", "auto")
    ]
    print(table(list(runs[0]), [list(run.values()) for run in runs]))
    found = {search: ratios([run for run in runs if run["search"] == search]) for search in SEARCHES}
    print(found)
    save(arguments.out, about("torch", "transformers", "peft", "mlflow") | found, runs=runs)


if __name__ == "__main__":
    main()
