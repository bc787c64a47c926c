"""The user's own file with a few keys changed: the text is edited in place, so not a comment, quote or space moves."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.header import comments
from lrsweep.dialects.mapping import Dialect, Version, changed, differences, edits
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import scalar

# What an earlier export wrote above the same file.
_OWN_HEADER = re.compile(
    r"\A# The best of the lrsweep sweep .*\n(# (Eval|No other|Learning|The learning|It was|This file) .*\n)*"
)


@dataclass(frozen=True)
class _Place:
    """A top-level key in the text: where its line starts, its column, and from where to where its value stands."""

    line: int
    column: int
    start: int
    end: int


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """A config file's text and what it says. Raises InputError."""
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise InputError(f"{path}: cannot be read: {reason}; give a YAML file") from None
    return text, load_yaml(text, str(path))


def edited(
    dialect: Dialect, path: Path, config: SweepConfig, tuned: Collection[str], version: Version | None, header: str
) -> str:
    """The file at `path` with the tuned keys as the config has them, below the header. Raises InputError."""
    text, tree = read(path)
    if path.suffix.lower() == ".json":
        raise InputError(
            f"{path}: JSON has no comments, and an export says in them what it found; write the file as YAML"
        )
    changes = _misread(dialect, text, tree, tuned, version) | edits(dialect, tree, config, tuned, version)
    result = with_changes(text, changes)
    expected = changed(tree, changes)
    try:
        found: object = load_yaml(result, str(path))
    except InputError:
        found = None
    if found != expected:
        raise InputError(
            f"{path}: {', '.join(changes)} cannot be changed without touching other keys (an anchor, or all on one line); "
            "write each key on a line of its own"
        )
    apart = differences(dialect, expected, config, version)
    said = [f"This file trains otherwise than the trials did: {', '.join(apart)}."] if apart else []
    above = (header + comments(said)).replace("\n", _newline(text))
    return above + _OWN_HEADER.sub("", result)


def _misread(
    dialect: Dialect, text: str, tree: dict[str, Any], tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """The tuned keys whose value stands there as 1e-3 or such, which PyYAML takes for text."""
    plain = yaml.safe_load(text)
    rows = [row for row in dialect.rows(version) if set(row.ours) & set(tuned)]
    return {name: tree[name] for row in rows for name in row.part(tree) if plain[name] != tree[name]}


def with_changes(text: str, changes: dict[str, Any]) -> str:
    """The text with top-level keys set, or taken out where the value is None; new ones follow the last one changed."""
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
        beside = [place.end for name, place in places.items() if name in changes or name == "learning_rate"]
        beside = beside or [place.end for place in places.values()]
        at = _line_end(text, max(beside, default=len(text)))
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
            start = text.index(":", key.end_mark.index) + 1  # what replaces a block stands on the key's line
        if isinstance(key, yaml.ScalarEvent):
            found[key.value] = _Place(text.rfind("\n", 0, at.index) + 1, at.column, start, end)
    return found


def _nodes(text: str) -> list[tuple[Any, int]]:
    """The event that begins each top-level key and value, in turn, and where that one ends.

    Of events, as a composed node that an alias names stands at its anchor.
    """
    found = []
    flow: list[bool] = []  # of each collection that is open
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
                end = len(text[:end].rstrip())  # its mark is on the next key's line
        elif isinstance(event, yaml.CollectionEndEvent):
            # A block's own end lies beyond the comments after it; its last word's does not.
            end = mark.index if flow.pop() else end
        else:
            continue
        if len(flow) == 1:
            found.append((first, end))
    return found


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _line_end(text: str, place: int) -> int:
    """Where the line after that place begins."""
    return text.find("\n", place) + 1 or len(text)
