"""Imports another trainer's config as a sweep of learning rates around the run's own.

Our engines train it where they mean exactly what the file says. Else the sweep is one of the user's own command
(`their_command.py`), whose trials are the user's file with other rates.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lrsweep.config.schema import SweepConfig, flatten, replace, validate
from lrsweep.dialects import TRAINERS, their_command
from lrsweep.dialects.imported_run import DEFAULTS, OPEN, Imported, Request, config_of, run_steps, trial_length
from lrsweep.dialects.mapping import Dialect, Tree
from lrsweep.dialects.reading import obstacles, rest_of, values_of
from lrsweep.dialects.training_arguments import epochs
from lrsweep.errors import InputError, NotFoundError
from lrsweep.files.redaction import mask
from lrsweep.files.yaml_writer import to_yaml

AS_GIVEN = Request()


def imported(dialect: str, tree: Tree, file: str, request: Request = AS_GIVEN) -> Imported:
    """Imports the run that a trainer's config file describes.

    Args:
        dialect: The trainer's name.
        tree: The file's content.
        file: The file's path, to name it in the sweep file.
        request: How the user wants it imported.

    Raises:
        InputError: The file is of no use to its own trainer either, or `--engine` asks for what cannot be.
    """
    trainer = TRAINERS[dialect]
    if (refusal := trainer.does_not_train(tree)) is not None:
        raise InputError(refusal)
    tree, secrets = without_secrets(trainer.relocated(tree, request.model, request.data_dir))
    theirs = functools.partial(their_command.imported, trainer, tree, file, request)
    try:
        if request.engine == "theirs":
            run = theirs(["--engine theirs"])
        elif faults := _obstacles(trainer, tree, request):
            if request.engine == "ours":
                raise faults[0]
            run = theirs([_reason(fault) for fault in faults])
        else:
            run = _with_python(from_tree(trainer, tree, file, count=True), request.python)
    except InputError as fault:
        # Only reading the data shows some obstacles.
        if request.engine != "auto" or _obstacles(trainer, tree, request):
            raise
        run = theirs([_reason(fault)])
    notes = [f"{name} is a secret and left out; give it in the environment" for name in secrets]
    if guess := _guess(trainer, tree, request):
        notes.append(guess)
    return dataclasses.replace(run, notes=(*notes, *run.notes))


def _with_python(run: Imported, python: str | None) -> Imported:
    """The run with the Python of the trainer that makes its rows, or with a note if that is not to be found."""
    from lrsweep.training.data.trainer_rows import python_of

    if run.config.data.tokenized_by is None:
        return run
    config = replace(run.config, {"data.python": python})
    try:
        python_of(config.data)
    except InputError as fault:
        return dataclasses.replace(run, config=config, notes=(*run.notes, str(fault)))
    return dataclasses.replace(run, config=config)


def _reason(fault: InputError) -> str:
    """What keeps our engines from training a file, without the advice on how to change it: nobody has to."""
    return str(fault).rpartition("; ")[0] or str(fault)


def _obstacles(dialect: Dialect, tree: Tree, request: Request) -> list[InputError]:
    """What keeps our engines from training the file; how its trainer runs it may be one."""
    try:
        method = dialect.their_run(tree, request.command).method
    except InputError:
        method = None  # its command is needed only if it is to train the trials
    found = obstacles(dialect, tree)
    if method is not None and not found:
        return [InputError(f"{method}: trials do supervised fine-tuning only; sweep it with --engine theirs")]
    return found


def _guess(dialect: Dialect, tree: Tree, request: Request) -> str:
    try:
        return dialect.their_run(tree, request.command).guess
    except InputError:
        return ""


def without_secrets(tree: Tree) -> tuple[dict[str, Any], list[str]]:
    """Returns a file's content without secrets, which a sweep would write to disk, and the keys of those."""
    kept, dropped = {}, []
    for name, value in tree.items():
        if isinstance(value, str) and mask(f"{name}: {value}") != f"{name}: {value}":
            dropped.append(name)
        else:
            kept[name], inside = _without_secrets_in(name, value)
            dropped += inside
    return kept, dropped


def _without_secrets_in(name: str, value: Any) -> tuple[Any, list[str]]:
    """A value without the secrets in it, and their keys."""
    if isinstance(value, Mapping):
        kept, dropped = without_secrets(value)
        return kept, [f"{name}.{part}" for part in dropped]
    if not isinstance(value, list):
        return value, []
    parts, dropped = [], []
    for at, part in enumerate(value):
        if isinstance(part, str) and mask(f"{name}: {part}") != f"{name}: {part}":
            dropped.append(f"{name}[{at}]")
        else:
            inner, inside = _without_secrets_in(f"{name}[{at}]", part)
            parts.append(inner)
            dropped += inside
    return parts, dropped


