"""report.html: one self-contained file, without scripts or external resources."""

import html
import json
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import SweepFolder
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.formatting import format_loss, format_value, printable
from lrsweep.report.certainty import chosen_values
from lrsweep.report.figures import eval_curves, importance, literal_text, loss_over_axis, parallel, png, svg
from lrsweep.report.summary import Summary
from lrsweep.report.text import label, ordered, recommendation, sentences, status

_STYLE = """
:root { color-scheme: light dark; --ink: #111827; --paper: #ffffff; --faint: #6b7280; --grid: #e5e7eb; --box: #f3f4f6;
  --good: #ecfdf5; --bad: #b91c1c; --link: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111418; --faint: #9ca3af; --grid: #374151;
  --box: #1f2937; --good: #064e3b; --bad: #f87171; --link: #93c5fd; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
a { color: var(--link); }
.lead { background: var(--box); border-left: 4px solid var(--link); padding: .8rem 1rem; }
.lead p { margin: .25rem 0; } .lead p:first-child { font-size: 1.15rem; font-weight: 600; }
.faint { color: var(--faint); }
svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid var(--grid); }
th:last-child, td:last-child, .text td, .text th { text-align: left; vertical-align: top; }
tr.best { font-weight: 600; background: var(--good); } tr.diverged, tr.failed { color: var(--bad); }
tr.pruned { color: var(--faint); }
pre { background: var(--box); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
code { font-size: .9em; }
"""


@literal_text()
def write_page(summary: Summary, folder: SweepFolder) -> None:
    """Writes report.html, and its figures as PNG.

    Args:
        summary: The sweep's summary.
        folder: The sweep's folder.

    Raises:
        StorageError: The disk is full or fails.
    """
    figures: dict[str, Figure | None] = {
        "loss_over_axis": loss_over_axis(summary),
        "eval_curves": eval_curves(summary, folder),
        "parallel_coordinates": parallel(summary),
        "importance": importance(summary),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    with disk_faults(folder.report):
        for name, figure in drawn.items():
            png(figure, folder.path / f"{name}.png")
    write_text(folder.report, printable(page(summary, {name: svg(figure) for name, figure in drawn.items()})))


def page(summary: Summary, figures: Mapping[str, str]) -> str:
    """The whole page as HTML.

    Args:
        summary: The sweep's summary.
        figures: SVG elements by name; missing ones are left out.
    """
    name = html.escape(summary.config.name)
    lead = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(summary))
    data = summary.about.dataset
    searched = f"<br>{html.escape(summary.about.searched)}" if summary.about.searched else ""
    titles = {
        "loss_over_axis": "Final eval loss",
        "eval_curves": "Eval curves, from the lowest learning rate (dark) to the highest",
        "parallel_coordinates": "Every complete trial, from its values to its loss",
        "importance": "Importance of each axis",
    }
    drawn = "".join(f"<h2>{title}</h2>\n{figures[key]}\n" for key, title in titles.items() if key in figures)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} - lrsweep</title>
<meta name="description" content="{html.escape(_description(summary), quote=True)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{name}</h1>
<p class="faint">{html.escape(summary.config.model.path)} on {html.escape(data.source)}:
{data.train_rows} training rows, {data.eval_rows} eval rows (fingerprint {data.fingerprint[:12]}){searched}</p>
<div class="lead">{lead}</div>
{drawn}<h2>Trials</h2>
<div class="wide">{_table(summary)}</div>
<h2>What the curves show</h2>
<div class="wide">{_diagnoses(summary)}</div>
{_prior(summary)}<h2>Compare in MLflow</h2>
{_mlflow(summary)}
<h2>Config</h2>
<details><summary>The sweep's whole config</summary>
<pre>{html.escape(to_yaml(summary.config.masked()))}</pre></details>
</body></html>
"""


def _description(summary: Summary) -> str:
    return recommendation(summary) if summary.verdict.recommended else "No trial completed."


def _mlflow(summary: Summary) -> str:
    links = summary.about.links
    if not links.ui_command:
        return "<p>Tracking was off.</p>"
    url = html.escape(links.compare_url)
    return f'<pre>{html.escape(links.ui_command)}</pre><p>Then open <a href="{url}">the trials, best first</a>.</p>'


def _table(summary: Summary) -> str:
    best = summary.verdict.best
    head = ["trial", *summary.axes, "eval loss", "steps", "status"]
    rows = []
    for result in ordered(summary):
        is_best = best is not None and result.number == best.number
        cells = [
            str(result.number),
            *map(format_value, result.trained.values()),
            format_loss(result.eval_loss),
            str(result.step),
            status(summary, result),
        ]
        rows.append(f'<tr class="{"best" if is_best else result.status}">{_cells("td", cells)}</tr>')
    return f"<table><thead><tr>{_cells('th', head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _diagnoses(summary: Summary) -> str:
    rows = []
    for result in ordered(summary):
        found = summary.diagnoses[result.number]
        values = ", ".join(
            f"{key.rsplit('.', 1)[-1]} {format_value(value)}" for key, value in chosen_values(result).items()
        )
        remedies = "; ".join(_advice(advice.text, advice.overrides) for advice in found.advice)
        cells = _cells("td", [str(result.number), values, label(summary, result), str(found.evidence["reason"])])
        rows.append(f"<tr>{cells}<td>{remedies}</td></tr>")
    head = _cells("th", ["trial", "values", "curve", "evidence", "remedy"])
    return f'<table class="text"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _advice(text: str, overrides: Mapping[str, object]) -> str:
    keys = " ".join(f"{key}={json.dumps(value)}" for key, value in overrides.items())
    return html.escape(text) + (f": <code>{html.escape(keys)}</code>" if keys else "")


def _prior(summary: Summary) -> str:
    prior = summary.about.prior
    if prior is None:
        return ""
    rows = "".join(
        f"<tr>{_cells('td', [factor.name, f'{factor.value:.3g}', factor.source])}</tr>" for factor in prior.factors
    )
    head = _cells("th", ["factor", "value", "source"])
    return (
        f"<h2>Rule of thumb: {format_value(prior.lr)}</h2>\n"
        f'<table class="text"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n'
    )


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
