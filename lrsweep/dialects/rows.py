"""Parts of a dialect's table: rows for the usual cases, and readers that check a value of the trainer's file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Row, Tree, brief, differing, get
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import scalar


def key(
    theirs: str,
    ours: str,
    default: Any,
    read: Callable[[str, Any], Any],
    write: Callable[[Any], Any] = lambda value: value,
) -> Row:
    """Makes a row that maps one key of the trainer to one key of lrsweep.

    Args:
        theirs: The trainer's key.
        ours: The dotted lrsweep key.
        default: The trainer's default, as a value of the lrsweep key: what an absent or null key means.
        read: Converts the trainer's value, given the trainer's key and the value. Raises InputError for a value that is
            not valid: `number`, `whole`, `flag`, `word` and `pair` of this module do that for plain types.
        write: Converts lrsweep's value for the trainer's file; by default it stays the same. A value of None writes
            nothing.
    """

    def reading(tree: Tree) -> Tree:
        value = tree.get(theirs)
        return {ours: default if value is None else read(theirs, value)}

    def writing(config: SweepConfig) -> Tree:
        value = get(config, ours)
        written = None if value is None else write(value)
        return {} if written is None else {theirs: written}

    return Row((theirs,), (ours,), reading, writing)


def fixed(trainer: str, values: Tree) -> Row:
    """Makes a row for what the trainer always does, such as AdamW with a cosine schedule: no key of its file says so.

    It reads as these values and writes nothing.

    Args:
        trainer: The trainer's name, for messages.
        values: What the trainer does, by lrsweep's dotted keys. An export refuses a config with other values.
    """
    return exact(trainer, Row((), tuple(values), lambda tree: values, lambda config: {}))


def exact(trainer: str, row: Row) -> Row:
    """Makes a row refuse what it cannot express: a config from which it writes keys that it reads as another config.

    Args:
        trainer: The trainer's name, for messages.
        row: The row. Its `read` says what the trainer makes of the keys.
    """

    def writing(config: SweepConfig) -> Tree:
        tree = row.write(config)
        for name, value in differing(row.read(tree), config).items():
            raise InputError(
                f"{name}={brief(get(config, name))}: {trainer} trains with {brief(value)} only; set "
                f"{name}={scalar(value)}"
            )
        return tree

    return replace(row, write=writing)


def given(tree: Tree, name: str, default: Any) -> Any:
    """Returns the value of a trainer's key, or the default if it is absent or null."""
    return default if tree.get(name) is None else tree[name]


def number(name: str, value: Any) -> float:
    """Reads a number, also from a string, since YAML 1.1 reads 1e-4 as one.

    Args:
        name: The trainer's key, for the message.
        value: The value.

    Raises:
        InputError: The value is not a number.
    """
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name}={brief(value)}: not a number; write it as 1.0e-4 or 0.0001")


def whole(name: str, value: Any) -> int:
    """Reads a whole number. Raises InputError like `number`."""
    found = number(name, value)
    if not math.isfinite(found) or found != int(found):
        raise InputError(f"{name}={brief(value)}: not a whole number; write one")
    return int(found)


def flag(name: str, value: Any) -> bool:
    """Reads a truth value: true, false, yes, no, 1 or 0. Raises InputError like `number`."""
    spellings = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
    if str(value).lower() not in spellings:
        raise InputError(f"{name}={brief(value)}: neither true nor false; write one of them")
    return spellings[str(value).lower()]


def word(name: str, value: Any) -> str:
    """Reads a string; numbers count as one. Raises InputError like `number`."""
    if isinstance(value, list | Mapping | bool):
        raise InputError(f"{name}={brief(value)}: not a string; write one")
    return str(value)


def names(name: str, value: Any) -> list[str]:
    """Reads names from a list, or from a string in which commas separate them. Raises InputError like `number`."""
    parts = value if isinstance(value, list) else word(name, value).split(",")
    return [word(name, part).strip() for part in parts]


def pair(name: str, value: Any) -> list[float]:
    """Reads a list of two numbers, such as Adam's betas. Raises InputError like `number`."""
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{name}={brief(value)}: not a pair of numbers; write it as [0.9, 0.999]")
    return [number(name, part) for part in value]


def integral(name: str, value: float, tool: str) -> int:
    """Converts a value of the lrsweep key `name` for a trainer that takes only whole numbers.

    Raises:
        InputError: The value is not a whole number.
    """
    if value != int(value):
        raise InputError(f"{name}={value:g}: {tool} takes whole numbers only; search over whole numbers")
    return int(value)
