"""The tests of packed trials, on this device."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

from gpu.models import ON_GPU
from gpu.steps import Found, Step, arguments_of_child, run_steps

ROOT = Path(__file__).parents[2]
# The tests to run of each file: tiny models are all launches, so that a GPU takes as long as a CPU.
FILES = {
    "tests/training/packing/test_kernels.py": "",
    "tests/training/packing/test_graphs.py": "",
    "tests/training/packing/test_equivalence.py": "float32",
    "tests/training/packing/test_unpadded.py": "llama or qwen2",
    "tests/training/engines/test_packed.py": "bfloat16 or out_of_memory or diverged",
}
SMOKE = {"tests/training/packing/test_equivalence.py": "float32 and qwen2"}


def tested(file: str, chosen: str, log: Path) -> Found:
    """Runs tests of a file; each that fails comes with the command that repeats it."""
    device = "cuda" if ON_GPU else "cpu"
    command = [
        "-m",
        "pytest",
        file,
        "-o",
        "filterwarnings=",
        "-p",
        "no:cacheprovider",
        "--maxfail=6",
        "--durations=0",
        "-k",
        chosen,
    ]
    # Into a file as it comes: what is cut off is told too.
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "LRSWEEP_TEST_DEVICE": device},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    text = log.read_text(encoding="utf-8")
    if "No module named pytest" in text:
        return {"ok": None, "skipped": "pytest is not installed"}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    counted = re.findall(r"(\d+) (passed|failed|error)", text)
    found: Found = {word: int(count) for count, word in counted} | {"ok": done.returncode == 0}
    if failed:
        found["reproduce"] = f"LRSWEEP_TEST_DEVICE={device} python -m pytest '{failed[0]}'"
        found["failed"] = ", ".join(failed)
    return found


def main() -> None:
    arguments = arguments_of_child()
    files = SMOKE if arguments.smoke else FILES
    steps = []
    for file, chosen in files.items():
        log = arguments.events.with_name(f"{Path(file).stem}.log")
        steps.append(Step(file, 60, functools.partial(tested, file, chosen, log)))
    run_steps(steps, arguments)


if __name__ == "__main__":
    main()
