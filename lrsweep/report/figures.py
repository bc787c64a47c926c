"""The figures of a sweep: final loss over an axis, eval curves, parallel coordinates and importances."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lrsweep.analysis.ranking import Candidate, Result
from lrsweep.config.search_space import LR
from lrsweep.files.metrics_log import read_metrics
from lrsweep.files.paths import SweepFolder
from lrsweep.formatting import format_value
from lrsweep.report.certainty import chosen_values
from lrsweep.report.summary import Summary

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777", "#4b5563")
_ENDED_EARLY = "#9ca3af"
# The most rows of a legend.
_LEGEND_ROWS = 4
# The height of a label of a parallel coordinate, as a share of the axis.
_LABEL_HEIGHT = 0.045
# `svg` replaces these two by the page's own colours, light or dark.
INK, GRID = "#111827", "#e5e7eb"


@contextlib.contextmanager
def literal_text() -> Iterator[None]:
    """Draws text as it is in this block: a $ starts no formula, and nothing warns of a character that has no glyph."""
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def loss_over_axis(summary: Summary) -> Figure:
    """Final eval loss over the learning rate (or the first axis), with a line for each combination of the other axes.

    Over the learning rate, it also has the fitted curve with its band and the safe range.
    """
    figure, plot = _figure()
    objective = summary.config.search.objective
    value = objective.value
    axis = LR if LR in summary.axes else summary.axes[0]
    places = _places(axis, summary.results)
    if axis == LR:
        _draw_lr_curve(plot, summary)
    lines: dict[str, list[Candidate]] = {}
    for candidate in summary.verdict.candidates:
        others = {key: value for key, value in chosen_values(candidate.result).items() if key != axis}
        lines.setdefault(_legend(others), []).append(candidate)
    connected = len(lines) <= len(_COLOURS)
    for i, (name, candidates) in enumerate(lines.items()):
        ordered = sorted(candidates, key=lambda candidate: places(candidate.result))
        style: dict[str, Any] = {"marker": "o", "color": _COLOURS[i] if connected else _COLOURS[0]}
        if connected:
            style |= {"label": name or None, "linewidth": 1.2 if axis == LR else 1.8}
        else:
            style |= {"linestyle": "none", "alpha": 0.7}
        plot.plot([places(c.result) for c in ordered], [value(c.mean) for c in ordered], **style)
        for c in ordered:
            # A point of its own for each trial above all else, which the page can name.
            at = _gid("point", c.result)
            plot.plot([places(c.result)], [value(c.mean)], marker="o", markersize=9, alpha=0, zorder=9, gid=at)
    _draw_ties(plot, summary, places, axis)
    _mark_ended_early(plot, summary, places)
    if summary.base_loss is not None:
        plot.axhline(value(summary.base_loss), color=_ENDED_EARLY, linestyle="--", linewidth=1, label="before training")
    _scale(plot, axis, summary.results, places)
    _limit_y(plot, summary)
    plot.set_xlabel(axis)
    plot.set_ylabel(f"final {objective.name}")
    if plot.get_legend_handles_labels()[0]:
        _legend_below(figure, plot, 3)
    return figure


def _draw_lr_curve(plot: Axes, summary: Summary) -> None:
    """Draws the fitted curve with its band, and the safe range."""
    fit, safe = summary.verdict.lr_curve, summary.verdict.safe_range
    if fit is None:
        return
    sign = summary.config.search.objective.value(1.0)
    mean = sign * fit.mean
    low, high = mean - 2 * fit.deviation, mean + 2 * fit.deviation
    plot.fill_between(fit.lr, low, high, color="#93c5fd", alpha=0.3, linewidth=0, label="fit ± 2 deviations")
    plot.plot(fit.lr, mean, color="#93c5fd", linewidth=1.5)
    if safe is not None:
        label = f"safe range, {safe.tolerance:.0%}"
        plot.axvspan(safe.low, safe.high, color="#059669", alpha=0.1, linewidth=0, label=label)


def _draw_ties(plot: Axes, summary: Summary, places: Any, axis: str) -> None:
    """Marks the best trial, and the trials that are tied with it."""
    best, value = summary.verdict.recommended, summary.config.search.objective.value
    if best is None:
        return
    ties = [tie for tie in summary.verdict.ties if tie is not best] if summary.verdict.noise else []
    if ties:
        plot.plot(
            [places(tie.result) for tie in ties],
            [value(tie.mean) for tie in ties],
            marker="o",
            markersize=12,
            fillstyle="none",
            color="#059669",
            linestyle="none",
            label="tied with the best",
        )
    note = f"best: {axis.rsplit('.', 1)[-1]} {format_value(best.result.trained[axis])}, {value(best.mean):.3f}"
    plot.plot(
        [places(best.result)], [value(best.mean)], marker="*", markersize=17, color=INK, linestyle="none", label=note
    )


def _limit_y(plot: Axes, summary: Summary) -> None:
    """Cuts off losses far above the loss before training, which would flatten the rest of the curve."""
    means = [candidate.mean for candidate in summary.verdict.candidates]
    if summary.base_loss is None or not means or max(means) <= summary.base_loss:
        return
    span = max(summary.base_loss - min(means), 1e-9)
    ends = min(means) - 0.1 * span, min(max(means), summary.base_loss + 1.5 * span) + 0.1 * span
    plot.set_ylim(*sorted(map(summary.config.search.objective.value, ends)))


def eval_curves(summary: Summary, folder: SweepFolder) -> Figure:
    """Every trial's eval loss over its steps, from the lowest lr (dark) to the highest (bright); the best is bold."""
    figure, plot = _figure()
    ordered = sorted(summary.results, key=lambda result: (result.config.optimizer.lr, result.number))
    colours = mpl.colormaps["viridis"]
    best, objective = summary.verdict.best, summary.config.search.objective
    tops, bottoms = [], []
    for i, result in enumerate(ordered):
        rows = [
            row for row in read_metrics(folder.trial(result.number)) if math.isfinite(row.get(objective.key, math.nan))
        ]
        if not rows:
            continue
        tops.append(max(row[objective.key] for row in rows))
        bottoms.append(min(row[objective.key] for row in rows))
        is_best = best is not None and result.number == best.number
        plot.plot(
            [row["step"] for row in rows],
            [row[objective.key] for row in rows],
            color=colours(0.92 * i / max(len(ordered) - 1, 1)),
            linewidth=3.2 if is_best else 1.4,
            marker="o" if len(rows) == 1 else "",
            gid=_gid("curve", result),
            label="" if result.role == "replicate" else _legend(chosen_values(result)) + " (best)" * is_best,
        )
    span = summary.base_loss - min(bottoms) if bottoms and summary.base_loss is not None else 0.0
    if span > 0 and summary.base_loss is not None and not objective.maximize:
        # Losses that blow up would flatten the other curves, so they are cut off.
        plot.set_ylim(min(bottoms) - 0.1 * span, min(max(tops), summary.base_loss + 2.5 * span) + 0.1 * span)
    plot.set_xlabel("step")
    plot.set_ylabel(objective.name)
    if len(ordered) <= 16 and plot.get_legend_handles_labels()[0]:
        _legend_below(figure, plot, 4)
    return figure


