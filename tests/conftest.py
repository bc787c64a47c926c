"""Shared by all tests: an offline, single-threaded torch, the command line, and one finished sweep."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    OMP_NUM_THREADS="1",
    DO_NOT_TRACK="true",
)
# Tests run on the CPU, whatever the machine has. LRSWEEP_TEST_DEVICE=cuda is for those of packed trials (`make gpu`).
DEVICE = os.environ.get("LRSWEEP_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Before anything imports Triton: its interpreter then runs the kernels that are for a GPU.
    os.environ.update(CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1")

# The default sweep in small: four learning rates around the best, enough steps for a U.
SMALL = (
    "+sweep=lora_lr",
    "space.optimizer.lr=[1e-5,1e-3,3e-3,1e-1]",
    "training.max_steps=16",
    "training.eval_every=4",
    "data.max_eval_rows=48",
)

Lrsweep = Callable[..., subprocess.CompletedProcess[str]]


def command_line(*arguments: str) -> list[str]:
    """`python -m lrsweep` with these arguments.

    A sweep is a grid and trains no replicates, unless they ask for another search, or for some.
    """
    plain = bool(arguments) and "=" in arguments[0] and not any(argument.startswith("-") for argument in arguments)
    once = ["search.replicates=1"] if plain and not any("search.replicates=" in word for word in arguments) else []
    chooses = any(word.startswith(("search=", "search.method=")) for word in arguments)
    grid = ["search=grid"] if plain and arguments[0] in ("+sweep=lora_lr", "+sweep=full_lr") and not chooses else []
    return [sys.executable, "-m", "lrsweep", *arguments, *grid, *once]


def lrsweep(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python -m lrsweep` in `cwd` to its end."""
    return subprocess.run(
        command_line(*arguments),
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160", **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def lrsweep_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same in this process, without a worker's: an import of torch and its like takes ten seconds.

    For tests of what a command does; those of processes, signals and environments need `lrsweep`.
    """
    from lrsweep.cli.main import main

    words = command_line(*arguments)[3:]
    sweeps = bool(words) and words[0].startswith("+sweep=") and not any(word.startswith("-") for word in words)
    inline = ["executor=inline"] if sweeps and not any(word.startswith("executor") for word in words) else []
    code: object = 0
    environment, argv, started_in = dict(os.environ), sys.argv, Path.cwd()
    os.environ["COLUMNS"] = "160"
    os.chdir(cwd)
    sys.argv = ["lrsweep", *words, *inline]
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = argv
        os.chdir(started_in)
        os.environ.clear()
        os.environ.update(environment)
        logging.captureWarnings(False)
    assert isinstance(code, int)
    return subprocess.CompletedProcess([*words, *inline], code, stdout.getvalue(), stderr.getvalue())


@dataclass(frozen=True)
class FinishedSweep:
    """A working folder in which the sweep `name` has run to its end, and what it printed."""

    folder: Path
    name: str
    stdout: str

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs" / self.name


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> FinishedSweep:
    """One real sweep, run once; its tests share a process (xdist_group "finished_sweep") and do not change it."""
    folder = tmp_path_factory.mktemp("sweep")
    run = lrsweep(*SMALL, cwd=folder)
    assert run.returncode == 0, run.stderr
    return FinishedSweep(folder, "lora_lr", run.stdout)
