"""DICOM structure sets: contours drawn on the grid of their series, as masks of a dataset."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from skimage.measure import points_in_poly

from app.errors import BadDataset, CorruptImage, MaskMismatch, NoPixelData
from app.imaging import decode, decode_mask, encode_png, examine, open_dataset, read_header
from app.imaging.dicom.structures import Region, is_structure_set, labels_of, regions_of
from tests.imaging.crafted_files import zip_of
from tests.imaging.dicom_files import AXIAL, slices, structure_set, written, zipped

SHAPE = (5, 24, 30)
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
VOLUME = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def corners(files: Sequence[Any], plane: int, drawn: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Corners (column, row), counted from the centre of the first pixel, of a plane of a series, in mm."""
    of = files[plane]
    along, down = np.array(of.ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = map(float, of.PixelSpacing)
    first = np.array(of.ImagePositionPatient, float)
    return [(first + x * columns * along + y * rows * down).tolist() for x, y in drawn]


def circle(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return list(zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True))


def inside(drawn: Sequence[tuple[float, float]]) -> np.ndarray:
    """The pixels whose centres lie in a polygon, by scikit-image."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    return points_in_poly(np.stack([columns.ravel(), rows.ravel()], 1), np.array(drawn)).reshape(SHAPE[1:])


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_contours_lie_on_their_planes_and_a_contour_within_another_is_a_hole(directions: Any, limits: Any) -> None:
    files = slices(VOLUME, directions=directions)
    outer, hole, small = circle(12.3, 10.2, 8.1), circle(12.1, 10.4, 3.2), circle(14.2, 6.1, 1.7)
    content = structure_set(
        {
            "ring": [corners(files, plane, each) for plane in (1, 2) for each in (outer, hole)],
            "dot": [corners(files, 2, small)],
        }
    )
    assert is_structure_set(content[:4096]) and not is_structure_set(written(files[0])[:4096])
    image = read_header(zipped(files[::-1]), limits)
    labels = labels_of(regions_of(content), ["dot", "ring"], image)
    expected = np.zeros(SHAPE, np.uint8)
    expected[1:3][:, inside(outer) & ~inside(hole)] = 2
    expected[2][inside(small)] = 1
    np.testing.assert_array_equal(labels, expected)


def test_a_dataset_of_series_and_structure_sets_has_their_regions_as_classes(limits: Any) -> None:
    files = slices(VOLUME)
    packed: dict[str, bytes] = {}
    for case, names in (("a", ("vessel", "bone")), ("b", ("vessel",))):
        packed |= {f"images/{case}/{number:02d}.dcm": written(file) for number, file in enumerate(files)}
        drawn = {name: [corners(files, 3, circle(8.2 + 10 * at, 9.1, 4.3))] for at, name in enumerate(names)}
        packed[f"masks/{case}.dcm"] = structure_set(drawn)
    with open_dataset(zip_of(packed), limits) as dataset:
        found = examine(dataset.pairs, limits, dataset.label_map)
        masks = {pair.name: decode_mask(pair.mask, limits) for pair in dataset if pair.mask}
    assert list(found.classes) == ["background", "bone", "vessel"]
    np.testing.assert_array_equal(masks["a"][3] == 2, inside(circle(8.2, 9.1, 4.3)))
    np.testing.assert_array_equal(masks["a"][3] == 1, inside(circle(18.2, 9.1, 4.3)))
    np.testing.assert_array_equal(masks["b"][3] > 0, inside(circle(8.2, 9.1, 4.3)))


def test_many_regions_take_no_more_memory_than_one(limits: Any) -> None:
    volume = np.zeros((40, 200, 200), np.int16)
    files = slices(volume)
    region = Region("organ", regions_of(structure_set({"organ": [corners(files, 3, circle(90, 90, 80))]}))[0].contours)
    image = read_header(zipped(files), limits)
    tracemalloc.start()
    assert labels_of([region] * 50, ["organ"], image)[3].any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * volume.size  # one label a voxel, and a few planes


def test_a_structure_set_on_a_single_slice_is_drawn_on_the_image(limits: Any) -> None:
    files = slices(VOLUME)
    content = structure_set({"vessel": [corners(files, 2, circle(8.2, 9.1, 4.3))]})
    with open_dataset(zip_of({"images/a.dcm": written(files[2]), "masks/a.dcm": content}), limits) as dataset:
        (pair,) = dataset.pairs
        np.testing.assert_array_equal(decode_mask(pair.mask or b"", limits) > 0, inside(circle(8.2, 9.1, 4.3)))


def test_what_is_no_area_of_this_series_is_refused_with_the_reason(limits: Any) -> None:
    files = slices(VOLUME)
    image = read_header(zipped(files), limits)
    round_ = circle(8.2, 9.1, 4.3)
    between = [
        (np.array(a) + np.array(b)) / 2
        for a, b in zip(corners(files, 1, round_), corners(files, 2, round_), strict=True)
    ]
    beyond = [
        (2 * np.array(a) - np.array(b))
        for a, b in zip(corners(files, 0, round_), corners(files, 1, round_), strict=True)
    ]
    for contour, words in ((between, "at plane 1.50"), (beyond, "at plane -1.00 of an image of 5")):
        with pytest.raises(MaskMismatch, match=words):
            labels_of(regions_of(structure_set({"vessel": [contour]})), ["vessel"], image)
    with pytest.raises(CorruptImage, match="no millimetres"):
        regions_of(structure_set({"vessel": [[[1e9, 0, 0], [0, 1, 0], [1, 1, 0]]]}))
    with pytest.raises(CorruptImage):
        regions_of(structure_set({"vessel": [[[1.0, 2.0]]]}))
    content = structure_set({"vessel": [corners(files, 1, round_)]})
    with pytest.raises(CorruptImage):
        regions_of(content[:-40])
    plain = read_header(encode_png(VOLUME[0].astype(np.uint8)), limits)
    with pytest.raises(MaskMismatch, match="does not say where it lies"):
        labels_of(regions_of(content), ["vessel"], plain)
    with pytest.raises(NoPixelData, match="structure set"):
        decode(content, limits)
    assert regions_of(structure_set({"point": [corners(files, 1, round_[:1])]}, kind="POINT")) == []


def test_structure_sets_beside_masks_and_empty_ones_are_refused(limits: Any) -> None:
    files = slices(VOLUME)
    content = structure_set({"vessel": [corners(files, 1, circle(8.2, 9.1, 4.3))]})
    image = written(files[1])
    mixed = {
        "images/a.dcm": image,
        "masks/a.dcm": content,
        "images/b.dcm": image,
        "masks/b.png": encode_png(VOLUME[0] > 9),
    }
    with pytest.raises(BadDataset, match="1 of 2 masks are DICOM structure sets"), open_dataset(zip_of(mixed), limits):
        pass
    empty = {"images/a.dcm": image, "masks/a.dcm": structure_set({"point": []}, kind="POINT")}
    with pytest.raises(BadDataset, match="no region with closed contours"), open_dataset(zip_of(empty), limits):
        pass
