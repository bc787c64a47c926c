"""HTML tables with a loss in them: what a notebook shows of a Trainer's run, saved as a page."""

import contextlib
from collections.abc import Iterator
from html.parser import HTMLParser

from lrsweep.analysis.log_readers.rows import Row, column


def html_rows(text: str) -> Iterator[Row]:
    """Yields the rows of each table whose header names a loss; `Validation Loss` is named `validation_loss`."""
    if "<table" not in text:
        return
    parser = _Tables()
    # The parser gives up at some markup that is not HTML; the rows before it are kept.
    with contextlib.suppress(AssertionError):
        parser.feed(text)
    header: list[str] = []
    for is_header, cells in parser.rows:
        if is_header:
            header = [column(cell) for cell in cells]
        elif any("loss" in key for key in header):
            yield dict(zip(header, cells, strict=False))


class _Tables(HTMLParser):
    """Collects the rows of all tables, each with whether it is a header: one without data cells."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[bool, list[str]]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append((True, []))
        elif tag in ("td", "th") and self.rows:
            is_header, cells = self.rows[-1]
            self.rows[-1] = (is_header and tag == "th", [*cells, ""])
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th", "tr")

    def handle_data(self, data: str) -> None:
        if self._in_cell and self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1] += data.strip()
