"""The two figures of a sweep: final loss over an axis, and the eval curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrsweep.outputs import SweepFolder, read_metrics
from lrsweep.report.summary import Summary
from lrsweep.report.words import shown
from lrsweep.verdict import Result

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777", "#4b5563")
_ENDED_EARLY = "#9ca3af"


def loss_over_axis(summary: Summary) -> Figure:
    """Final eval loss over the learning rate (or the first axis), a line for each combination of the other axes."""
    figure, plot = _figure()
    axis = "optimizer.lr" if "optimizer.lr" in summary.axes else summary.axes[0]
    places = _places(axis, summary.results)
    lines: dict[str, list[Result]] = {}
    for result in summary.verdict.ranking:
        others = {key: value for key, value in result.values.items() if key != axis}
        lines.setdefault(_legend(others), []).append(result)
    connected = len(lines) <= len(_COLOURS)
    for i, (name, results) in enumerate(lines.items()):
        ordered = sorted(results, key=lambda result: places(result))
        style: dict[str, Any] = {"marker": "o", "color": _COLOURS[i] if connected else _COLOURS[0]}
        if connected:
            style |= {"label": name or None, "linewidth": 1.8}
        else:
            style |= {"linestyle": "none", "alpha": 0.7}
        plot.plot([places(r) for r in ordered], [r.eval_loss or 0.0 for r in ordered], **style)
    best = summary.verdict.best
    if best is not None:
        note = f"best: {axis.rsplit('.', 1)[-1]} {shown(best.values[axis])}, {best.eval_loss:.3f}"
        plot.plot(
            [places(best)],
            [best.eval_loss or 0.0],
            marker="*",
            markersize=17,
            color="#111827",
            linestyle="none",
            label=note,
        )
    _mark_ended_early(plot, summary, places)
    if summary.base_loss is not None:
        plot.axhline(summary.base_loss, color=_ENDED_EARLY, linestyle="--", linewidth=1, label="before training")
    _scale(plot, axis, summary.results, places)
    plot.set_xlabel(axis)
    plot.set_ylabel("eval loss at the end")
    plot.legend(frameon=False, fontsize=9)
    return figure


def eval_curves(summary: Summary, folder: SweepFolder) -> Figure:
    """Every trial's eval loss over its steps, coloured from the lowest lr (dark) to the highest (bright); the best is bold."""
    figure, plot = _figure()
    ordered = sorted(summary.results, key=lambda result: (result.config.optimizer.lr, result.number))
    colours = mpl.colormaps["viridis"]
    best = summary.verdict.best
    tops, bottoms = [], []
    for i, result in enumerate(ordered):
        rows = [
            row for row in read_metrics(folder.trial(result.number)) if math.isfinite(row.get("eval_loss", math.nan))
        ]
        if not rows:
            continue
        tops.append(max(row["eval_loss"] for row in rows))
        bottoms.append(min(row["eval_loss"] for row in rows))
        is_best = best is not None and result.number == best.number
        plot.plot(
            [row["step"] for row in rows], [row["eval_loss"] for row in rows],
            color=colours(0.92 * i / max(len(ordered) - 1, 1)), linewidth=3.2 if is_best else 1.4,
            label=f"{_legend(result.values)}{' (best)' if is_best else ''}",
        )  # fmt: skip
    if tops and summary.base_loss is not None:
        # What blows up would flatten all the rest; it leaves the picture at the top instead.
        span = summary.base_loss - min(bottoms)
        plot.set_ylim(min(bottoms) - 0.1 * span, min(max(tops), summary.base_loss + 2.5 * span) + 0.1 * span)
    plot.set_xlabel("step")
    plot.set_ylabel("eval loss")
    if len(ordered) <= 16:
        plot.legend(frameon=False, fontsize=8, ncols=2 if len(ordered) > 8 else 1)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same text for the same data."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "lrsweep", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure, path: Path) -> None:
    """The figure as a PNG file."""
    figure.savefig(path, dpi=150)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    plot = figure.add_subplot()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(color="#e5e7eb", linewidth=0.8)
    plot.set_axisbelow(True)
    return figure, plot


def _legend(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {shown(value)}" for key, value in values.items())


def _numeric(axis: str, results: Sequence[Result]) -> bool:
    return all(isinstance(r.values[axis], int | float) and not isinstance(r.values[axis], bool) for r in results)


def _places(axis: str, results: Sequence[Result]) -> Any:
    """Where a result stands on the x axis: its number, or its place among the choices."""
    if _numeric(axis, results):
        return lambda result: result.values[axis]
    choices = list(dict.fromkeys(shown(result.values[axis]) for result in results))
    return lambda result: choices.index(shown(result.values[axis]))


def _scale(plot: Axes, axis: str, results: Sequence[Result], places: Any) -> None:
    if not _numeric(axis, results):
        names = dict.fromkeys(shown(result.values[axis]) for result in results)
        plot.set_xticks(range(len(names)), list(names))
        return
    tried = [places(result) for result in results]
    if min(tried) > 0 and max(tried) / min(tried) > 20:
        plot.set_xscale("log")


def _mark_ended_early(plot: Axes, summary: Summary, places: Any) -> None:
    """Trials without a final loss stand on the top edge, so that the eye sees where they were."""
    for status, marker in (("diverged", "x"), ("pruned", "v"), ("failed", "P")):
        ended = [places(result) for result in summary.results if result.status == status]
        if ended:
            plot.plot(
                ended, [0.98] * len(ended), marker=marker, color="#dc2626" if status != "pruned" else _ENDED_EARLY,
                linestyle="none", transform=plot.get_xaxis_transform(), label=status,
            )  # fmt: skip
