"""A model is asked in the orientation and pixel size of its training, and answers on the grid that it was asked on."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import Any

import nibabel
import numpy as np
import pytest

from app.errors import WrongInput
from app.imaging import Picture
from app.imaging.grids import turned_to
from app.imaging.picture import NOWHERE
from app.serving import matching_grid
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.matching_grid import matched
from app.serving.pipeline import Predictor
from app.serving.prediction import Answer, Question, ask
from app.serving.runtime import Network
from tests.serving import networks

CODES = ["LAS", "LPS", "PIR", "SAR", "ASL"]
AFFINE = np.diag([0.5, 0.75, 2.0, 1.0])
AFFINE[:3, 3] = [-30, -20, 7]
VOLUME = np.random.default_rng(0).integers(0, 256, (1, 10, 14, 18), dtype=np.uint8)


def volume(pixels: np.ndarray = VOLUME, spacing: tuple[float, ...] = (2.0, 0.75, 0.5)) -> Picture:
    affine = AFFINE.copy()
    affine[:3, :3] = np.diag(spacing[::-1])
    return Picture(pixels, "nifti", spacing, affine)


def predictor(content: bytes, **facts: Any) -> Predictor:
    manifest = Manifest.model_validate(networks.manifest(content, **facts))
    return Predictor(manifest, Network(content, manifest, Load(), threads=1))


def answer(network: Predictor, picture: Picture, **options: Any) -> Answer:
    return ask(network, picture, Question(probability=True, **options))


@pytest.mark.parametrize("codes", CODES)
def test_a_turned_volume_gets_the_turned_mask(codes):
    network = predictor(networks.leaning(), dimensions=3, orientation="RAS")
    straight = answer(network, volume()).segmentation
    turned = turned_to(volume(), codes)
    found = answer(network, turned).segmentation
    expected = turned_to(replace(volume(), pixels=straight.labels[None]), codes)
    assert 0.2 < straight.labels.mean() < 0.8 and straight.conversion is None and found.conversion == "orientation"
    np.testing.assert_array_equal(found.labels, expected.pixels[0])
    probability = turned_to(replace(volume(), pixels=straight.probability), codes).pixels
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)


def test_without_the_orientation_of_training_or_of_the_image_nothing_is_turned():
    known, unknown = (predictor(networks.leaning(), dimensions=3, **facts) for facts in ({"orientation": "RAS"}, {}))
    turned = turned_to(volume(), "LPS")
    as_it_is = answer(unknown, turned).segmentation
    nowhere = answer(known, replace(turned, forms=NOWHERE)).segmentation
    assert as_it_is.conversion is None and nowhere.conversion is None
    np.testing.assert_array_equal(as_it_is.labels, nowhere.labels)
    assert (answer(known, turned).segmentation.labels != as_it_is.labels).any()


def ball(side: int, spacing: float) -> np.ndarray:
    """(side, side, side) uint8: a bright ball of radius 10 mm in a cube of side * spacing mm."""
    middle = (np.arange(side) + 0.5 - side / 2) * spacing
    distance = np.sqrt(np.square(np.stack(np.meshgrid(middle, middle, middle))).sum(axis=0))
    return np.clip((10.5 - distance) * 255, 0, 255).astype(np.uint8)


SCENE = {"dimensions": 3, "scaling": networks.PLAIN | {"dtype": "uint8"}, "threshold": 0.5}


def test_an_image_of_other_pixels_is_resampled_and_the_answer_comes_back_on_its_grid():
    seen: list[tuple[int, ...]] = []
    network = predictor(networks.through(dimensions=3), **SCENE, spacing_mm=[1.0, 1.0, 1.0])
    run = network.run

    def noted(batch: np.ndarray, stop: Any) -> np.ndarray:
        seen.append(batch.shape[2:])
        return run(batch, stop)

    network.run = noted
    fine = replace(volume(ball(64, 0.5)[None], (0.5, 0.5, 0.5)))
    found = answer(network, fine, topology=True)
    assert seen == [(32, 32, 32)] and found.segmentation.labels.shape == (64, 64, 64)
    assert found.segmentation.conversion == "spacing"
    expected = fine.pixels[0] > 127
    dice = 2 * (expected & (found.segmentation.labels > 0)).sum() / (expected.sum() + found.segmentation.labels.sum())
    assert dice > 0.97
    assert (found.segmentation.labels == (found.segmentation.probability[0] > 0.5)).all()
    kept = answer(network, fine, other_spacing="keep").segmentation
    np.testing.assert_array_equal(kept.labels, expected)
    assert kept.conversion is None


def test_pixels_that_differ_by_less_than_a_tenth_are_not_resampled():
    network = predictor(networks.through(dimensions=3), **SCENE, spacing_mm=[1.0, 1.0, 1.0])
    near = volume(ball(24, 1.0)[None], (1.08, 0.93, 1.0))
    assert matched(near, network.manifest).done == ()
    assert matched(replace(near, spacing_mm=None), network.manifest).done == ()


def test_other_pixels_are_refused_where_that_is_asked_for_or_they_would_be_too_many(monkeypatch):
    network = predictor(networks.through(dimensions=3), **SCENE, spacing_mm=[1.0, 1.0, 1.0])
    coarse = volume(ball(8, 3.0)[None], (3.0, 3.0, 3.0))
    with pytest.raises(WrongInput, match=r"3 x 3 x 3 mm; this model was trained on 1 x 1 x 1 mm.*other_spacing=keep"):
        answer(network, coarse, other_spacing="refuse")
    monkeypatch.setattr(matching_grid, "MOST_PIXELS", 1000)
    with pytest.raises(WrongInput, match="13824 pixels"):
        answer(network, coarse)
    assert answer(network, coarse, other_spacing="keep").segmentation.labels.shape == (8, 8, 8)


def test_orientation_and_pixel_size_together_give_the_mask_of_the_straight_image():
    network = predictor(networks.leaning(), dimensions=3, orientation="RAS", spacing_mm=[1.0, 0.75, 0.5])
    straight, turned = answer(network, volume()), answer(network, turned_to(volume(), "PIR"))
    assert turned.segmentation.conversion == "orientation, spacing"
    expected = turned_to(replace(volume(), pixels=straight.segmentation.labels[None]), "PIR").pixels[0]
    np.testing.assert_array_equal(turned.segmentation.labels, expected)


def test_a_manifest_with_an_orientation_or_sizes_that_cannot_be_is_refused():
    for wrong in ({"orientation": "XYZ"}, {"spacing_mm": [1.0]}, {"spacing_mm": [1.0, 0.0]}):
        with pytest.raises(ValueError):
            Manifest.model_validate(networks.manifest(b"", **wrong))


def test_over_http_the_answer_is_on_the_grid_of_the_scan(gateway):
    facts = SCENE | {"orientation": "LPS", "spacing_mm": [1.0, 1.0, 1.0]}
    gateway.register("still", networks.through(dimensions=3), **facts)
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    scan = nibabel.Nifti1Image(ball(20, 1.0).astype(np.int16), affine)
    headers = gateway.headers("engineer") | {"Accept": "application/gzip"}
    address, content = "/v1/models/still/predict", gzip.compress(scan.to_bytes())
    reply = gateway.ask("POST", address, content=content, headers=headers)
    assert reply.status_code == 200, reply.text
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    assert mask.shape == scan.shape and reply.headers["Toposerve-Conversion"] == "orientation, spacing, depth_unknown"
    np.testing.assert_allclose(mask.affine, affine)
    refused = gateway.ask("POST", address, params={"other_spacing": "refuse"}, content=content, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "model_input")
