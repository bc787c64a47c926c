"""How large a YAML file may be: aliases of aliases make gigabytes of a few lines, deep nesting ends the parser."""

from pathlib import Path
from typing import Any

import yaml

from lrsweep.errors import InputError

_MOST_BYTES, _MOST_VALUES, _DEEPEST = 1_000_000, 20_000, 50
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_file(path: Path, where: str) -> None:
    """Raises InputError for a file beyond the limits, and for one that is no text; others are their reader's to refuse."""
    try:
        size = path.stat().st_size
        text = path.read_bytes().decode() if size <= _MOST_BYTES else ""
    except OSError:
        return
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the file as UTF-8") from None
    if size > _MOST_BYTES:
        raise InputError(f"{where}: {size} bytes, and a config has at most {_MOST_BYTES}; cut it down")
    check(text, where)


def check(text: str, where: str) -> None:
    """Raises InputError for text beyond the limits, its aliases written out; what is no YAML is its reader's to refuse."""
    if len(text) > _MOST_BYTES:
        raise InputError(f"{where}: {len(text)} characters, and a config has at most {_MOST_BYTES}; cut it down")
    try:
        _count(text, where)
    except yaml.YAMLError:
        return


def _count(text: str, where: str) -> None:
    # Of each collection that is open: its values so far, and its anchor.
    open_ones: list[tuple[int, str | None]] = [(0, None)]
    sizes: dict[str, int] = {}

    def line(event: yaml.Event) -> int:
        return event.start_mark.line + 1 if event.start_mark else 1

    def add(values: int) -> None:
        size, anchor = open_ones[-1]
        open_ones[-1] = (size + values, anchor)
        if size + values > _MOST_VALUES:
            raise InputError(
                f"{where}:{line(event)}: more than {_MOST_VALUES} values with its aliases written out; cut it down"
            )

    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((1, event.anchor))
            if len(open_ones) > _DEEPEST:
                raise InputError(f"{where}:{line(event)}: nested deeper than {_DEEPEST} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = open_ones.pop()
            if anchor is not None:
                sizes[anchor] = size
            add(size)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = 1
            add(1)
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for _, anchor in open_ones):
                raise InputError(f"{where}:{line(event)}: *{event.anchor} stands within itself; write it out")
            add(sizes.get(event.anchor or "", 0))
