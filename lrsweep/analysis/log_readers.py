"""Readers for the training logs of transformers, LLaMA-Factory (both generations) and lrsweep."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lrsweep.analysis.diagnosis import Curve, curve
from lrsweep.errors import InputError

Row = Mapping[str, Any]
# LLaMA-Factory's first generation uses its own names; the second uses transformers' names.
_LLAMAFACTORY = {"current_steps": "step", "lr": "learning_rate"}
# Of a longer log only every k-th step is read: this many points show the same as a million. Rare rows are always read.
_MOST_STEPS = 20_000
_RARE = ("eval_", "NaN", "Infinity")
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def read(source: str, mlflow_run: Callable[[str], list[Row]]) -> Curve:
    """Reads the curve in a log file or of an MLflow run.

    Args:
        source: A trainer_state.json, a *.jsonl log, or an MLflow run id of 32 hex digits.
        mlflow_run: Returns the rows of the MLflow run with that id.

    Raises:
        InputError: The file is missing, empty, cut off, or holds no losses.
    """
    path = Path(source)
    of_mlflow = not path.exists() and _RUN_ID.fullmatch(source)
    found = curve(mlflow_run(source) if of_mlflow else _rows(path))
    if not len(found.loss) and not len(found.eval_loss):
        raise InputError(f"{source}: holds no losses (looked for loss and eval_loss at steps)")
    return found


def _rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (and no MLflow run id, which is 32 hex digits)") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name the trainer_state.json or *.jsonl in it") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file") from None
    except OSError as fault:
        raise InputError(f"{path}: {fault.strerror}") from None
    if not text.strip():
        raise InputError(f"{path}: is empty")
    if _is_one_object(text):
        yield from _trainer_state(path, text)
    else:
        yield from _lines(path, text)


def _is_one_object(text: str) -> bool:
    """Returns whether this is one JSON document, and not one JSON object per line."""
    first = text.lstrip().split("\n", 1)[0].rstrip()
    return not first.endswith("}") or '"log_history"' in first


def _trainer_state(path: Path, text: str) -> Iterator[Row]:
    try:
        state = json.loads(text)
    except json.JSONDecodeError as fault:
        raise InputError(f"{path}: not JSON, or cut off: {fault.msg} in line {fault.lineno}") from None
    except RecursionError:
        raise InputError(f"{path}: not a history: nested too deeply") from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise InputError(f"{path}: has no log_history, which transformers' trainer_state.json has")
    every = -(-len(history) // _MOST_STEPS)
    for number, row in enumerate(history, 1):
        if isinstance(row, dict) and (number % every == 0 or number == len(history) or _is_rare(row)):
            yield _renamed(row)


def _is_rare(row: Row) -> bool:
    """Returns whether a row is not a plain training step, or has a loss or gradient norm that is not finite."""
    loss, norm = row.get("loss"), row.get("grad_norm", 0.0)
    return not (isinstance(loss, float) and isinstance(norm, float) and math.isfinite(loss) and math.isfinite(norm))


def _lines(path: Path, text: str) -> Iterator[Row]:
    lines = text.split("\n")
    every = -(-len(lines) // _MOST_STEPS)
    for number, line in enumerate(lines, 1):
        if (number % every and not any(mark in line for mark in _RARE)) or not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            # A killed run may leave an incomplete last line.
            if number == len(lines):
                return
            raise InputError(f"{path}: line {number} is not JSON") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is not a JSON object")
        yield _renamed(row)


def _renamed(row: Row) -> Row:
    row = {_LLAMAFACTORY.get(key, key): value for key, value in row.items()}
    if "eval_loss" not in row:
        # With several eval sets, transformers logs eval_NAME_loss for each; the first one counts.
        named = next((key for key in row if key.startswith("eval_") and key.endswith("_loss")), None)
        if named is not None:
            row["eval_loss"] = row[named]
    return row
