"""Limits for YAML files: nested aliases can expand a few lines to gigabytes, and deep nesting crashes the parser."""

from pathlib import Path
from typing import Any

import yaml

from lrsweep.errors import InputError

_MOST_BYTES, _MOST_VALUES, _DEEPEST = 1_000_000, 20_000, 50
# What reading YAML may raise: its own errors, and Python's for numbers and dates that are none.
YAML_FAULTS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_file(path: Path, where: str) -> None:
    """Checks a file before it is parsed. A file that cannot be read or parsed passes: its reader reports that.

    Args:
        path: The file.
        where: How messages name the file.

    Raises:
        InputError: The file exceeds a limit, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        text = path.read_bytes().decode() if size <= _MOST_BYTES else ""
    except OSError:
        return
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from None
    if size > _MOST_BYTES:
        raise InputError(f"{where}: {size} bytes, but a config has at most {_MOST_BYTES}; shorten it")
    check(text, where)


def check(text: str, where: str) -> None:
    """Checks text before it is parsed. Text that is not YAML passes: its reader reports that.

    Args:
        text: The text.
        where: How messages name it.

    Raises:
        InputError: The text exceeds a limit with its aliases expanded.
    """
    if len(text) > _MOST_BYTES:
        raise InputError(f"{where}: {len(text)} characters, but a config has at most {_MOST_BYTES}; shorten it")
    counter = _Counter(where)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            counter.count(event)
    except yaml.YAMLError:
        return


class _Counter:
    """Counts the values of a YAML document as if its aliases were expanded.

    Args:
        where: How messages name the document.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        # For each open collection: its values so far, and its anchor.
        self._open: list[tuple[int, str | None]] = [(0, None)]
        # For each anchor: the values under it.
        self._sizes: dict[str, int] = {}

    def count(self, event: yaml.Event) -> None:
        """Takes the parser's next event. Raises InputError if the document exceeds a limit."""
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((1, event.anchor))
            if len(self._open) > _DEEPEST:
                raise self._error(event, f"nested deeper than {_DEEPEST} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = self._open.pop()
            self._add(event, size, anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self._add(event, 1, event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for _, anchor in self._open):
                raise self._error(event, f"*{event.anchor} contains itself; write it out")
            self._add(event, self._sizes.get(event.anchor or "", 0))

    def _add(self, event: yaml.Event, values: int, anchor: str | None = None) -> None:
        """Adds values to the innermost open collection, and notes their number under `anchor`."""
        if anchor is not None:
            self._sizes[anchor] = values
        size, own_anchor = self._open[-1]
        self._open[-1] = (size + values, own_anchor)
        if size + values > _MOST_VALUES:
            raise self._error(event, f"more than {_MOST_VALUES} values with its aliases expanded; shorten it")

    def _error(self, event: yaml.Event, text: str) -> InputError:
        line = event.start_mark.line + 1 if event.start_mark else 1
        return InputError(f"{self._where}:{line}: {text}")
