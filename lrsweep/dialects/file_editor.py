"""Changes a few keys in the user's own file: the text is edited in place, so comments, quotes and spaces stay."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects import json_editor
from lrsweep.dialects.mapping import Dialect, Version, changed
from lrsweep.dialects.writing import changes_in_their_file, differences, edits
from lrsweep.dialects.yaml_reader import load_json, load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import comments, scalar

# The header that an earlier export wrote at the top of the same file.
_OWN_HEADER = re.compile(
    r"\A# The best of the lrsweep sweep .*\n"
    r"(# (Eval|Metric|No other|Warning|Inconclusive|Learning|The learning|It was|This file)\b.*\n)*"
)


@dataclass(frozen=True)
class _Place:
    """A top-level key in the text: the index of its line, its column, and the start and end index of its value."""

    line: int
    column: int
    start: int
    end: int


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Reads a config file.

    Returns:
        The text, without a byte-order mark, and its content.

    Raises:
        InputError: The file cannot be read, or is not a mapping in YAML or JSON.
    """
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise InputError(f"{path}: cannot be read: {reason}; give a YAML or JSON file") from None
    return text, load_json(text, str(path)) if is_json(path) else load_yaml(text, str(path))


def is_json(path: Path) -> bool:
    """Whether a config file is JSON, by its name."""
    return path.suffix.lower() == ".json"


def edited(
    dialect: Dialect, path: Path, config: SweepConfig, tuned: Collection[str], version: Version | None, header: str
) -> str:
    """Returns the text of a user's file in which the tuned keys have the config's values.

    Args:
        dialect: The trainer's dialect.
        path: The user's file.
        config: The config with the values.
        tuned: The dotted keys to change.
        version: The trainer's version; None for the current one.
        header: Comment lines to put at the top; JSON has no comments and gets none.

    Raises:
        InputError: The file cannot be read or cannot be edited in place, or the trainer cannot express the config.
    """
    text, tree = read(path)
    theirs = config.origin is not None and bool(config.origin.base) and config.origin.dialect == dialect.name
    change = changes_in_their_file if theirs else edits
    changes = change(dialect, tree, config, tuned, version)
    if is_json(path):
        result, load = json_editor.with_changes(text, changes), load_json
    else:
        changes = _misread(dialect, text, tree, tuned, version) | changes
        result, load = with_changes(text, changes), load_yaml
    expected = changed(tree, changes)
    try:
        found: object = load(result, str(path))
    except InputError:
        found = None
    if found != expected:
        raise InputError(
            f"{path}: {', '.join(changes)} cannot be changed without touching other keys (an anchor or several keys on "
            "a line); write each key on a line of its own"
        )
    if is_json(path):
        return result
    different = [] if theirs else differences(dialect, expected, config, version)
    warning = [f"This file trains differently from the trials: {', '.join(different)}."] if different else []
    above = (header + comments(warning)).replace("\n", _newline(text))
    return above + _OWN_HEADER.sub("", result)


def _misread(
    dialect: Dialect, text: str, tree: dict[str, Any], tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """The tuned keys whose value is written as 1e-3 or the like, which PyYAML reads as a string."""
    plain = yaml.safe_load(text)
    rows = [row for row in dialect.rows(version) if set(row.ours) & set(tuned)]
    return {name: tree[name] for row in rows for name in row.part(tree) if plain[name] != tree[name]}


def with_changes(text: str, changes: dict[str, Any]) -> str:
    """Returns a YAML text with top-level keys set or removed.

    Args:
        text: The text.
        changes: Values by key; None removes the key. New keys go after the last changed one or after learning_rate.
    """
    places, newline = _places(text), _newline(text)
    cuts: list[tuple[int, int, str]] = []
    new = []
    for name, value in changes.items():
        place = places.get(name)
        if place is None:
            new.append(f"{name}: {scalar(value)}{newline}")
        elif value is None:
            cuts.append((place.line, _line_end(text, place.end), ""))
        else:
            space = " " if text[place.start - 1] == ":" else ""
            cuts.append((place.start, place.end, space + scalar(value)))
    if new:
        ends = [place.end for name, place in places.items() if name in changes or name == "learning_rate"]
        ends = ends or [place.end for place in places.values()]
        at = _line_end(text, max(ends, default=len(text)))
        before = newline if text and at == len(text) and not text.endswith("\n") else ""
        indent = " " * next((place.column for place in places.values()), 0)
        cuts.append((at, at, before + "".join(indent + line for line in new)))
    for start, end, replacement in sorted(cuts, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _places(text: str) -> dict[str, _Place]:
    found = {}
    nodes = _nodes(text)
    for (key, _), (value, end) in zip(nodes[::2], nodes[1::2], strict=True):
        at, start = key.start_mark, value.start_mark.index
        if isinstance(value, yaml.CollectionStartEvent) and not value.flow_style:
            start = text.index(":", key.end_mark.index) + 1  # a block's replacement goes on the key's line
        if isinstance(key, yaml.ScalarEvent):
            found[key.value] = _Place(text.rfind("\n", 0, at.index) + 1, at.column, start, end)
    return found


def _nodes(text: str) -> list[tuple[Any, int]]:
    """The event that begins each top-level key and value, in turn, and the index at which that node ends.

    This uses events since a composed node that an alias refers to has the position of its anchor.
    """
    found = []
    flow: list[bool] = []  # for each open collection, whether it has flow style
    first: Any = None
    end = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark: Any = event.end_mark
        if isinstance(event, yaml.NodeEvent):
            first = event if len(flow) == 1 else first
            if isinstance(event, yaml.CollectionStartEvent):
                flow.append(bool(event.flow_style))
                continue
            end = mark.index
            if getattr(event, "style", None) in ("|", ">"):
                end = len(text[:end].rstrip())  # a block scalar's end mark is on the next key's line
        elif isinstance(event, yaml.CollectionEndEvent):
            # The end mark of a block collection is after the comments that follow it; that of its last scalar is not.
            end = mark.index if flow.pop() else end
        else:
            continue
        if len(flow) == 1:
            found.append((first, end))
    return found


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_end(text: str, place: int) -> int:
    """The index at which the next line begins."""
    return text.find("\n", place) + 1 or len(text)
