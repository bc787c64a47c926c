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
FILES = {
    "tests/training/packing/test_graphs.py": 60.0,
    "tests/training/packing/test_equivalence.py": 60.0,
    "tests/training/packing/test_unpadded.py": 60.0,
    "tests/training/engines/test_packed.py": 90.0,
}
SMOKE = {"tests/training/packing/test_equivalence.py": 60.0}


def tested(file: str, smoke: bool) -> Found:
    """Runs a file's tests; each that fails comes with the command that repeats it."""
    device = "cuda" if ON_GPU else "cpu"
    some = ["-k", "float32 and qwen2"] if smoke else []
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
        *some,
    ]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "LRSWEEP_TEST_DEVICE": device},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    if "No module named pytest" in done.stdout:
        return {"ok": None, "skipped": "pytest is not installed"}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    counted = re.findall(r"(\d+) (passed|failed|error)", done.stdout)
    found: Found = {word: int(count) for count, word in counted} | {"ok": done.returncode == 0}
    if failed:
        found["reproduce"] = f"LRSWEEP_TEST_DEVICE={device} python -m pytest '{failed[0]}'"
        found["failed"] = ", ".join(failed)
    return found


def main() -> None:
    arguments = arguments_of_child()
    files = SMOKE if arguments.smoke else FILES
    steps = [Step(file, limit, functools.partial(tested, file, arguments.smoke)) for file, limit in files.items()]
    run_steps(steps, arguments)


if __name__ == "__main__":
    main()
