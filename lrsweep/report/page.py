"""report.html: one file with everything in it, no scripts, nothing fetched."""

import html
from collections.abc import Sequence

from lrsweep import outputs
from lrsweep.outputs import SweepFolder
from lrsweep.report.figures import eval_curves, loss_over_axis, png, svg
from lrsweep.report.summary import Summary
from lrsweep.report.text import ordered, sentences
from lrsweep.report.words import loss, shown

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111827; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.lead { background: #f3f4f6; border-left: 4px solid #2563eb; padding: .8rem 1rem; }
.lead p { margin: .25rem 0; } .faint { color: #6b7280; }
svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #e5e7eb; }
th:last-child, td:last-child { text-align: left; }
tr.best { font-weight: 600; background: #ecfdf5; } tr.diverged, tr.failed { color: #b91c1c; } tr.pruned { color: #6b7280; }
pre { background: #f9fafb; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


def write_page(summary: Summary, folder: SweepFolder) -> None:
    """Writes report.html and its two figures as PNG."""
    over_axis, curves = loss_over_axis(summary), eval_curves(summary, folder)
    with outputs.disk_faults(folder.report):
        png(over_axis, folder.path / "loss_over_axis.png")
        png(curves, folder.path / "eval_curves.png")
    outputs.write(folder.report, page(summary, svg(over_axis), svg(curves)))


def page(summary: Summary, over_axis: str, curves: str) -> str:
    """The whole page."""
    name = html.escape(summary.config.name)
    said = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(summary))
    data = summary.dataset
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} - lrsweep</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{name}</h1>
<p class="faint">{html.escape(summary.config.model.path)} on {html.escape(data.source)}: {data.train_rows} rows to train on,
{data.eval_rows} held out (fingerprint {data.fingerprint[:12]})</p>
<div class="lead">{said}</div>
<h2>Final eval loss</h2>
{over_axis}
<h2>Eval curves</h2>
{curves}
<h2>Trials</h2>
{_table(summary)}
<h2>Compare in MLflow</h2>
{_mlflow(summary)}
<h2>The config</h2>
<details><summary>What was swept over, in full</summary>
<pre>{html.escape(outputs.to_yaml(outputs.masked(summary.config)))}</pre></details>
</body></html>
"""


def _mlflow(summary: Summary) -> str:
    if not summary.links.ui_command:
        return "<p>Tracking was off.</p>"
    url = html.escape(summary.links.compare_url)
    return f'<pre>{html.escape(summary.links.ui_command)}</pre><p>then <a href="{url}">the trials, best first</a></p>'


def _table(summary: Summary) -> str:
    best = summary.verdict.best
    head = ["trial", *summary.axes, "eval loss", "steps", "state"]
    rows = []
    for result in ordered(summary):
        is_best = best is not None and result.number == best.number
        state = "best" if is_best else f"{result.status}: {result.reason}" if result.reason else result.status
        cells = [
            str(result.number),
            *map(shown, result.values.values()),
            loss(result.eval_loss),
            str(result.step),
            state,
        ]
        rows.append(f'<tr class="{"best" if is_best else result.status}">{_cells("td", cells)}</tr>')
    return f"<table><thead><tr>{_cells('th', head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
