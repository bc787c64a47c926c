"""What somebody sees who opens MLflow's UI on a sweep, in a real browser."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from lrsweep.config import TrackingConfig
from lrsweep.engines import Measurement
from lrsweep.tracking import DatasetInfo, compare_url, default_uri, open_tracker
from tests.browser import browser_page, chromium, served

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")

BROWSER = chromium()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium in the PATH")

# The data of every chart on the page: run name -> [step, value] pairs, by metric.
CHARTS = """() => {
    const charts = {};
    for (const chart of document.querySelectorAll(".js-plotly-plot"))
        for (const line of chart.data || [])
            if (line.x && line.y)
                (charts[line.metricKey || line.metricName || ""] ??= {})[line.name] = [...line.x].map((x, i) => [x, line.y[i]]);
    return charts;
}"""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep to look at: its working folder, where mlflow.db is, and its name."""

    folder: Path
    name: str


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Four trials with curves as a sweep makes them, the last of which blows up."""
    folder = tmp_path_factory.mktemp("ui")
    tracker = open_tracker(TrackingConfig(name="mlflow", system_metrics=False), folder)
    tracker.start(
        "lora_lr", "id-1", {"optimizer.lr": 1e-4}, {}, DatasetInfo("alpaca", "alpaca.json", "ab" * 32, 90, 10)
    )
    for number, lr in enumerate((1e-5, 1e-4, 1e-3, 1e-1)):
        tracker.start_trial(number, f"{number:04d} lr={lr:g}", {"optimizer.lr": lr}, {"engine": "trainer"})
        for step in range(0, 101, 5):
            loss = 1.5 + abs(number - 2) / 3 + 2 * math.exp(-(number + 1) * step / 80)
            if number == 3:
                loss = loss + step / 20 if step < 50 else math.nan
            tracker.log(Measurement(number, step, {"loss": loss, "learning_rate": lr * (1 - step / 100)}))
            if step % 10 == 0:
                tracker.log(Measurement(number, step, {"eval_loss": loss + 0.1}))
        tracker.finish_trial(number, "diverged" if number == 3 else "complete", {})
    (folder / "report.html").write_text("<h1>The best learning rate</h1>")
    tracker.finish("complete", {"best_eval_loss": 1.6}, [folder / "report.html"])
    assert tracker.unsent == 0
    return Sweep(folder, "lora_lr")


class Ui:
    """A browser's page on the UI of a sweep, and what the store itself says should be seen there."""

    def __init__(self, page: "playwright.Page", server: str, sweep: Sweep, screenshots: Path) -> None:
        from mlflow import MlflowClient

        self.page = page
        self.server = server
        self._screenshots = screenshots
        self._client = MlflowClient(default_uri(sweep.folder))
        self.experiment = self._client.get_experiment_by_name(sweep.name).experiment_id
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
        # Charts glide into place.
        self.page.wait_for_timeout(1000)
        self.page.screenshot(path=self._screenshots / f"{name}.png")


@pytest.fixture(scope="module")
def server(sweep: Sweep) -> Iterator[str]:
    with served(default_uri(sweep.folder), sweep.folder) as running:
        yield running.uri


@pytest.fixture
def ui(server: str, sweep: Sweep, tmp_path: Path) -> Iterator[Ui]:
    screenshots = Path(os.environ.get("LRSWEEP_SCREENSHOTS", tmp_path))
    screenshots.mkdir(parents=True, exist_ok=True)
    assert BROWSER is not None
    with browser_page(BROWSER) as page:
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url))
        yield Ui(page, server, sweep, screenshots)
        assert [url for url in elsewhere if not url.startswith((server, "data:", "blob:"))] == []


def test_from_the_home_page_to_the_trials_under_their_sweep(ui: Ui, sweep: Sweep) -> None:
    ui.page.goto(ui.server)
    ui.page.get_by_text("Model training", exact=True).first.click()
    ui.page.get_by_role("link", name=sweep.name, exact=True).first.click()
    parent = ui.page.get_by_role("row").filter(has=ui.page.get_by_role("link", name=sweep.name, exact=True))
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
    rows = ui.page.get_by_role("link", name=re.compile(r"^\d{4} ")).all_inner_texts()
    last = {run.info.run_name: run.data.metrics["eval_loss"] for run in ui.trials}
    assert rows == sorted(ui.names, key=lambda name: last[name])


def test_comparing_selected_runs_leads_to_their_curves(ui: Ui) -> None:
    runs = quote(json.dumps([run.info.run_id for run in ui.trials]))
    ui.page.goto(f"{ui.server}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([ui.experiment]))}")
    playwright.expect(ui.page.get_by_text(f"Comparing {len(ui.trials)} Runs from 1 Experiment")).to_be_visible()
    for name in ui.names:
        playwright.expect(ui.page.get_by_text(name, exact=True).first).to_be_attached()
    playwright.expect(ui.page.get_by_text("optimizer.lr", exact=True).first).to_be_visible()
    ui.screenshot("compare")
    ui.page.get_by_role("link", name="eval_loss", exact=True).click()
    ui.page.wait_for_function("() => (document.querySelector('.js-plotly-plot')?.data || []).length > 0")
    ui.screenshot("metric")
    # Each curve is there twice: as it is, and smoothed by nothing.
    drawn = ui.page.evaluate("() => document.querySelector('.js-plotly-plot').data.map(line => [...line.y])")
    assert {tuple(curve) for curve in drawn} == {
        tuple(value for _, value in curve) for curve in ui.curves("eval_loss").values()
    }


def test_the_sweeps_own_run_carries_its_report(ui: Ui, sweep: Sweep) -> None:
    parent = ui.trials[0].data.tags["mlflow.parentRunId"]
    ui.page.goto(f"{ui.server}/#/experiments/{ui.experiment}/runs/{parent}/artifacts")
    ui.page.get_by_text("report.html").first.click()
    shown = ui.page.frame_locator("iframe").get_by_role("heading").first
    playwright.expect(shown).to_be_visible()
    ui.screenshot("report")
