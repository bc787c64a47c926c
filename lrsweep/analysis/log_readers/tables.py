"""CSV tables, with commas, semicolons or tabs: a history with a column per measure, or the export of a chart.

In an export of W&B's, each run has a column for each measure.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lrsweep.analysis.log_readers.rows import Row, column, name
from lrsweep.analysis.log_readers.text import MOST_STEPS
from lrsweep.errors import InputError

# What TensorBoard's page exports of one curve, whose name is in the file's name only: run-RUN-tag-train_loss.csv.
_TENSORBOARD = ["Wall time", "Step", "Value"]
_TAG = re.compile(r"-tag-(?:(?:train|training)_)?(.+)")
# 1.204,5 and 1,204.5 and 0,5.
_POINTS, _COMMAS, _COMMA = (
    re.compile(pattern) for pattern in (r"-?\d{1,3}(?:\.\d{3})+,\d+", r"-?\d{1,3}(?:,\d{3})+\.\d+", r"-?\d+,\d+")
)


def is_table(text: str) -> bool:
    """Returns whether the first line is a header of a CSV table with a loss in it."""
    head = text.lstrip().split("\n", 1)[0]
    # A run's name may have digits in it, but no header says "loss 1.25".
    if {"metric", "step", "value"} <= set(head.replace('"', "").strip().split(",")) or _of_tensorboard(head):
        return True
    separator = _separator(head)
    if separator not in head or re.search(r"[{}]|loss\W+\d", head.lower()):
        return False
    if separator == "," and re.search(r"\d:\d\d,\d{3}", head):
        return False  # the comma is part of a time
    cells = (_split(cell.strip(' "'))[1] or "" for cell in head.split(separator))
    return any(map(_is_loss, cells))


def _separator(head: str) -> str:
    return next((mark for mark in "\t,;" if mark in head), ",")


def _of_tensorboard(head: str) -> bool:
    return [cell.strip(' "') for cell in head.strip().split(",")] == _TENSORBOARD


def table_runs(path: Path, text: str) -> dict[str, list[Row]]:
    """Returns the rows of each run in a CSV table, by the run's name, which is empty if the table has one run only.

    Raises:
        InputError: It is no CSV.
    """
    try:
        return _runs(path, text)
    except csv.Error as fault:
        raise InputError(f"{path}: not CSV: {fault}") from None


def _runs(path: Path, text: str) -> dict[str, list[Row]]:
    lines = text.lstrip().splitlines()
    separator = _separator(lines[0])
    header = next(csv.reader(lines[:1], delimiter=separator))
    if _of_tensorboard(lines[0]):
        tag = _TAG.search(path.stem)
        measure = "loss" if tag is None else tag[1]
        return {"": [{"step": row["Step"], measure: row["Value"]} for row in csv.DictReader(lines) if row["Value"]]}
    if {"metric", "step", "value"} <= set(header):
        return _long(csv.DictReader(lines, delimiter=separator))
    columns = [_split(column) for column in header]
    every = -(-len(lines) // MOST_STEPS) or 1
    kept = [line for at, line in enumerate(lines[1:], 1) if at % every == 0 or at == len(lines) - 1]
    runs: dict[str, list[Row]] = {run: [] for run, measure in columns if measure is not None and _is_loss(measure)}
    for given in csv.reader(kept, delimiter=separator):
        values = given if separator != ";" else list(map(_with_a_point, given))
        cells = [
            (run, measure, value)
            for (run, measure), value in zip(columns, values, strict=False)
            if value != "" and measure is not None
        ]
        for of, rows in runs.items():
            rows.append({measure: value for run, measure, value in cells if run in ("", of)})
    return {run: _without_filler(rows) for run, rows in runs.items()} or {"": []}


def _long(table: Iterable[Mapping[str, str]]) -> dict[str, list[Row]]:
    """The runs of MLflow's export of a chart, which has a row for each run, measure and step."""
    runs: dict[str, dict[str, Row]] = {}
    for cells in table:
        if not (cells.get("metric") and cells.get("step") and cells.get("value")):
            continue
        rows = runs.setdefault(cells.get("Run") or "", {})
        rows.setdefault(cells["step"], {"step": cells["step"]})[cells["metric"]] = cells["value"]
    return {run: list(rows.values()) for run, rows in runs.items()}


def _without_filler(rows: list[Row]) -> list[Row]:
    """The rows without NaN where each row has one loss of several: those that it does not have."""
    losses = [[key for key in row if name(key.strip()).endswith("loss")] for row in rows]
    filled = [
        [key for key in keys if row[key].strip().lower() != "nan"] for row, keys in zip(rows, losses, strict=True)
    ]
    if not all(0 < len(here) < len(keys) for here, keys in zip(filled, losses, strict=True)):
        return rows
    return [
        {key: value for key, value in row.items() if key not in keys or key in here}
        for row, keys, here in zip(rows, losses, filled, strict=True)
    ]


def _with_a_point(cell: str) -> str:
    """A number as Python writes it; the cell as it is if it is none."""
    if _POINTS.fullmatch(cell) or _COMMA.fullmatch(cell):
        return cell.replace(".", "").replace(",", ".")
    return cell.replace(",", "") if _COMMAS.fullmatch(cell) else cell


def _is_loss(measure: str) -> bool:
    """Whether a column is a loss, such as `val_loss` or `train_loss_batch`."""
    return name(measure).endswith("loss") or re.fullmatch(r"\w+_loss_\w+", measure) is not None


def _split(column: str) -> tuple[str, str | None]:
    """Splits a column of W&B, "run - train/loss", into run and measure; no measure for its range over a group."""
    run, dash, measure = column.rpartition(" - ")
    if dash and measure.endswith(("__MIN", "__MAX")):
        return run, None
    return (run, measure) if dash else ("", _one_word(column))


def _one_word(header: str) -> str:
    """`Val Loss`, `Val_Loss` and `VAL_LOSS` as `val_loss`."""
    header = header.strip()
    known = name(column(header)) != column(header) or column(header) in ("epoch", "step", "loss", "learning_rate")
    return column(header) if " " in header or known else header
