"""The config languages of other trainers, one module per dialect: exports the best config, and imports theirs."""

from pathlib import Path
from typing import TYPE_CHECKING

from lrsweep.config.schema import SweepConfig, flatten
from lrsweep.dialects import axolotl, llamafactory, ms_swift, their_command, transformers, trl
from lrsweep.dialects.file_editor import edited
from lrsweep.dialects.mapping import Dialect, Version, changed
from lrsweep.dialects.writing import changes_in_their_file, written
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml

if TYPE_CHECKING:
    from lrsweep.report.summary import Summary

# A new dialect is added here; `mapping` describes how to write one.
TRAINERS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (llamafactory.DIALECT, transformers.DIALECT, trl.DIALECT, axolotl.DIALECT, ms_swift.DIALECT)
}
DIALECTS = ("hydra", *TRAINERS)


def export(summary: "Summary", dialect: str, base: Path | None = None, version: str | None = None) -> str:
    """Returns a sweep's best config as the text of a config file.

    Args:
        summary: The sweep's summary.
        dialect: One of `DIALECTS`.
        base: The user's own file: the result is that file with only the tuned keys changed. None writes a whole file.
        version: The trainer's version, such as `5.15`, if its keys depend on it; None for the current one.

    Raises:
        InputError: No trial completed, an argument is not valid, or the trainer cannot express the config.
    """
    # The report's libraries take a second, which an import does not need.
    from lrsweep.dialects import hydra
    from lrsweep.dialects.header import header

    if dialect not in DIALECTS:
        raise InputError(f"--to {dialect}: no such format (choices: {', '.join(DIALECTS)})")
    best = summary.verdict.best
    if best is None:
        raise InputError(f"{summary.config.name}: no trial completed, so there is no best config to export")
    if dialect == "hydra":
        if base is not None or version is not None:
            option = "--base" if base is not None else "--target-version"
            raise InputError(f"{option}: has no meaning for hydra; use it with {', '.join(TRAINERS)}")
        return hydra.export(summary)
    trainer = TRAINERS[dialect]
    target = None if version is None else target_version(trainer, version)
    searched = tuned(summary.config, best.config) | set(best.values)
    if base is not None:
        return edited(trainer, base, best.config, searched, target, header(summary))
    text = to_yaml(tree(trainer, best.config, searched, target))
    origin = best.config.origin
    same = origin is not None and origin.dialect == dialect
    return header(summary) + ("" if same else trainer.not_here(best.config)) + text


def tree(
    trainer: Dialect, config: SweepConfig, searched: set[str], version: Version | None = None
) -> dict[str, object]:
    """Writes a whole config in a trainer's language.

    What an import kept of the trainer's own file is returned unchanged.

    Args:
        trainer: The trainer's dialect.
        config: The config.
        searched: The dotted keys that were searched.
        version: The trainer's version; None for the current one.

    Returns:
        The content of the config file, by the trainer's keys.

    Raises:
        InputError: The trainer cannot express the config.
    """
    origin = config.origin
    if origin is not None and origin.base and origin.dialect == trainer.name:
        base = load_yaml(origin.base, "origin.base")
        given = searched | their_command.overridden(trainer, base, config)
        return changed(base, changes_in_their_file(trainer, base, config, given, version))
    if origin is None or origin.dialect != trainer.name:
        return written(trainer, config, None, searched, version)
    rest = load_yaml(origin.rest, "origin.rest") if origin.rest else {}
    return written(trainer, config, rest, searched, version)


def tuned(base: SweepConfig, best: SweepConfig) -> set[str]:
    """Returns the dotted keys in which the best trial differs from the sweep's base config."""
    before, after = flatten(base.model_dump()), flatten(best.model_dump())
    keys = {key for key, value in after.items() if before.get(key) != value}
    # The dialects' rows name these mappings as a whole.
    return {
        next((whole for whole in ("optimizer.kwargs", "scheduler.kwargs") if key.startswith(whole)), key)
        for key in keys
    }


def target_version(trainer: Dialect, text: str) -> Version:
    """Parses a trainer's version: `v0.9.5` gives (0, 9).

    Raises:
        InputError: The text is not a version, or the trainer's keys do not depend on its version.
    """
    if not trainer.versioned:
        raise InputError(f"--target-version {text}: {trainer.name}'s keys do not depend on it; leave it out")
    try:
        major, minor, *_ = [*(int(part) for part in text.removeprefix("v").split(".")), 0]
    except ValueError:
        raise InputError(f"--target-version {text}: not a version; write it as 5.15") from None
    return major, minor


__all__ = ["DIALECTS", "TRAINERS", "export", "target_version", "tree", "tuned"]
