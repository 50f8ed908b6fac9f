"""Masks as people have them, over HTTP: other orientations, palettes, single bits, lossy, numbered, coloured."""

from __future__ import annotations

import gzip
import io
import json

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.gateway import Gateway, told
from tests.imaging.crafted_files import zip_of
from tests.imaging.test_grids import AFFINE, VOLUME, nifti, stored_as

MASK = np.zeros((40, 64), np.uint8)
MASK[5:15, 5:20], MASK[20:35, 30:60], MASK[25:30, 40:50] = 1, 1, 0
FOUND = (550, 2, 1)
"""Foreground pixels, components and holes of the mask."""


def saved(image: Image.Image, format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tif(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def palette() -> bytes:
    image = Image.fromarray(MASK, "P")
    image.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    return saved(image)


PLAIN = saved(Image.fromarray(MASK * 255))
FILES = {
    "PNG of 0 and 255": PLAIN,
    "palette PNG": palette(),
    "grey stored as RGB": saved(Image.fromarray(np.dstack([MASK * 255] * 3))),
    "1-bit PNG": saved(Image.fromarray(MASK * 255).convert("1")),
    "boolean TIFF, white is zero": tif(MASK > 0),
    "8-bit TIFF, white is zero": tif(MASK * 255, photometric="miniswhite"),
    "int64 NIfTI": gzip.compress(nibabel.Nifti1Image(MASK.T.astype(np.int64), None, dtype=np.int64).to_bytes()),
    "float64 TIFF": tif(MASK.astype(np.float64)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mask_is_read_alike_in_analyses_references_and_datasets(gateway: Gateway, name: str) -> None:
    content = FILES[name]
    report = gateway.ask("POST", "/v1/analyses", content=content)
    assert report.status_code == 200, report.text
    found = report.json()["topology"]
    assert (found["foreground"], found["beta0"], found["beta1"]) == FOUND
    compared = gateway.ask("POST", "/v1/analyses", files={"image": ("a", PLAIN), "reference": ("b", content)})
    assert compared.json()["comparison"]["metrics"]["dice"] == 1
    made = dataset(gateway, content)
    assert made.status_code == 201, made.text
    assert made.json()["statistics"]["pixels"]["foreground"] == 550


def dataset(gateway: Gateway, mask: bytes, image: bytes | None = None, **params):
    noise = np.random.default_rng(0).integers(0, 255, MASK.shape, dtype=np.uint8)
    content = zip_of({"images/a.png": image or saved(Image.fromarray(noise)), "masks/a.png": mask})
    return gateway.ask("POST", "/v1/datasets", params={"name": "masks"} | params, content=content)


def test_the_same_mask_in_another_orientation_compares_as_the_same(gateway: Gateway) -> None:
    for codes in ("LAS", "SAR"):
        files = {"image": ("a", nifti()), "reference": ("b", stored_as(codes))}
        answer = gateway.ask("POST", "/v1/analyses", files=files)
        assert answer.json()["comparison"]["metrics"]["dice"] == 1
    scan = nifti((VOLUME * 200 + 20).astype(np.int16))
    made = dataset(gateway, stored_as("LPS"), scan)
    assert made.status_code == 201 and made.json()["statistics"]["pixels"]["foreground"] == int(VOLUME.sum())


def test_a_mask_on_another_grid_is_refused_naming_both_or_resampled(gateway: Gateway) -> None:
    far = AFFINE.copy()
    far[0, 3] += 1.6  # two voxels to the right
    files = {"image": ("a", nifti()), "reference": ("b", nifti(affine=far))}
    refused = gateway.ask("POST", "/v1/analyses", files=files)
    assert told(refused) == (422, "mask_mismatch") and "-28.4" in refused.json()["detail"]
    resampled = gateway.ask("POST", "/v1/analyses", params={"resample": True}, files=files)
    assert resampled.json()["comparison"]["metrics"]["dice"] == pytest.approx(2 * 2 / (4 + 4))
    scan = nifti((VOLUME * 200 + 20).astype(np.int16))
    assert told(dataset(gateway, nifti(affine=far), scan)) == (422, "mask_mismatch")
    assert dataset(gateway, nifti(affine=far), scan, resample=True).status_code == 201


def test_lossy_masks_are_told_a_threshold_that_keeps_every_pixel(gateway: Gateway) -> None:
    blurred = saved(Image.fromarray(MASK * 255), "jpeg", quality=60)
    refused = dataset(gateway, blurred)
    assert told(refused) == (422, "unknown_label") and "mask_threshold=127.5" in refused.json()["detail"]
    made = dataset(gateway, blurred, mask_threshold=127.5)
    assert made.status_code == 201, made.text
    assert abs(made.json()["statistics"]["pixels"]["foreground"] - 550) < 20
    assert made.json()["label_map"] == {"foreground": "> 127.5"}
    assert "lossy_mask" in {warning["code"] for warning in made.json()["warnings"]}


def test_numbered_objects_and_colours_become_classes(gateway: Gateway) -> None:
    numbers = np.arange(40)[:, None] // 4 * 16 + np.arange(64) // 4
    refused = dataset(gateway, saved(Image.fromarray(numbers.astype(np.uint16))))
    assert told(refused) == (422, "unknown_label") and "Numbers of objects?" in refused.json()["detail"]
    label_map = json.dumps({"background": 0, "cell": "others"})
    made = dataset(gateway, saved(Image.fromarray(numbers.astype(np.uint16))), label_map=label_map)
    assert made.json()["statistics"]["pixels"] == {"background": 16, "cell": 2544}
    painted = np.zeros((40, 64, 3), np.uint8)
    painted[MASK > 0] = (128, 0, 0)
    painted[30:, :8] = (0, 0, 200)
    refused = dataset(gateway, saved(Image.fromarray(painted)), name="painted")
    assert told(refused) == (422, "unknown_label") and "#800000" in refused.json()["detail"]
    label_map = json.dumps({"background": "#000000", "vessel": "#800000", "ignore": "#0000c8"})
    made = dataset(gateway, saved(Image.fromarray(painted)), name="painted", label_map=label_map)
    assert made.status_code == 201 and made.json()["statistics"]["pixels"]["vessel"] == 550


def test_training_on_empty_masks_is_refused(gateway: Gateway) -> None:
    content = zip_of(
        {f"images/{n}.png": saved(Image.fromarray(np.roll(MASK, n) * 200)) for n in range(3)}
        | {f"masks/{n}.png": saved(Image.fromarray(MASK * 0)) for n in range(3)}
    )
    made = gateway.ask("POST", "/v1/datasets", params={"name": "empty"}, content=content)
    assert "no_foreground" in {warning["code"] for warning in made.json()["warnings"]}
    spec = {"kind": "train", "dataset": "empty@1", "model": "m", "loss": {"terms": [{"name": "dice"}]}}
    refused = gateway.ask("POST", "/v1/jobs", json=spec | {"patch": [32, 32], "batch": 2, "steps": 2})
    assert refused.status_code == 422 and "no pixel of any foreground class" in refused.text
