"""A file is written whole or not at all, whoever else writes it."""

import os
from pathlib import Path

import pytest

from lrsweep.files.atomic import write_text


def test_two_writers_with_one_process_id_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a filesystem that machines share, process ids repeat."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "outcome.json"
    replace = Path.replace
    nested = False

    def replace_late(self: Path, target: Path) -> Path:
        nonlocal nested
        if not nested:
            nested = True
            write_text(path, "the other machine's")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    write_text(path, "this machine's")
    assert path.read_text() == "this machine's"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"
