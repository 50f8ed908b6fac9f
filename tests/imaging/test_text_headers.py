"""NRRD and MetaImage files lie where ITK puts them, and are refused where they are odd or damaged."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from pathlib import Path

import nrrd as pynrrd
import numpy as np
import pytest
import SimpleITK

from app.errors import (
    BadAffine,
    CorruptImage,
    ManyFrames,
    MaskMismatch,
    Problem,
    TooManyPixels,
    UnsupportedDtype,
    UnsupportedImage,
)
from app.imaging import decode, decode_mask, encode_nrrd, onto, read_header, sniff
from app.imaging.picture import NOWHERE
from tests.gateway import Gateway

VOLUME = np.random.default_rng(0).integers(-500, 500, (4, 5, 6), dtype=np.int16)
ANGLE = 0.3
DIRECTION = (np.cos(ANGLE), -np.sin(ANGLE), 0, np.sin(ANGLE), np.cos(ANGLE), 0, 0, 0, -1)
SPACING = (0.5, 0.75, 2.0)


def placed(pixels: np.ndarray = VOLUME) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(pixels)
    image.SetSpacing(SPACING)
    image.SetOrigin((-30.0, 20.0, 7.0))
    image.SetDirection(DIRECTION)
    return image


def saved(folder: Path, suffix: str, image: SimpleITK.Image, *, packed: bool = True) -> bytes:
    path = folder / f"image{suffix}"
    SimpleITK.WriteImage(image, str(path), useCompression=packed)
    return path.read_bytes()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_geometry_is_that_of_the_same_image_as_nifti(suffix, packed, tmp_path, limits):
    found, like = (decode(saved(tmp_path, each, placed(), packed=packed), limits) for each in (suffix, ".nii.gz"))
    np.testing.assert_array_equal(found.pixels, like.pixels)
    np.testing.assert_allclose(found.affine, like.affine, atol=1e-4)
    assert found.spacing_mm == pytest.approx(like.spacing_mm, rel=1e-5) and found.place is not None
    np.testing.assert_array_equal(onto(found, like).pixels, VOLUME[None])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_images_in_the_plane_keep_their_pixel_size(suffix, tmp_path, limits):
    image = SimpleITK.GetImageFromArray(VOLUME[0])
    image.SetSpacing(SPACING[:2])
    picture = decode(saved(tmp_path, suffix, image), limits)
    assert picture.shape == (5, 6) and picture.spacing_mm == pytest.approx(SPACING[1::-1])


def of_pynrrd(pixels: np.ndarray, header: dict) -> bytes:
    buffer = io.BytesIO()
    pynrrd.write(buffer, pixels, header, index_order="C")
    return buffer.getvalue()


SEGMENTS = {
    "space": "left-posterior-superior",
    "space origin": [0, 0, 0],
    "Segment0_ID": "Segment_1",
    "Segment0_LabelValue": "1",
    "Segment0_Layer": "0",
}


def test_a_segmentation_of_one_layer_is_a_mask_and_of_several_is_refused(limits):
    labels = (VOLUME > 0).astype(np.uint8)
    one = of_pynrrd(labels, SEGMENTS | {"space directions": np.diag(SPACING)})
    np.testing.assert_array_equal(decode_mask(one, limits), labels)
    layers = np.stack([labels, 1 - labels], -1)
    directions = np.vstack([np.full(3, np.nan), np.diag(SPACING)])
    kinds = ["list", "domain", "domain", "domain"]
    with pytest.raises(UnsupportedImage, match="2 layers"):
        decode_mask(of_pynrrd(layers, SEGMENTS | {"space directions": directions, "kinds": kinds}), limits)


def test_a_segmentation_cropped_to_its_segments_is_put_in_its_place(tmp_path, limits):
    image = decode(saved(tmp_path, ".nrrd", placed()), limits)
    labels = np.zeros_like(VOLUME, np.uint8)
    labels[1:3, 2:4, 1:5] = 1
    cropped = placed(labels)[1:5, 2:4, 1:3]
    turned = SimpleITK.DICOMOrient(cropped, "RSA")
    with pytest.raises(MaskMismatch, match="another grid"):  # nobody says that there is nothing around it
        decode_mask(saved(tmp_path, ".nrrd", cropped), limits, like=image)
    for segments in (cropped, turned):
        segments.SetMetaData("Segment0_ID", "Segment_1")
        np.testing.assert_array_equal(decode_mask(saved(tmp_path, ".nrrd", segments), limits, like=image), labels)
    cropped.SetOrigin((-30.0, 20.0, 9.0))
    with pytest.raises(MaskMismatch, match="another grid"):
        decode_mask(saved(tmp_path, ".nrrd", cropped), limits, like=image)


def test_spaces_bring_their_axes_to_right_front_up(limits):
    for space, signs in (("RAS", (1, 1)), ("LPS", (-1, -1)), ("left-anterior-superior", (-1, 1))):
        header = {"space": space, "space directions": np.diag(SPACING), "space origin": [1.0, 2.0, 3.0]}
        affine = decode(of_pynrrd(VOLUME, header), limits).affine
        assert affine[:, 3].tolist() == [signs[0], signs[1] * 2, 3, 1]
        assert affine.diagonal()[:3].tolist() == [signs[0] * 0.5, signs[1] * 0.75, 2.0]
    nowhere = decode(of_pynrrd(VOLUME, {"spacings": list(SPACING)}), limits)
    assert nowhere.place is None and nowhere.spacing_mm == SPACING[::-1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_by_pynrrd_and_lies_at_the_same_place(dtype, channels, tmp_path, limits):
    like = decode(saved(tmp_path, ".nii.gz", placed()), limits)
    pixels = np.arange(120 * channels).reshape(channels, 4, 5, 6).astype(dtype)
    encoded = encode_nrrd(pixels if channels > 1 else pixels[0], like.affine, forms=like.forms)
    assert encoded == encode_nrrd(pixels if channels > 1 else pixels[0], like.affine, forms=like.forms)
    (tmp_path / "written.nrrd").write_bytes(encoded)
    data, header = pynrrd.read(str(tmp_path / "written.nrrd"), index_order="C")
    np.testing.assert_array_equal(data, pixels if channels > 1 else pixels[0])
    assert header["space"] == "left-posterior-superior"
    picture = decode(encoded, limits)
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_allclose(picture.affine, like.affine, atol=1e-6)
    assert decode(encode_nrrd(pixels[0], like.affine, forms=NOWHERE), limits).place is None


PLAIN = "NRRD0004\ntype: {type}\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\n{more}\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = {sizes}\n{more}ElementType = {type}\nElementDataFile = {file}\n"


def nrrd(data: bytes = VOLUME.astype("<i2").tobytes(), **fields: str) -> bytes:
    facts = {"type": "short", "sizes": "6 5 4", "encoding": "raw", "more": "endian: little\n"}
    return PLAIN.format(**facts | fields).encode() + data


def meta(data: bytes = VOLUME.astype("<i2").tobytes(), **fields: str) -> bytes:
    facts = {"type": "MET_SHORT", "sizes": "6 5 4", "file": "LOCAL", "more": ""}
    return META.format(**facts | fields).encode() + data


VOXELS = VOLUME.astype("<i2").tobytes()
BOMB = gzip.compress(bytes(64 << 20))
SIZED = "endian: little\nspace: LPS\nspace directions: {}\nspace origin: (0,0,0)\n"
REFUSED = {
    "NRRD without an end": (b"NRRD0004\ntype: short\n", CorruptImage),
    "NRRD of nothing": (b"NRRD0004\n\n", CorruptImage),
    "NRRD with a field that is none": (nrrd(more="endian: little\nnonsense\n"), CorruptImage),
    "NRRD without sizes": (b"NRRD0004\ntype: short\ndimension: 3\n\n", CorruptImage),
    "NRRD of more sizes than axes": (nrrd(sizes="6 5 4 2"), CorruptImage),
    "NRRD of negative sides": (nrrd(sizes="6 5 -4"), CorruptImage),
    "NRRD of 100000^3": (nrrd(sizes="100000 100000 100000"), TooManyPixels),
    "NRRD cut short": (nrrd(VOXELS[:-1]), CorruptImage),
    "NRRD with much behind": (nrrd(VOXELS + bytes(2 << 20)), CorruptImage),
    "NRRD of blocks": (nrrd(type="block"), UnsupportedDtype),
    "NRRD as text": (nrrd(encoding="txt"), UnsupportedImage),
    "NRRD with its voxels elsewhere": (nrrd(more="endian: little\ndata file: voxels.raw\n"), UnsupportedImage),
    "NRRD that skips": (nrrd(more="endian: little\nbyte skip: 100\n"), UnsupportedImage),
    "NRRD that expands beyond its sizes": (nrrd(BOMB, encoding="gzip"), CorruptImage),
    "NRRD of damaged gzip": (nrrd(gzip.compress(VOXELS)[:-20] + bytes(20), encoding="gzip"), CorruptImage),
    "NRRD of truncated gzip": (nrrd(gzip.compress(VOXELS)[:-20], encoding="gzip"), CorruptImage),
    "NRRD of no gzip": (nrrd(encoding="gzip"), CorruptImage),
    "NRRD of no bzip2": (nrrd(encoding="bzip2"), CorruptImage),
    "NRRD with axes on one line": (nrrd(more=SIZED.format("(1,0,0) (2,0,0) (0,0,1)")), BadAffine),
    "NRRD with endless axes": (nrrd(more=SIZED.format("(inf,0,0) (0,1,0) (0,0,1)")), BadAffine),
    "NRRD of four axes": (
        b"NRRD0004\ntype: uchar\ndimension: 4\nsizes: 2 2 2 2\nencoding: raw\n\n" + bytes(16),
        ManyFrames,
    ),
    "MetaImage cut short": (meta(VOXELS[:-1]), CorruptImage),
    "MetaImage with much behind": (meta(VOXELS + bytes(2 << 20)), CorruptImage),
    "MetaImage with its voxels elsewhere": (meta(file="voxels.raw"), UnsupportedImage),
    "MetaImage as text": (meta(more="BinaryData = False\n"), UnsupportedImage),
    "MetaImage of strings": (meta(type="MET_STRING"), UnsupportedDtype),
    "MetaImage of two sides": (meta(sizes="6 5"), CorruptImage),
    "MetaImage of words": (meta(sizes="6 five 4"), CorruptImage),
    "MetaImage of 100000^3": (meta(sizes="100000 100000 100000"), TooManyPixels),
    "MetaImage of many axes": (meta().replace(b"NDims = 3", b"NDims = 99"), CorruptImage),
    "MetaImage that expands beyond its sizes": (
        meta(zlib.compress(bytes(64 << 20)), more="CompressedData = True\n"),
        CorruptImage,
    ),
    "MetaImage of no zlib": (meta(more="CompressedData = True\n"), CorruptImage),
    "MetaImage with axes on one line": (meta(more="TransformMatrix = 1 0 0 1 0 0 0 0 1\n"), BadAffine),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_damaged_or_odd_file_is_refused_within_bounds(kind, limits, lean):
    encoded, problem = REFUSED[kind]
    with pytest.raises(problem), warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(encoded, limits)


def test_plain_headers_are_read(limits):
    for encoded in (nrrd(), meta(), nrrd(VOLUME.astype(">i2").tobytes(), more="endian: big\n")):
        np.testing.assert_array_equal(decode(encoded, limits).pixels[0], VOLUME)
    swapped = meta(VOLUME.astype(">i2").tobytes(), more="ElementByteOrderMSB = True\n")
    np.testing.assert_array_equal(decode(swapped, limits).pixels[0], VOLUME)


def test_a_file_cut_short_or_with_a_byte_changed_gives_pixels_or_a_problem(tmp_path, limits):
    random = np.random.default_rng(0)
    for suffix in (".nrrd", ".mha"):
        encoded = saved(tmp_path, suffix, placed())
        for part in range(1, 20):
            with pytest.raises(Problem):
                decode(encoded[: len(encoded) * part // 20], limits)
        for place in random.integers(0, len(encoded), 150):
            damaged = bytearray(encoded)
            damaged[place] ^= 1 << int(place) % 8
            try:
                decode(bytes(damaged), limits)
            except Problem:
                continue


def test_a_volume_is_uploaded_predicted_and_answered_as_nrrd(gateway: Gateway, tmp_path):
    from tests.serving import networks

    gateway.register("still", networks.through(dimensions=3), dimensions=3, scaling=networks.PLAIN)
    scan = saved(tmp_path, ".nrrd", placed(np.abs(VOLUME % 256).astype(np.uint8)))
    answer = gateway.predict("still", scan, accept="application/x-nrrd", media="application/x-nrrd")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-nrrd" and ".nrrd" in answer.headers["content-disposition"]
    assert sniff(answer.content).name == "nrrd"
    mask = decode(answer.content, gateway.settings)
    np.testing.assert_array_equal(mask.pixels[0] > 0, np.abs(VOLUME % 256) > 127)
    np.testing.assert_allclose(mask.affine, decode(scan, gateway.settings).affine, atol=1e-6)
    header = read_header(scan, gateway.settings)
    image = gateway.upload(scan, "application/x-nrrd").json()
    assert image["spacing_mm"] == pytest.approx(list(header.spacing_mm)) and image["format"] == "nrrd"
