"""The user's own file with a few keys changed: the text is edited in place, so not a comment, quote or space moves."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from lrsweep.config import SweepConfig
from lrsweep.errors import InputError
from lrsweep.interop import scalars
from lrsweep.interop.header import comments
from lrsweep.interop.mapping import Dialect, Version, changed, differences, edits

# What an earlier export wrote above the same file.
_OWN_HEADER = re.compile(
    r"\A# The best of the lrsweep sweep .*\n(# (Eval|No other|Learning|The learning|It was|This file) .*\n)*"
)


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """A config file's text and what it says. Raises InputError."""
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise InputError(f"{path}: cannot be read: {reason}; give a YAML file") from None
    return text, scalars.load(text, str(path))


def edited(
    dialect: Dialect, path: Path, config: SweepConfig, tuned: Collection[str], version: Version | None, header: str
) -> str:
    """The file at `path` with the tuned keys as the config has them, below the header. Raises InputError."""
    text, tree = read(path)
    changes = edits(dialect, tree, config, tuned, version)
    result = with_changes(text, changes)
    expected = changed(tree, changes)
    try:
        found: object = scalars.load(result, str(path))
    except InputError:
        found = None
    if found != expected:
        raise InputError(
            f"{path}: {', '.join(changes)} cannot be changed without touching other keys (an anchor, or all on one line); "
            "write each key on a line of its own"
        )
    apart = differences(dialect, expected, config, version)
    said = [f"This file trains otherwise than the trials did: {', '.join(apart)}."] if apart else []
    return header + comments(said) + _OWN_HEADER.sub("", result)


def with_changes(text: str, changes: dict[str, Any]) -> str:
    """The text with top-level keys set, or taken out where the value is None; new ones follow the last one changed."""
    nodes = {key.value: (key, value) for key, value in scalars.compose(text).value}
    cuts: list[tuple[int, int, str]] = []
    new = []
    for name, value in changes.items():
        if name not in nodes:
            new.append(f"{name}: {scalars.scalar(value)}\n")
            continue
        key, node = nodes[name]
        start, end = _span(key, node)
        if value is None:
            first, last = text.rfind("\n", 0, key.start_mark.index) + 1, text.find("\n", end)
            cuts.append((first, len(text) if last < 0 else last + 1, ""))
        else:
            space = " " if text[start - 1] == ":" else ""
            cuts.append((start, end, space + scalars.scalar(value)))
    if new:
        beside = [_span(*nodes[name])[1] for name in nodes if name in changes or name == "learning_rate"]
        line_end = text.find("\n", max(beside)) if beside else -1
        if line_end < 0 and not text.endswith("\n"):
            text += "\n"
        place = line_end + 1 or len(text)
        cuts.append((place, place, "".join(new)))
    for start, end, replacement in sorted(cuts, reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def _span(key: yaml.Node, node: yaml.Node) -> tuple[int, int]:
    """Where a value stands in the text. A block's own end lies beyond the comments after it; its last word's does not."""
    start, last = node.start_mark.index, node
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
        last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        start = key.end_mark.index + 1  # a block starts on its own line: what replaces it, on the key's
    return start, last.end_mark.index
