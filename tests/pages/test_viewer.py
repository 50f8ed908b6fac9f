"""The viewer in Chromium: looks, marks and their table, the address, pairs, planes of volumes, and edits by hand."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from app.pages.layers import outlined
from app.pages.pictures import Cut, Kept
from tests.imaging.dicom_files import dataset, written
from tests.pages.conftest import Site, Window
from tests.pages.test_forms import csrf
from tests.pages.test_work_forms import png, post

Open = Callable[..., Window]


def first(site: Site, version: str = "vessels:1") -> str:
    return f"/predictions/{site.gallery.predictions[version][0]}"


def answered(browser: Any, address: str) -> np.ndarray:
    """A layer as (H, W, 4)."""
    answer = browser.get(address)
    assert answer.status_code == 200, answer.text
    return np.asarray(Pillow.open(io.BytesIO(answer.content)).convert("RGBA"))


def test_layer_is_drawn_as_outline_and_in_another_colour(site: Site) -> None:
    address = f"{first(site)}/layers/mask.png"
    with site.visitor() as browser:
        area, line = answered(browser, address), answered(browser, address + "?style=outline&colour=2")
        assert browser.get(address + "?colour=9").status_code == 422
    inside, rim = area[..., 3] > 0, line[..., 3] > 0
    assert 0 < rim.sum() < inside.sum() and not (rim & ~inside).any()
    assert set(map(tuple, line[rim][:, :3])) == {(230, 159, 0)} and set(map(tuple, area[inside][:, :3])) == {
        (0, 158, 115)
    }


def test_outline_is_every_pixel_beside_another_class() -> None:
    mask = np.zeros((6, 7), np.uint8)
    mask[1:5, 1:6] = 1
    expected = mask.copy()
    expected[2:4, 2:5] = 0
    np.testing.assert_array_equal(outlined(mask), expected)


@pytest.mark.browser
def test_opacity_is_what_the_slider_says_from_the_start(site: Site, window: Open) -> None:
    page = window().page
    page.goto(site.url + first(site))
    layer = page.locator(".layer.difference")
    assert layer.evaluate("e => getComputedStyle(e).opacity") == "0.6" and page.input_value("[data-opacity]") == "60"
    page.locator(".looks summary").click()
    page.locator("[data-opacity]").fill("25")
    assert layer.evaluate("e => getComputedStyle(e).opacity") == "0.25"
    page.locator("[data-style]").select_option("outline")
    assert "style=outline" in page.locator(".layer.mask").get_attribute("src")


@pytest.mark.browser
def test_marks_keep_their_size_and_the_table_leads_to_them(site: Site, window: Open) -> None:
    view = window()
    view.go(first(site))
    page = view.page
    page.wait_for_selector("[data-marks] button")
    sizes = {tuple(sorted(each.bounding_box().items()))[1:2] for each in page.locator("[data-marks] button").all()}
    page.select_option("[data-place-filter]", "wrong: break")
    rows = page.locator("[data-place-list] tbody tr:visible")
    assert rows.count() >= 1 and set(rows.locator("th").all_inner_texts()) == {"wrong: break"}
    rows.first.locator("button").click()
    frame = page.locator("[data-frame]")
    assert float(frame.get_attribute("data-scale")) >= 3
    assert {
        tuple(sorted(each.bounding_box().items()))[1:2] for each in page.locator("[data-marks] button").all()
    } <= sizes
    spot, box = page.locator(".spot").bounding_box(), frame.bounding_box()
    at = [int(part) for part in rows.first.get_attribute("data-at").split(",")]
    if all(40 < place < 88 for place in at):  # a place at the rim cannot be in the middle
        assert abs(spot["x"] + spot["width"] / 2 - box["x"] - box["width"] / 2) < 3
    page.click("th button.sort:has-text('Size')")
    page.select_option("[data-place-filter]", "")
    shown = [int(text) for text in page.locator("[data-place-list] tbody tr td:last-child").all_inner_texts()]
    assert shown == sorted(shown)
    page.wait_for_url(re.compile("at="))
    again = page.url
    page.goto("about:blank")
    page.goto(again)
    page.wait_for_selector("[data-frame].zoomed")
    assert float(page.locator("[data-frame]").get_attribute("data-scale")) >= 3


@pytest.mark.browser
def test_two_predictions_share_layers_blink_and_swipe(site: Site, window: Open) -> None:
    view = window()
    view.go(f"/compare?a={site.gallery.predictions['vessels:1'][0]}&b={site.gallery.predictions['vessels:2'][0]}")
    page = view.page
    page.locator(".viewer >> nth=0").locator("label", has_text="Mask").click()
    assert page.locator(".viewer >> nth=1").locator("input[data-layer=mask]").is_checked()
    page.locator("[data-swipe]").fill("40")
    own, other = page.locator(".layer.mask").first, page.locator(".other[data-name=mask]")
    assert own.evaluate("e => e.style.clipPath") == "inset(0px 60% 0px 0px)"
    assert other.is_visible() and other.evaluate("e => e.style.clipPath") == "inset(0px 0px 0px 40%)"
    page.click("[data-blink]")
    page.wait_for_selector("[data-frame][data-blink=B]")
    page.wait_for_selector("[data-frame][data-blink=A]")
    page.click("[data-blink]")
    assert not other.is_visible() and page.locator("[data-blink][aria-pressed=true]").count() == 0


def volume(browser: Any) -> tuple[str, np.ndarray]:
    """A stored volume of (planes, rows, columns) = (5, 12, 20), 3 mm thick, and its voxels."""
    voxels = np.arange(5 * 12 * 20, dtype=np.uint8).reshape(5, 12, 20) // 5
    affine = np.diag([-1.0, 1.0, 3.0, 1.0])  # columns lead to the left
    content = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine).to_bytes()
    address = post(browser, "/images", "/images", files={"file": ("head.nii", content)}).headers["location"]
    return address, voxels


def test_any_plane_of_a_volume_is_drawn_in_the_proportions_of_the_body(site: Site) -> None:
    with site.visitor() as browser:
        address, voxels = volume(browser)
        for axis, plane, size in ((0, 3, (12, 20)), (1, 7, (15, 20)), (2, 0, (15, 12))):
            drawn = answered(browser, f"{address}/picture.png?axis={axis}&plane={plane}")
            assert drawn.shape[:2] == size, "3 mm planes of 1 mm pixels"
            if axis == 0:
                np.testing.assert_array_equal(drawn[..., 0], voxels[plane])
        beyond = answered(browser, f"{address}/picture.png?axis=0&plane=99")
        np.testing.assert_array_equal(beyond[..., 0], voxels[4])
        assert browser.get(f"{address}/picture.png?axis=3").status_code == 422
        assert browser.get(f"{address}/axes.json").json() == {"ends": [["I", "S"], ["P", "A"], ["R", "L"]]}
        page = browser.get(f"{address}?axis=0&plane=0").text
    assert "Plane 1 of 5" in page and f"{address}?axis=0&amp;plane=1" in page and 'rel="prev"' not in page


def test_kept_volumes_stay_within_their_bound() -> None:
    kept, made = Kept(100), []

    def make(name: str) -> np.ndarray:
        made.append(name)
        return np.zeros(60, np.uint8)

    keys = {name: (UUID(int=1), name) for name in "ab"}
    for name in "aab":
        kept.get(keys[name], lambda name=name: make(name))
    kept.get(keys["b"], lambda: make("b"))
    kept.get(keys["a"], lambda: make("a"))
    assert made == ["a", "b", "a"]
    assert Cut(1, 2).through(np.zeros((3, 4, 5))).shape == (3, 5)


@pytest.mark.browser
def test_wheel_and_slider_go_through_a_volume(site: Site, window: Open) -> None:
    with site.visitor() as browser:
        address, _ = volume(browser)
    view = window()
    view.go(address)
    page = view.page
    assert page.locator("[data-caption]").inner_text().startswith("Plane 3 of 5")
    page.wait_for_selector(".direction-left:has-text('R')")
    page.locator("[data-frame]").hover()
    page.mouse.wheel(0, 120)
    page.wait_for_selector("[data-caption]:has-text('Plane 4 of 5')")
    page.locator("[data-plane]").fill("0")
    page.wait_for_selector("[data-caption]:has-text('Plane 1 of 5')")
    assert "plane=0" in page.url and "plane=0" in page.locator(".picture").get_attribute("src")
    page.locator("[data-frame]").focus()
    page.keyboard.press("PageDown")
    page.wait_for_selector("[data-caption]:has-text('Plane 2 of 5')")
    page.click("text=Columns")
    page.wait_for_url(re.compile("axis=2"))
    page.wait_for_selector("[data-caption]:has-text('Column 11 of 20')")


def test_prediction_on_a_dicom_image_offers_its_dicom_files(site: Site) -> None:
    pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")
    pixels = np.full((64, 64), 20, np.uint16)
    pixels[20:40, 20:40] = 230
    with site.visitor() as browser:
        sent = written(dataset(pixels, Modality="CR"))
        image = post(browser, "/images", "/images", files={"file": ("bar.dcm", sent)}).headers["location"]
        address = post(browser, image, f"{image}/predict", model="vessels:1", threshold="0.9").headers["location"]
        shown = browser.get(address).text
        for name in ("mask", "report"):
            assert f'/v1{address}/{name}.dcm"' in shown
            assert browser.get(f"/v1{address}/{name}.dcm").content[128:132] == b"DICM"
        assert "mask.dcm" not in browser.get(split(browser)).text


def split(browser: Any) -> str:
    """A stored prediction of a bar with a gap in it."""
    pixels = np.full((64, 64), 20, np.uint8)
    pixels[28:36, 6:58] = 230
    pixels[28:36, 31:34] = 110
    image = post(browser, "/images", "/images", files={"file": ("bar.png", png(pixels))}).headers["location"]
    made = post(browser, image, f"{image}/predict", model="vessels:1", threshold="0.9")
    return str(made.headers["location"])


def test_edit_by_hand_is_kept_undone_and_made_the_reference(site: Site) -> None:
    with site.visitor() as browser:
        address = split(browser)
        assert browser.get(address + ".json").json()["prediction"]["topology"][0]["beta0"] == 2
        assert post(browser, address, f"{address}/edits", kind="connect", at="32, 32").status_code == 303
        facts = browser.get(address + ".json").json()
        [edit] = facts["editing"]["edits"]
        assert (edit["before"]["beta0"], edit["after"]["beta0"]) == (2, 1)
        assert "2 → 1" in browser.get(address).text
        mask, edited = (answered(browser, f"{address}/layers/{name}.png")[..., 3] > 0 for name in ("mask", "edited"))
        assert (edited & ~mask).sum() == edit["pixels"] > 0
        assert post(browser, address, f"{address}/edits/reference").status_code == 303
        assert browser.get(address + ".json").json()["prediction"]["measurements"][0]["beta0_error"] == 1
        undone = post(browser, address, f"{address}/edits/{edit['id']}/undo")
        assert undone.status_code == 303 and browser.get(address + ".json").json()["editing"]["edits"] == []
        token = csrf(browser.get(address).text)
        for at, says in (("here", "write it as row and column"), ("3, 3", "")):
            sent = {"csrf_token": token, "kind": "remove", "at": at}
            answer = browser.post(f"{address}/edits", data=sent)
            assert answer.status_code == 422 and says in answer.text
    with site.visitor(site.gallery.viewer_key) as browser:
        assert "Edit by hand" not in browser.get(address).text


@pytest.mark.browser
def test_gap_is_connected_by_a_click_in_the_image(site: Site, window: Open) -> None:
    with site.visitor() as browser:
        address = split(browser)
    view = window(width=360)
    view.go(address)
    page = view.page
    page.click("[data-pick]")
    box = page.locator("[data-stack]").bounding_box()
    page.locator("[data-stack]").click(position={"x": box["width"] * 32.5 / 64, "y": box["height"] * 31.5 / 64})
    assert page.input_value("#edit-at") == "31, 32"
    page.click("[data-edit] button:has-text('Edit')")
    page.wait_for_selector("td:has-text('2 → 1')")
    assert page.locator(".layer.edited").is_visible()


def test_edits_become_the_label_in_the_next_version_of_a_dataset(site: Site) -> None:
    with site.visitor() as browser, site.program() as program:
        address = split(browser)
        image = browser.get(address + ".json").json()["image"]["id"]
        assert post(browser, address, f"{address}/edits", kind="connect", at="32, 32").status_code == 303
        edited = answered(browser, f"{address}/layers/edited.png")[..., 3] > 0
        before = program.get("/v1/datasets/vessels").json()["latest"]
        saved = post(browser, address, f"{address}/edits/label", dataset=before["ref"])
        assert saved.status_code == 303, saved.text
        after = program.get("/v1/datasets/vessels").json()["latest"]
        assert saved.headers["location"] == f"/datasets/vessels/versions/{after['version']}"
        assert (after["version"], after["pairs"]) == (before["version"] + 1, before["pairs"] + 1)
        assert after["classes"] == before["classes"]
        items = program.get(after["links"]["items"]).json()["items"]
        assert [each["statistics"]["pixels"]["vessel"] for each in items if each["image"] == image] == [edited.sum()]
        # A second edit replaces the label instead of adding an item, and only in the newest version.
        assert post(browser, address, f"{address}/edits", kind="remove", at="32, 10").status_code == 303
        older = post(browser, address, f"{address}/edits/label", dataset=before["ref"])
        assert older.status_code == 409 and "its newest is version" in older.text
        assert post(browser, address, f"{address}/edits/label", dataset=after["ref"]).status_code == 303
        newest = program.get("/v1/datasets/vessels").json()["latest"]
        assert (newest["version"], newest["pairs"]) == (after["version"] + 1, after["pairs"])
        label = program.get("/monai/datastore/label", params={"label": image, "tag": "final"})
        mask = np.asarray(Pillow.open(io.BytesIO(label.content)))
        assert sorted(np.unique(mask)) == [0], "the bar was removed"
        assert post(browser, address, f"{address}/edits/label", dataset="").headers["location"] == address
        assert post(browser, address, f"{address}/edits/label", dataset="vessels").status_code == 422
