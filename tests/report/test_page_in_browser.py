"""The report in a real browser: sorting, hiding curves, copying the config, and what the pointer shows."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import BROWSER, ON_THE_SHARED_SWEEP, browser_page
from tests.conftest import FinishedSweep

if TYPE_CHECKING:
    from playwright.sync_api import Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")

pytestmark = ON_THE_SHARED_SWEEP


@pytest.fixture(scope="module")
def page(finished_sweep: FinishedSweep, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Page"]:
    """The report alone in a folder, in a browser whose errors and requests are kept."""
    assert BROWSER is not None
    file = Path(shutil.copy(finished_sweep.outputs / "report.html", tmp_path_factory.mktemp("report")))
    with browser_page(BROWSER) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        yield page
        assert wrong == []


def losses(page: "Page") -> list[float]:
    return [float(text) for text in page.locator("table.sortable td:nth-child(3)").all_inner_texts()]


def test_a_click_on_a_column_sorts_by_it(page: "Page") -> None:
    head = page.locator("table.sortable th", has_text="eval loss")
    head.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert losses(page) == sorted(losses(page))
    head.press("Enter")
    assert losses(page) == sorted(losses(page), reverse=True)


def test_a_button_hides_a_curve_and_shows_it_again(page: "Page") -> None:
    curve, button = page.locator("#curve-trial-1"), page.locator('[data-toggle="1"]')
    playwright.expect(curve).to_be_visible()
    button.click()
    playwright.expect(curve).to_be_hidden()
    playwright.expect(page.locator("#curve-trial-0")).to_be_visible()
    button.click()
    playwright.expect(curve).to_be_visible()


def test_the_pointer_on_a_point_names_its_trial(page: "Page") -> None:
    tip = page.locator("#tip")
    playwright.expect(tip).to_be_hidden()
    page.locator("#point-trial-2").hover(force=True)
    playwright.expect(tip).to_contain_text("trial 2: lr 0.003; eval loss ")
    playwright.expect(page.locator('tr[data-trial="2"]')).to_have_class("best marked")
    page.locator("h1").hover()
    playwright.expect(tip).to_be_hidden()


def test_the_best_config_is_copied(page: "Page") -> None:
    page.locator("[data-copy=best]").click()
    playwright.expect(page.locator("[data-copy=best]")).to_have_text("Copied")
    assert "learning_rate: 0.003" in page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_light_and_dark(page: "Page", scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size(size)
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert paper != ink
