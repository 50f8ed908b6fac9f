"""The persistence diagram of a prediction: its features, their table, and the way from a point to its place."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.pages.conftest import Site, Window
from tests.pages.test_accessibility import findings
from tests.pages.test_viewer import split

Open = Callable[..., Window]


def test_diagram_and_table_show_the_features_of_the_map(site: Site) -> None:
    with site.visitor() as browser, site.program() as program:
        address = split(browser)
        assert f'href="{address}/persistence"' in browser.get(address).text
        facts = program.get(f"{address}/persistence.json").json()
        page = browser.get(f"{address}/persistence").text
        assert browser.get(f"{address}/persistence?class_name=cow").status_code == 422
    present = [each for each in facts["features"] if each["present"] and each["dimension"] == 0]
    assert len(present) == facts["prediction"]["topology"][0]["beta0"] == 2, "both halves of the bar"
    assert all(each["birth"] > 0.9 and (each["death"] is None or each["death"] <= 0.9) for each in present)
    joined = next(each for each in present if each["death"] is not None)
    assert 28 <= joined["dies_at"][0] < 36 and 30 <= joined["dies_at"][1] <= 34, "they join in the gap"
    assert page.count("data-feature=") == page.count('<tr id="feature-') == len(facts["features"]) == facts["count"]


def test_prediction_without_its_map_has_no_diagram(site: Site) -> None:
    bare = f"/predictions/{site.gallery.predictions['vessels:1'][0]}"
    with site.visitor() as browser:
        answer = browser.get(f"{bare}/persistence")
        assert answer.status_code == 410 and "without its map" in answer.text
        assert "persistence" not in browser.get(bare).text


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_point_leads_to_its_place_and_back(site: Site, window: Open, width: int, dark: bool) -> None:
    with site.visitor() as browser:
        address = split(browser)
    view = window(width=width, dark=dark)
    view.go(f"{address}/persistence")
    page = view.page
    assert findings(page) == []
    row = page.locator("[data-place-list] tbody tr >> nth=1")
    row.hover()
    point = page.locator("[data-diagram] a[data-feature='2']")
    assert point.get_attribute("class") == "here"
    point.hover(force=True)
    page.wait_for_selector(".spot")
    assert row.get_attribute("class") == "here"
    point.click(force=True)
    frame = page.locator("[data-frame]")
    assert float(frame.get_attribute("data-scale")) >= 3
    assert page.locator(".spot").get_attribute("data-at") == row.get_attribute("data-at")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


@pytest.mark.browser
def test_point_leads_to_its_row_without_script(site: Site, window: Open) -> None:
    with site.visitor() as browser:
        address = split(browser)
    view = window(script=False)
    view.go(f"{address}/persistence")
    view.page.locator("[data-diagram] a[data-feature='2']").click(force=True)
    assert re.search("#feature-2$", view.page.url)
    assert view.page.locator("tr:target").get_attribute("id") == "feature-2"
