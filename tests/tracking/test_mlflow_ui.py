"""What somebody sees who opens MLflow's UI on a sweep, in a real browser."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from lrsweep.tracking import compare_url, default_uri
from lrsweep.tracking.store import Store
from tests.browser import BROWSER, ON_THE_SHARED_SWEEP, browser_page, served
from tests.conftest import FinishedSweep

if TYPE_CHECKING:
    from playwright.sync_api import Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")

pytestmark = ON_THE_SHARED_SWEEP

# The data of every chart on the page: run name -> [step, value] pairs, by metric.
CHARTS = """() => {
    const charts = {};
    for (const chart of document.querySelectorAll(".js-plotly-plot"))
        for (const line of chart.data || [])
            if (line.x && line.y)
                (charts[line.metricKey || line.metricName || ""] ??= {})[line.name] =
                    [...line.x].map((x, i) => [x, line.y[i]]);
    return charts;
}"""

# The points of the chart over the learning rate's logarithm, as [x, y].
POINTS = """() => [...document.querySelectorAll(".js-plotly-plot")]
    .filter(chart => chart.layout?.xaxis?.title?.text === "optimizer.lr log10")
    .flatMap(chart => chart.data).flatMap(points => [...points.x].map((x, i) => [x, points.y[i]]))"""

# Run name -> color of its curve of eval_loss. (A smoothed copy of each is pale.)
COLORS = """() => Object.fromEntries([...document.querySelectorAll(".js-plotly-plot")]
    .flatMap(chart => chart.data || [])
    .filter(line => line.metricKey === "eval_loss" && line.mode === "lines+markers")
    .map(line => [line.name, line.marker.color]))"""


class Ui:
    """A browser's page on the UI of a sweep, and what the store itself says should be seen there."""

    def __init__(self, page: "Page", server: str, folder: Path, sweep: str) -> None:
        self.page = page
        self.server = server
        self.sweep = sweep
        self._client = Store(default_uri(folder), folder).connect()
        self.experiment = self._client.get_experiment_by_name(sweep).experiment_id
        runs = self._client.search_runs([self.experiment], order_by=["start_time ASC"])
        self.trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        self.names = [run.info.run_name for run in self.trials]

    def curves(self, key: str) -> dict[str, list[list[float]]]:
        """The curves in the store, by run name."""
        found = {}
        for run in self.trials:
            history = self._client.get_metric_history(run.info.run_id, key)
            found[run.info.run_name] = sorted([point.step, point.value] for point in history)
        return found

    def wait_for_chart(self, key: str) -> dict[str, list[list[float]]]:
        """The curves in the page's charts of a metric, once they are all drawn."""
        enough = f"() => Object.keys(({CHARTS})()[{key!r}] || {{}}).length >= {len(self.trials)}"
        self.page.wait_for_function(enough)
        return dict(self.page.evaluate(CHARTS)[key])

    def screenshot(self, name: str) -> None:
        """Keeps what the page looks like, if LRSWEEP_SCREENSHOTS names a folder for it."""
        if folder := os.environ.get("LRSWEEP_SCREENSHOTS"):
            # Charts glide into place.
            self.page.wait_for_timeout(1000)
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def folder(finished_sweep: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sweep's working folder: the server may write into it."""
    return Path(shutil.copytree(finished_sweep.folder, tmp_path_factory.mktemp("ui") / "sweep"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    with served(folder) as running:
        yield running.uri


@pytest.fixture
def ui(server: str, folder: Path, finished_sweep: FinishedSweep) -> Iterator[Ui]:
    assert BROWSER is not None
    with browser_page(BROWSER) as page:
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        yield Ui(page, server, folder, finished_sweep.name)
        assert [url for url in elsewhere if not url.startswith((server, "data:", "blob:"))] == []


def test_from_the_home_page_to_the_trials_under_their_sweep(ui: Ui) -> None:
    ui.page.goto(ui.server)
    ui.page.get_by_text("Model training", exact=True).first.click()
    ui.page.get_by_role("link", name=ui.sweep, exact=True).first.click()
    parent = ui.page.get_by_role("row").filter(has=ui.page.get_by_role("link", name=ui.sweep, exact=True))
    playwright.expect(parent).to_be_visible()
    trials = ui.page.get_by_role("link", name=re.compile(r"^\d{4} "))
    playwright.expect(trials).to_have_count(0)
    parent.get_by_role("button").first.click()
    playwright.expect(trials).to_have_count(len(ui.trials))
    ui.screenshot("runs")
    assert sorted(trials.all_inner_texts()) == sorted(ui.names)


def test_the_compare_page_draws_every_trials_curve_best_first(ui: Ui) -> None:
    ui.page.goto(compare_url(ui.server, ui.experiment))
    for key in ("eval_loss", "loss"):
        assert ui.wait_for_chart(key) == ui.curves(key)
    ui.screenshot("charts")
    assert ui.page.evaluate(COLORS) == {run.info.run_name: run.data.tags["mlflow.runColor"] for run in ui.trials}
    rows = ui.page.get_by_role("link", name=re.compile(r"^\d{4} ")).all_inner_texts()
    last = {run.info.run_name: run.data.metrics["eval_loss"] for run in ui.trials}
    assert rows == sorted(ui.names, key=lambda name: last[name])


def test_the_printed_link_shows_the_curves_and_the_loss_over_the_rate(ui: Ui, folder: Path) -> None:
    summary = json.loads((folder / "outputs" / ui.sweep / "summary.json").read_text())
    ui.page.goto(summary["links"]["compare_url"].replace("http://127.0.0.1:5000", ui.server))
    assert ui.wait_for_chart("eval_loss") == ui.curves("eval_loss")
    ui.page.wait_for_function(f"() => ({POINTS})().length > 0")
    ui.screenshot("view")
    wanted = [[log10(trial["values"]["optimizer.lr"]), trial["eval_loss"]] for trial in summary["trials"]]
    drawn = sorted((float(x), float(y)) for x, y in ui.page.evaluate(POINTS))
    assert drawn == [pytest.approx(point, abs=1e-4) for point in sorted(wanted)]
    # The table beside it has the axis, the metric and the label.
    ui.page.goto(ui.page.url.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    for column in ("optimizer.lr", "eval_loss", "diagnosis"):
        playwright.expect(ui.page.get_by_text(column, exact=True).first).to_be_visible()
    ui.screenshot("table")


def test_comparing_selected_runs_leads_to_their_curves(ui: Ui) -> None:
    runs = quote(json.dumps([run.info.run_id for run in ui.trials]))
    ui.page.goto(f"{ui.server}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([ui.experiment]))}")
    playwright.expect(ui.page.get_by_text(f"Comparing {len(ui.trials)} Runs from 1 Experiment")).to_be_visible()
    for name in ui.names:
        playwright.expect(ui.page.get_by_text(name, exact=True).first).to_be_attached()
    playwright.expect(ui.page.get_by_text("optimizer.lr", exact=True).first).to_be_visible()
    ui.screenshot("compare")
    ui.page.get_by_role("link", name="eval_loss", exact=True).click()
    drawn_lines = "(document.querySelector('.js-plotly-plot')?.data || [])"
    ui.page.wait_for_function(f"() => {drawn_lines}.length > 0 && {drawn_lines}.every(line => line.y)")
    ui.screenshot("metric")
    # Each curve is there twice: as it is, and smoothed by nothing.
    drawn = ui.page.evaluate("() => document.querySelector('.js-plotly-plot').data.map(line => [...line.y])")
    assert {tuple(curve) for curve in drawn} == {
        tuple(value for _, value in curve) for curve in ui.curves("eval_loss").values()
    }


def test_the_sweeps_own_run_carries_its_report(ui: Ui) -> None:
    parent = ui.trials[0].data.tags["mlflow.parentRunId"]
    ui.page.goto(f"{ui.server}/#/experiments/{ui.experiment}/runs/{parent}/artifacts")
    ui.page.get_by_text("report.html").first.click()
    shown = ui.page.frame_locator("iframe").get_by_role("heading").first
    playwright.expect(shown).to_be_visible()
    ui.screenshot("report")
