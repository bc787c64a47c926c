"""A sweep file from another trainer's config: its base is that run, its axis the learning rate around the run's."""

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

# Trials of a long run are its first steps, on its schedule: so many, or three times its warm-up.
_STEPS, _WARMUPS = 200, 3
_EVALUATIONS = 8
# What trials have where the file says nothing.
_DEFAULTS = {"data.eval_fraction": 0.1, "data.max_eval_rows": 512, "training.eval_batch_size": 8}
# Where a file does not say it: the user does, on the command line or in the sweep file.
_OPEN = {"model.path": "???", "data.path": "???", "data.format": "???"}
# Any config that is whole; what is imported replaces its parts.
_ANY: dict[str, Any] = {
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
    """The run as a config, `missing` keys that the file does not have, keys `kept` for the export, and notes on the rest."""

    config: SweepConfig
    missing: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...]


def imported(dialect: str, file: Path) -> Imported:
    """The run that `file` describes. Raises InputError naming the key that cannot be taken over, and what to do."""
    if dialect not in TRAINERS:
        raise InputError(f"import {dialect}: no such format (choices: {', '.join(TRAINERS)})")
    _, tree = file_editor.read(file)
    return from_tree(TRAINERS[dialect], tree, str(file), count=True)


def place(out: Path | None, file: Path) -> Path:
    """Where the sweep file goes. Raises InputError for a file that is there already, or a name that +sweep= cannot say."""
    path = out or Path("sweeps") / f"{re.sub('[^A-Za-z0-9_-]+', '_', file.stem)}.yaml"
    if path.suffix != ".yaml" or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", path.stem):
        raise InputError(
            f"--out {path}: a sweep file is called NAME.yaml, NAME of letters, digits, '_' and '-'; rename it"
        )
    if path.exists():
        raise InputError(f"{path}: is there already; give another --out, or remove it")
    return path


def from_tree(dialect: Dialect, tree: Tree, file: str, count: bool = False) -> Imported:
    """The same, of a file's content; `count` looks at the data, for the run's length and the rows' form."""
    _check_text(tree)
    said = values_of(dialect, tree)
    values = _DEFAULTS | said
    missing = tuple(key for key in _OPEN if values.get(key, "???") == "???")
    try:
        config = _config({key: value for key, value in values.items() if key not in missing})
    except InputError as fault:
        raise _in_their_words(dialect, tree, fault) from None
    notes = list(dialect.notes(tree))
    if count and "data.path" not in missing:
        config, missing = _look_at_data(dialect, tree, config, missing)
    steps = config.training.horizon
    if steps is None:
        times = epochs(tree, *dialect.epochs)
        open_ends = not count or config.data.packing or {"data.path", "data.format"} & set(missing)
        rows = None if open_ends else _rows(config, own_share="data.eval_fraction" in said)
        if rows is None:
            notes.append("the run's length in steps is not known here: set training.horizon to it")
        else:
            steps = run_steps(rows, config, times)
    config = replace(config, _trial(config, steps, "training.eval_every" in values))
    rest, kept = rest_of(dialect, tree, config)
    origin = {"dialect": dialect.name, "file": file, "rest": to_yaml(rest) if rest else ""}
    return Imported(validate(config.model_dump() | {"origin": origin}), missing, kept, tuple(notes))


def run_steps(rows: int, config: SweepConfig, times: float) -> int:
    """Optimizer steps of a run over `rows` rows, as transformers counts them."""
    batches = math.ceil(rows / config.training.batch_size)
    return math.ceil(max(1, math.ceil(batches / config.training.gradient_accumulation_steps)) * times)


def rates(lr: float) -> list[float]:
    """The learning rate in the middle, a decade to either side, in half decades: 1e-5, 3e-5, 1e-4, 3e-4, 1e-3."""
    half = math.sqrt(10)
    sides = [f"{lr / 10:.3g}", f"{lr / half:.0e}", f"{lr * half:.0e}", f"{lr * 10:.3g}"]
    low, lower, higher, high = (float(side) for side in sides)
    return [low, lower, lr, higher, high]


