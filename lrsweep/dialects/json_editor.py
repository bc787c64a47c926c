"""Changes a few keys in the user's own JSON file: the rest of the text stays as it is."""

import json
import re
from collections.abc import Mapping
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode


def with_changes(text: str, changes: Mapping[str, Any]) -> str:
    """Returns the text of a JSON object with keys set or removed.

    Args:
        text: The text.
        changes: Values by key; None removes the key. New keys go to the end.
    """
    places = _places(text)
    head = text.index("{") + 1
    first = min((start for start, _, _ in places.values()), default=head)
    last = max((end for _, _, end in places.values()), default=head)
    # Each key that stays, with the comma and the space before it.
    parts: list[tuple[str, str]] = []
    before = first
    for name, (start, value, end) in places.items():
        if name not in changes:
            parts.append((text[before:start], text[start:end]))
        elif changes[name] is not None:
            parts.append((text[before:start], text[start:value] + _text(changes[name])))
        before = end
    space = text[head:first]
    new = {name: value for name, value in changes.items() if name not in places and value is not None}
    parts += [(f",{space}", f"{json.dumps(name)}: {_text(value)}") for name, value in new.items()]
    # The first key that stays may have lost the ones before its comma.
    body = "".join(comma * (at > 0) + part for at, (comma, part) in enumerate(parts))
    return text[:first] + body + text[last:]


def _places(text: str) -> dict[str, tuple[int, int, int]]:
    """For each key of the object, the index of the key, of its value, and of the value's end."""
    found: dict[str, tuple[int, int, int]] = {}
    at = text.index("{") + 1
    while True:
        start = _skip(text, at)
        if text[start] == "}":
            return found
        name, end = _DECODE(text, start)
        value = _skip(text, _skip(text, end) + 1)  # after the colon
        _, end = _DECODE(text, value)
        found[name] = (start, value, end)
        at = _skip(text, end)
        at += text[at] == ","


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
