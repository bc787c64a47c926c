"""Checks and measures packed trials on one GPU: `python benchmarks/gpu_check.py --out FOLDER`, nine minutes at most.

In this order: whether packed trials are right on the device, how fast they are, a whole sweep, tests of packed trials,
where the time of a step goes, and last the slow arms with a compiled decoder. Each part is a process of its own,
each step has a time limit, and a process that dies or hangs is replaced by one that goes on with the next step. The
last line says whether all gates hold; the exit code is 1 if one is broken, and its smallest reproduction is printed.

Needs torch, transformers, peft, and what `benchmarks/gpu/wheels.sh` fetches. Downloads nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from common import RESULTS, about, save  # noqa: E402
from gpu.report import gates, summary  # noqa: E402
from gpu.steps import supervise  # noqa: E402


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: Its name, and that of its files.
        module: What runs it, with arguments.
        most: The seconds that it may take.
        least: The seconds that are kept for it, if it could need them.
    """

    name: str
    module: tuple[str, ...]
    most: float
    least: float


BUDGET = 540.0
PARTS = (
    Part("correctness", ("gpu.correctness",), 160, 100),
    Part("speed", ("gpu.speed",), 200, 120),
    Part("sweep", ("gpu.whole_sweep",), 100, 60),
    Part("tests", ("gpu.packed_tests",), 80, 40),
    Part("kernels", ("gpu.kernels",), 50, 30),
    Part("compiled", ("gpu.speed", "--slow"), 540, 0),
)


def child_environment() -> dict[str, str]:
    """Offline, and with this checkout first on the path."""
    paths = [str(HERE), str(HERE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def check(out: Path, budget: float, smoke: bool, only: list[str]) -> list[dict[str, Any]]:
    """Runs the parts; returns what their steps found."""
    begun, entries = time.monotonic(), []
    known = about("torch", "transformers", "peft", "accelerate") | driver()
    print(f"{known['hardware']}: {budget:g} s at most, results in {out}", flush=True)
    parts = [part for part in PARTS if not only or part.name in only]
    for i, part in enumerate(parts):
        reserved = sum(later.least for later in parts[i + 1 :])
        until = min(time.monotonic() + part.most * budget / BUDGET, begun + budget - reserved * budget / BUDGET)
        command = [sys.executable, "-m", *part.module]
        for event in supervise(command, out / f"{part.name}.jsonl", until, child_environment(), smoke=smoke):
            entry = {"part": part.name, "name": event.pop("end"), **event}
            entries.append(entry)
            print(f"{time.monotonic() - begun:4.0f} s  {line(entry)}", flush=True)
            save(out / "results.json", known | {"smoke": smoke}, steps=entries)
    known |= {"seconds": round(time.monotonic() - begun), "smoke": smoke}
    save(out / "results.json", known, steps=entries)
    return entries


def driver() -> dict[str, Any]:
    """The GPU driver's version and the card, as nvidia-smi tells them."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    return {"nvidia_smi": done.stdout.strip().splitlines()}


def line(entry: dict[str, Any]) -> str:
    """An entry in one line, with its smallest reproduction if it is broken."""
    verdict = {True: "ok", False: "BROKEN", None: ""}[entry["ok"]]
    hidden = {"part", "name", "ok", "reproduce", "model", "batch", "arm", "k", "seconds", "eval_losses", "kernels"}
    facts = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in hidden)
    text = f"{entry['part']}: {entry['name']}: {facts} {verdict}".rstrip()
    return text + (f"\n        reproduce: {entry['reproduce']}" if "reproduce" in entry else "")


def reproduce(name: str, changed: str) -> int:
    """Repeats one check of correctness."""
    sys.path.insert(0, str(HERE))
    from gpu.correctness import CHECKS, Case

    case = Case(**json.loads(changed))
    found = CHECKS[name](case)
    print(case, found, sep="\n")
    return 0 if found["ok"] is not False else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the folder for the results; default benchmarks/results/gpu/DATE-CARD")
    parser.add_argument("--budget-seconds", type=float, help=f"default {BUDGET:g}, or an hour with --smoke")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any machine: does it run?")
    parser.add_argument("--only", action="append", default=[], choices=[part.name for part in PARTS])
    parser.add_argument("--reproduce", nargs=2, metavar=("CHECK", "CASE"), help="repeat one check of correctness")
    arguments = parser.parse_args()
    if arguments.reproduce:
        return reproduce(*arguments.reproduce)
    out = arguments.out
    if out is None:
        known = about("torch")
        out = RESULTS / "gpu" / f"{known['date']}-{known['hardware'].replace(' ', '-')}"
    out.mkdir(parents=True, exist_ok=True)
    budget = arguments.budget_seconds or (3600.0 if arguments.smoke else BUDGET)
    entries = check(out, budget, arguments.smoke, arguments.only)
    text = summary(entries)
    (out / "summary.md").write_text(text, encoding="utf-8")
    print("\n" + text)
    broken = [entry for entry in entries if entry["ok"] is False]
    for entry in broken:
        print(line(entry))
    print(f"{len(broken)} broken" if broken else f"all {gates(entries)} gates hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
