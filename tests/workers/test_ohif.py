"""OHIF in Chromium, before a real PACS: what a job stored there is drawn over the series, where it belongs."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image as Pillow

from tests.imaging.conftest import DATA
from tests.imaging.dicom_files import slices, uid
from tests.pages import conftest as pages
from tests.workers import test_dicomweb_jobs as jobs
from tests.workers.ohif import ROOT, viewer
from tests.workers.orthanc import AUTH, running_orthanc

pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")

at, chromium = jobs.at, pages.chromium
SEGMENTATION = "[data-cy='study-browser-thumbnail-no-image']"
PATIENCE_S = 90


def repaired() -> list[pydicom.Dataset]:
    """The end-diastole slices of a patient as a series of their own: the files hold two phases at each place, their
    frames of reference differ, and their dates and UIDs are none.
    """
    folder = DATA / "sunnybrook_lv" / "images"
    if not folder.is_dir():
        pytest.skip(f"sunnybrook_lv is not in {DATA}; set TOPOSERVE_DATA_SHARED to the folder that holds it")
    found = [pydicom.dcmread(each) for each in sorted(folder.glob("SCD0000101_*.dcm"))]
    planes = [each for each in found if each.TriggerTime < 500]
    directions = np.array(planes[0].ImageOrientationPatient, float)
    normal = np.cross(directions[:3], directions[3:])
    planes.sort(key=lambda each: float(normal @ np.array(each.ImagePositionPatient, float)))
    first, last = (np.array(planes[k].ImagePositionPatient, float) for k in (0, -1))
    step = float(normal @ (last - first)) / (len(planes) - 1)
    return slices(
        np.stack([each.pixel_array for each in planes]),
        spacing=(step, *map(float, planes[0].PixelSpacing)),
        origin=first,
        directions=directions,
        StudyDate="20120102",
    )


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_stored_segmentation_is_drawn_where_it_belongs(
    at: Callable[..., jobs.Site], chromium: Any, tmp_path: Path, kind: str
):
    with running_orthanc(tmp_path, repaired()) as url, viewer(url, AUTH) as ohif:
        site = at(f"{url}/dicom-web", username=AUTH[0], password=AUTH[1])
        job = site.segment("blur", segmentation=kind)
        assert job.state == "succeeded", job.error
        masks = stored(url, job.result["stored"][0]["segmentation"])
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(f"{ohif}/segmentation?StudyInstanceUIDs={uid('study')}")
        page.locator(SEGMENTATION).first.wait_for(timeout=1000 * PATIENCE_S)
        corner = page.locator("[data-cy='viewport-overlay-bottom-right']").first
        corner.get_by_text("I:").wait_for(timeout=1000 * PATIENCE_S)
        number = int(re.search(r"I:\s*(\d+)", corner.inner_text())[1])
        assert overlap(page, masks[number]) < 0.05
        page.locator(SEGMENTATION).first.dblclick()
        ends = time.monotonic() + PATIENCE_S
        while (found := overlap(page, masks[number])) < 0.9 and time.monotonic() < ends:
            time.sleep(0.5)
        (ROOT / "build").mkdir(exist_ok=True)
        page.screenshot(path=ROOT / "build" / f"ohif-{kind}.png")
        context.close()
    assert found >= 0.9
    assert overlap_of_others(masks, number) < 0.9


def stored(url: str, instance: str) -> dict[int, np.ndarray]:
    """The planes of the segmentation that Orthanc holds, by the instance number of the slice."""
    found = requests.post(f"{url}/tools/lookup", data=instance, auth=AUTH, timeout=10).json()
    content = requests.get(f"{url}/instances/{found[0]['ID']}/file", auth=AUTH, timeout=10).content
    made = pydicom.dcmread(io.BytesIO(content))
    numbers = {uid("series", str(number)): number + 1 for number in range(20)}
    places = [
        numbers[each.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        for each in made.PerFrameFunctionalGroupsSequence
    ]
    return dict(zip(places, made.pixel_array > 0, strict=True))


def overlap(page: Any, mask: np.ndarray) -> float:
    """Intersection over union of a plane's mask and what is red where OHIF draws the plane: as large as its canvas
    allows, in the middle.
    """
    canvas = page.locator(".cornerstone-canvas").first
    box = canvas.bounding_box()
    shown = np.asarray(Pillow.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")).astype(int)
    red = shown[..., 0] - shown[..., 1:].max(axis=-1) > 20
    height, width = red.shape
    scale = min(height / mask.shape[0], width / mask.shape[1])
    rows = np.floor((np.arange(height) + 0.5 - height / 2) / scale + mask.shape[0] / 2).astype(int)
    columns = np.floor((np.arange(width) + 0.5 - width / 2) / scale + mask.shape[1] / 2).astype(int)
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
    wanted = mask[rows.clip(0, mask.shape[0] - 1)][:, columns.clip(0, mask.shape[1] - 1)] & inside
    return float((red & wanted).sum() / (red | wanted).sum())


def overlap_of_others(masks: dict[int, np.ndarray], number: int) -> float:
    """The largest overlap of a plane with itself turned over or with another plane: what a wrong place would show."""
    own = masks[number]
    wrong = [own[::-1], own[:, ::-1], *(each for other, each in masks.items() if other != number)]
    return max(float((own & each).sum() / (own | each).sum()) for each in wrong)
