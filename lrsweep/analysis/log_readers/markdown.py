"""Markdown tables with a loss in them: model cards, and what notebooks show of a Trainer's run."""

import re
from collections.abc import Iterator

from lrsweep.analysis.log_readers.rows import Row, column

# The line under a table's header.
_RULE = re.compile(r"[\s|:]*--[\s|:-]*")


def markdown_rows(text: str) -> Iterator[Row]:
    """Yields the rows of each table whose header names a loss; `Validation Loss` is named `validation_loss`."""
    header: list[str] = []
    lines = text.split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if "|" not in line:
            header = []
        elif _RULE.fullmatch(following):
            header = [column(cell) for cell in _cells(line)]
        elif any("loss" in key for key in header) and not _RULE.fullmatch(line):
            yield dict(zip(header, _cells(line), strict=False))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
