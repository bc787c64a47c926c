"""The text of the sweep file that an import writes."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrsweep.config.schema import TRIAL_SECTIONS
from lrsweep.dialects.imported_run import Imported
from lrsweep.errors import InputError
from lrsweep.files.yaml_writer import comments, to_yaml


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
        f"The run of {origin.file or 'a command line'} ({origin.dialect}) at learning rates around its own.",
        f"Its own trainer trains it, because of {'; '.join(run.reasons)}." if run.reasons else "",
        f"To run it: python -m lrsweep +sweep={name}{extra}",
        f"To put the best one back: lrsweep export {name} --to {origin.dialect}"
        + (f" --base {origin.file}" if origin.file else ""),
        *(f"Note: {note}." for note in run.notes),
    ]
    if config.training.schedule_steps > config.training.max_steps:
        lines.append(
            f"Trials run the first {config.training.max_steps} of its {config.training.horizon} steps, on its schedule."
        )
    groups = {group: tree[group] for group in TRIAL_SECTIONS}
    if run.reasons:
        search = {name: tree["search"][name] for name in ("metric", "direction", "prior")}
        engine = {name: tree["engine"][name] for name in ("name", "command", "dialect", "python")}
        groups |= {"search": search, "engine": engine}
    body = to_yaml(_literal(groups) | {"space": {"optimizer": {"lr": rates(config.optimizer.lr)}}}).replace(
        "'???'", "???"
    )
    return "# @package _global_\n" + comments(lines) + _defaults(run) + body + _origin(tree["origin"])


def _literal(value: Any) -> Any:
    """A value in which OmegaConf, which replaces ${...}, finds each as it is."""
    if isinstance(value, Mapping):
        return {name: _literal(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(part) for part in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _defaults(run: Imported) -> str:
    """A defaults list with config groups that leave a missing value missing; the default groups would set it."""
    groups = [group for group in ("model", "data") if any(key.startswith(group) for key in run.missing)]
    return "defaults:\n" + "".join(f"  - override /{group}: local\n" for group in groups) if groups else ""


def _origin(origin: Mapping[str, str]) -> str:
    text = to_yaml({"origin": {"dialect": origin["dialect"], "file": _literal(origin["file"])}})
    about = {
        "rest": "Keys without an equivalent in lrsweep, or with another spelling, which an export returns unchanged.",
        "base": "The file: a trial's has its own values of the keys that are searched.",
    }
    for name, comment in about.items():
        if origin[name]:
            lines = _literal(origin[name]).split("\n")[:-1]
            text += f"  # {comment}\n  {name}: |\n" + "".join(f"    {line}\n" if line else "\n" for line in lines)
    return text
