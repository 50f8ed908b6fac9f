"""Lists that are narrowed, sorted and read page by page, as pages and over the API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.store.tables import Prediction, now
from tests.pages.conftest import Site, Window

JsonList = list[dict[str, Any]]


def listed(browser: httpx.Client, address: str) -> JsonList:
    """Every row of a list, page by page."""
    return [item for page in pages(browser, address) for item in page]


def pages(browser: httpx.Client, address: str) -> Iterator[JsonList]:
    cursor = ""
    while True:
        answer = browser.get(f"{address}&limit=3{cursor}")
        assert answer.status_code == 200, answer.text
        yield answer.json()["items"]
        if answer.json()["next_cursor"] is None:
            return
        cursor = f"&cursor={answer.json()['next_cursor']}"


@pytest.mark.parametrize(
    ("address", "of"),
    [
        ("/v1/images?sort=bytes", lambda row: row["bytes"]),
        ("/v1/images?sort=-name", lambda row: row["name"]),
        ("/v1/models/vessels/versions?sort=-dice", lambda row: row["metrics"]["dice"]),
        ("/v1/datasets?sort=name", lambda row: row["name"]),
        ("/v1/jobs?sort=created", lambda row: row["id"]),
        ("/v1/jobs?sort=-done", lambda row: row["progress"]["fraction"]),
        ("/v1/predictions?sort=beta0_error", lambda row: row["measurements"][0]["beta0_error"]),
        ("/v1/predictions?sort=-cldice", lambda row: row["measurements"][0]["cldice"]),
    ],
)
def test_list_is_sorted_over_its_pages_without_gaps(site: Site, address: str, of: Callable[[Any], Any]) -> None:
    with site.program() as program:
        rows = listed(program, address)
        everything = listed(program, address.partition("?")[0] + "?")
    values = [of(row) for row in rows]
    assert values == sorted(values, reverse="=-" in address) and len(values) > 0
    assert {row.get("id", row.get("ref", row.get("name"))) for row in rows} == {
        row.get("id", row.get("ref", row.get("name"))) for row in everything
    }
    assert len(rows) == len(everything)


def test_rows_without_the_figure_come_last_in_either_direction(site: Site) -> None:
    with site.program() as program:
        for sort in ("dice", "-dice"):
            jobs = listed(program, f"/v1/jobs?sort={sort}")
            there = [bool(job["result"] and ("metrics" in job["result"])) for job in jobs]
            assert there == sorted(there, reverse=True) and True in there and False in there


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("/v1/images?name=RETINA-02", lambda row: row["name"] == "retina-02.png"),
        ("/v1/images?dataset=vessels@1&dimensions=2", lambda row: row["dimensions"] == 2),
        ("/v1/jobs?state=failed", lambda row: row["state"] == "failed"),
        ("/v1/jobs?kind=evaluate&model=vessels:2", lambda row: row["spec"]["model"] == "vessels:2"),
        ("/v1/jobs?model=vessels&dataset=vessels", lambda row: row["spec"]["model"].startswith("vessels")),
        (
            "/v1/predictions?topology=wrong",
            lambda row: row["measurements"][0]["beta0_error"] + row["measurements"][0]["beta1_error"] > 0,
        ),
        ("/v1/predictions?model=vessels:1&image_name=retina-01", lambda row: row["model"] == "vessels:1"),
        ("/v1/models/vessels/versions?dataset=vessels@1", lambda row: row["dataset"] == "vessels@1"),
    ],
)
def test_list_holds_only_what_fits(site: Site, address: str, fits: Callable[[Any], bool]) -> None:
    with site.program() as program:
        rows = listed(program, address)
    assert rows and all(fits(row) for row in rows)


def test_dates_and_percent_signs_are_taken_literally(site: Site) -> None:
    tomorrow = (now() + timedelta(days=1)).date().isoformat()
    with site.program() as program:
        assert program.get("/v1/images", params={"name": "%"}).json()["items"] == []
        assert program.get("/v1/images", params={"since": tomorrow}).json()["items"] == []
        assert len(program.get("/v1/images", params={"until": tomorrow}).json()["items"]) >= 4
        for wrong in ("since=soon", "sort=shoe", "dimensions=4", "name=%00"):
            assert program.get(f"/v1/images?{wrong}").status_code == 422, wrong
        narrowed = program.get("/v1/jobs?limit=1&sort=-dice").json()["next_cursor"]
        assert program.get(f"/v1/jobs?limit=1&cursor={narrowed}").status_code == 400, "a cursor of another order"


def test_predictions_that_violate_what_was_expected_are_found(site: Site) -> None:
    from tests.pages.test_forms import csrf

    image = site.gallery.images[1]
    with site.visitor() as browser, site.program() as program:
        token = csrf(browser.get(f"/images/{image}").text)
        for expected in ("beta0:999", "beta1:0,beta0:0"):
            sent = {"csrf_token": token, "model": "vessels:1", "expect": expected, "threshold": "0.5"}
            assert browser.post(f"/images/{image}/predict", data=sent).status_code == 303
        violated = listed(program, "/v1/predictions?expectation=violated")
        assert violated and not any(row["expectation"]["satisfied"] for row in violated)
        assert all(row["expectation"]["satisfied"] for row in listed(program, "/v1/predictions?expectation=satisfied"))
        shown = browser.get("/predictions?expectation=violated&topology=&sort=-created").text
    assert set(re.findall(r'href="/predictions/([0-9a-f-]{36})"', shown)) == {row["id"] for row in violated}
    with site.services.database.read() as session:
        assert session.get_one(Prediction, site.gallery.predictions["vessels:1"][0]).violated is None


@pytest.mark.browser
def test_list_is_searched_and_sorted_without_script(site: Site, window: Callable[..., Window]) -> None:
    view = window(script=False)
    view.go("/predictions")
    page = view.page
    page.fill("#find-model", "vessels:1")
    page.select_option("#find-topology", "wrong")
    page.select_option("#find-sort", label="Betti-0 error, largest first")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("sort=-beta0_error"))
    assert "model=vessels%3A1" in page.url and page.input_value("#find-model") == "vessels:1"
    with site.program() as program:
        wanted = listed(program, "/v1/predictions?model=vessels:1&topology=wrong&sort=-beta0_error")
    shown = page.locator(".gallery a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert shown == [f"/predictions/{row['id']}" for row in wanted]
    page.click("text=All >> nth=-1")
    assert page.input_value("#find-model") == ""
