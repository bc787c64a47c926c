"""Readers for training logs: of transformers, LLaMA-Factory, lrsweep, TensorBoard, W&B, and what programs print.

`read_logs` finds out what a file is from its content, not from its name. Each format has a module that yields rows with
the names and values of the file; `rows` gives them transformers' names; `curve` makes the series.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrsweep.analysis.diagnosis import Curve, curve
from lrsweep.analysis.log_readers import documents, other_names, tables, tensorboard, text
from lrsweep.analysis.log_readers.arguments import arguments_beside
from lrsweep.analysis.log_readers.html_tables import html_rows
from lrsweep.analysis.log_readers.markdown import markdown_rows
from lrsweep.analysis.log_readers.rows import Row, normalised, number
from lrsweep.analysis.log_readers.sources import is_run_id
from lrsweep.errors import InputError

__all__ = ["Log", "read", "read_logs"]

# Returns the rows of an MLflow run.
MlflowRun = Callable[[str], Iterable[Mapping[str, Any]]]


# Compared by identity: two logs may hold the same arrays.
@dataclass(frozen=True, eq=False)
class Log:
    """A training log.

    Attributes:
        source: What the user named, the file in a folder that the user named, or a run in a file of several.
        curve: The run's curve.
        arguments: The run's arguments, as far as the log and the configs beside it say them.
        of_lrsweep: Whether lrsweep wrote it; else its keys are those of transformers' TrainingArguments.
    """

    source: str
    curve: Curve
    arguments: Mapping[str, Any] = field(default_factory=dict)
    of_lrsweep: bool = False


def read(source: str, mlflow_run: MlflowRun) -> Curve:
    """Reads the curve in a log file or of an MLflow run. Raises InputError as `read_logs`, and for several runs."""
    logs = read_logs(source, mlflow_run)
    if len(logs) > 1:
        runs = ", ".join(log.source.removeprefix(f"{source}: ") for log in logs[:3])
        raise InputError(f"{source}: has {len(logs)} runs ({runs}, ...); name a file with one")
    return logs[0].curve


def read_logs(source: str, mlflow_run: MlflowRun) -> list[Log]:
    """Reads a log file or an MLflow run.

    Args:
        source: A file in any of the formats, or an MLflow run id of 32 hex digits.
        mlflow_run: Returns the rows of the MLflow run with that id.

    Returns:
        One log, or one for each run in a table of several.

    Raises:
        InputError: The file is missing, empty, cut off, or holds no losses.
    """
    path = Path(source)
    if is_run_id(source) and not os.path.exists(source):
        raw: Mapping[str, Iterable[Mapping[str, Any]]] = {"": mlflow_run(source)}
        arguments: Mapping[str, Any] = {}
    else:
        raw, arguments = _raw_rows(path)
        arguments = {**arguments_beside(path), **arguments}
    logs = []
    for run, rows in raw.items():
        named = list(normalised(rows))
        decay = number(arguments.get("weight_decay", arguments.get("optimizer.weight_decay")))
        found = curve(named, decay)
        if len(found.loss) or len(found.eval_loss):
            # transformers logs epochs, lrsweep does not.
            of_lrsweep = path.name == "metrics.jsonl" or (
                is_run_id(source) and not any("epoch" in row for row in named)
            )
            logs.append(Log(f"{source}: {run}" if len(raw) > 1 else source, found, arguments, of_lrsweep))
    if not logs:
        raise InputError(f"{source}: holds no losses (looked for loss and eval_loss at steps or epochs)")
    return logs


def _raw_rows(path: Path) -> tuple[Mapping[str, Iterable[Row]], Mapping[str, Any]]:
    """Returns the rows of each run in a file, and the arguments in it."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f"{path}: is a device or a pipe, not a file")
    if tensorboard.is_event_file(path):
        return {"": tensorboard.event_rows(path)}, {}
    content = documents.notebook_output(_content(path))
    if documents.is_document(content):
        rows, arguments = documents.document(path, content)
        return {"": rows}, arguments
    if tables.is_table(content):
        runs = tables.table_runs(path, content)
        if any(_has_loss(row) for rows in runs.values() for row in rows):
            return runs, {}
    if content.lstrip().startswith(('{"', '{ "', "{}")):
        return {"": text.json_lines(path, content)}, {}
    content = text.costs_as_losses(content)
    found: list[Row] = []
    for reader in (
        text.console_rows,
        markdown_rows,
        html_rows,
        text.marian,
        text.assignments,
        text.aligned_columns,
        text.printed_tensors,
        text.bare_columns,
        text.numbered_losses,
    ):
        found = max(found, [row for row in reader(content) if _has_loss(row)], key=len)
        # A row or two may stand beside the log that is meant: the last evaluation under a table.
        if len(found) >= 3:
            break
    if not found:
        found = list(other_names.losses_by_other_names(content))
        found = found if len(found) >= 3 else []  # a line or two may say how the rows were split
    return {"": found}, {}


def _has_loss(row: Row) -> bool:
    return any("loss" in key and (value is None or number(value) is not None) for key, value in row.items())


def _content(path: Path) -> str:
    try:
        # utf-8-sig drops the byte order mark that programs on Windows write.
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (and no MLflow run id, which is 32 hex digits)") from None
    except UnicodeDecodeError:
        content = _other_encoding(path)
    except OSError as fault:
        raise InputError(f"{path}: {fault.strerror}") from None
    if not content.strip():
        raise InputError(f"{path}: is empty")
    return content


def _other_encoding(path: Path) -> str:
    """PowerShell redirects output as UTF-16; a console may print a few bytes in its own code page."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) % 2 == 0:
        return data.decode("utf-16", errors="replace")
    if b"\x00" in data[:4096]:
        raise InputError(f"{path}: is not a text file")
    return data.decode("utf-8", errors="replace")
