"""Measures how long commands take before any training: `python benchmarks/startup.py`, about five minutes.

Each command runs in a new process, in random order, and is compared with a bare import of the library that it cannot do
without: Hydra for the config, NumPy and PyYAML for a diagnosis, and for logs of 100 MB, Python's own reading of JSON
and of lines.
Then the default sweep is started, and stopped at its first optimizer step, and compared with a bare import of torch,
transformers and peft. Seconds of CPU count, of all processes: they depend less on what else the machine does.
`--before CHECKOUT` starts the default sweep of an earlier checkout in turn with this one's.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from common import RESULTS, about, save, table

BARE = {
    "import hydra": ["-c", "import hydra"],
    "import numpy, yaml": ["-c", "import numpy, yaml"],
    "json.load of the 100 MB": ["-c", "import json; json.load(open('large.json'))"],
    "the lines of the 100 MB": ["-c", "open('large.log').read().split('\\n')"],
    "import torch, transformers, peft": [
        "-c",
        "import torch, transformers, peft; peft.LoraConfig; transformers.Trainer",
    ],
}
# Each command with what it is compared with.
COMMANDS = {
    "lrsweep --version": (["--version"], "import numpy, yaml"),
    "lrsweep --help": (["--help"], "import hydra"),
    "lrsweep export --help": (["export", "--help"], "import numpy, yaml"),
    "lrsweep list": (["list"], "import numpy, yaml"),
    "lrsweep +sweep=lora_lr --cfg job": (["+sweep=lora_lr", "--cfg", "job"], "import hydra"),
    "an error: optimizer.lr=-1": (["+sweep=lora_lr", "optimizer.lr=-1"], "import hydra"),
    "lrsweep diagnose metrics.jsonl": (["diagnose", "metrics.jsonl"], "import numpy, yaml"),
    "lrsweep diagnose large.json, 100 MB": (["diagnose", "large.json"], "json.load of the 100 MB"),
    "lrsweep diagnose large.log, 100 MB of printed lines": (["diagnose", "large.log"], "the lines of the 100 MB"),
}
FIRST_STEP = "the default sweep, to its first step"
BEFORE = f"{FIRST_STEP}, before"
LOG = "\n".join(f'{{"step": {step}, "loss": {3 - step / 50}}}' for step in range(1, 101))


def large_log() -> str:
    """The 100 MB of a trainer_state.json of a million steps."""
    rows = (
        {"epoch": step / 1e3, "grad_norm": 1.0, "learning_rate": 1e-4, "loss": 2 / (1 + step / 1e5), "step": step}
        for step in range(1_000_000)
    )
    return json.dumps({"log_history": list(rows)})


def printed_log() -> str:
    """100 MB of what a loop prints."""
    return "".join(
        f"12:00:01 INFO step={step} train_loss={2 / (1 + step / 1e5):.4f} lr=1e-4 time 23ms tokens 1234\n"
        for step in range(1_350_000)
    )


def cpu_seconds(arguments: Sequence[str], folder: str) -> float:
    """The seconds of CPU that Python takes with these arguments, with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_step(folder: Path, checkout: Path) -> tuple[float, float]:
    """Starts a checkout's default sweep in a new folder, and ends it at its first step; returns seconds, and of CPU."""
    folder.mkdir()
    command = [sys.executable, "-m", "lrsweep", "+sweep=lora_lr"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    started = time.monotonic()
    process = psutil.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    trials = folder / "outputs" / "lora_lr" / "trials"
    try:
        while not any('"step": 1,' in log.read_text() for log in trials.glob("*/metrics.jsonl")):
            if process.poll() is not None:
                raise RuntimeError(f"the sweep ended with {process.returncode} before its first step")
            time.sleep(0.05)
        took = time.monotonic() - started
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return took, sum(one.user + one.system for one in times)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="an earlier checkout, for the first step")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    arguments = parser.parse_args()
    calls = BARE | {name: ["-m", "lrsweep", *words] for name, (words, _) in COMMANDS.items()}
    against = {name: bare for name, (_, bare) in COMMANDS.items()} | {FIRST_STEP: "import torch, transformers, peft"}
    checkouts = {FIRST_STEP: Path(__file__).parents[1]}
    if arguments.before is not None:
        against[BEFORE] = against[FIRST_STEP]
        checkouts[BEFORE] = arguments.before.resolve()
    found: dict[str, list[float]] = {name: [] for name in (*calls, *checkouts)}
    waits: dict[str, list[float]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "metrics.jsonl").write_text(LOG)
        (Path(folder) / "large.json").write_text(large_log())
        (Path(folder) / "large.log").write_text(printed_log())
        for name in calls:
            cpu_seconds(calls[name], folder)  # fills the disk cache
        for repeat in range(arguments.repeats):
            for name in random.sample(list(calls), len(calls)):
                found[name].append(cpu_seconds(calls[name], folder))
            for name in random.sample(list(checkouts), len(checkouts)):
                took, cpu = first_step(Path(folder) / f"{repeat} {name}", checkouts[name])
                found[name].append(cpu)
                waits[name].append(took)
    median = {name: statistics.median(times) for name, times in found.items()}
    entries = [
        {
            "command": name,
            "cpu seconds": round(median[name], 2),
            "least": round(min(found[name]), 2),
            "times a bare import": round(median[name] / median[against[name]], 2) if name in against else None,
            "compared with": against.get(name),
        }
        for name in found
    ]
    print(table(list(entries[0]), [list(entry.values()) for entry in entries]))
    wait = {name: round(statistics.median(times), 1) for name, times in waits.items()}
    for name, seconds in wait.items():
        print(f"{name}: {seconds:.1f} s")
    known = {**about("torch", "transformers", "peft"), "seconds to the first step": wait[FIRST_STEP]}
    if BEFORE in wait:
        known["seconds to the first step, before"] = wait[BEFORE]
    save(arguments.out, known, commands=entries)


if __name__ == "__main__":
    main()
