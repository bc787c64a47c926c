"""The result of a range test as text, as JSON, as a plot, and as the command that sweeps the range."""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrsweep.analysis.range_test import RangeTest
from lrsweep.config.schema import SweepConfig
from lrsweep.errors import InputError
from lrsweep.files.atomic import disk_faults


def command(config: SweepConfig, test: RangeTest, overrides: Sequence[str]) -> str:
    """The shell command that sweeps the proposed range.

    Args:
        config: The range test's config.
        test: The range test.
        overrides: The overrides that the range test was run with.
    """
    kept = [text for text in overrides if not re.match(r"\+*(sweep|space\.optimizer\.lr)=", text)]
    sweeps = [text.lstrip("+") for text in overrides if re.match(r"\+*sweep=", text)]
    named = any(re.match(r"\+*name=", text) for text in kept)
    if sweeps:
        kept.insert(0, f"+{sweeps[-1]}")
    elif config.finetune.mode in ("lora", "full"):
        kept.insert(0, f"+sweep={config.finetune.mode}_lr")
    elif not named:
        kept.insert(0, f"name={config.finetune.mode}_lr")
    kept.insert(1, f"space.optimizer.lr=[{','.join(format_rate(lr) for lr in test.lrs)}]")
    return " ".join(["lrsweep", *map(shlex.quote, kept)])


def as_text(test: RangeTest, sweep_command: str) -> str:
    """The result as lines for the terminal.

    Args:
        test: The range test.
        sweep_command: The command that sweeps the range; empty if no range was found.
    """
    lines = [f"{'untouched':<16}{'':<14}loss {test.base_loss:.4f}"]
    for name, lr, loss in (
        ("begins to fall", test.begun_lr, None),
        ("falls steepest", test.steepest_lr, None),
        ("lowest", test.minimum_lr, test.minimum_loss),
        ("blows up", test.blow_up_lr, None),
    ):
        if lr is not None:
            rate = f"lr {lr:.2g}"
            lines.append(f"{name:<16}{rate:<14}{f'loss {loss:.4f}' if loss is not None else ''}".rstrip())
    if sweep_command:
        lines += [
            "",
            f"A range to sweep, {test.reason}:",
            f"    {sweep_command}",
            "",
            "This range is where to sweep, not a recommendation: each rate was tried for one step, which favors rates",
            "that are too high for a whole run. The sweep's short runs decide.",
        ]
    return "\n".join(lines)


def as_json(test: RangeTest, sweep_command: str) -> dict[str, Any]:
    """The result for programs; numbers that are not finite are null.

    Args:
        test: The range test.
        sweep_command: The command that sweeps the range; empty if no range was found.
    """
    return {
        "found": bool(test.lrs),
        "reason": test.reason,
        "lrs": list(test.lrs),
        "command": sweep_command or None,
        "begun_lr": test.begun_lr,
        "steepest_lr": test.steepest_lr,
        "minimum_lr": test.minimum_lr,
        "minimum_loss": test.minimum_loss,
        "blow_up_lr": test.blow_up_lr,
        "base_loss": _finite(test.base_loss),
        "error": test.error,
        "points": [{"lr": float(lr), "loss": _finite(loss)} for lr, loss in zip(test.lr, test.loss, strict=True)],
    }


def check_plot(path: Path) -> None:
    """Raises InputError for a plot that could not be written, before anything is trained."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: the file's ending is the format; use .png, .svg or .pdf")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: no such folder: {path.parent}")


def plot_range_test(test: RangeTest, path: Path) -> None:
    """Plots the losses over the rates, the rates found in them, and the proposed range as a band.

    Args:
        test: The range test.
        path: The file to write; its ending is the format.

    Raises:
        StorageError: The disk is full or fails.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    plot = figure.add_subplot()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(color="#e5e7eb", linewidth=0.8)
    plot.set_axisbelow(True)
    plot.plot(
        test.lr, np.where(np.isfinite(test.loss), test.loss, np.nan), color="#93c5fd", linewidth=1.0, label="loss"
    )
    plot.plot(test.smooth_lr, test.smooth, color="#1d4ed8", linewidth=2.0, label="smoothed")
    plot.axhline(test.base_loss, color="#9ca3af", linestyle="--", linewidth=1, label="untouched model")
    if test.lrs:
        plot.axvspan(
            test.lrs[0],
            test.lrs[-1],
            color="#d1fae5",
            label=f"to sweep: {format_rate(test.lrs[0])} to {format_rate(test.lrs[-1])}",
        )
    for name, lr, colour in (
        ("steepest", test.steepest_lr, "#059669"),
        ("lowest", test.minimum_lr, "#d97706"),
        ("blows up", test.blow_up_lr, "#dc2626"),
    ):
        if lr is not None:
            plot.axvline(lr, color=colour, linewidth=1.2, linestyle=":", label=f"{name}: {lr:.2g}")
    if test.minimum_loss is not None:
        # Losses that blow up would flatten the rest of the curve, so they are cut off.
        fall = test.base_loss - test.minimum_loss
        plot.set_ylim(test.minimum_loss - 0.3 * fall, test.base_loss + 1.5 * fall)
    plot.set_xscale("log")
    plot.set_xlabel("learning rate, one step each")
    plot.set_ylabel("loss on comparable rows")
    plot.legend(frameon=False, fontsize=8)
    with disk_faults(path):
        figure.savefig(path, dpi=130)


def format_rate(lr: float) -> str:
    """A learning rate as short text: 1e-4 below 1, else a plain number."""
    if lr >= 1:
        return f"{lr:g}"
    mantissa, _, power = f"{lr:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