def _refuse_interpolation(tree: Any) -> None:
    """Refuses values that OmegaConf, which reads the sweep file, would not take literally."""
    for name, value in flatten(tree).items():
        if "${" in str(value) or "???" in str(value):
            raise InputError(
                f"{name}={str(value)[:60]!r}: holds ${{...}} or ???, which OmegaConf replaces; write the value out"
            )


def from_tree(dialect: Dialect, tree: Tree, file: str, count: bool = False) -> Imported:
    """Imports the content of a trainer's config file.

    Args:
        dialect: The trainer's dialect.
        tree: The file's content.
        file: The file's path, to name it in the sweep file.
        count: Whether to read the data, for the run's length in steps and the rows' format.

    Raises:
        InputError: A key cannot be imported, or the data cannot be read.
    """
    _refuse_interpolation(tree)
    from_file = values_of(dialect, tree)
    values = DEFAULTS | from_file
    missing = tuple(key for key in OPEN if values.get(key, "???") == "???")
    try:
        config = config_of({key: value for key, value in values.items() if key not in missing})
    except InputError as fault:
        raise _with_their_keys(dialect, tree, fault) from None
    notes = list(dialect.notes(tree))
    if count and "data.path" not in missing and config.data.tokenized_by is None:
        try:
            config, missing = _look_at_data(dialect, tree, config, missing)
        except NotFoundError as fault:
            notes.append(f"{fault}; the sweep needs it, here or with --data-dir")
            count = False
    steps = config.training.horizon
    if steps is None:
        times = epochs(tree, *dialect.epochs)
        unknown = not count or config.data.packing or {"data.path", "data.format"} & set(missing)
        if config.data.tokenized_by is not None:
            rows = None if config.data.packing else dialect.rows_of(tree)
        else:
            rows = None if unknown else _rows(config, own_share="data.eval_fraction" in from_file)
        if rows is None:
            notes.append("the run's length in steps is not known: set training.horizon to it")
        else:
            steps = run_steps(rows, config, times)
    config = replace(config, trial_length(config, steps, "training.eval_every" in values))
    rest, kept = rest_of(dialect, tree, config)
    origin = {"dialect": dialect.name, "file": file, "rest": to_yaml(rest) if rest else ""}
    return Imported(validate(config.model_dump() | {"origin": origin}), missing, kept, tuple(notes))


def _with_their_keys(dialect: Dialect, tree: Tree, fault: InputError) -> InputError:
    """An error about one of lrsweep's keys, with the trainer's key in its place."""
    match = re.match(r"([a-z_]+\.[a-z_]+)[^=:]*(.*)", str(fault), re.DOTALL)
    ours, message = match.groups() if match else ("", "")
    for row in dialect.rows(None):
        # A row without keys is what the trainer always does, which the user's file cannot correct.
        if ours in row.ours and row.theirs:
            return InputError(f"{', '.join(row.part(tree)) or row.theirs[0]}{message}; correct it")
    return fault


def _look_at_data(
    dialect: Dialect, tree: Tree, config: SweepConfig, missing: Sequence[str]
) -> tuple[SweepConfig, tuple[str, ...]]:
    """Checks the data's paths and fills in the rows' format from the data if the file does not give it.

    Returns the config and the keys that are still missing.
    """
    from lrsweep.training.data.loading import check_paths, first_row

    if "data.format" in missing:
        row = first_row(config.data)
        names = set(row) if isinstance(row, Mapping) else set()
        form = next((form for form, columns in dialect.formats.items() if columns <= names), None)
        if form == "prompt_completion" and tree.get("completion_only_loss") is False:
            raise InputError("completion_only_loss=False: trials train on completions only; set it to true")
        if form is None:
            return config, tuple(missing)
        config = validate(config.model_dump() | {"data": config.data.model_dump() | {"format": form}})
        missing = [key for key in missing if key != "data.format"]
    check_paths(config.data)
    return config, tuple(missing)


def _rows(config: SweepConfig, own_share: bool) -> int | None:
    """The run's number of training rows; None if the data is on the hub.

    The run holds rows out only if its own file has a share for it (`own_share`).
    """
    from lrsweep.training.data.loading import count_rows, held_out_rows

    rows = count_rows(config.data)
    return rows if rows is None or not own_share else rows - held_out_rows(config.data, rows)
