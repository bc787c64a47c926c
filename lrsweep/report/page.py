"""report.html: one self-contained file, which needs no network. Its script is page.js."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources

from matplotlib.figure import Figure

from lrsweep.analysis.ranking import Result
from lrsweep.files.atomic import disk_faults, write_text
from lrsweep.files.paths import SweepFolder
from lrsweep.files.yaml_writer import to_yaml
from lrsweep.formatting import format_duration, format_value, printable
from lrsweep.report.certainty import chosen_values
from lrsweep.report.figures import eval_curves, importance, literal_text, loss_over_axis, parallel, png, svg
from lrsweep.report.next_sweep import next_command
from lrsweep.report.summary import Summary
from lrsweep.report.text import label, ordered, recommendation, sentences, status, trainer
from lrsweep.tracking import trial_url


@literal_text()
def write_page(summary: Summary, folder: SweepFolder, config: str) -> None:
    """Writes report.html, and its figures as PNG.

    Args:
        summary: The sweep's summary.
        folder: The sweep's folder.
        config: The best config for the user's trainer; empty if there is none.

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
    write_text(folder.report, printable(page(summary, {name: svg(figure) for name, figure in drawn.items()}, config)))


def page(summary: Summary, figures: Mapping[str, str], config: str) -> str:
    """The whole page as HTML.

    Args:
        summary: The sweep's summary.
        figures: SVG elements by name; missing ones are left out.
        config: The best config for the user's trainer; empty if there is none.
    """
    name = html.escape(summary.config.name)
    lead = "".join(f"<p>{html.escape(line)}</p>" for line in sentences(summary))
    searched = f"<br>{html.escape(summary.about.searched)}" if summary.about.searched else ""
    titles = {
        "loss_over_axis": f"Final {summary.config.search.objective.name}",
        "eval_curves": "Eval curves, from the lowest learning rate (dark) to the highest",
        "parallel_coordinates": "Every complete trial, from its values to its result",
        "importance": "Importance of each axis",
    }
    below = {"eval_curves": _toggles(summary)}
    drawn = "".join(
        f'<h2>{title}</h2>\n<div class="figure">{figures[key]}</div>\n{below.get(key, "")}'
        for key, title in titles.items()
        if key in figures
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} - lrsweep</title>
<meta name="description" content="{html.escape(_description(summary), quote=True)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_part("page.css")}</style></head><body>
<h1>{name}</h1>
<p class="faint">{_trained(summary)}{searched}</p>
<div class="lead">{lead}{_facts(summary)}</div>
{_next(summary)}{drawn}{_config(summary, config)}<h2>Trials</h2>
<div class="wide">{_table(summary)}</div>
<h2>What the curves show</h2>
<div class="wide">{_diagnoses(summary)}</div>
{_prior(summary)}<h2>Compare in MLflow</h2>
{_mlflow(summary)}
<h2>Config</h2>
<details><summary>The sweep's whole config</summary>
<pre>{html.escape(to_yaml(summary.config.masked()))}</pre></details>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="facts">{_trial_facts(summary)}</script>
<script>{_part("page.js")}</script>
</body></html>
"""


def _description(summary: Summary) -> str:
    return recommendation(summary) if summary.verdict.recommended else "No trial completed."


def _facts(summary: Summary) -> str:
    """The result in numbers."""
    verdict, objective = summary.verdict, summary.config.search.objective
    best = verdict.recommended
    if best is None:
        return ""
    safe = verdict.safe_range
    steps = sum(result.step for result in summary.results)
    facts = {
        "learning rate": format_value(best.result.lr),
        "safe range": "not known" if safe is None else f"{format_value(safe.low)} to {format_value(safe.high)}",
        objective.name: f"{objective.text(best.mean)} ({len(best.losses)} seed{'s' * (len(best.losses) > 1)})",
        "noise": "not measured" if verdict.noise is None else f"\u00b1{verdict.noise.deviation:.4f}",
        "tied trials": ", ".join(str(tie.result.number) for tie in verdict.ties[1:]) or "none",
        "cost": f"{len(summary.results)} trials, {steps} steps, {format_duration(summary.about.seconds)}",
        "trained on": summary.about.hardware,
        "ended": summary.about.ended.replace("T", " "),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts.items() if text)
    return f'<dl class="facts">{rows}</dl>'


def _trained(summary: Summary) -> str:
    """What was trained on what. Of a sweep of the user's own command, only the command knows."""
    if summary.config.engine.name == "external":
        return "trained by engine.command"
    data = summary.about.dataset
    return (
        f"{html.escape(summary.config.model.path)} on {html.escape(data.source)}: {data.train_rows} training rows, "
        f"{data.eval_rows} eval rows (fingerprint {data.fingerprint[:12]})"
    )


