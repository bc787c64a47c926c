"""Random command lines, configs and files: whatever they hold, one line and exit code 2, 3 or 4, or a plain answer.

`benchmarks/fuzz.py` tries them for an hour.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lrsweep.cli.main import main
from tests.faults.fuzzing import (
    ARGUMENTS,
    FILES,
    NO_DATA,
    OVERRIDES,
    SUBCOMMANDS,
    broken,
    fault_of,
    forget,
    prepare,
)

# Runs a command line and judges its end.
Try = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished sweep and everything that a command may name."""
    folder = tmp_path_factory.mktemp("fuzz")
    prepare(folder)
    return folder


@pytest.fixture
def tried(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Try]:
    """Runs a command line in this process and judges its end."""
    monkeypatch.chdir(folder)

    def run(*argv: str) -> None:
        sys.argv = ["lrsweep", *argv]
        forget()
        started = time.process_time()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        spent = time.process_time() - started
        assert fault_of(argv, ended.value.code, said, spent) is None, (argv, said)

    before = dict(os.environ)
    monkeypatch.setattr(sys, "argv", [])
    yield run
    # A command sets the environment of its process.
    os.environ.clear()
    os.environ.update(before)
    logging.captureWarnings(False)


def fuzz(test: Any, examples: int, *strategies: Any) -> None:
    """Runs a test on examples that a seed decides."""
    made = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    made(given(*strategies)(test))()  # type: ignore[no-untyped-call]


def test_any_key_with_any_value(tried: Try) -> None:
    fuzz(
        lambda overrides: tried("+sweep=lora_lr", *overrides, "executor=inline", NO_DATA),
        25,
        st.lists(OVERRIDES, min_size=1, max_size=2),
    )


def test_any_arguments(tried: Try) -> None:
    fuzz(lambda command, rest: tried(command, *rest), 100, SUBCOMMANDS, st.lists(ARGUMENTS, max_size=4))


@pytest.mark.parametrize(("name", "content", "command"), FILES, ids=[name for name, _, _ in FILES])
def test_any_bytes(
    name: str,
    content: bytes | Callable[[Path], bytes],
    command: tuple[str, ...],
    folder: Path,
    tried: Try,
) -> None:
    path = folder / name
    good = content(folder) if callable(content) else content
    path.parent.mkdir(parents=True, exist_ok=True)

    def one(bad: bytes) -> None:
        path.write_bytes(bad)
        (folder / "sweeps" / "new.yaml").unlink(missing_ok=True)
        tried(*command)

    try:
        fuzz(one, 4 if "sweep" in command[0] else 20, broken(good))
    finally:
        path.write_bytes(good)
