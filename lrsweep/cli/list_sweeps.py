"""`lrsweep list`: the sweeps of this folder, with their state and best trial."""

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lrsweep.cli.arguments import ArgumentParser
from lrsweep.files.locks import is_locked
from lrsweep.files.paths import SweepFolder, existing_names
from lrsweep.formatting import format_loss, format_value


def run(argv: Sequence[str]) -> int:
    """Prints a line for each sweep. Raises InputError for an argument."""
    parser = ArgumentParser("list", "list the sweeps in this folder")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args(argv)
    found = sorted((_entry(SweepFolder(name)) for name in existing_names()), key=lambda entry: entry["changed"])
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    if not found:
        print("no sweeps in outputs/ yet; run one with: lrsweep +sweep=lora_lr")
        return 0
    rows = [("sweep", "state", "trials", "best", "result", "changed"), *map(_row, found)]
    columns = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(length) for text, length in zip(row, columns, strict=True)).rstrip())
    return 0


def _entry(folder: SweepFolder) -> dict[str, Any]:
    """What is known of a sweep: from its summary, or less if it has none that can be read."""
    summary = _summary(folder)
    trials = _of(list, summary.get("trials"))
    best = _of(dict, summary.get("best"))
    value = best.get("value", best.get("eval_loss"))
    changed = max(path.stat().st_mtime for path in (folder.config, folder.summary, folder.log) if path.exists())
    return {
        "name": folder.path.name,
        "state": _state(folder, len(trials), bool(best)),
        "trials": len(trials),
        "best": _of(dict, best.get("values")),
        "metric": best.get("metric", "eval_loss"),
        "value": value if isinstance(value, int | float) else None,
        "changed": round(changed),
    }


def _summary(folder: SweepFolder) -> Mapping[str, Any]:
    # The whole summary, with its verdict, takes libraries that need seconds to import.
    try:
        tree = json.loads(folder.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _of(kind: type[Any], value: Any) -> Any:
    """The value, or an empty one where a damaged summary has something else."""
    return value if isinstance(value, kind) else kind()


def _state(folder: SweepFolder, trials: int, has_best: bool) -> str:
    # In a folder that can only be read, nobody runs a sweep.
    with contextlib.suppress(OSError):
        if is_locked(folder.path / ".lock"):
            return "running"
    if not folder.concluded(trials):
        return "interrupted"
    return "complete" if has_best else "failed"


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    values = ", ".join(f"{key}={format_value(value)}" for key, value in entry["best"].items())
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["changed"]))
    return (
        entry["name"],
        entry["state"],
        str(entry["trials"]),
        values or "-",
        format_loss(entry["value"]),
        when,
    )
