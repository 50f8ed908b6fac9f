"""The queue of images to label next: its order, one-click download, and labels that go into a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.pages.conftest import Site, Window
from tests.pages.test_accessibility import findings
from tests.pages.test_work_forms import png, post


@pytest.fixture(scope="module")
def waiting(site: Site) -> Iterator[dict[str, str]]:
    """Three images without a label: nothing on it, 36 specks of rising brightness, and every third of them."""
    addresses = {}
    with site.visitor() as browser:
        for name, specks in (("empty", ()), ("unsure", range(36)), ("less", range(0, 36, 3))):
            pixels = np.full((48, 48), 10, np.uint8)
            for k in specks:
                row, column = 1 + 8 * (k // 6), 1 + 8 * (k % 6)
                pixels[row : row + 5, column : column + 5] = 20 + 5 * k
            sent = {"file": (f"{name}.png", png(pixels))}
            addresses[name] = post(browser, "/images", "/images", files=sent).headers["location"]
        yield addresses


def test_least_certain_images_come_first_once_they_are_scored(site: Site, waiting: dict[str, str]) -> None:
    with site.visitor() as browser:
        before = browser.get("/images/queue.json?model=vessels:1").json()
        assert before["scored"] == 0 and before["candidates"] == 3, "those of the dataset have masks"
        assert "What to label next" in browser.get("/images").text
        scored = post(browser, "/images/queue", "/images/queue", model="vessels:1", dataset="")
        assert scored.headers["location"] == "/images/queue?model=vessels%3A1&dataset="
        after = browser.get("/images/queue.json?model=vessels:1").json()
        assert after["scored"] == 3
        scores = [image["score"] for image in after["images"]]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
        page = browser.get("/images/queue?model=vessels:1").text
        assert f'href="/v1{waiting["unsure"]}/content"' in page and "Score" not in page.split("Queue")[0]
        assert browser.get("/images/queue?model=cow:1").status_code == 404


def test_uploaded_label_leaves_the_queue_and_enters_the_dataset(site: Site, waiting: dict[str, str]) -> None:
    image, page = waiting["empty"], "/images/queue?model=vessels:1&dataset=vessels@1"
    mask = np.zeros((48, 48), np.uint8)
    mask[5:9, 5:40] = 255
    with site.visitor() as browser, site.program() as program:
        sent = {"file": ("mask.png", png(mask))}
        small = {"file": ("mask.png", png(mask[:20]))}
        fields = {"model": "vessels:1", "dataset": "vessels@1"}
        refused = post(browser, page, f"{image}/label", files=small, **fields)
        assert refused.status_code == 422 and program.get("/v1/datasets/vessels").json()["latest"]["version"] == 1
        saved = post(browser, page, f"{image}/label", files=sent, **fields)
        assert saved.headers["location"] == "/images/queue?model=vessels%3A1&dataset=vessels%402", saved.text
        assert image not in browser.get(saved.headers["location"]).text
        items = program.get("/v1/datasets/vessels/versions/2/items").json()["items"]
        added = next(item for item in items if f"/images/{item['image']}" == image)
        assert (added["name"], added["statistics"]["pixels"]["vessel"]) == ("empty", 140)
        other = waiting["less"]
        alone = post(browser, page, f"{other}/label", files=sent, model="vessels:1", dataset="")
        assert alone.status_code == 303 and other not in browser.get("/images/queue").text
        assert program.get("/v1/datasets/vessels").json()["latest"]["version"] == 2
        label = program.get("/monai/datastore/label", params={"label": other.removeprefix("/images/")})
        assert label.status_code == 200
    with site.visitor(site.gallery.viewer_key) as browser:
        page = browser.get("/images/queue").text
        assert "Download" in page and "Save" not in page and "Score them" not in page


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_queue_is_accessible(
    site: Site, window: Callable[..., Window], waiting: dict[str, str], width: int, dark: bool
) -> None:
    view = window(width=width, dark=dark)
    view.go("/images/queue")
    assert view.page.locator(".queue li").count() >= 1
    assert findings(view.page) == []
    assert view.page.evaluate("document.scrollingElement.scrollWidth") <= width
