"""The items of a dataset in the browser: found by what is in their masks, and put into parts or left out."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from tests.pages.conftest import Site, Window
from tests.pages.test_accessibility import findings
from tests.pages.test_forms import csrf
from tests.pages.test_work_forms import png, post

SQUARES = {"none": 0, "one": 1, "three": 3, "four": 4}
"""How many squares the mask of an item has; that of three has a speck besides."""


def made(browser: httpx.Client, name: str) -> str:
    """A dataset of four images; the address of its version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for item, squares in SQUARES.items():
            mask = np.zeros((40, 40), np.uint8)
            for k in range(squares):
                mask[4:9, 2 + 9 * k : 7 + 9 * k] = 1
            if squares == 3:
                mask[30, 30] = 1
            archive.writestr(f"images/{item}.png", png(mask * 90 + np.uint8(squares)))
            archive.writestr(f"masks/{item}.png", png(mask))
    sent = {"file": ("set.zip", buffer.getvalue())}
    answer = post(browser, "/datasets", "/datasets", name=name, label_map='{"cell": 1}', files=sent)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def names(browser: httpx.Client, address: str) -> list[str]:
    path, _, query = address.partition("?")
    answer = browser.get(f"{path}.json?{query}")
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


def test_items_are_found_by_what_is_in_their_masks(site: Site) -> None:
    with site.visitor() as browser:
        page = made(browser, "finding")
        assert names(browser, page) == ["four", "none", "one", "three"]
        assert names(browser, f"{page}?warning=tiny_islands") == ["three"]
        assert names(browser, f"{page}?warning=empty_mask") == ["none"]
        assert names(browser, f"{page}?class_name=cell") == ["four", "one", "three"]
        assert sorted(names(browser, f"{page}?beta0_least=4")) == ["four", "three"]
        assert names(browser, f"{page}?beta0_least=1&beta0_most=3&name=") == ["one"]
        assert names(browser, f"{page}?sort=beta0&class_name=cell")[0] == "one"
        assert names(browser, f"{page}?part=job") == names(browser, page) and names(browser, f"{page}?part=val") == []
        first = browser.get(f"{page}.json?sort=-pixels&limit=2").json()
        second = browser.get(first["page"]["next"]).json()
        found = [item["name"] for each in (first, second) for item in each["items"]]
        assert found == ["four", "three", "one", "none"]
        assert browser.get("/datasets/vessels/versions/1?warning=cow").status_code == 200, "no warning, no filter"
        for query in ("warning=cow", "beta0_least=many", "sort=colour"):
            assert browser.get(f"{page}?{query}").status_code == 422, query


def test_chosen_items_change_their_part_or_are_left_out_in_the_next_version(site: Site) -> None:
    with site.visitor() as browser, site.program() as program:
        page = made(browser, "parts")
        second = post(browser, page, f"{page}/items", item=["one", "four"], part="test").headers["location"]
        assert second == "/datasets/parts/versions/2"
        items = program.get("/v1/datasets/parts/versions/2/items").json()["items"]
        assert {item["name"]: item["split"] for item in items} == {
            "four": "test",
            "none": None,
            "one": "test",
            "three": None,
        }
        query = f"{second}?warning=empty_mask"
        third = browser.post(
            query.replace("?", "/items?"),
            data={"csrf_token": csrf(browser.get(query).text), "all": "yes", "part": "out"},
        ).headers["location"]
        assert names(browser, third) == ["four", "one", "three"] and len(names(browser, page)) == 4
        stale = browser.post(
            f"{second}/items", data={"csrf_token": csrf(browser.get(third).text), "item": "one", "part": "out"}
        )
        assert stale.status_code == 409 and "newest is version 3" in stale.text
        token = csrf(browser.get(third).text)
        for sent in ({"part": "train"}, {"item": "one", "part": "cow"}, {"item": "cow", "part": "train"}):
            assert browser.post(f"{third}/items", data={"csrf_token": token, **sent}).status_code == 422, sent
        assert f'action="{second}/items"' not in browser.get(second).text


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_items_are_put_into_a_part_by_keyboard(
    site: Site, window: Callable[..., Window], width: int, dark: bool
) -> None:
    with site.visitor() as browser:
        page_address = made(browser, f"keys-{width}")
    view = window(width=width, dark=dark)
    view.go(f"{page_address}?beta0_least=1")
    page = view.page
    assert findings(page) == []
    page.locator("input[name=item]").first.focus()
    page.keyboard.press("Space")
    page.locator("#part").focus()
    page.keyboard.type("put them into val")
    page.locator("button", has_text="Make version 2").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/versions/2")
    assert page.locator(".gallery .about", has_text="val").count() == 1
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
