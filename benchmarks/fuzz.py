"""Tries random command lines, configs and files for an hour: `python benchmarks/fuzz.py`.

Each input is a command line of `lrsweep`, with a file that it reads broken at a random place. It must end in an answer,
or in one line on stderr and exit code 2, 3 or 4; never in a traceback, a dead process or a wait of two minutes.
Inputs run one after another in a child process, which is replaced after some hundreds, or if it dies. A fault does not
end the campaign: all are listed.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import RESULTS, about, save, table

sys.path.insert(0, str(Path(__file__).parents[1]))

# Inputs of one child, and the seconds after which one of them counts as a hang.
_BLOCK, _HANG = 300, 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, help="the first child's; default: random")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    until = time.monotonic() + 60 * arguments.minutes
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    tried: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
        number = seed
        while time.monotonic() < until:
            folder = Path(parent) / str(number)
            folder.mkdir()
            for event in block(folder, number, until):
                tried[event["kind"]] += 1
                if event["fault"] is not None:
                    faults.append(event | {"seed": number})
                    print(json.dumps(faults[-1]), flush=True)
            number += 1
    known = about("hypothesis", "hydra-core") | {
        "minutes": arguments.minutes,
        "first_seed": seed,
        "inputs": tried.total(),
        "faults": len(faults),
    }
    save(
        arguments.out,
        known,
        kinds=[{"kind": kind, "inputs": count} for kind, count in tried.most_common()],
        faults=faults,
    )
    print(table(["input", "tried"], tried.most_common()))
    print(f"{tried.total()} inputs, {len(faults)} faults")


def block(folder: Path, seed: int, until: float) -> list[dict[str, Any]]:
    """Runs one child; returns its inputs with their kind, arguments and fault."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", str(seed)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    events: list[dict[str, Any]] = []
    begun: dict[str, Any] | None = None
    hung = threading.Event()

    def kill() -> None:
        hung.set()
        process.kill()

    watchdog = threading.Timer(_HANG, kill)
    watchdog.start()
    for line in process.stdout:
        watchdog.cancel()
        watchdog = threading.Timer(_HANG, kill)
        watchdog.start()
        event = json.loads(line)
        begun = event if "fault" not in event else None
        if begun is None:
            events.append(event)
            if time.monotonic() > until:
                process.kill()
                break
    watchdog.cancel()
    code = process.wait()
    if begun is not None:
        events.append(
            begun | {"fault": f"no answer in {_HANG:g} s" if hung.is_set() else f"the process ended with {code}"}
        )
    return events


def child(seed: int) -> None:
    """Tries inputs in this process, and prints each before and after."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    from lrsweep.cli.main import main as lrsweep
    from tests.faults import fuzzing

    report = os.fdopen(os.dup(1), "w")
    # Commands print there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    folder = Path.cwd()
    fuzzing.prepare(folder)
    environment = dict(os.environ)

    def one(found: tuple[str, list[str], dict[str, bytes]]) -> None:
        kind, argv, files = found
        new = {"kind": kind, "arguments": argv, "files": {name: repr(content[:400]) for name, content in files.items()}}
        print(json.dumps(new), file=report, flush=True)
        before = {folder / name: (folder / name).read_bytes() if (folder / name).exists() else None for name in files}
        (folder / "sweeps" / "new.yaml").unlink(missing_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        code: object = 0
        said, started = io.StringIO(), time.process_time()
        sys.argv = ["lrsweep", *argv]
        fuzzing.forget()
        # What a library's handler has kept of an earlier stderr is not this input's.
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                lrsweep()
            except SystemExit as ended:
                code = ended.code
        seconds = time.process_time() - started
        for path, earlier in before.items():
            if earlier is None:
                path.unlink()
            else:
                path.write_bytes(earlier)
        os.environ.clear()
        os.environ.update(environment)
        logging.captureWarnings(False)
        fault = fuzzing.fault_of(argv, code, said.getvalue(), seconds)
        told = new | {"fault": fault} | ({"stderr": said.getvalue()[:400]} if fault else {})
        print(json.dumps(told), file=report, flush=True)

    wild = settings(
        max_examples=_BLOCK,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    hypothesis.seed(seed)(wild(given(fuzzing.inputs(folder))(one)))()


if __name__ == "__main__":
    main()
