"""Other trainers' configs, one file a dialect: the best one goes out in theirs, and theirs become sweeps."""

from pathlib import Path

from lrsweep.config.schema import SweepConfig, flatten
from lrsweep.dialects import axolotl, hydra, llamafactory, transformers, trl
from lrsweep.dialects.file_editor import edited
from lrsweep.dialects.header import comments, header
from lrsweep.dialects.mapping import Dialect, Version, written
from lrsweep.dialects.yaml_reader import load_yaml
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.report.summary import Summary

TRAINERS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (llamafactory.DIALECT, transformers.DIALECT, trl.DIALECT, axolotl.DIALECT)
}
DIALECTS = ("hydra", *TRAINERS)


def export(summary: Summary, dialect: str, base: Path | None = None, version: str | None = None) -> str:
    """The best config of a sweep in `dialect`; with `base`, that file with the tuned keys changed and nothing else.

    `version` is the tool's, where its keys depend on it. Raises InputError for what does not exist or cannot be said.
    """
    if dialect not in DIALECTS:
        raise InputError(f"--to {dialect}: no such format (choices: {', '.join(DIALECTS)})")
    best = summary.verdict.best
    if best is None:
        raise InputError(f"{summary.config.name}: no trial completed, so there is no best to export")
    if dialect == "hydra":
        if base is not None or version is not None:
            option = "--base" if base is not None else "--target-version"
            raise InputError(f"{option}: has no meaning for hydra; give it with {', '.join(TRAINERS)}")
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
    """The whole config in the trainer's words; what came from its own file goes back as it was."""
    origin = config.origin
    if origin is None or origin.dialect != trainer.name:
        return written(trainer, config, None, searched, version)
    rest = load_yaml(origin.rest, "origin.rest") if origin.rest else {}
    return written(trainer, config, rest, searched, version)


def tuned(base: SweepConfig, best: SweepConfig) -> set[str]:
    """The dotted keys in which the best trial differs from the sweep's base."""
    before, after = flatten(base.model_dump()), flatten(best.model_dump())
    keys = {key for key, value in after.items() if before.get(key) != value}
    # A row of a table names such a mapping whole.
    return {
        next((whole for whole in ("optimizer.kwargs", "scheduler.kwargs") if key.startswith(whole)), key)
        for key in keys
    }


def target_version(trainer: Dialect, text: str) -> Version:
    """`v0.9.5` as (0, 9). Raises InputError."""
    if not trainer.versioned:
        raise InputError(f"--target-version {text}: {trainer.name}'s keys do not depend on it; leave it out")
    try:
        major, minor, *_ = [*(int(part) for part in text.removeprefix("v").split(".")), 0]
    except ValueError:
        raise InputError(f"--target-version {text}: not a version; write it as 5.15") from None
    return major, minor


__all__ = ["DIALECTS", "TRAINERS", "comments", "export", "target_version", "tree", "tuned"]
