"""Imports a run as a sweep of the user's own command: each trial is the user's file with other rates."""

import shlex
import shutil
from collections.abc import Sequence
from typing import Any

from lrsweep.config.schema import SweepConfig, flatten, replace, validate
from lrsweep.dialects.imported_run import DEFAULTS, Imported, Request, config_of, run_steps, trial_length
from lrsweep.dialects.mapping import Dialect, TheirRun, Tree
from lrsweep.dialects.training_arguments import epochs
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml

# What stands in the sweep's config for a model and data that only the trainer reads.
_UNREAD = {"model.path": "theirs", "data.path": "theirs", "data.format": "text"}


def imported(dialect: Dialect, tree: Tree, file: str, request: Request, reasons: Sequence[str]) -> Imported:
    """Imports a run that its own trainer is to train.

    Args:
        dialect: The trainer's dialect.
        tree: The file's content.
        file: The file's path, to name it in the sweep file.
        request: How the user wants it imported.
        reasons: Why our engines do not train it.

    Raises:
        InputError: The trainer itself would not train the file, or its learning rate cannot be read.
    """
    run = dialect.their_run(tree, request.command)
    if not run.command:
        raise InputError(
            f"{reasons[0]}; or have your own script train it, as in --command 'python train.py {{config}}'"
        )
    split(run.command)
    values = _readable(dialect, tree, run)
    config = config_of(values)
    steps = config.training.horizon
    if steps is None:
        steps = _steps(dialect, tree, config, "data.eval_fraction" in values)
    unknown = "the run's length in steps is not known: set training.horizon to it" if steps is None else None
    notes = [unknown, _evaluation_note(run), _weighted_note(config, run), program_missing(run.command, request.python)]
    config = replace(config, trial_length(config, steps, "training.eval_every" in values))
    changes = {
        "engine": {"name": "external", "command": run.command, "dialect": dialect.name, "python": request.python},
        "search": config.search.model_dump() | {"metric": run.metric, "direction": run.direction, "prior": False},
        "origin": {"dialect": dialect.name, "file": file, "base": to_yaml(dict(tree))},
    }
    config = validate(config.model_dump() | changes)
    return Imported(config, (), (), tuple(note for note in notes if note), tuple(reasons))


def split(command: str) -> list[str]:
    """Returns a command's words. Raises InputError if it has none, or has an open quote."""
    try:
        found = shlex.split(command)
    except ValueError as fault:
        raise InputError(f"--command {command!r}: {str(fault).lower()}; close every quote in it") from None
    if not found:
        raise InputError("--command: empty; give the trainer's command, as in 'llamafactory-cli train {config}'")
    return found


def program_missing(command: str, python: str | None) -> str | None:
    """Returns what to do about a command whose program is not there; None if it is."""
    if program(command, python) is not None:
        return None
    name = split(command)[0]
    where = f"beside {python}" if python else "on PATH"
    return (
        f"{name} is not {where}: set engine.python to the Python of its environment, or write its path into "
        "engine.command"
    )


def program(command: str, python: str | None) -> str | None:
    """Returns the path of a command's program; None if it is not there.

    Args:
        command: The command line.
        python: The Python of the environment to look into first; None for PATH only.
    """
    from lrsweep.training.engines.external import path_with

    return shutil.which(split(command)[0], path=path_with(python))


def _readable(dialect: Dialect, tree: Tree, run: TheirRun) -> dict[str, Any]:
    """The values of the file that lrsweep can read and hold, with placeholders for the rest."""
    found: dict[str, Any] = dict(_UNREAD | DEFAULTS)
    for row in dialect.rows(None):
        try:
            read = dict(row.read(tree))
        except InputError:
            if "optimizer.lr" in row.ours:
                raise
            continue
        if "optimizer.lr" in row.ours and run.lr is not None and not row.part(tree):
            read["optimizer.lr"] = run.lr
        try:
            config_of(found | {name: value for name, value in read.items() if value != "???"})
        except InputError as fault:
            if "optimizer.lr" in row.ours:
                raise InputError(str(fault).replace("optimizer.lr", row.theirs[0], 1)) from None
            continue
        found |= {name: value for name, value in read.items() if value != "???"}
    return found


def _steps(dialect: Dialect, tree: Tree, config: SweepConfig, own_share: bool) -> int | None:
    """The run's length in optimizer steps, as far as its rows can be counted here."""
    from lrsweep.training.data.loading import count_rows, held_out_rows

    if config.data.path == _UNREAD["data.path"] or config.data.packing:
        return None
    try:
        rows = count_rows(config.data)
        if rows is None:
            return None
        held_out = held_out_rows(config.data, rows) if own_share else 0
        return run_steps(max(1, rows - held_out), config, epochs(tree, *dialect.epochs))
    except InputError:
        return None


def overridden(dialect: Dialect, base: Tree, config: SweepConfig) -> set[str]:
    """Returns what a command line changed of what an import read in a file: dotted keys, but for the run's length."""
    read = config_of(_readable(dialect, base, dialect.their_run(base, config.engine.command)))
    before, after = flatten(read.model_dump()), flatten(config.model_dump())
    return {key for key, value in after.items() if key.startswith(("model.", "data.")) and before.get(key) != value}


def _evaluation_note(run: TheirRun) -> str | None:
    if not run.evaluates:
        return (
            f"{run.method} has no evaluation on held-out rows: trials are ranked by {run.metric} at their end, "
            "smoothed, which also rewards what is only memorised"
        )
    return None


def _weighted_note(config: SweepConfig, run: TheirRun) -> str | None:
    loss = config.training.loss
    if loss == "cross_entropy" or run.metric not in ("eval_loss", "loss"):
        return None
    return (
        f"the trainer's {run.metric} has the weights of {loss} in it, with which a worse model may have a "
        "lower one: rank by another number if it logs one, with search.metric"
    )
