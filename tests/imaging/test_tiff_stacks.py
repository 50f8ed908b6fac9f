"""TIFF stacks are volumes with channels and pixel sizes, whoever wrote them; what is no image is refused."""

from __future__ import annotations

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from app.errors import CorruptImage, ManyFrames, Problem
from app.imaging import decode, decode_mask, read_header
from tests.gateway import Gateway
from tests.imaging.crafted_files import tiff

RANDOM = np.random.default_rng(0)
STACK = RANDOM.integers(0, 256, (5, 16, 24), dtype=np.uint8)  # planes
HYPER = RANDOM.integers(0, 65536, (5, 3, 16, 24), dtype=np.uint16)  # planes, channels
CHANNELS = np.moveaxis(HYPER, 1, 0)
GREY = {"photometric": "minisblack"}
SMOOTH = (np.add.outer(np.arange(40), np.arange(48)) * 2).astype(np.uint8)


def written(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def paged(*arrays: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array in arrays:
            writer.write(array, **GREY, metadata=None, contiguous=False, **options)
    return buffer.getvalue()


VOLUMES = {
    "plain pages": (paged(*STACK), STACK[None]),
    "ImageJ stack": (written(STACK, imagej=True, metadata={"axes": "ZYX"}), STACK[None]),
    "ImageJ hyperstack": (written(HYPER, imagej=True, metadata={"axes": "ZCYX"}), CHANNELS),
    "OME, channels fastest": (written(HYPER, ome=True, **GREY, metadata={"axes": "ZCYX"}), CHANNELS),
    "OME, planes fastest": (written(CHANNELS, ome=True, **GREY, metadata={"axes": "CZYX"}), CHANNELS),
    "OME, big endian BigTIFF": (
        written(HYPER, ome=True, **GREY, metadata={"axes": "ZCYX"}, bigtiff=True, byteorder=">"),
        CHANNELS,
    ),
    "named axes": (written(HYPER, **GREY, metadata={"axes": "ZCYX"}), CHANNELS),
    "one directory for all planes": (written(STACK, **GREY, truncate=True), STACK[None]),
    "RGB planes": (
        written(np.moveaxis(HYPER, 1, -1), photometric="rgb", ome=True, metadata={"axes": "ZYXS"}),
        CHANNELS,
    ),
    "deflated tiles": (paged(*HYPER[:, 0], tile=(16, 16), compression="zlib"), HYPER[None, :, 0]),
}


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_stack_is_a_volume_with_its_channels(kind, limits):
    encoded, pixels = VOLUMES[kind]
    header, picture = read_header(encoded, limits), decode(encoded, limits)
    assert (header.shape, header.channels, header.dtype) == (pixels.shape[1:], len(pixels), pixels.dtype.name)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.place is None  # pixel sizes are no place in the world


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}])
def test_pages_of_channels_are_an_image(options, limits):
    encoded = written(HYPER[0], **GREY, metadata={"axes": "CYX"}, **options)
    assert read_header(encoded, limits).shape == (16, 24)
    np.testing.assert_array_equal(decode(encoded, limits).pixels, HYPER[0])


def test_copies_of_another_size_are_left_out(limits):
    for encoded in (paged(HYPER[0, 0], HYPER[0, 0, ::2, ::2], HYPER[0, 0, ::4, ::4]), reduced()):
        np.testing.assert_array_equal(decode(encoded, limits).pixels, HYPER[:1, 0])


