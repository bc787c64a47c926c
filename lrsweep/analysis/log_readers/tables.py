"""CSV tables: a history with a column per measure, or W&B's export of a chart with a column per run and measure."""

import csv
import re
from pathlib import Path

from lrsweep.analysis.log_readers.rows import Row, name
from lrsweep.analysis.log_readers.text import MOST_STEPS
from lrsweep.errors import InputError


def is_table(text: str) -> bool:
    """Returns whether the first line is a header of a CSV table with a loss in it."""
    head = text.lstrip().split("\n", 1)[0]
    # A run's name may have digits in it, but no header says "loss 1.25".
    return "," in head and "loss" in head.lower() and re.search(r"[{}]|loss\W+\d", head.lower()) is None


def table_runs(path: Path, text: str) -> dict[str, list[Row]]:
    """Returns the rows of each run in a CSV table, by the run's name, which is empty if the table has one run only.

    Raises:
        InputError: It is no CSV.
    """
    try:
        return _runs(text)
    except csv.Error as fault:
        raise InputError(f"{path}: not CSV: {fault}") from None


def _runs(text: str) -> dict[str, list[Row]]:
    lines = text.lstrip().splitlines()
    header = next(csv.reader(lines[:1]))
    columns = [_split(column) for column in header]
    every = -(-len(lines) // MOST_STEPS) or 1
    kept = [line for at, line in enumerate(lines[1:], 1) if at % every == 0 or at == len(lines) - 1]
    runs: dict[str, list[Row]] = {
        run: [] for run, measure in columns if measure is not None and name(measure).endswith("loss")
    }
    for values in csv.reader(kept):
        cells = [
            (run, measure, value)
            for (run, measure), value in zip(columns, values, strict=False)
            if value != "" and measure is not None
        ]
        for of, rows in runs.items():
            rows.append({measure: value for run, measure, value in cells if run in ("", of)})
    return runs or {"": []}


def _split(column: str) -> tuple[str, str | None]:
    """Splits a column of W&B, "run - train/loss", into run and measure; no measure for its range over a group."""
    run, dash, measure = column.rpartition(" - ")
    if dash and measure.endswith(("__MIN", "__MAX")):
        return run, None
    return (run, measure) if dash else ("", column)