def parallel(summary: Summary) -> Figure | None:
    """Parallel coordinates: for each complete trial, a line through its values to its loss; None for a single axis."""
    ranking = summary.verdict.ranking
    if len(summary.axes) < 2 or len(ranking) < 2:
        return None
    figure, plot = _figure()
    plot.grid(False)
    columns = [(key, _column(key, summary.results)) for key in summary.axes]
    objective = summary.config.search.objective
    losses = [candidate.mean for candidate in summary.verdict.candidates]
    # Heights are from the best loss up to the loss before training; all worse losses have the same height.
    worst = max(min(max(losses), summary.base_loss or max(losses)), min(losses) + 1e-9)
    heights = [min((value - min(losses)) / (worst - min(losses)), 1.0) for value in losses]
    colours = mpl.colormaps["viridis_r"]
    for result, height in reversed(list(zip(ranking, heights, strict=True))):
        is_best = result is summary.verdict.best
        plot.plot(
            range(len(columns) + 1),
            [*(column[format_value(result.trained[key])] for key, column in columns), height],
            color=INK if is_best else colours(1 - 0.9 * height),
            linewidth=3 if is_best else 1.2,
            alpha=1 if is_best else 0.8,
            gid=_gid("line", result),
        )
    for i, (_, column) in enumerate(columns):
        for text, place in _apart(column):
            plot.annotate(
                text, (i, place), xytext=(5, 0), textcoords="offset points", fontsize=8, va="center", color=INK
            )
    for place, value in ((0.0, min(losses)), (1.0, worst)):
        plot.annotate(
            f"{objective.value(value):.3f}",
            (len(columns), place),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )
    for i in range(len(columns) + 1):
        plot.axvline(i, color=_ENDED_EARLY, linewidth=1)
    plot.set_xticks(range(len(columns) + 1), [*(key.rsplit(".", 1)[-1] for key, _ in columns), objective.name])
    plot.set_yticks([])
    plot.spines[["left", "bottom"]].set_visible(False)
    return figure


def importance(summary: Summary) -> Figure | None:
    """Each axis's importance for the loss, as bars; None if it is unknown."""
    shares = summary.about.importances
    if not shares:
        return None
    figure, plot = _figure()
    figure.set_size_inches(7.2, 1.0 + 0.4 * len(shares))
    names = list(shares)[::-1]
    plot.barh(names, [shares[name] for name in names], color=_COLOURS[0], height=0.6)
    plot.set_xlim(0, 1)
    plot.set_xlabel("share of the differences in loss (PED-ANOVA)")
    return figure