def text(run: Imported, name: str) -> str:
    """The sweep file, for ./sweeps/NAME.yaml."""
    config, origin = run.config, run.config.origin
    assert origin is not None
    tree = config.model_dump()
    for key in run.missing:
        section, _, leaf = key.partition(".")
        tree[section][leaf] = "???"
    extra = "".join(f" {key}=..." for key in run.missing)
    lines = [
        f"The run of {origin.file} ({origin.dialect}), at learning rates around its own.",
        f"To run it: python -m lrsweep +sweep={name}{extra}",
        f"The best one goes back with: lrsweep export {name} --to {origin.dialect} --base {origin.file}",
        *(f"Note: {note}." for note in run.notes),
    ]
    if config.training.schedule_steps > config.training.max_steps:
        lines.append(
            f"Trials are the run's first {config.training.max_steps} of {config.training.horizon} steps, on its schedule."
        )
    groups = {group: tree[group] for group in TRIAL_SECTIONS}
    body = to_yaml(groups | {"space": {"optimizer": {"lr": rates(config.optimizer.lr)}}}).replace("'???'", "???")
    return (
        "# @package _global_\n"
        + comments(lines)
        + _defaults(run)
        + body
        + "# What has no equivalent here, or is spelled otherwise: an export gives it back.\n"
        + _origin(tree["origin"])
    )


def _defaults(run: Imported) -> str:
    """A value that is missing here stays missing only in groups whose own value is."""
    groups = [group for group in ("model", "data") if any(key.startswith(group) for key in run.missing)]
    return "defaults:\n" + "".join(f"  - override /{group}: local\n" for group in groups) if groups else ""


def _origin(origin: Mapping[str, str]) -> str:
    head = to_yaml({"origin": {"dialect": origin["dialect"], "file": origin["file"]}})
    if not origin["rest"]:
        return head
    return head + "  rest: |\n" + "".join(f"    {line}\n" if line else "\n" for line in origin["rest"].split("\n")[:-1])


def _check_text(tree: Any) -> None:
    """OmegaConf, which reads the sweep file, would take these for more than text."""
    for name, value in flatten(tree).items():
        if "${" in str(value) or "???" in str(value):
            raise InputError(
                f"{name}={str(value)[:60]!r}: holds ${{...}} or ???, which stand for other values here; write it out"
            )


def _in_their_words(dialect: Dialect, tree: Tree, fault: InputError) -> InputError:
    """A fault that names a key of ours, naming theirs."""
    match = re.match(r"([a-z_]+\.[a-z_]+)[^=:]*(.*)", str(fault), re.DOTALL)
    ours, said = match.groups() if match else ("", "")
    for row in dialect.rows(None):
        if ours in row.ours:
            return InputError(f"{', '.join(row.part(tree)) or row.theirs[0]}{said}; correct it")
    return fault


def _config(values: Tree) -> SweepConfig:
    tree = {section: dict(part) if isinstance(part, dict) else part for section, part in _ANY.items()}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    # The whole run, until it is known how much of it a trial is.
    tree["training"]["max_steps"] = values.get("training.horizon") or 1
    return validate(tree)


def _trial(config: SweepConfig, steps: int | None, every_given: bool) -> dict[str, Any]:
    """How long a trial is, and how often it is evaluated."""
    length = max(_STEPS, _WARMUPS * config.scheduler.warmup(steps or 0))
    length = length if steps is None else min(steps, length)
    every = config.training.eval_every
    if not every_given or every > length // 2:
        every = max(1, length // _EVALUATIONS)
    return {"training.horizon": steps, "training.max_steps": length, "training.eval_every": every}


def _look_at_data(
    dialect: Dialect, tree: Tree, config: SweepConfig, missing: Sequence[str]
) -> tuple[SweepConfig, tuple[str, ...]]:
    """The config with its rows' form found in the file, where the config does not say it; a fault in the data is one here."""
    from lrsweep.training.data.loading import check_paths, first_row

    if "data.format" in missing:
        row = first_row(config.data)
        names = set(row) if isinstance(row, Mapping) else set()
        if "messages" in names and dialect.name == "trl":
            raise InputError(
                "assistant_only_loss=False: TRL then learns the prompts of conversations too, and trials the answers only; "
                "set it to true"
            )
        form = "prompt_completion" if {"prompt", "completion"} <= names else "text" if "text" in names else None
        if form == "prompt_completion" and tree.get("completion_only_loss") is False:
            raise InputError("completion_only_loss=False: trials learn completions only; set it to true")
        if form is None:
            return config, tuple(missing)
        config = validate(config.model_dump() | {"data": config.data.model_dump() | {"format": form}})
        missing = [key for key in missing if key != "data.format"]
    check_paths(config.data)
    return config, tuple(missing)


def _rows(config: SweepConfig, own_share: bool) -> int | None:
    """The rows of the run itself, which holds some out only where its file says so; None where the data is on the hub."""
    from lrsweep.training.data.loading import count_rows

    rows = count_rows(config.data)
    return rows if rows is None or not own_share else rows - max(1, round(rows * config.data.eval_fraction))