def reduced() -> bytes:
    """A second page of the same size that says it is a reduced copy."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(HYPER[0, 0], metadata=None)
        writer.write(HYPER[0, 1], metadata=None, subfiletype=1)
    return buffer.getvalue()


def test_a_pyramid_below_a_page_is_left_out(limits):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        writer.write(HYPER[:, 0], subifds=1, **GREY, metadata={"axes": "ZYX"})
        writer.write(HYPER[:, 0, ::2, ::2], subfiletype=1, **GREY)
    np.testing.assert_array_equal(decode(buffer.getvalue(), limits).pixels, HYPER[None, :, 0])


def test_labels_of_a_stack_are_its_numbers(limits):
    labels = (STACK > 128).astype(np.uint8)
    np.testing.assert_array_equal(decode_mask(written(labels, imagej=True, metadata={"axes": "ZYX"}), limits), labels)
    np.testing.assert_array_equal(decode_mask(paged(*(labels > 0)), limits), labels * 255)


SIZES = {
    "ImageJ": (
        {"imagej": True, "resolution": (4, 2), "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "um"}},
        (0.002, 0.0005, 0.00025),
    ),
    "ImageJ, µm as it writes it": (
        {"imagej": True, "resolution": (4, 2), "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "\\u00B5m"}},
        (0.002, 0.0005, 0.00025),
    ),
    "ImageJ in pixels": ({"imagej": True, "resolution": (1, 1), "metadata": {"axes": "ZYX", "unit": "pixel"}}, None),
    "OME": (
        {
            "ome": True,
            "metadata": {
                "axes": "ZYX",
                "PhysicalSizeX": 0.25,
                "PhysicalSizeY": 500,
                "PhysicalSizeYUnit": "nm",
                "PhysicalSizeZ": 0.002,
                "PhysicalSizeZUnit": "mm",
            },
        },
        (0.002, 0.0005, 0.00025),
    ),
    "OME without the distance of planes": ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.25}}, None),
    "nothing": ({"metadata": None}, None),
}


@pytest.mark.parametrize("kind", SIZES)
def test_pixel_sizes_come_from_the_metadata(kind, limits):
    options, spacing = SIZES[kind]
    picture = decode(written(STACK, **GREY, **options), limits)
    assert picture.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert picture.affine[:3, :3].diagonal() == pytest.approx((spacing or (1, 1, 1))[::-1])


def test_resolution_tags_are_believed_where_they_cannot_be_about_paper(limits):
    for unit, resolution, spacing in (
        ("CENTIMETER", (20000, 10000), (0.001, 0.0005)),
        ("INCH", (50800, 50800), (0.0005, 0.0005)),
        ("INCH", (300, 300), None),
        ("CENTIMETER", (28.3, 28.3), None),
        ("NONE", (20000, 20000), None),
    ):
        encoded = written(STACK[0], metadata=None, resolution=resolution, resolutionunit=unit)
        assert decode(encoded, limits).spacing_mm == (None if spacing is None else pytest.approx(spacing))


def saved(pixels: np.ndarray, compression: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "tiff", compression=compression)
    return buffer.getvalue()


BITS = RANDOM.random((40, 48)) > 0.5
COLOUR = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]], -1)
PACKED = {
    "JPEG": (written(SMOOTH, metadata=None, compression="jpeg"), SMOOTH, 8),
    "JPEG tiles": (written(SMOOTH, metadata=None, compression="jpeg", tile=(16, 16)), SMOOTH, 8),
    "JPEG in colour": (written(COLOUR, metadata=None, photometric="rgb", compression="jpeg"), COLOUR, 24),
    "JPEG 2000": (written(SMOOTH, metadata=None, compression="jpeg2000"), SMOOTH, 0),
    "JPEG 2000 in colour": (written(COLOUR, metadata=None, photometric="rgb", compression="jpeg2000"), COLOUR, 0),
    **{name: (saved(BITS, name), BITS * np.uint8(255), 0) for name in ("group3", "group4", "tiff_ccitt")},
}


@pytest.mark.parametrize("kind", PACKED)
def test_compressions_of_scanners_and_microscopes_are_read(kind, limits):
    encoded, pixels, off = PACKED[kind]
    read = np.moveaxis(decode(encoded, limits).pixels, 0, -1).reshape(pixels.shape)
    assert np.abs(read.astype(int) - pixels).max() <= off


@pytest.mark.parametrize("bits", [4, 10, 12, 14])
def test_samples_of_a_few_bits_keep_their_numbers(bits, limits):
    deep = RANDOM.integers(0, 2**bits, (6, 8), dtype=np.uint16)
    packed = imagecodecs.packints_encode(deep.astype(np.uint8 if bits == 4 else np.uint16), bits, runlen=8)
    np.testing.assert_array_equal(decode(tiff(8, 6, packed, bits=bits), limits).pixels[0], deep)


def described(text: str, *arrays: np.ndarray) -> bytes:
    """Pages whose first has that description."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for number, array in enumerate(arrays):
            writer.write(array, **GREY, metadata=None, contiguous=False, description=None if number else text)
    return buffer.getvalue()


def ome(pixels: str, inside: str = "", images: str = "") -> str:
    every = 'ID="Pixels:0" Type="uint8" SizeX="24" SizeY="16"'
    return f'<OME><Image ID="0"><Pixels {every} {pixels}>{inside}</Pixels></Image>{images}</OME>'


