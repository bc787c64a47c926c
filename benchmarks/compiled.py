"""Measures what torch.compile costs a sweep on a CPU: `python benchmarks/compiled.py`, four minutes.

Runs the same two packed trials of eight steps on the embedded model, with and without a compiled decoder, each run in
its own process. Reports the total seconds, compilation included, and the largest difference between the losses.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

from lrsweep.files.metrics_log import read_metrics

COMMAND = [
    "+sweep=lora_lr",
    "search=grid",
    "name=compiled",
    "space.optimizer.lr=[1e-3,3e-3]",
    "training.max_steps=8",
    "training.eval_every=4",
    "data.max_eval_rows=16",
    "search.preflight=false",
    "tracking=none",
    "engine=packed",
]


def run(folder: Path, compiled: bool) -> dict[str, Any]:
    """Runs the sweep once in a new folder."""
    folder.mkdir()
    begun = time.monotonic()
    command = [sys.executable, "-m", "lrsweep", *COMMAND, f"engine.compile={compiled}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = time.monotonic() - begun
    trials = [read_metrics(folder / "outputs" / "compiled" / "trials" / f"{number:04d}") for number in (0, 1)]
    losses = [value for rows in trials for row in rows for name, value in row.items() if name in ("loss", "eval_loss")]
    return {"compiled": compiled, "seconds": round(seconds, 1), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "compiled.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        runs = [run(Path(parent) / str(compiled), compiled) for compiled in (False, True)]
    plain, compiled = (found.pop("losses") for found in runs)
    apart = max(abs(a - b) for a, b in zip(plain, compiled, strict=True))
    print(table(["compiled", "seconds"], [[found["compiled"], found["seconds"]] for found in runs]))
    print(f"{len(plain)} losses, the largest difference is {apart:.1e}")
    save(arguments.out, about("torch") | {"losses": len(plain), "apart": apart}, runs=runs)


if __name__ == "__main__":
    main()