def _next(summary: Summary) -> str:
    """The command that would make an unclear answer clear."""
    command = next_command(summary)
    if not command:
        return ""
    return f"""<p>To know more, run:</p>
<div class="copied"><pre id="next">{html.escape(command)}</pre>{_copy("next")}</div>
"""


def _copy(source: str) -> str:
    """A button that copies the element with the id `source`."""
    return f'<button type="button" data-copy="{source}">Copy</button>'


def _config(summary: Summary, config: str) -> str:
    """The best config, to copy, and the command that writes it."""
    if not config:
        return ""
    dialect = trainer(summary)
    command = f"lrsweep export {summary.config.name} --to {dialect} --out best.yaml"
    return f"""<h2>The best config for {html.escape(dialect)}</h2>
<div class="copied"><pre id="best">{html.escape(config)}</pre>{_copy("best")}</div>
<div class="copied"><pre id="export">{html.escape(command)}</pre>{_copy("export")}</div>
"""


def _part(file: str) -> str:
    """A file of this folder that is put into the page."""
    return resources.files("lrsweep.report").joinpath(file).read_text(encoding="utf-8")


def _toggles(summary: Summary) -> str:
    """A button for each trial, which hides its curve."""
    pressed = 'type="button" aria-pressed="true"'
    buttons = "".join(
        f'<button {pressed} data-toggle="{result.number}">{html.escape(_named(result))}</button>'
        for result in ordered(summary)
    )
    return f'<div class="toggles">{buttons}</div>\n'


def _named(result: Result) -> str:
    values = ", ".join(
        f"{key.rsplit('.', 1)[-1]} {format_value(value)}" for key, value in chosen_values(result).items()
    )
    return f"{result.number}: {values}"


def _trial_facts(summary: Summary) -> str:
    """What the page shows of a trial under the pointer, as JSON that is safe in HTML."""
    objective = summary.config.search.objective
    facts = {
        str(result.number): f"trial {_named(result)}; {objective.name} {objective.text(result.eval_loss)} at step "
        f"{result.step}; {label(summary, result)}; {status(summary, result)}"
        for result in summary.results
    }
    return json.dumps(facts).replace("<", "\\u003c")


def _mlflow(summary: Summary) -> str:
    links = summary.about.links
    if not links.ui_command:
        return "<p>Tracking was off.</p>"
    url = html.escape(links.compare_url)
    return f'<pre>{html.escape(links.ui_command)}</pre><p>Then open <a href="{url}">the trials, best first</a>.</p>'


def _table(summary: Summary) -> str:
    best = summary.verdict.best
    head = ["trial", *summary.axes, summary.config.search.objective.name, "steps", "status"]
    rows = []
    for result in ordered(summary):
        is_best = best is not None and result.number == best.number
        cells = [
            *map(format_value, result.trained.values()),
            summary.config.search.objective.text(result.eval_loss),
            str(result.step),
            status(summary, result),
        ]
        kind = "best" if is_best else result.status
        cells_of_row = f"<td>{_link(summary, result)}</td>{_cells('td', cells)}"
        rows.append(f'<tr class="{kind}" data-trial="{result.number}">{cells_of_row}</tr>')
    table = f"<thead><tr>{_cells('th', head)}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<table class="sortable">{table}</table>'


def _link(summary: Summary, result: Result) -> str:
    """The trial's number, which leads to its run in MLflow if there is one."""
    page = summary.about.links.compare_url
    if not page:
        return str(result.number)
    return f'<a href="{html.escape(trial_url(page, result.number))}">{result.number}</a>'


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
