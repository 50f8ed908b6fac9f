"""A service behind a path prefix: links, forms, scripts, cookies, and the client."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from app.settings import Settings
from tests.gateway import started
from tests.pages.conftest import HTML, Site
from tests.pages.gallery import hang
from tests.pages.test_http import addresses, json_address
from tests.pages.test_work_forms import png
from toposerve_client import Client

PREFIX = "/clinic/toposerve"
FOLLOWED = {"href", "src", "data-places", "data-axes"}
PICTURE = png(np.full((24, 24), 90, np.uint8))
SENT = {"action", "formaction", "data-live"}


class Addresses(HTMLParser):
    """Every address in a page, by the attribute that holds it."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(name, value) for name, value in attrs if value and name in FOLLOWED | SENT]


@pytest.fixture(scope="module")
def prefixed(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gallery that is served below a prefix."""
    folder = tmp_path_factory.mktemp("prefixed")
    shutil.copy(sqlite_template, folder / "toposerve.db")
    settings = Settings(
        _env_file=None, data_dir=folder, min_free_bytes=0, onnx_threads=1, warm_models=False, root_path=PREFIX
    )
    with started(settings) as gateway:
        yield Site(gateway, hang(gateway.services, pairs=2, side=128))


@pytest.fixture
def visitor(prefixed: Site) -> Iterator[httpx.Client]:
    """A browser without script that is signed in below the prefix."""
    with httpx.Client(base_url=prefixed.url, headers=HTML | {"Accept-Encoding": "identity"}, timeout=30) as client:
        answer = client.post(f"{PREFIX}/login", data={"key": prefixed.gallery.key, "next": "/jobs"})
        assert (answer.status_code, answer.headers["location"]) == (303, f"{PREFIX}/jobs")
        assert f"Path={PREFIX};" in answer.headers["set-cookie"]
        yield client


def test_every_address_of_every_page_begins_with_the_prefix_and_is_there(prefixed: Site, visitor: httpx.Client) -> None:
    seen: set[str] = set()
    for page in [*addresses(prefixed), "/docs", "/docs?tag=images", "/nothing-here"]:
        answer = visitor.get(PREFIX + page)
        assert int(answer.headers["content-length"]) == len(answer.content)
        for name, address in Addresses(answer.text).found:
            if address.startswith(("#", "?", "mailto:", "https://", "data:")):
                continue
            assert address.startswith((PREFIX + "/", prefixed.url + PREFIX)), (page, name, address)
            if name in FOLLOWED:
                seen.add(address.partition("#")[0])
    assert len(seen) > 100
    refused = {}
    for address in sorted(seen):
        with visitor.stream("GET", address) as answer:
            if answer.status_code >= 400:
                refused[address] = answer.status_code
    assert refused == {}


def test_a_proxy_that_takes_the_prefix_off_gets_the_same_page(prefixed: Site, visitor: httpx.Client) -> None:
    page = f"/images/{prefixed.gallery.images[0]}"
    cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())}
    plain = re.compile(r'name="csrf_token" value="[^"]*"')
    whole, off = visitor.get(PREFIX + page).text, visitor.get(page, headers=cookie).text
    assert plain.sub("", off) == plain.sub("", whole)


def test_facts_of_pages_and_links_of_the_api_begin_with_the_prefix(prefixed: Site) -> None:
    with prefixed.program() as program:
        for page in addresses(prefixed):
            text = program.get(PREFIX + json_address(page)).text
            assert not re.search(r'"/(v1|images|datasets|jobs|models|predictions)/', text), page
        links = program.get(f"{PREFIX}/v1/images?limit=1")
        assert links.headers["link"].startswith(f"<{PREFIX}/v1/images?")
        item = links.json()["items"][0]
        assert {program.get(address).status_code for address in item["links"].values()} == {200}
        made = program.post(f"{PREFIX}/v1/images", content=PICTURE)
        assert made.headers["location"] == made.json()["links"]["self"] == f"{PREFIX}/v1/images/{made.json()['id']}"
        version = program.get(f"{PREFIX}/v1/models/vessels/versions/1").json()
        assert version["onnx"]["href"] == f"{PREFIX}/v1/models/vessels/versions/1/onnx"
        assert program.get(f"{PREFIX}/openapi.json").json()["servers"] == [{"url": PREFIX}]


def test_head_of_a_page_states_no_length(visitor: httpx.Client) -> None:
    answer = visitor.head(f"{PREFIX}/images")
    assert (answer.status_code, "content-length" in answer.headers, answer.content) == (200, False, b"")


def test_who_is_not_signed_in_comes_back_to_the_page_after_it(prefixed: Site) -> None:
    with httpx.Client(base_url=prefixed.url, headers=HTML) as client:
        asked = client.get(f"{PREFIX}/jobs?state=running")
        assert asked.headers["location"].startswith(f"{PREFIX}/login?next=%2Fjobs")
        form = client.get(asked.headers["location"]).text
        [wanted] = re.findall(r'name="next" value="([^"]*)"', form)
        signed_in = client.post(f"{PREFIX}/login", data={"key": prefixed.gallery.key, "next": wanted})
        assert client.get(signed_in.headers["location"]).status_code == 200


def test_the_client_follows_links_below_the_prefix(prefixed: Site, tmp_path: Path) -> None:
    with Client(prefixed.url + PREFIX, prefixed.gallery.key) as client:
        prediction = str(prefixed.gallery.predictions["vessels:1"][0])
        assert client.predictions.mask(prediction).ndim == 2


@pytest.mark.parametrize("address", ["topo", "/topo/", "/to po", "//host", "/a?b"])
def test_wrong_prefix_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(_env_file=None, data_dir=tmp_path, root_path=address)


def test_texts_of_people_are_left_as_they_are(prefixed: Site, visitor: httpx.Client) -> None:
    name = '" href="/evil.png'
    with prefixed.program() as program:
        files = {"file": (name, io.BytesIO(PICTURE), "image/png")}
        image = program.post(f"{PREFIX}/v1/images", files=files).json()
    page = visitor.get(image["links"]["self"].replace("/v1/", "/")).text
    assert f"{PREFIX}/evil.png" not in page


def test_page_by_browser_loads_its_scripts_and_pictures(prefixed: Site, chromium: Any) -> None:
    prediction = prefixed.gallery.predictions["vessels:1"][0]
    page = chromium.new_page()
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    page.goto(f"{prefixed.url}{PREFIX}/predictions/{prediction}")
    page.fill("input[name=key]", prefixed.gallery.key)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{PREFIX}/predictions/{prediction}")
    page.wait_for_load_state("networkidle")
    assert page.locator("[data-viewer] img").first.evaluate("image => image.naturalWidth") > 0
    page.close()
    assert [address for address in refused if "favicon" not in address] == []
