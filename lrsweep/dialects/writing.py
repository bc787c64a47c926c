"""Writes a config by a dialect's table: a whole file, or the fewest changes to a user's file."""

from collections.abc import Collection
from typing import Any

from lrsweep.config.schema import SweepConfig, replace
from lrsweep.dialects.mapping import Dialect, Tree, Version, brief, changed, differing
from lrsweep.errors import InputError


def written(
    dialect: Dialect, config: SweepConfig, rest: Tree | None, tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """Writes a config in a trainer's language.

    Args:
        dialect: The trainer's dialect.
        config: The config.
        rest: What `rest_of` kept of the imported file: its spelling is used wherever its values are still right. None
            if the config does not come from a file of this trainer.
        tuned: The dotted keys that were searched.
        version: The trainer's version; None for the current one.

    Raises:
        InputError: The trainer cannot express the config.
    """
    dialect.check(config, version)
    tree: dict[str, Any] = {}
    for row in dialect.rows(version):
        if rest is None:
            tree |= row.write(config)
        elif row.keep_file_value and not set(row.ours) & set(tuned):
            tree |= row.part(rest)
        else:
            part = row.part(rest)
            tree |= changed(part, row.edits(part, config))
    if rest is None:
        return dict(dialect.complete(config)) | tree
    known = {name for row in dialect.rows(None) for name in row.theirs}
    return tree | {name: value for name, value in rest.items() if name not in known}


def edits(
    dialect: Dialect, base: Tree, config: SweepConfig, tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """Returns the fewest changes to a user's file after which its tuned keys have the config's values.

    Args:
        dialect: The trainer's dialect.
        base: The content of the user's file.
        config: The config.
        tuned: The dotted keys that were searched. Other keys are not changed.
        version: The trainer's version; None for the current one.

    Returns:
        New values by the trainer's keys; None removes the key.

    Raises:
        InputError: The trainer cannot express the config.
    """
    dialect.check(config, version)
    changes: dict[str, Any] = {}
    for row in dialect.rows(version):
        if set(row.ours) & set(tuned):
            changes |= row.edits(base, config)
    return changes


def changes_in_their_file(
    dialect: Dialect, base: Tree, config: SweepConfig, tuned: Collection[str], version: Version | None
) -> dict[str, Any]:
    """Returns the fewest changes to a file that its own trainer trains, whatever else the file says.

    Unlike `edits`, it takes files with keys that lrsweep cannot read, changes every key that the config has otherwise
    (one that was given on the command line), and writes a tuned key that the file lacks in any case: the trainer's own
    default may depend on what lrsweep cannot read.

    Raises:
        InputError: The trainer has no key for a tuned one, or the file's value beside it cannot be read.
    """
    changes: dict[str, Any] = {}
    unknown = set(tuned)
    for row in dialect.rows(version):
        if not row.theirs:
            continue
        searched = set(row.ours) & set(tuned)
        unknown -= searched
        try:
            different = {} if row.keep_file_value else differing(row.read(base), config)
        except InputError as fault:
            if searched:
                raise InputError(f"{min(searched)}: cannot be changed beside {fault}") from None
            continue
        if searched and not row.part(base):
            changes |= row.write(config)
        elif searched or any(_changes_training(name) and _valid(config, different) for name in different):
            changes |= row.edits(base, config)
    if unknown:
        raise InputError(f"{min(unknown)}: {dialect.name} has no key for it; leave it out")
    return changes


def _changes_training(name: str) -> bool:
    return name.split(".")[0] in ("optimizer", "scheduler", "finetune", "training")


def _valid(config: SweepConfig, values: Tree) -> bool:
    """Whether a config can hold the file's own values: if not, it differs from the file because of that."""
    try:
        replace(config, values)
    except InputError:
        return False
    return True


def differences(dialect: Dialect, base: Tree, config: SweepConfig, version: Version | None) -> list[str]:
    """Returns the keys of a user's file that make it train differently from the trials.

    Only keys of the optimizer, the schedule, fine-tuning and the batch size are compared.

    Returns:
        One text per row, such as `lora_r=8, lora_alpha=16`.
    """
    found = []
    for row in dialect.rows(version):
        ours = [name for name in row.ours if name.split(".")[0] in ("optimizer", "scheduler", "finetune")]
        ours += [name for name in row.ours if name in ("training.batch_size", "training.gradient_accumulation_steps")]
        if ours and not row.keep_file_value and not row.matches(base, config):
            # A row without keys is what the trainer always does.
            default = dict.fromkeys(row.theirs[:1], "its default") or differing(row.read(base), config)
            found.append(", ".join(f"{name}={brief(value)}" for name, value in (row.part(base) or default).items()))
    return found
