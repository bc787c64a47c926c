"""Measures the seconds that a command without training takes: `python benchmarks/startup.py`, about a minute.

Each command runs in a new process, in random order. For comparison: the interpreter alone, and the interpreter with
torch imported, which is the cost of an unnecessary import.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, about, save, table

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "lrsweep --help": ["-m", "lrsweep", "--help"],
    "lrsweep --version": ["-m", "lrsweep", "--version"],
    "lrsweep export --help": ["-m", "lrsweep", "export", "--help"],
    "lrsweep +sweep=lora_lr --cfg job": ["-m", "lrsweep", "+sweep=lora_lr", "--cfg", "job"],
    "an error: optimizer.lr=-1": ["-m", "lrsweep", "+sweep=lora_lr", "optimizer.lr=-1"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def seconds(arguments: list[str], folder: str) -> float:
    """Returns the seconds that Python takes with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for name in COMMANDS:
            seconds(COMMANDS[name], folder)  # fills the disk cache
        for _ in range(arguments.repeats):
            for name in random.sample(list(COMMANDS), len(COMMANDS)):
                found[name].append(seconds(COMMANDS[name], folder))
    rows = [[name, f"{min(times):.2f}", f"{statistics.median(times):.2f}"] for name, times in found.items()]
    print(table(["seconds", "min", "median"], rows))
    entries = [
        {"command": name, "min": round(min(times), 3), "median": round(statistics.median(times), 3)}
        for name, times in found.items()
    ]
    save(arguments.out, about(), commands=entries)


if __name__ == "__main__":
    main()
