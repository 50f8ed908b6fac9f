"""Pages that show networks which were trained elsewhere, and addresses that name what cannot be named."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from app.imaging import encode_nifti_gz, encode_png
from app.store.tables import DatasetVersion, Image, Model, ModelVersion
from tests.api.test_model_import import package
from tests.pages.conftest import Site
from tests.pages.gallery import Curator, broken, vessels
from tests.pages.test_forms import csrf, picture
from tests.pages.test_http import Page, addresses, json_address
from tests.serving import networks

BANDS = {"classes": ["background", "dim", "bright"], "activation": "softmax"}
SOLID = {"dimensions": 3, "scaling": networks.PLAIN, "answers": "logits"}


@pytest.fixture(scope="module")
def imported(site: Site) -> Iterator[dict[str, str]]:
    """Three networks imported over HTTP, each with a stored prediction: its id by the name of the network.

    `brought` is evaluated on the dataset that the others were, `bands` tells three classes apart, `solid` reads
    volumes.
    """
    grey, volume = picture(3, 128), np.random.default_rng(0).integers(0, 255, (6, 20, 20)).astype(np.uint8)
    sent = {
        "brought": (package(networks.blur()), grey),
        "bands": (package(networks.bands(), **BANDS), grey),
        "solid": (package(networks.through(dimensions=3), **SOLID), encode_nifti_gz(volume)),
    }
    stored: dict[str, str] = {}
    with site.program() as program:
        for name, (archive, image) in sent.items():
            answer = program.post(
                f"/v1/models/{name}/versions", content=archive, headers={"Content-Type": "application/zip"}
            )
            assert answer.status_code == 201, answer.text
            answer = program.post(
                f"/v1/models/{name}/predict?store=true",
                content=image,
                headers={"Accept": "application/json", "Content-Type": "application/octet-stream"},
            )
            assert answer.status_code == 201, answer.text
            stored[name] = answer.json()["id"]
    with site.services.database.write() as session:
        version = session.scalars(select(ModelVersion).join(Model).where(Model.name == "brought")).one()
        data = session.scalars(select(DatasetVersion).where(DatasetVersion.project_id == site.gallery.project_id)).one()
        images = [session.get_one(Image, each) for each in site.gallery.images[:2]]
        seen = [
            (image, vessels(seed, 128)[1], broken(vessels(seed, 128)[1], seed)) for seed, image in enumerate(images)
        ]
        Curator(site.services, session, site.gallery.project_id).evaluation(version, "brought:1", data, seen)
    yield stored


def pages_of(imported: dict[str, str]) -> list[str]:
    """Every page that shows an imported network."""
    return [
        "/",
        "/models",
        "/predictions",
        "/jobs",
        *(f"/models/{name}/versions/1" for name in imported),
        *(f"/predictions/{prediction}" for prediction in imported.values()),
        *(f"/compare?a={a}:1&b={b}:1" for a in (*imported, "vessels") for b in (*imported, "vessels")),
        *(f"/compare?a={a}&b={b}" for a, b in combinations([imported["brought"], imported["bands"]], 2)),
        *(f"/compare?a={prediction}&b={prediction}" for prediction in imported.values()),
    ]


def test_every_page_shows_imported_networks(site: Site, imported: dict[str, str]) -> None:
    with site.visitor() as browser, site.program() as program:
        for address in pages_of(imported):
            answer = browser.get(address)
            assert answer.status_code == 200, (address, answer.text)
            assert Page(answer.text).problems == [], address
            assert program.get(json_address(address)).status_code == 200, address
        for address in addresses(site):
            assert browser.get(address).status_code == 200, address
        for address in ("/", "/models", "/models/brought/versions/1", "/compare?a=brought:1&b=vessels:2"):
            assert "trained elsewhere" in browser.get(address).text, address


def test_an_imported_network_is_compared_by_its_evaluation(site: Site, imported: dict[str, str]) -> None:
    with site.program() as program:
        facts = program.get("/compare.json?a=brought:1&b=vessels:1").json()
        alone = program.get("/compare.json?a=bands:1&b=vessels:1").json()
    assert (facts["dataset"], facts["pairs"]) == ("vessels@1", 2)
    assert (alone["kind"], alone["dataset"]) == ("models", None)


def test_masks_of_different_classes_are_each_read_by_their_own(site: Site, imported: dict[str, str]) -> None:
    from PIL import Image as Pillow

    pair = imported["brought"], imported["bands"]
    with site.program() as program:
        masks = [Pillow.open(program.get(f"/v1/predictions/{each}/mask.png")) for each in pair]
        drawn = Pillow.open(program.get(f"/predictions/{pair[0]}/against/{pair[1]}.png"))
        again = Pillow.open(program.get(f"/predictions/{pair[1]}/against/{pair[0]}.png"))
    two, three = (np.asarray(mask) for mask in masks)
    apart = (two > 0).astype(int) != three
    np.testing.assert_array_equal(np.asarray(drawn.convert("RGBA"))[..., 3] > 0, apart)
    np.testing.assert_array_equal(np.asarray(again.convert("RGBA"))[..., 3] > 0, apart)


def test_an_imported_network_is_tried_by_its_form(site: Site, imported: dict[str, str]) -> None:
    with site.visitor() as browser:
        token = csrf(browser.get("/models/bands/versions/1").text)
        answer = browser.post(
            "/models/bands/versions/1/try", data={"csrf_token": token}, files={"file": ("a.png", picture(1))}
        )
        assert answer.status_code == 303, answer.text
        assert browser.get(answer.headers["location"]).status_code == 200


MALFORMED = [
    "m:",
    "m@",
    "m:x",
    "m:0",
    "m:-1",
    "m:²",
    "x:²",
    "m: y",
    "m:\uff11",
    "m:99999999999999999999",
    "m:1.0",
    "m:1:2",
    "m@a:1",
    ":1",
    "@a",
    " ",
    "m\x00",
    "m:\x00",
    "é",
    "a" * 3000,
    "m:" + "9" * 3000,
    "{",
    "<b>",
    "../m:1",
]


@pytest.mark.parametrize("ref", MALFORMED)
def test_malformed_reference_is_refused_on_a_page_as_by_predict(site: Site, ref: str) -> None:
    with site.visitor() as browser, site.program() as program:
        for query in ({"a": ref}, {"b": ref}, {"a": ref, "b": "vessels:1"}, {"a": "vessels:1", "b": ref}):
            asked: dict[str, Any] = {"params": query}
            page, facts = browser.get("/compare", **asked), program.get("/compare.json", **asked)
            assert page.status_code == facts.status_code == 422, (query, page.status_code, facts.text)
            assert facts.json()["code"] == "invalid"
            assert facts.json()["errors"][0]["pointer"] in ("/query/a", "/query/b")


@pytest.mark.parametrize("ref", ["none", "none:1", "none@champion", "vessels:99", "vessels@none", "vessels:999999999"])
def test_unknown_reference_on_a_page_names_what_there_is(site: Site, ref: str) -> None:
    with site.visitor() as browser, site.program() as program:
        for query in ({"a": ref}, {"b": ref}, {"a": ref, "b": "vessels:1"}, {"a": "vessels:1", "b": ref}):
            answer = program.get("/compare.json", params=query)
            assert (browser.get("/compare", params=query).status_code, answer.status_code) == (404, 404), query
            image = encode_png(np.zeros((8, 8), np.uint8))
            asked = program.post(f"/v1/models/{ref}/predict", content=image, headers={"Content-Type": "image/png"})
            assert answer.json()["detail"] == asked.json()["detail"]


@pytest.mark.parametrize("wrong", [*MALFORMED, "²", "1" * 5000, "%", "0x1", "1e3", "\u0967"])
def test_no_address_of_a_page_makes_it_fail(site: Site, wrong: str) -> None:
    from urllib.parse import quote

    there = quote(wrong, safe="")
    places = [
        f"/jobs/{there}",
        f"/jobs?state={there}&kind={there}",
        f"/jobs?cursor={there}&limit={there}",
        f"/images/{there}",
        f"/images/{there}/picture.png?side={there}",
        f"/datasets/{there}/versions/1",
        f"/datasets/vessels/versions/{there}",
        f"/datasets/vessels/versions/1/items/{there}.png",
        f"/models/{there}/versions/1",
        f"/models/vessels/versions/{there}",
        f"/predictions/{there}",
        f"/predictions/{there}/layers/mask.png",
        f"/predictions/{site.gallery.predictions['vessels:1'][0]}/layers/{there}.png",
        f"/predictions/{there}/against/{there}.png",
        f"/login?next={there}",
        f"/static/{there}",
    ]
    with site.visitor() as browser, site.program() as program:
        for place in places:
            path, _, query = place.partition("?")
            beside = f"{path}.json" + (f"?{query}" if query else "")
            for answer in (browser.get(place), program.get(place), program.get(beside)):
                assert answer.status_code < 500, (place, answer.text)
