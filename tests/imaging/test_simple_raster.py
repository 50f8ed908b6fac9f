"""GIF, BMP and PNM files: read as Pillow reads them, and refused where they are odd or damaged."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from app.errors import CorruptImage, ManyFrames, TooManyPixels, UnsupportedColor, UnsupportedImage
from app.imaging import decode, decode_mask, read_header, sniff

GREY = np.random.default_rng(0).integers(0, 256, (13, 17), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)
MASK = (GREY > 128).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def painted(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask, "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


WHOLE = {
    "gif": saved(Image.fromarray(GREY), "gif"),
    "bmp": saved(Image.fromarray(COLOUR), "bmp"),
    "ppm": saved(Image.fromarray(COLOUR), "ppm"),
    "pgm": saved(Image.fromarray(GREY), "ppm"),
}


@pytest.mark.parametrize("encoded", WHOLE.values(), ids=WHOLE)
def test_pixels_are_those_that_were_saved(encoded, limits):
    picture = decode(encoded, limits)
    expected = GREY[None] if picture.channels == 1 else np.moveaxis(COLOUR, -1, 0)
    np.testing.assert_array_equal(picture.pixels, expected)


@pytest.mark.parametrize("format", ["gif", "bmp", "ppm"])
def test_masks_have_their_numbers(format, limits):
    np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(MASK * 255), format), limits), MASK * 255)
    if format != "gif":  # Pillow writes a bit as grey 1 of 255 there
        bits = saved(Image.fromarray(MASK * 255).convert("1"), format)
        np.testing.assert_array_equal(decode_mask(bits, limits), MASK * 255)
    if format != "ppm":
        np.testing.assert_array_equal(decode_mask(saved(painted(MASK), format), limits), MASK)
        assert decode(saved(painted(MASK), format), limits).pixels[0].max() == 128


def test_sixteen_bits_are_kept(limits):
    deep = GREY.astype(np.uint16) * 257
    picture = decode(b"P5 17 13 65535\n" + deep.astype(">u2").tobytes(), limits)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels[0], deep)


@pytest.mark.parametrize("encoded", WHOLE.values(), ids=WHOLE)
def test_a_file_that_is_cut_short_is_refused(encoded, limits):
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(CorruptImage):
            decode(encoded[: int(len(encoded) * part)], limits)


def test_damaged_headers_are_refused(limits):
    for encoded in (
        b"GIF89a/*" + bytes(30) + b"*/=1;//",
        b"P5 x y 255\n" + bytes(64),
        b"P6 2 2 70000\n" + bytes(12),
        b"BM" + bytes(12) + struct.pack("<I", 40) + bytes(36),
    ):
        with pytest.raises(CorruptImage):
            decode(encoded, limits)


def test_declared_sides_are_limited_before_anything_is_decoded(limits, lean):
    giant = bytearray(saved(Image.fromarray(COLOUR), "bmp"))
    giant[18:26] = struct.pack("<ii", 60_000, 60_000)
    for encoded in (b"P5 60000 60000 255\n", b"P4 60000 60000\n", bytes(giant)):
        with pytest.raises((TooManyPixels, CorruptImage)):
            read_header(encoded, limits)


def test_animations_and_transparency_are_refused(limits):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    with pytest.raises(ManyFrames):
        read_header(saved(frames[0], "gif", save_all=True, append_images=frames[1:]), limits)
    with pytest.raises(UnsupportedColor, match="transparency"):
        read_header(saved(painted(MASK), "gif", transparency=0), limits)


def test_words_that_begin_alike_are_no_images():
    for text in (b"P5", b"P55 apples", b"BMW 320", b"BM" + bytes(40)):
        with pytest.raises(UnsupportedImage):
            sniff(text)
