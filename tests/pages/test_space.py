"""Volumes in 3D: their NIfTI, the viewer that npm brings, and pages without it."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from app.imaging import Picture, encode_nifti_gz
from app.pages import rendering, space
from app.pages.space import _affine
from app.store import projects
from app.store.tables import Image
from tests.imaging.dicom_files import slices, zipped
from tests.pages.conftest import Site, Window
from tests.pages.test_work_forms import post
from tests.records import register
from tests.serving.networks import PLAIN, through

Open = Callable[..., Window]
SHAPE = (12, 40, 60)
AFFINE = np.array([[0, 0, 4.0, -20], [-1.0, 0, 0, 30], [0, -1.5, 0, 25], [0, 0, 0, 1]])
"""Columns lead to the back, rows down, planes to the right: sagittal planes, as scanners store them."""
PIECES = ((slice(2, 5), slice(4, 14), slice(6, 20)), (slice(8, 11), slice(24, 36), slice(40, 54)))
GREEN = (0, 158, 115)


def voxels() -> np.ndarray:
    """(12, 40, 60) uint8: two bright boxes on an even ground."""
    made = np.full(SHAPE, 60, np.uint8)
    for piece in PIECES:
        made[piece] = 230
    return made


@pytest.fixture(scope="module")
def boxes(site: Site) -> str:
    """A model that takes bright voxels for foreground."""
    with site.services.database.write() as session:
        project = projects.ensure(session, "clinic").id
    network, facts = through(dimensions=3), {"dimensions": 3, "scaling": PLAIN}
    register(site.services.database, site.services.blobs, project, "boxes", network, **facts)
    return "boxes:1"


def uploaded(browser: Any, affine: np.ndarray = AFFINE) -> str:
    """The address of the stored volume."""
    content = nibabel.Nifti1Image(voxels().transpose(2, 1, 0), affine).to_bytes()
    return str(post(browser, "/images", "/images", files={"file": ("boxes.nii", content)}).headers["location"])


def predicted(browser: Any, model: str) -> tuple[str, str]:
    """The addresses of the stored volume and of a prediction, whose mask is the two boxes."""
    image = uploaded(browser)
    made = post(browser, image, f"{image}/predict", model=model, expect="beta0:1")
    assert made.status_code == 303, made.text
    return image, str(made.headers["location"])


def read(browser: Any, address: str) -> Any:
    """The NIfTI at an address."""
    answer = browser.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/gzip"), answer.text
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))


def test_image_and_mask_come_as_nifti_on_one_grid(site: Site, boxes: str) -> None:
    with site.visitor() as browser:
        image, prediction = predicted(browser, boxes)
        shown, mask = read(browser, f"{image}/volume.nii.gz"), read(browser, f"{prediction}/layers/mask.nii.gz")
        facts = browser.get(f"{prediction}.json").json()["space"]
        assert browser.get(f"{prediction}/layers/skeleton.nii.gz").status_code == 422
    np.testing.assert_array_equal(np.asarray(shown.dataobj).T, voxels())
    np.testing.assert_array_equal(np.asarray(mask.dataobj).T, voxels() == 230)
    np.testing.assert_allclose(shown.affine, AFFINE)
    np.testing.assert_allclose(mask.affine, AFFINE)
    assert facts["mask"] == f"{prediction}/layers/mask.nii.gz" and facts["fits"]
    assert facts["classes"] == [{"name": "vessel", "colour": list(GREEN)}]


def test_edited_mask_is_what_is_shown_after_an_edit(site: Site, boxes: str) -> None:
    with site.visitor() as browser:
        _, prediction = predicted(browser, boxes)
        assert post(browser, prediction, f"{prediction}/edits", kind="remove", at="9, 30, 45").status_code == 303
        facts = browser.get(f"{prediction}.json").json()["space"]
        assert facts["mask"] == f"{prediction}/layers/edited.nii.gz"
        mask = np.asarray(read(browser, facts["mask"]).dataobj).T
    expected = np.zeros(SHAPE, np.uint8)
    expected[PIECES[0]] = 1
    np.testing.assert_array_equal(mask, expected)


def test_dicom_volume_comes_as_nifti_at_its_place(site: Site) -> None:
    frames = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
    with site.visitor() as browser:
        sent = zipped(slices(frames, spacing=(2.5, 0.8, 0.6)))
        image = post(browser, "/images", "/images", files={"file": ("scan.zip", sent)}).headers["location"]
        assert browser.get(f"{image}.json").json()["image"]["format"].startswith("dicom")
        shown = read(browser, f"{image}/volume.nii.gz")
    np.testing.assert_array_equal(np.asarray(shown.dataobj).T, frames)
    np.testing.assert_allclose(shown.header.get_zooms(), (0.6, 0.8, 2.5), rtol=1e-5)


def test_volume_of_unknown_place_keeps_the_proportions_that_are_stated(site: Site) -> None:
    image = Image(dimensions=3, shape=[4, 5, 6], spacing_mm=[3.0, 1.0, 2.0])
    placed = Picture(np.zeros((1, 4, 5, 6), np.uint8), "tiff")
    np.testing.assert_array_equal(_affine(image, placed), np.diag([-2.0, -1.0, 3.0, 1.0]))
    turned = replace(placed, affine=AFFINE)
    np.testing.assert_allclose(np.linalg.norm(_affine(image, turned)[:3, :3], axis=0), [2.0, 1.0, 3.0])
    np.testing.assert_array_equal(_affine(image, turned)[:, 3], AFFINE[:, 3])


def test_volume_that_a_browser_does_not_hold_is_refused_and_its_page_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "LARGE", 12 * 40 * 60)
    monkeypatch.setattr(rendering, "BUNDLES", {"niivue.js": None})
    monkeypatch.setitem(rendering.DIGESTS, "niivue.js", "0")
    with site.visitor() as browser:
        image = uploaded(browser)
        assert "The scan has 28.1 KiB" in browser.get(image).text
        monkeypatch.setattr(space, "MOST_VOXELS", 1000)
        page = browser.get(image).text
        assert "too large for 3D" in page and "at most 1 000 voxels" in page.replace("\u202f", " ").replace("\xa0", " ")
        answer = browser.get(f"{image}/volume.nii.gz", headers={"Accept": "application/json"})
        assert answer.status_code == 413 and "12 x 40 x 60" in answer.json()["detail"]
        flat = browser.get("/images.json").json()["images"]
        [other, *_] = [each["id"] for each in flat if each["dimensions"] == 2]
        assert browser.get(f"/images/{other}/volume.nii.gz").status_code == 404


@pytest.mark.browser
def test_pages_work_as_before_where_the_viewer_was_not_fetched(
    site: Site, window: Open, boxes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "BUNDLES", {})
    with site.visitor() as browser:
        image, prediction = predicted(browser, boxes)
        assert browser.get("/static/niivue.js").status_code == 404
    view = window()
    for address in (image, prediction):
        view.go(address)
        assert view.page.locator("[data-space]").count() == 0 and "3D" not in view.page.locator("h2").all_inner_texts()
        view.page.locator("[data-frame]").hover()
        view.page.mouse.wheel(0, 120)
        view.page.wait_for_selector("[data-caption]:has-text('Plane 8 of 12')")


# With the viewer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fetched() -> None:
    """The viewer is there, as `make install` fetches it."""
    if "niivue.js" not in rendering.BUNDLES:
        reason = "no NiiVue: run web/fetch, which wants a registry of npm in reach"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)


def opened(view: Window, address: str) -> Any:
    """The page with its volume drawn in 3D."""
    view.go(address)
    view.page.click("[data-open]")
    view.page.wait_for_selector("[data-room-at]:has-text('At plane')", timeout=60_000)
    return view.page


def drawn(page: Any) -> np.ndarray:
    """(H, W, 3) int: what the canvas shows, without its rim, where the corners of the page are seen."""
    page.wait_for_timeout(400)
    content = page.locator(".room canvas").screenshot()
    return np.asarray(Pillow.open(io.BytesIO(content)).convert("RGB"), int)[8:-8, 8:-8]


def green(pixels: np.ndarray) -> np.ndarray:
    """Where the colour of the mask is."""
    return (np.abs(pixels - GREEN) < 24).all(-1)


def calm(view: Window) -> None:
    """Forget what Chromium says of reading pixels back, which a screenshot does; everything else stays an error."""
    view.wrong[:] = [wrong for wrong in view.wrong if "GPU stall due to ReadPixels" not in wrong]


@pytest.mark.browser
def test_mask_is_drawn_where_it_is_and_a_place_moves_the_crosshair(
    site: Site, window: Open, boxes: str, fetched: None
) -> None:
    with site.visitor() as browser:
        _, prediction = predicted(browser, boxes)
    view = window()
    page = opened(view, prediction)
    page.click("[data-place-list] tr[data-at='2,4,6'] button")
    page.wait_for_selector("[data-room-at]:has-text('At plane, row, column 2, 4, 6: value 230')")
    page.fill("[data-room-window]", "400")
    page.locator("[data-room-opacity]").fill("100")
    page.select_option("[data-views]", "2")
    pixels = drawn(page)
    ground = (np.abs(pixels - 255 * (60 + 55) // 400) < 6).all(-1)
    rows, columns = (np.flatnonzero(ground.sum(axis) > 100) for axis in (1, 0))
    top, left, height, width = rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height / width - 1.5 * 40 / 60) < 0.03, "rows are 1.5 mm and columns 1 mm"
    marked = np.argwhere(green(pixels))
    (first_row, first_column), (last_row, last_column) = marked.min(0), marked.max(0) + 1
    # The front is at the right, so columns, which lead to the back, run from right to left.
    found = np.array([first_row - top, last_row - top, first_column - left, last_column - left], float)
    found /= np.array([height, height, width, width])
    np.testing.assert_allclose(found, [4 / 40, 14 / 40, 40 / 60, 54 / 60], atol=0.02)
    page.locator("[data-room-opacity]").fill("0")
    assert not green(drawn(page)).any()
    page.locator(".room canvas").hover()
    page.mouse.wheel(0, 120)
    page.wait_for_function("!document.querySelector('[data-room-at]').textContent.includes('column 2, 4, 6')")
    plane, row, column = page.locator("[data-room-at]").inner_text().split("column ")[1].split(":")[0].split(", ")
    assert (abs(int(plane) - 2), row, column) == (1, "4", "6")
    calm(view)


@pytest.mark.browser
def test_every_class_has_its_own_colour(site: Site, window: Open, fetched: None) -> None:
    with site.services.database.write() as session:
        project = projects.ensure(session, "clinic").id
    facts = {"dimensions": 3, "channels": 3, "classes": ("background", "left", "right")}
    scaling = {"kind": "dataset", "mean": [0.0] * 3, "std": [1.0] * 3}
    network = through(channels=3, dimensions=3)
    register(site.services.database, site.services.blobs, project, "pieces", network, scaling=scaling, **facts)
    drawn_classes = np.full((3, *SHAPE), 40, np.uint8)
    drawn_classes[0] = 100
    for channel, piece in enumerate(PIECES, start=1):
        drawn_classes[(channel, *piece)] = 230
    with site.visitor() as browser:
        sent = {"file": ("pieces.nii.gz", encode_nifti_gz(drawn_classes, AFFINE))}
        image = post(browser, "/images", "/images", files=sent).headers["location"]
        made = post(browser, image, f"{image}/predict", model="pieces:1").headers["location"]
    view = window()
    page = opened(view, made)
    page.locator("[data-room-opacity]").fill("100")
    assert (page.input_value("[data-room-level]"), page.input_value("[data-room-window]")) == ("100", "1"), "even"
    page.fill("[data-room-level]", "200")  # so dark that only the mask is seen
    page.select_option("[data-views]", "4")
    pixels = drawn(page)
    bright = pixels.max(-1) > 60
    green_ones = bright & (pixels[..., 1] > 2 * pixels[..., 0])
    orange_ones = bright & (pixels[..., 0] > pixels[..., 1]) & (pixels[..., 1] > 3 * pixels[..., 2])
    assert min(green_ones.sum(), orange_ones.sum()) > 4000
    # In the first look, at the back and from the left, the piece on the right of the body and above is green.
    higher, lower = (np.argwhere(ones).mean(0) for ones in (green_ones, orange_ones))
    assert (higher < lower).all()
    page.select_option("[data-views]", "2")
    page.fill("[data-room-level]", "100")
    assert abs(int(np.median(drawn(page)[200:360, 300:360])) - 128) < 6
    calm(view)


@pytest.mark.browser
def test_crosshair_finds_voxels_of_an_oblique_volume_and_obeys_keys(
    site: Site, window: Open, boxes: str, fetched: None
) -> None:
    turn = np.deg2rad(25)
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    with site.visitor() as browser:
        image = uploaded(browser, oblique @ AFFINE)
        made = post(browser, image, f"{image}/predict", model=boxes, expect="beta0:1").headers["location"]
    view = window()
    page = opened(view, made)
    for place in ("7, 23, 39: value 60", "2, 4, 6: value 230"):
        page.click(f"[data-place-list] tr[data-at='{place.split(':')[0].replace(' ', '')}'] button")
        page.wait_for_selector(f"[data-room-at]:has-text('column {place}')")
    page.locator(".room canvas").focus()
    # Planes lead to the right, rows down and columns to the back.
    for key, now in (
        ("ArrowLeft", "3, 4, 6"),
        ("ArrowDown", "3, 5, 6"),
        ("PageDown", "3, 5, 7"),
        ("PageUp", "3, 5, 6"),
    ):
        page.keyboard.press(key)
        page.wait_for_selector(f"[data-room-at]:has-text('column {now}: value 230')")
    calm(view)


@pytest.mark.browser
def test_axe_finds_nothing_on_a_volume_in_3d(site: Site, window: Open, boxes: str, fetched: None) -> None:
    from tests.pages.test_accessibility import findings

    with site.visitor() as browser:
        _, prediction = predicted(browser, boxes)
    for width, dark in ((1280, False), (360, True)):
        view = window(width=width, dark=dark)
        assert findings(opened(view, prediction)) == []
        calm(view)


@pytest.mark.browser
def test_window_and_level_change_the_greys(site: Site, window: Open, boxes: str, fetched: None) -> None:
    with site.visitor() as browser:
        image = uploaded(browser)
    view = window()
    page = opened(view, image)
    page.select_option("[data-views]", "2")
    greys = []
    for level in ("60", "260"):
        page.fill("[data-room-window]", "400")
        page.fill("[data-room-level]", level)
        greys.append(int(np.median(drawn(page)[200:360, 300:500])))
    assert abs(greys[0] - 128) < 12 and greys[1] < 10, greys
    calm(view)


@pytest.mark.browser
def test_viewer_is_loaded_only_when_somebody_asks(site: Site, window: Open, fetched: None) -> None:
    with site.visitor() as browser:
        image = uploaded(browser)
    view = window(width=360)
    asked: list[str] = []
    view.page.on("request", lambda request: asked.append(request.url))
    view.go(image)
    view.page.wait_for_load_state("networkidle")
    assert not [address for address in asked if "niivue" in address or address.endswith(".nii.gz")]
    view.page.click("[data-open]")
    view.page.wait_for_selector("[data-room-at]:has-text('At plane')", timeout=60_000)
    assert [address for address in asked if "/static/niivue.js?v=" in address]
    assert all(address.startswith((site.url, "data:", "blob:")) for address in asked)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 360
    calm(view)


@pytest.mark.browser
def test_browser_without_webgl_is_told_so(site: Site, window: Open, fetched: None) -> None:
    with site.visitor() as browser:
        image = uploaded(browser)
    view = window()
    view.page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    view.go(image)
    view.page.click("[data-open]")
    view.page.wait_for_selector("[data-state]:has-text('no WebGL 2')")
    assert not view.page.locator("[data-room]").is_visible()