FIVE = 'DimensionOrder="XYZCT" SizeZ="5" SizeC="1" SizeT="1"'
LIES = {
    "a series in time": (written(STACK, ome=True, **GREY, metadata={"axes": "TYX"}), ManyFrames, "series of 5 times"),
    "an ImageJ series": (written(STACK, imagej=True, metadata={"axes": "TYX"}), ManyFrames, "series of 5 times"),
    "named times": (written(STACK, **GREY, metadata={"axes": "TYX"}), ManyFrames, "series of 5 times"),
    "sizes that grow": (paged(STACK[0, ::2], STACK[0]), ManyFrames, "differ in size"),
    "types that differ": (paged(STACK[0], HYPER[0, 0]), ManyFrames, "differ in size or type"),
    "ImageJ with too many planes": (described("ImageJ=1.54\nimages=9\nslices=9\n", *STACK[:3]), CorruptImage, "9"),
    "ImageJ with a million planes": (described("ImageJ=1.54\nslices=1000000\n", STACK[0]), ManyFrames, "4096"),
    "ImageJ planes that are not there": (described("ImageJ=1.54\nslices=90\n", STACK[0]), CorruptImage, "ends before"),
    "ImageJ without a number": (described("ImageJ=1.54\nslices=many\n", STACK[0]), CorruptImage, "many"),
    "OME of other pages": (described(ome(FIVE), *STACK[:3]), CorruptImage, "page 3; the TIFF has 3"),
    "OME that leaves planes out": (
        described(ome(FIVE, '<TiffData IFD="0"/><TiffData IFD="1" FirstZ="1"/>'), *STACK),
        CorruptImage,
        "place 2 of 1 channels x 5 planes",
    ),
    "OME of two images": (
        described(ome(FIVE, images='<Image><Pixels SizeX="24"/></Image>'), *STACK),
        ManyFrames,
        "2 images",
    ),
    "OME of several files": (
        described(ome(FIVE, "<TiffData><UUID>a</UUID></TiffData><TiffData><UUID>b</UUID></TiffData>"), *STACK),
        ManyFrames,
        "several files",
    ),
    "OME beside its file": (described("<OME><BinaryOnly/></OME>", *STACK), ManyFrames, "several files"),
    "OME without an end": (described('<OME><Image ID="0"><OME>', *STACK), CorruptImage, "cannot be read"),
    "OME with entities": (described('<!DOCTYPE a [<!ENTITY b "c">]><OME></OME>', *STACK), CorruptImage, "entities"),
    "OME without an order": (described(ome('SizeZ="5" SizeC="1" SizeT="1"'), *STACK), CorruptImage, "cannot be read"),
    "OME of a million planes": (
        described(ome(FIVE.replace('"5"', '"1000000"')), STACK[0]),
        ManyFrames,
        "1000000 planes and channels",
    ),
    "OME of planes that differ": (described(ome(FIVE), *STACK[:4], STACK[4, :8]), CorruptImage, "differ"),
}


@pytest.mark.parametrize("kind", LIES)
def test_metadata_that_contradict_the_pages_are_refused(kind, limits, lean):
    encoded, problem, told = LIES[kind]
    with pytest.raises(problem, match=told):
        decode(encoded, limits)


def strip_of(encoded: bytes) -> bytes:
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        page = file.pages[0]
        return encoded[page.dataoffsets[0] :][: page.databytecounts[0]]


@pytest.mark.parametrize(("name", "number"), [("jpeg", 7), ("jpeg2000", 34712)])
def test_a_strip_that_declares_other_sides_than_its_place_is_refused(name, number, limits, lean):
    whole = strip_of(written(SMOOTH, metadata=None, compression=name))
    for damaged in (
        tiff(24, 20, whole, compression=number),
        tiff(48, 40, whole[: len(whole) // 2], compression=number),
        tiff(48, 40, whole.replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 65000, 65000)), compression=number)
        if name == "jpeg"
        else tiff(
            48, 40, whole.replace(struct.pack(">II", 48, 40), struct.pack(">II", 2**31, 2**31)), compression=number
        ),
    ):
        with pytest.raises(CorruptImage):
            decode(damaged, limits)


def test_a_stack_cut_short_or_with_a_bit_flipped_gives_pixels_or_a_problem(limits):
    encoded = VOLUMES["OME, channels fastest"][0]
    for part in range(1, 20):
        with pytest.raises(Problem):
            decode(encoded[: len(encoded) * part // 20], limits)
    for place in RANDOM.integers(0, 3000, 150):
        damaged = bytearray(encoded)
        damaged[place] ^= 1 << int(place) % 8
        try:
            decode(bytes(damaged), limits)
        except Problem:
            continue


def test_a_stack_is_uploaded_with_its_pixel_sizes_and_analysed_as_a_volume(gateway: Gateway):
    options, spacing = SIZES["OME"]
    labels = np.zeros((5, 16, 24), np.uint8)
    labels[1:4, 3:9, 3:9] = 255
    encoded = written(labels, **GREY, **options)
    image = gateway.upload(encoded, "image/tiff").json()
    assert (image["format"], image["shape"], image["channels"]) == ("tiff", [5, 16, 24], 1)
    assert image["spacing_mm"] == pytest.approx(spacing)
    report = gateway.ask("POST", "/v1/analyses", content=encoded, headers=gateway.headers("engineer")).json()
    assert report["topology"]["foreground"] == 108 and report["spacing_mm"] == pytest.approx(spacing)
