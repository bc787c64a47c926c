"""What a bad input is: a command line, the files it finds, and what the one line that refuses it has to say.

To add one, append a `Bad` to the table it belongs to.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrsweep.embedded import BASE

# A file's content, or what makes it.
Content = str | bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Bad:
    """`said` are the words that the line has to hold; `process` has it run as a process of its own."""

    said: str
    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    code: int = 2
    process: bool = False

    @property
    def name(self) -> str:
        """For pytest."""
        return f"{' '.join(self.arguments)[:80]} -- {self.said[:50]}"


def sweep(said: str, *overrides: str, files: Mapping[str, Content] | None = None, **more: Any) -> Bad:
    """A sweep that is refused."""
    return Bad(said, ("+sweep=lora_lr", *overrides), files or {}, **more)


def of_rows(said: str, form: str, content: Content, *overrides: str, file: str = "rows.jsonl") -> Bad:
    """A sweep over a data file that is refused."""
    where = ("data=local", f"data.format={form}", f"data.path={file}")
    return sweep(said, *where, *overrides, files={file: content})


def of_model(
    said: str, change: Callable[[Path], None], *overrides: str, files: Mapping[str, Content] | None = None, **more: Any
) -> Bad:
    """A sweep over a changed copy of the embedded model, in ./model."""

    def make(folder: Path) -> None:
        shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("README.md", "*.log"))
        change(folder)

    return sweep(said, "model=local", "model.path=./model", *overrides, files={"model": make, **(files or {})}, **more)


def lines(*rows: Any, good: Any = None, before: int = 2, after: int = 12) -> str:
    """JSON lines: the rows, with good ones around them; text stands as it is."""
    written = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    around = json.dumps(good)
    return "".join(line + "\n" for line in [*[around] * before, *written, *[around] * after])


def put(folder: Path, files: Mapping[str, Content]) -> None:
    """Writes the files into the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)


def link(target: str) -> Callable[[Path], None]:
    """A symbolic link to there."""
    return lambda path: path.symlink_to(target)


def a_folder(path: Path) -> None:
    """A folder where a file belongs."""
    path.mkdir()