def _column(key: str, results: Sequence[Result]) -> dict[str, float]:
    """The heights (0 to 1) of an axis's values, by their text; numbers are to scale, logarithmic over wide ranges."""
    values = list({format_value(result.trained[key]): result.trained[key] for result in results}.items())
    if _numeric(key, results):
        numbers = {text: float(value) for text, value in values}
        if min(numbers.values()) > 0 and max(numbers.values()) / min(numbers.values()) > 20:
            numbers = {text: math.log(value) for text, value in numbers.items()}
    else:
        numbers = {text: float(i) for i, (text, _) in enumerate(values)}
    low, span = min(numbers.values()), max(max(numbers.values()) - min(numbers.values()), 1e-12)
    return {text: (number - low) / span for text, number in numbers.items()}


def _apart(column: Mapping[str, float]) -> list[tuple[str, float]]:
    """The labels of a column that do not touch: from the bottom up, and the top one in any case."""
    ordered = sorted(column.items(), key=lambda label: label[1])
    kept = ordered[:1]
    for text, place in ordered[1:-1]:
        if place - kept[-1][1] >= _LABEL_HEIGHT and ordered[-1][1] - place >= _LABEL_HEIGHT:
            kept.append((text, place))
    return kept + ordered[1:][-1:]


def _gid(kind: str, result: Result) -> str:
    """The id of a trial's part of a figure, by which the page's script finds it."""
    return f"{kind}-trial-{result.number}"


def _legend_below(figure: Figure, plot: Axes, columns: int) -> None:
    """The legend below the axes, where it hides nothing, in at most so many columns."""
    handles, labels = plot.get_legend_handles_labels()
    if handles:
        # The figure is as wide as about 110 of its letters, and a line before each label as 8.
        columns = max(1, min(columns, 110 // (8 + max(map(len, labels)))))
        if len(labels) > _LEGEND_ROWS * columns:
            # It would leave no room for the curves. The page names each trial under the pointer.
            best = [i for i, label in enumerate(labels) if "best" in label or label == "before training"]
            handles, labels = [handles[i] for i in best], [labels[i] for i in best]
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK
        )


def svg(figure: Figure) -> str:
    """The figure as an SVG element in the page's own colours; the same data give the same text."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "lrsweep", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor").replace(GRID, "var(--grid)")


def png(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG file."""
    figure.savefig(path, dpi=150)


class SweepFigure(Figure):
    """A figure that Jupyter shows, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def _figure() -> tuple[Figure, Axes]:
    """An empty figure in the report's style."""
    with mpl.rc_context(
        {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    ):
        figure = SweepFigure(figsize=(7.2, 4.2), layout="constrained")
        plot = figure.add_subplot()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(color=GRID, linewidth=0.8)
    plot.set_axisbelow(True)
    return figure, plot


def _legend(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {format_value(value)}" for key, value in values.items())


def _numeric(axis: str, results: Sequence[Result]) -> bool:
    return all(isinstance(r.trained[axis], int | float) and not isinstance(r.trained[axis], bool) for r in results)


def _places(axis: str, results: Sequence[Result]) -> Any:
    """A function from a result to its x coordinate: its number, or the index of its choice."""
    if _numeric(axis, results):
        return lambda result: result.trained[axis]
    choices = list(dict.fromkeys(format_value(result.trained[axis]) for result in results))
    return lambda result: choices.index(format_value(result.trained[axis]))


def _scale(plot: Axes, axis: str, results: Sequence[Result], places: Any) -> None:
    if not _numeric(axis, results):
        names = dict.fromkeys(format_value(result.trained[axis]) for result in results)
        plot.set_xticks(range(len(names)), list(names))
        return
    tried = [places(result) for result in results]
    if min(tried) > 0 and (axis == LR or max(tried) / min(tried) > 20):
        plot.set_xscale("log")
        # matplotlib's own labels are formulas, and here text is no formula.
        plot.xaxis.set_major_formatter(lambda value, _: format_value(float(value)))
        plot.xaxis.set_minor_formatter(lambda *_: "")


def _mark_ended_early(plot: Axes, summary: Summary, places: Any) -> None:
    """Marks trials without a final loss at the top edge, above their values."""
    for status, marker in (("diverged", "x"), ("pruned", "v"), ("failed", "P")):
        ended = [places(result) for result in summary.results if result.status == status]
        if ended:
            plot.plot(
                ended,
                [0.98] * len(ended),
                marker=marker,
                color="#dc2626" if status != "pruned" else _ENDED_EARLY,
                linestyle="none",
                transform=plot.get_xaxis_transform(),
                label=status,
            )
