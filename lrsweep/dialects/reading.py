"""Reads a trainer's file by its dialect's table: what it says, what trials cannot do, what an export has to keep."""

from typing import Any

from lrsweep.config.schema import SweepConfig
from lrsweep.dialects.mapping import Dialect, Tree, brief
from lrsweep.errors import InputError


def obstacles(dialect: Dialect, tree: Tree) -> list[InputError]:
    """Returns what keeps trials of our engines from training exactly what a trainer's file says, one error for each."""
    found = [fault for refusal in dialect.refusals for fault in refusal.faults(tree)]
    named = {name for refusal in dialect.refusals for name in refusal.keys.split()} | set(dialect.harmless.split())
    named |= {name for row in dialect.rows(None) for name in row.theirs}
    for name, value in tree.items():
        if value is not None and name not in named:
            found.append(
                InputError(f"{name}={brief(value)}: lrsweep does not know what it changes in {dialect.name}; remove it")
            )
    for row in dialect.rows(None):
        try:
            row.read(tree)
        except InputError as fault:
            found.append(fault)
    return found


def values_of(dialect: Dialect, tree: Tree) -> dict[str, Any]:
    """Reads a trainer's file.

    Args:
        dialect: The trainer's dialect.
        tree: The file's content.

    Returns:
        Values by lrsweep's dotted keys, with the trainer's defaults for absent keys.

    Raises:
        InputError: The first of `obstacles`.
    """
    for fault in obstacles(dialect, tree):
        raise fault
    return {name: value for row in dialect.rows(None) for name, value in row.read(tree).items()}


def rest_of(dialect: Dialect, tree: Tree, config: SweepConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns what an export has to return unchanged.

    Args:
        dialect: The trainer's dialect.
        tree: The imported file's content.
        config: The config that was read from it.

    Returns:
        Keys and values of the file that the config alone would not reproduce, and those of the keys that have no
        lrsweep equivalent.
    """
    rest: dict[str, Any] = {}
    known: set[str] = set()
    for row in dialect.rows(None):
        known |= set(row.theirs)
        part = row.part(tree)
        # This keeps other spellings of the same value too, and defaults that the file gives explicitly.
        if part and (
            row.keep_file_value or len(row.theirs) > 1 or row.matches({}, config) or dict(row.write(config)) != part
        ):
            rest |= part
    kept = {name: value for name, value in tree.items() if name not in known}
    return rest | kept, tuple(kept)
