"""Errors that no code expected: one line that says where the traceback is, exit code 1."""

import os
import re
import sys
from pathlib import Path

import pytest

from lrsweep.cli import main as command_line
from lrsweep.errors import UnexpectedError
from lrsweep.files.logs import logging_to
from lrsweep.files.paths import SweepFolder
from lrsweep.files.redaction import Redactor
from tests.conftest import lrsweep

_SURPRISE = """
import sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise RuntimeError("a surprise\\nwith a second line")

sys.meta_path.insert(0, Finder())
"""


def run(argv: list[str]) -> int:
    """A subcommand with a fault, for `test_a_subcommand`."""
    raise ValueError("\x1b[31m[/INST] a surprise\nwith a second line, and a password=hunter2hunter2")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(command_line.COMMANDS, "report", __name__)
    monkeypatch.setattr(sys, "argv", ["lrsweep", "report", "mine"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_subcommand(broken: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("lrsweep: lrsweep report mine: ValueError: \\x1b[31m[/INST] a surprise; ")
    assert said.count("\n") == 1
    (kept,) = tmp_path.iterdir()
    assert str(kept) in said
    assert "Traceback" in kept.read_text()
    assert "hunter2" not in kept.read_text()


def test_debug_shows_the_traceback(
    broken: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LRSWEEP_DEBUG", "1")
    with pytest.raises(SystemExit):
        command_line.main()
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert "hunter2" not in said
    assert "\x1b" not in said


def test_in_a_sweep_the_traceback_is_in_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder("mine")
    folder.create()
    with pytest.raises(UnexpectedError, match=re.escape("traceback is in outputs/mine/lrsweep.log")):  # noqa: SIM117
        with logging_to(folder, Redactor()):
            raise KeyError("a surprise")
    assert "Traceback" in folder.log.read_text()


def test_in_a_workers_checks(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SURPRISE.format(module="lrsweep.training.gradient_check"))
    path = f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ended = lrsweep("+sweep=lora_lr", cwd=tmp_path, env={"PYTHONPATH": path, "TMPDIR": str(site)})
    assert ended.returncode == 1
    assert ended.stderr.startswith("lrsweep: checking model and data: RuntimeError: a surprise; ")
    assert ended.stderr.count("\n") == 1
    (kept,) = site.glob("lrsweep-*.log")
    assert "find_spec" in kept.read_text()
    assert not (tmp_path / "outputs").exists()
