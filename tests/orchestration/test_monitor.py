"""Reading a log that grows, and that a resumed trial replaces at any moment."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrsweep.orchestration.monitor import _Tail


def rows(count: int, start: int = 0) -> str:
    return "".join(json.dumps({"step": step, "loss": 2.0 + step}) + "\n" for step in range(start, start + count))


def steps(found: tuple[bool, list[dict[str, Any]]]) -> tuple[bool, list[int]]:
    return found[0], [row["step"] for row in found[1]]


def test_complete_lines_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = _Tail(path)
    assert steps(tail.new_rows()) == (False, [])
    path.write_text(rows(2) + '{"step": 2, "lo')
    assert steps(tail.new_rows()) == (False, [0, 1])
    with open(path, "a") as file:
        file.write('ss": 1}\n')
    assert steps(tail.new_rows()) == (False, [2])
    assert steps(tail.new_rows()) == (False, [])


def test_a_file_replaced_at_the_worst_moment_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(rows(5))
    tail = _Tail(path)
    tail.new_rows()
    replaced = False

    def replacing(look: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        """A look at the file, after which it is another one."""

        def replace_after(*arguments: Any, **keywords: Any) -> os.stat_result:
            nonlocal replaced
            result = look(*arguments, **keywords)
            if not replaced:
                replaced = True
                # Lines of another length: the old place is in the middle of one.
                (tmp_path / "new").write_text(rows(9, start=1000))
                (tmp_path / "new").replace(path)
            return result

        return replace_after

    monkeypatch.setattr(os, "stat", replacing(os.stat))
    monkeypatch.setattr(os, "fstat", replacing(os.fstat))
    first = steps(tail.new_rows())
    second = steps(tail.new_rows())
    assert [step for found in (first, second) for step in found[1]] == list(range(1000, 1009))
    assert [found[0] for found in (first, second)].count(True) == 1
