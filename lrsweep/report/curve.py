"""The plot of a diagnosed loss curve."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lrsweep.analysis.diagnosis import Curve, Diagnosis
from lrsweep.formatting import printable
from lrsweep.report.figures import literal_text


@literal_text()
def plot_curve(title: str, curve: Curve, diagnosis: Diagnosis, path: Path) -> None:
    """Plots the losses over the steps as PNG, with the diagnosis and its reason as the title.

    Args:
        title: The first line of the title.
        curve: The losses.
        diagnosis: The curve's diagnosis.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    plot = figure.add_subplot()
    plot.spines[["top", "right"]].set_visible(False)
    plot.grid(color="#e5e7eb", linewidth=0.8)
    loss, eval_loss = curve.loss.finite(), curve.eval_loss.finite()
    if len(loss):
        plot.plot(loss.steps, loss.values, label="loss", color="#93c5fd", linewidth=1.0)
    if len(eval_loss):
        plot.plot(
            eval_loss.steps,
            eval_loss.values,
            label="eval_loss",
            color="#1d4ed8",
            linewidth=2.0,
            marker="o",
            markersize=4,
        )
    for series in (curve.loss, curve.eval_loss):
        lost = series.steps[~np.isfinite(series.values)]
        if len(lost):
            # What is not finite has no place on the axis of the loss: crosses along the bottom.
            plot.plot(lost, np.full(len(lost), 0.02), "x", color="#dc2626", transform=plot.get_xaxis_transform(),
                      label="not finite", clip_on=False)  # fmt: skip
    step = diagnosis.evidence.get("step")
    if isinstance(step, float) and math.isfinite(step):
        plot.axvline(step, color="#dc2626", linestyle="--", linewidth=1)
    plot.set_title(f"{printable(title)}\n{diagnosis.label}: {diagnosis.evidence['reason']}", fontsize=9, loc="left")
    plot.set_xlabel("step")
    plot.set_ylabel("loss")
    plot.legend(frameon=False)
    figure.savefig(path, dpi=130)
