"""ARCHITECTURE.md lists the files that there are, each once, and stays readable."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def listed() -> list[str]:
    """The modules in the tables: a heading names the folder, a row the file."""
    found: list[str] = []
    folder = None
    for line in TEXT.splitlines():
        if heading := re.match(r"### `(lrsweep/[a-z_/]*)`", line):
            folder = heading[1]
        elif line.startswith("#"):
            folder = None
        elif folder is not None and (row := re.match(r"\| `([a-z_0-9]+\.py)` \| \S", line)):
            found.append(f"{folder}{row[1]}")
    return found


def test_the_tables_list_exactly_the_files_that_there_are() -> None:
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "lrsweep").rglob("*.py")}
    assert sorted(listed()) == sorted(there)


def test_no_line_is_long() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []
