"""Imports another trainer's config as a sweep of learning rates around the run's own."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrsweep.config.schema import TRIAL_SECTIONS, SweepConfig, flatten, replace, validate
from lrsweep.dialects import TRAINERS, file_editor
from lrsweep.dialects.header import comments
from lrsweep.dialects.mapping import Dialect, Tree, rest_of, values_of
from lrsweep.dialects.training_arguments import epochs
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import to_yaml

# A trial of a long run is its first 200 steps on its schedule, or three times the warm-up if that is longer.
_STEPS, _WARMUPS = 200, 3
_EVALUATIONS = 8
# What trials use where the file does not give a value.
_DEFAULTS = {"data.eval_fraction": 0.1, "data.max_eval_rows": 512, "training.eval_batch_size": 8}
# If the file does not give these, the user must, on the command line or in the sweep file.
_OPEN = {"model.path": "???", "data.path": "???", "data.format": "???"}
# A complete config, whose values the imported ones replace.
_TEMPLATE: dict[str, Any] = {
    "name": "imported",
    "model": {"path": "open"},
    "data": {"path": "open", "format": "messages"},
    "finetune": {"mode": "full"},
    "optimizer": {"name": "adamw", "lr": 1e-4},
    "scheduler": {"name": "linear"},
    "training": {"max_steps": 1, "batch_size": 1, "eval_every": 1},
    "search": {"method": "grid"},
    "space": {},
    "pruner": {"name": "auto"},
    "engine": {"name": "auto"},
    "executor": {"name": "local"},
    "tracking": {"name": "mlflow"},
}


@dataclass(frozen=True)
class Imported:
    """An imported run.

    Attributes:
        config: The run as a config.
        missing: The dotted keys that the file does not give, which the user has to set.
        kept: The trainer's keys without an lrsweep equivalent, kept for the export.
        notes: Notes for the user, each a clause without a full stop.
    """

    config: SweepConfig
    missing: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def imported(dialect: str, file: Path) -> Imported:
    """Imports the run that a trainer's config file describes.

    Args:
        dialect: The trainer's name.
        file: The config file.

    Raises:
        InputError: The file cannot be read, or a key cannot be imported; the message says which and what to do.
    """
    if dialect not in TRAINERS:
        raise InputError(f"import {dialect}: no such format (choices: {', '.join(TRAINERS)})")
    _, tree = file_editor.read(file)
    return from_tree(TRAINERS[dialect], tree, str(file), count=True)


def place(out: Path | None, file: Path) -> Path:
    """Returns where to write the sweep file.

    Args:
        out: The path that the user gave; None puts it into ./sweeps under the config file's name.
        file: The trainer's config file.

    Raises:
        InputError: The path exists, or Hydra's +sweep= could not name it.
    """
    path = out or Path("sweeps") / f"{re.sub('[^A-Za-z0-9_-]+', '_', file.stem)}.yaml"
    if path.suffix != ".yaml" or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", path.stem):
        raise InputError(
            f"--out {path}: a sweep file is called NAME.yaml with only letters, digits, '_' and '-' in NAME; rename it"
        )
    if path.exists():
        raise InputError(f"{path}: exists already; give another --out, or remove it")
    return path


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
    values = _DEFAULTS | from_file
    missing = tuple(key for key in _OPEN if values.get(key, "???") == "???")
    try:
        config = _config({key: value for key, value in values.items() if key not in missing})
    except InputError as fault:
        raise _with_their_keys(dialect, tree, fault) from None
    notes = list(dialect.notes(tree))
    if count and "data.path" not in missing:
        config, missing = _look_at_data(dialect, tree, config, missing)
    steps = config.training.horizon
    if steps is None:
        times = epochs(tree, *dialect.epochs)
        unknown = not count or config.data.packing or {"data.path", "data.format"} & set(missing)
        rows = None if unknown else _rows(config, own_share="data.eval_fraction" in from_file)
        if rows is None:
            notes.append("the run's length in steps is not known: set training.horizon to it")
        else:
            steps = run_steps(rows, config, times)
    config = replace(config, _trial(config, steps, "training.eval_every" in values))
    rest, kept = rest_of(dialect, tree, config)
    origin = {"dialect": dialect.name, "file": file, "rest": to_yaml(rest) if rest else ""}
    return Imported(validate(config.model_dump() | {"origin": origin}), missing, kept, tuple(notes))


def run_steps(rows: int, config: SweepConfig, times: float) -> int:
    """Returns the number of optimizer steps of a run, as transformers counts them.

    Args:
        rows: Number of training rows.
        config: The run's config, for batch size and gradient accumulation.
        times: Number of epochs.
    """
    batches = math.ceil(rows / config.training.batch_size)
    return math.ceil(max(1, math.ceil(batches / config.training.gradient_accumulation_steps)) * times)


def rates(lr: float) -> list[float]:
    """Returns five learning rates in half decades with `lr` in the middle: 1e-5, 3e-5, 1e-4, 3e-4, 1e-3 for 1e-4."""
    half = math.sqrt(10)
    sides = [f"{lr / 10:.3g}", f"{lr / half:.0e}", f"{lr * half:.0e}", f"{lr * 10:.3g}"]
    low, lower, higher, high = (float(side) for side in sides)
    return [low, lower, lr, higher, high]


def text(run: Imported, name: str) -> str:
    """Returns the text of the sweep file.

    Args:
        run: The imported run.
        name: The sweep's name, for ./sweeps/NAME.yaml.
    """
    config, origin = run.config, run.config.origin
    assert origin is not None
    tree = config.model_dump()
    for key in run.missing:
        section, _, leaf = key.partition(".")
        tree[section][leaf] = "???"
    extra = "".join(f" {key}=..." for key in run.missing)
    lines = [
        f"The run of {origin.file} ({origin.dialect}) at learning rates around its own.",
        f"To run it: python -m lrsweep +sweep={name}{extra}",
        f"To put the best one back: lrsweep export {name} --to {origin.dialect} --base {origin.file}",
        *(f"Note: {note}." for note in run.notes),
    ]
    if config.training.schedule_steps > config.training.max_steps:
        lines.append(
            f"Trials run the first {config.training.max_steps} of its {config.training.horizon} steps, on its schedule."
        )
    groups = {group: tree[group] for group in TRIAL_SECTIONS}
    body = to_yaml(groups | {"space": {"optimizer": {"lr": rates(config.optimizer.lr)}}}).replace("'???'", "???")
    return (
        "# @package _global_\n"
        + comments(lines)
        + _defaults(run)
        + body
        + "# Keys without an equivalent in lrsweep, or with another spelling, which an export returns unchanged.\n"
        + _origin(tree["origin"])
    )


def _defaults(run: Imported) -> str:
    """A defaults list with config groups that leave a missing value missing; the default groups would set it."""
    groups = [group for group in ("model", "data") if any(key.startswith(group) for key in run.missing)]
    return "defaults:\n" + "".join(f"  - override /{group}: local\n" for group in groups) if groups else ""


def _origin(origin: Mapping[str, str]) -> str:
    head = to_yaml({"origin": {"dialect": origin["dialect"], "file": origin["file"]}})
    if not origin["rest"]:
        return head
    return head + "  rest: |\n" + "".join(f"    {line}\n" if line else "\n" for line in origin["rest"].split("\n")[:-1])


def _refuse_interpolation(tree: Any) -> None:
    """Refuses values that OmegaConf, which reads the sweep file, would not take literally."""
    for name, value in flatten(tree).items():
        if "${" in str(value) or "???" in str(value):
            raise InputError(
                f"{name}={str(value)[:60]!r}: holds ${{...}} or ???, which OmegaConf replaces; write the value out"
            )


def _with_their_keys(dialect: Dialect, tree: Tree, fault: InputError) -> InputError:
    """An error about one of lrsweep's keys, with the trainer's key in its place."""
    match = re.match(r"([a-z_]+\.[a-z_]+)[^=:]*(.*)", str(fault), re.DOTALL)
    ours, message = match.groups() if match else ("", "")
    for row in dialect.rows(None):
        # A row without keys is what the trainer always does, which the user's file cannot correct.
        if ours in row.ours and row.theirs:
            return InputError(f"{', '.join(row.part(tree)) or row.theirs[0]}{message}; correct it")
    return fault


def _config(values: Tree) -> SweepConfig:
    tree = {section: dict(part) if isinstance(part, dict) else part for section, part in _TEMPLATE.items()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    # The whole run for now; `_trial` shortens it.
    tree["training"]["max_steps"] = values.get("training.horizon") or 1
    return validate(tree)


def _trial(config: SweepConfig, steps: int | None, every_given: bool) -> dict[str, Any]:
    """The config keys for a trial's length and how often it is evaluated."""
    length = max(_STEPS, _WARMUPS * config.scheduler.warmup(steps or 0))
    length = length if steps is None else min(steps, length)
    every = config.training.eval_every
    if not every_given or every > length // 2:
        every = max(1, length // _EVALUATIONS)
    return {"training.horizon": steps, "training.max_steps": length, "training.eval_every": every}


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
        if "messages" in names and dialect.name == "trl":
            raise InputError(
                "assistant_only_loss=False: TRL then trains on the prompts of conversations too, but trials only on "
                "the answers; set it to true"
            )
        form = "prompt_completion" if {"prompt", "completion"} <= names else "text" if "text" in names else None
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
    from lrsweep.training.data.loading import count_rows

    rows = count_rows(config.data)
    return rows if rows is None or not own_share else rows - max(1, round(rows * config.data.eval_fraction))
