"""JSON documents: transformers' trainer_state.json, and its log_history by itself."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from lrsweep.analysis.log_readers.rows import Row, name, number
from lrsweep.analysis.log_readers.text import MOST_STEPS
from lrsweep.errors import InputError

# What histories kept as lists are called where it is clear that they are losses.
_LISTS = {"train": "loss", "val": "eval_loss"}


def is_document(text: str) -> bool:
    """Returns whether this is one JSON document, and not one JSON object per line, or what a console shows."""
    head = text.lstrip()
    if head.startswith("["):
        # A console line may begin with a time or a level in brackets.
        return head[1:].lstrip()[:1] in ("{", "[") or (head[1:2] != "" and head.rstrip().endswith("]"))
    if not head.startswith("{") or head[1:].lstrip()[:1] not in ('"', "}", ""):
        return False
    line, _, rest = head.partition("\n")
    return not line.rstrip().endswith("}") or not rest.strip() or '"log_history"' in line


def document(path: Path, text: str) -> tuple[list[Row], Mapping[str, Any]]:
    """Returns the rows of a JSON document, and the run's arguments that it holds.

    Raises:
        InputError: It is not JSON, or holds no history.
    """
    try:
        state = _parsed(text)
    except json.JSONDecodeError as fault:
        raise InputError(f"{path}: not JSON, or cut off: {fault.msg} in line {fault.lineno}") from None
    except ValueError as fault:
        raise InputError(f"{path}: not a history: {str(fault).partition(';')[0]}") from None
    except RecursionError:
        raise InputError(f"{path}: not a history: nested too deeply") from None
    history = (state.get("log_history") or _only_history(state)) if isinstance(state, dict) else state
    if isinstance(state, list) and (bare := _bare_numbers(state)) is not None:
        return bare, {}
    if isinstance(state, dict) and history is None:
        # Or a log of one line.
        history = _columns(state) or ([state] if state and all(map(_is_plain, state.values())) else None)
    if not isinstance(history, list) or (isinstance(state, list) and not any(isinstance(row, dict) for row in state)):
        raise InputError(f"{path}: has no log_history, which transformers' trainer_state.json has")
    every = -(-len(history) // MOST_STEPS)
    rows = [
        row
        for at, row in enumerate(history, 1)
        if isinstance(row, dict) and (at % every == 0 or at == len(history) or _is_rare(row))
    ]
    arguments = {key: value for key, value in state.items() if _is_plain(value)} if isinstance(state, dict) else {}
    return rows, arguments


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)  # it may hold NaN; otherwise this says better what is wrong


def _columns(state: Mapping[str, Any]) -> list[Row] | None:
    """A history kept as one list per measure, as {"loss": [...], "val_loss": [...]}: one row per entry."""
    columns = {
        _LISTS.get(key, key.removesuffix("_history").replace("losses", "loss")): values
        for key, values in state.items()
        if isinstance(values, list) and _are_numbers(values)
    }
    if not name_of_loss(columns):
        return None
    count = max(map(len, columns.values()))
    return [
        {"step": at + 1} | {key: values[at] for key, values in columns.items() if at < len(values)}
        for at in range(count)
    ]


def notebook_output(text: str) -> str:
    """What the cells of a notebook have printed and shown; other text as it is."""
    if '"nbformat"' not in text:
        return text
    try:
        cells = json.loads(text)["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        shown = [
            output.get("text") or output["data"].get("text/html") or ""
            for output in outputs
            if "name" in output or "data" in output
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return text
    return "\n".join("".join(part) for part in shown)


def _only_history(state: Mapping[str, Any]) -> list[Row] | None:
    """The rows with a loss under whatever name a program keeps them, if there is one such list."""
    lists = [
        value
        for value in state.values()
        if isinstance(value, list) and any(isinstance(row, dict) and name_of_loss(row) for row in value)
    ]
    return lists[0] if len(lists) == 1 else None


def _bare_numbers(state: list[Any]) -> list[Row] | None:
    """A list of losses, or of steps with a loss and perhaps an eval loss: [1.2, 1.1] or [[200, 1.2, 1.3], ...]."""
    if _are_numbers(state):
        # Whole numbers are something else.
        return [{"loss": value} for value in state] if any(isinstance(value, float) for value in state) else None
    if not all(isinstance(row, list) and 2 <= len(row) <= 3 and _are_numbers(row) for row in state):
        return None
    steps = [number(row[0]) or 0.0 for row in state]
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        return None
    return [dict(zip(("step", "loss", "eval_loss"), row, strict=False)) for row in state]


def name_of_loss(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has a loss under some name."""
    return any(name(key) in ("loss", "eval_loss") for key in row)


def _are_numbers(values: list[Any]) -> bool:
    return len(values) > 0 and all(value is None or number(value) is not None for value in values)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _is_rare(row: Row) -> bool:
    """Returns whether a row is not a plain training step, or has a loss or gradient norm that is not finite."""
    loss, norm = row.get("loss"), row.get("grad_norm", 0.0)
    return not (type(loss) is type(norm) is float and -math.inf < loss < math.inf and -math.inf < norm < math.inf)
