"""Pixel sizes that the sender states: of images, datasets, analyses and predictions."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile

from tests.gateway import Gateway, told
from tests.images import archive, pairs, png

LINE = np.zeros((16, 48), np.uint8)
LINE[8, 4:44] = 255
LENGTH = 39.0
"""Of the line, from the first to the last of its 40 pixels."""


def sized_tiff() -> bytes:
    """Pixels of 0.001 mm, as the resolution tags say."""
    into = io.BytesIO()
    tifffile.imwrite(into, LINE, resolution=(10000, 10000), resolutionunit="CENTIMETER")
    return into.getvalue()


def length(gateway: Gateway, **params: Any) -> tuple[float, str]:
    answer = gateway.ask(
        "POST", "/v1/analyses", params=params, content=png(LINE), headers={"Content-Type": "image/png"}
    )
    topology = answer.json()["topology"]
    return topology["skeleton_length"], topology["length_unit"]


def test_lengths_are_in_mm_once_the_size_of_a_pixel_is_stated(gateway: Gateway) -> None:
    assert length(gateway) == (LENGTH, "px")
    assert length(gateway, spacing_mm="0.5,0.25") == (pytest.approx(LENGTH * 0.25), "mm")


def test_the_smallest_and_the_largest_sizes_are_measured_with(gateway: Gateway) -> None:
    assert length(gateway, spacing_mm="1e-9,1e-9") == (pytest.approx(LENGTH * 1e-9), "mm")
    assert length(gateway, spacing_mm="1e-9,1e6")[1] == "mm"


@pytest.mark.parametrize("wrong", ["0,1", "-1,1", "1", "1,1,1,1", "nan,1", "a,b", "", "1e9,1", "5e-324,5e-324"])
def test_sizes_that_are_no_sizes_are_refused(gateway: Gateway, wrong: str) -> None:
    assert told(gateway.upload(png(LINE), params={"spacing_mm": wrong})) == (422, "invalid")


def test_another_number_of_sizes_than_axes_is_refused(gateway: Gateway) -> None:
    refused = gateway.upload(png(LINE), params={"spacing_mm": "1,1,1"})
    assert told(refused) == (422, "invalid") and "rows, columns" in refused.json()["detail"]


def test_a_stored_image_keeps_its_stated_size_and_is_measured_by_it(gateway: Gateway) -> None:
    image = gateway.upload(png(LINE), params={"spacing_mm": "0.5,0.25"})
    assert image.status_code == 201 and image.json()["spacing_mm"] == [0.5, 0.25]
    assert "toposerve-warning" not in image.headers
    again = gateway.upload(png(LINE))
    assert (again.status_code, again.json()["spacing_mm"]) == (200, [0.5, 0.25])
    analysed = gateway.ask("POST", "/v1/analyses", json={"image": image.json()["id"]}).json()
    assert analysed["spacing_mm"] == [0.5, 0.25] and analysed["topology"]["skeleton_length"] == LENGTH * 0.25


def test_a_size_that_contradicts_the_file_counts_and_is_told(gateway: Gateway) -> None:
    stated = gateway.upload(sized_tiff(), params={"spacing_mm": "0.002,0.002"})
    assert stated.json()["spacing_mm"] == [0.002, 0.002]
    assert "0.001 x 0.001 mm" in stated.headers["toposerve-warning"]


def test_another_size_for_stored_bytes_is_a_conflict_until_it_is_changed(gateway: Gateway) -> None:
    image = gateway.upload(png(LINE), params={"spacing_mm": "0.5,0.25"}).json()
    refused = gateway.upload(png(LINE), params={"spacing_mm": "1,1"})
    assert told(refused) == (409, "conflict") and "PATCH" in refused.json()["detail"]
    changed = gateway.ask("PATCH", image["links"]["self"], json={"spacing_mm": [1, 1]})
    assert (changed.status_code, changed.json()["spacing_mm"], changed.json()["name"]) == (200, [1, 1], image["name"])
    assert gateway.upload(png(LINE), params={"spacing_mm": "1,1"}).status_code == 200
    for wrong in ({}, {"spacing_mm": [1, 1, 1]}, {"spacing_mm": [0, 1]}, {"spacing_mm": "1,1"}):
        assert told(gateway.ask("PATCH", image["links"]["self"], json=wrong)) == (422, "invalid"), wrong


def test_a_dataset_of_a_stated_size_is_another_version_and_its_images_have_it(gateway: Gateway) -> None:
    headers = {"Content-Type": "application/zip"}
    content = archive(pairs())
    plain = gateway.ask("POST", "/v1/datasets", params={"name": "bars"}, content=content, headers=headers)
    assert plain.json()["spacing_mm"] is None
    address = "/v1/datasets/bars/versions"
    sized = gateway.ask("POST", address, params={"spacing_mm": "0.5,0.25"}, content=content, headers=headers)
    assert (sized.status_code, sized.json()["version"], sized.json()["spacing_mm"]) == (201, 2, [0.5, 0.25])
    other = gateway.ask(
        "POST", "/v1/datasets", params={"name": "new", "spacing_mm": "1,1,1"}, content=content, headers=headers
    )
    assert told(other) == (422, "invalid")


def test_files_of_a_dataset_that_contradict_the_stated_size_are_a_warning(gateway: Gateway) -> None:
    mask = np.where(LINE > 0, 1, 0).astype(np.uint8)
    made = gateway.ask(
        "POST",
        "/v1/datasets",
        params={"name": "lines", "spacing_mm": "0.002,0.002"},
        content=archive({"images/a.tif": sized_tiff(), "masks/a.png": png(mask)}),
        headers={"Content-Type": "application/zip"},
    ).json()
    assert [warning["item"] for warning in made["warnings"] if warning["code"] == "other_spacing"] == ["a"]
    item = gateway.ask("GET", made["links"]["items"]).json()["items"][0]
    assert gateway.ask("GET", item["links"]["image"]).json()["spacing_mm"] == [0.002, 0.002]
