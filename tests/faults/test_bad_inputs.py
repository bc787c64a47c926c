"""Bad inputs: each one line that names key or path, the right exit code, no traceback, nothing created or changed."""

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from _pytest.logging import LogCaptureHandler

from lrsweep.cli.main import main
from tests.conftest import lrsweep
from tests.faults import bad_commands, bad_configs, bad_data, bad_models
from tests.faults.cases import Bad, put
from tests.faults.fuzzing import forget

BAD = [*bad_configs.TABLE, *bad_data.TABLE, *bad_models.TABLE, *bad_commands.TABLE]
# Loggers with a handler of their own, which keeps the stderr that was there when they were imported.
_TALKERS = ("transformers", "datasets", "huggingface_hub", "optuna", "mlflow", "alembic")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    """A working folder, and a process that leaves nothing behind for the next case."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    forget()
    _talk_to(sys.stderr)
    yield tmp_path
    _talk_to(sys.__stderr__)
    os.environ.clear()
    os.environ.update(before)
    logging.captureWarnings(False)


def test_there_are_at_least_seven_hundred() -> None:
    assert len(BAD) >= 700
    assert [name for name, times in Counter((bad.arguments, str(bad.files)) for bad in BAD).items() if times > 1] == []


@pytest.mark.parametrize("bad", [bad for bad in BAD if not bad.process], ids=lambda bad: bad.name)
def test_refused(bad: Bad, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put(here, bad.files)
    before = listing(here)
    monkeypatch.setattr(sys, "argv", ["lrsweep", *in_this_process(bad.arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    check(bad, ended.value.code, capsys.readouterr().err)
    assert listing(here) == before


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad.process], ids=lambda bad: bad.name)
def test_refused_by_the_real_command(bad: Bad, here: Path) -> None:
    put(here, bad.files)
    before = listing(here)
    run = lrsweep(*bad.arguments, cwd=here)
    check(bad, run.returncode, run.stderr)
    assert listing(here) == before


def check(bad: Bad, code: object, stderr: str) -> None:
    """The line as it has to be."""
    assert stderr.startswith("lrsweep: "), stderr
    assert bad.said in stderr
    assert stderr.count("\n") == 1, stderr
    assert "Traceback" not in stderr
    assert code == bad.code, stderr


def in_this_process(arguments: tuple[str, ...]) -> list[str]:
    """The same, without a worker's process for each case."""
    if not arguments or not arguments[0].startswith("+sweep=") or any(word.startswith("-") for word in arguments):
        return list(arguments)
    return [*arguments, "executor=inline"]


def listing(folder: Path) -> dict[str, str]:
    """Everything in the folder, with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            content = f"link to {os.readlink(path)}"
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = "folder" if path.is_dir() else "other"
        found[str(path.relative_to(folder))] = content
    return found


def _talk_to(stream: TextIO | None) -> None:
    for name in _TALKERS:
        for handler in logging.getLogger(name).handlers:
            # pytest's own are left alone: a file that loses its handler is never closed.
            if isinstance(handler, logging.StreamHandler) and not isinstance(
                handler, LogCaptureHandler | logging.FileHandler
            ):
                handler.stream = stream
