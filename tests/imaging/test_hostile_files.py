"""Damaged, oversized and unsupported image files: right error, bounded time and memory.

One file, though long, so that the list of bad inputs can be read from top to bottom.
"""

from __future__ import annotations

import contextlib
import io
import random
import struct
import time
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from app.errors import (
    BadAffine,
    ChecksumMismatch,
    CorruptImage,
    EmptyImage,
    ExpandsTooLarge,
    ManyFrames,
    MaskMismatch,
    NonFinite,
    Problem,
    TooManyPixels,
    UnsupportedColor,
    UnsupportedDepth,
    UnsupportedDtype,
    UnsupportedImage,
)
from app.imaging import decode, decode_mask, encode_nifti_gz, encode_png, encode_tiff, read_header
from app.imaging.png import MAX_INFLATED
from tests.imaging.crafted_files import chunk, grey_png, gzipped, nifti, png, tiff

SMALL = np.arange(48, dtype=np.uint8).reshape(6, 8)
SMOOTH = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tif(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def bomb(raw: int) -> bytes:
    """A zlib stream of `raw` zeros, made without holding them."""
    deflater = zlib.compressobj(9)
    pieces = [deflater.compress(bytes(1 << 20)) for _ in range(raw >> 20)]
    return b"".join(pieces) + deflater.flush()


# Foreign ------------------------------------------------------------------------------------------------------------

FOREIGN = {
    "nothing": b"",
    "text": b"hello",
    "HTML": b"<!DOCTYPE html><script>1</script>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ELF": b"\x7fELF" + bytes(60),
    "PDF": b"%PDF-1.7\n",
    "WebP": b"RIFF\0\0\0\0WEBPVP8 ",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "PSD": b"8BPS\0\1" + bytes(20),
    "FITS": b"SIMPLE  =                    T",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "GRIB": b"GRIB\0\0\0\1",
    "ICNS": b"icns\0\0\0\x10",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(30),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "gzip of text": gzipped(b"hello" * 200),
    "NIfTI of two files": nifti()[:344] + b"ni1\0" + bytes(8),
    "half a PNG signature": b"\x89PNG",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_unsupported_format_is_refused_by_its_bytes(kind, limits, lean):
    for function in (read_header, decode, decode_mask):
        with pytest.raises(UnsupportedImage, match=r"PNG, JPEG, TIFF|one of these formats"):
            function(FOREIGN[kind], limits)


def test_polyglot_file_is_read_as_the_format_it_begins_with(limits):
    encoded = encode_png(SMALL) + b"<script>alert(1)</script>"
    np.testing.assert_array_equal(decode(encoded, limits).pixels[0], SMALL)
    smooth = Image.fromarray(SMOOTH)
    np.testing.assert_array_equal(
        decode(saved(smooth, "jpeg") + b"<html>", limits).pixels, decode(saved(smooth, "jpeg"), limits).pixels
    )


# Too large ----------------------------------------------------------------------------------------------------------

LARGE = {
    "1-bit PNG of 50k x 50k": (png(50_000, 50_000, depth=1), TooManyPixels),
    "PNG of 20k x 20k": (png(20_000, 20_000), TooManyPixels),
    "RGB PNG of 12k x 12k": (png(12_000, 12_000, color=2), TooManyPixels),
    "PNG of 80M x 1": (png(80_000_000, 1), TooManyPixels),
    "PNG of 2^32-1 a side": (png(2**32 - 1, 2**32 - 1), TooManyPixels),
    "deflated TIFF of 53248^2": (tiff(53248, 53248, bomb(1 << 20), compression=8), TooManyPixels),
    "LZMA TIFF of 53248^2": (tiff(53248, 53248, b"x", compression=34925), TooManyPixels),
    "JPEG 2000 TIFF of 53248^2": (tiff(53248, 53248, b"x", compression=34712), TooManyPixels),
    "LERC TIFF of 53248^2": (tiff(53248, 53248, b"x", compression=34887), TooManyPixels),
    "TIFF of 2^31-1 a side": (tiff(2**31 - 1, 2**31 - 1, b"x"), TooManyPixels),
    "TIFF of 60000 channels": (tiff(1000, 1000, b"x", samples=60000), ExpandsTooLarge),
    "float64 RGB TIFF of 50 MP": (
        tiff(10_000, 5_000, b"x", bits=64, samples=3, photometric=2, more=((339, 3, 1, 3),)),
        ExpandsTooLarge,
    ),
    "NIfTI of 32767^3": (nifti((32767, 32767, 32767)), TooManyPixels),
    "float64 NIfTI of 200 M voxels": (nifti((1000, 1000, 200), datatype=64, bitpix=64), ExpandsTooLarge),
    "NIfTI of 255 M voxels in 5 channels": (nifti((1000, 1000, 255, 1, 5), b""), ExpandsTooLarge),
    "gzipped NIfTI of 32767^3": (gzipped(nifti((32767, 32767, 32767))), TooManyPixels),
}


@pytest.mark.parametrize("kind", LARGE)
def test_image_over_the_pixel_limit_is_refused_from_its_header(kind, limits, lean):
    encoded, problem = LARGE[kind]
    started = time.process_time()
    for function in (read_header, decode, decode_mask):
        with pytest.raises(problem, match="at most"):
            function(encoded, limits)
    assert time.process_time() - started < 0.5


def test_image_at_the_pixel_limit_is_accepted(limits):
    for encoded, field in ((encode_png(SMALL), "max_pixels"), (encode_nifti_gz(SMALL.reshape(2, -1, 8)), "max_voxels")):
        assert decode(encoded, limits.model_copy(update={field: 48})).pixels.size == 48
        with pytest.raises(TooManyPixels, match="48"):
            decode(encoded, limits.model_copy(update={field: 47}))
    exactly = limits.model_copy(update={"max_decoded_bytes": 96})
    deep = SMALL.astype(np.uint16)
    assert decode(encode_png(deep), exactly).pixels.size == 48
    with pytest.raises(ExpandsTooLarge, match=r"97|144"):
        decode(encode_png(np.stack([SMALL] * 3)), exactly)


def test_a_header_is_read_without_reading_the_file(limits, tmp_path):
    path = tmp_path / "large.nii"
    with path.open("wb") as file:
        file.write(nifti((500, 500, 500), b""))
        file.truncate(352 + 500**3)
    started = time.process_time()
    assert read_header(path, limits).pixels == 500**3
    assert time.process_time() - started < 0.1


def test_a_gzip_bomb_is_refused_before_it_is_inflated(limits, lean):
    """2 GB of zeros in 2 MB: what the header declares is over the limit, whatever follows."""
    deflater = zlib.compressobj(9, wbits=31)
    parts = [deflater.compress(nifti((1290, 1290, 1290), b""))] + [deflater.compress(bytes(1 << 20)) for _ in range(64)]
    encoded = b"".join(parts) + deflater.flush()
    with pytest.raises(TooManyPixels):
        decode(encoded, limits)


def test_trailing_data_after_a_volume_is_limited(limits, lean):
    sound = nifti((4, 3, 2), bytes(range(24)))
    assert decode(sound + b"\n" * 100, limits).pixels.size == 24
    assert decode(gzipped(sound) + bytes(1000), limits).pixels.size == 24
    deflater = zlib.compressobj(9, wbits=31)
    endless = (
        deflater.compress(sound) + b"".join(deflater.compress(bytes(1 << 20)) for _ in range(100)) + deflater.flush()
    )
    for encoded in (endless, sound + bytes(1 << 21)):
        with pytest.raises(CorruptImage, match="follow the last voxel"):
            decode(encoded, limits)


def test_members_of_a_gzip_file_are_joined_and_counted(limits):
    sound = nifti((4, 3, 2), bytes(range(24)))
    np.testing.assert_array_equal(
        decode(gzipped(sound[:360]) + gzipped(sound[360:]), limits).pixels.reshape(-1), np.arange(24)
    )
    started = time.process_time()
    with pytest.raises(CorruptImage, match="members"):
        decode(gzipped(sound) + gzipped(b"") * 70_000, limits)
    assert time.process_time() - started < 5


# PNG ----------------------------------------------------------------------------------------------------------------


def test_expanding_text_chunks_and_profiles_are_refused(limits, lean):
    packed = bomb(MAX_INFLATED + (1 << 20))
    for kind, body in ((b"zTXt", b"k\0\0" + packed), (b"iCCP", b"k\0\0" + packed), (b"iTXt", b"k\0\1\0\0\0" + packed)):
        for place in ("before", "after"):
            with pytest.raises(CorruptImage, match="expand to more"):
                decode(grey_png(SMALL, **{place: chunk(kind, body)}), limits)


def test_text_chunks_are_limited_in_total(limits, lean):
    half = chunk(b"zTXt", b"k\0\0" + bomb(MAX_INFLATED // 2))
    np.testing.assert_array_equal(decode(grey_png(SMALL, before=half, after=half), limits).pixels[0], SMALL)
    with pytest.raises(CorruptImage, match="expand to more"):
        decode(grey_png(SMALL, before=half * 3), limits)
    stored = zlib.compress(bytes(MAX_INFLATED), 0)
    with pytest.raises(CorruptImage, match="expand to more"):
        decode(grey_png(SMALL, before=chunk(b"zTXt", b"k\0\0" + stored + bytes(1 << 20)) + half), limits)


def test_harmless_comments_are_ignored(limits):
    harmless = [
        chunk(b"tEXt", b"a\0b"),
        chunk(b"iTXt", b"k\0\0\0\0\0plain"),
        chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 1000)),
        chunk(b"zTXt", b"k\0\0broken"),
        chunk(b"zTXt", b""),
        chunk(b"iTXt", b"k"),
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"acTL", struct.pack(">II", 1, 0)),
        chunk(b"acTL", b""),
    ]
    for extra in harmless:
        np.testing.assert_array_equal(decode(grey_png(SMALL, before=extra, after=extra), limits).pixels[0], SMALL)


def test_a_hundred_thousand_tiny_chunks_are_refused(limits, lean):
    with pytest.raises(CorruptImage, match="chunks beside"):
        decode(grey_png(SMALL, before=chunk(b"tEXt", b"a\0b") * 100_000), limits)
    with pytest.raises(CorruptImage, match="cut into more"):
        decode(grey_png(SMALL, after=chunk(b"IDAT", b"") * 100_001), limits)


DAMAGED_PNG = {
    "signature only": b"\x89PNG\r\n\x1a\n",
    "no IHDR": b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"x") + chunk(b"IEND", b""),
    "wrong IHDR checksum": encode_png(SMALL)[:29] + b"\0\0\0\0" + encode_png(SMALL)[33:],
    "no pixels": png(8, 6, rows=b"")[:33] + chunk(b"IEND", b""),
    "too few rows": png(8, 6, rows=bytes(9)),
    "chunk longer than the file": encode_png(SMALL)[:33] + b"\x7f\xff\xff\xffIDAT",
    "palette missing": png(2, 1, color=3, rows=b"\0\0\1"),
    "unknown filter": png(2, 1, rows=b"\x09\0\0"),
}


@pytest.mark.parametrize("kind", DAMAGED_PNG)
def test_inconsistent_png_is_corrupt(kind, limits, lean):
    with pytest.raises(CorruptImage):
        decode(DAMAGED_PNG[kind], limits)


def test_palette_index_out_of_range_is_handled_as_in_libpng(limits):
    encoded = png(2, 1, color=3, rows=b"\0\0\5", before=chunk(b"PLTE", b"\1\2\3"))
    with contextlib.suppress(CorruptImage):
        assert decode(encoded, limits).pixels[:, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(decode_mask(encoded, limits), [[0, 5]])


def test_an_unknown_depth_or_colour_type_is_refused(limits):
    for depth, color in ((3, 0), (16, 3), (4, 2), (8, 1), (8, 7), (0, 0)):
        with pytest.raises(UnsupportedDepth, match=f"colour type {color} with {depth} bits"):
            decode(png(2, 2, depth=depth, color=color), limits)


# JPEG ---------------------------------------------------------------------------------------------------------------


def test_12_bit_lossless_and_cmyk_jpegs_are_refused(limits):
    sound = saved(Image.fromarray(SMOOTH), "jpeg")
    frame = sound.index(b"\xff\xc0")
    with pytest.raises(UnsupportedDepth, match="12 bits"):
        decode(sound[: frame + 4] + b"\x0c" + sound[frame + 5 :], limits)
    for marker in (0xC3, 0xC9):
        with pytest.raises(UnsupportedDepth, match="lossless"):
            decode(sound[: frame + 1] + bytes([marker]) + sound[frame + 2 :], limits)
    with pytest.raises(UnsupportedColor, match="CMYK"):
        decode(saved(Image.new("CMYK", (8, 8)), "jpeg"), limits)


def test_a_jpeg_of_many_scans_is_refused(limits):
    """Each scan costs a pass over all pixels, so a small file could buy much work."""
    sound = saved(Image.fromarray(SMOOTH), "jpeg", progressive=True)
    start = sound.rindex(b"\xff\xda")
    with pytest.raises(CorruptImage, match="scans"):
        decode(sound[:start] + sound[start:-2] * 100 + sound[-2:], limits)


def test_jpeg_thumbnail_end_marker_does_not_end_the_image(limits):
    thumbnail = b"Exif\0\0II*\0\x08\0\0\0\0\0" + saved(Image.fromarray(SMOOTH), "jpeg")
    body = saved(Image.fromarray(SMOOTH), "jpeg")
    encoded = body[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + body[2:]
    np.testing.assert_array_equal(decode(encoded, limits).pixels, decode(body, limits).pixels)
    with pytest.raises(CorruptImage, match="truncated"):
        decode(encoded[:-40], limits)


DAMAGED_JPEG = {
    "three bytes": b"\xff\xd8\xff",
    "segment of length 0": b"\xff\xd8\xff\xe0\0\0",
    "no frame": b"\xff\xd8\xff\xda\0\2",
    "end at once": b"\xff\xd8\xff\xd9",
    "cut frame": b"\xff\xd8\xff\xc0\0\4\x08\0",
    "garbage": b"\xff\xd8\xff\xe0\0\4abcdef",
}


@pytest.mark.parametrize("kind", DAMAGED_JPEG)
def test_a_jpeg_without_a_frame_is_corrupt(kind, limits):
    with pytest.raises(CorruptImage):
        decode(DAMAGED_JPEG[kind], limits)


# TIFF ---------------------------------------------------------------------------------------------------------------

CIRCLE = tiff(8, 6, SMALL.tobytes(), following=8)
DAMAGED_TIFF = {
    "four bytes": (b"II*\0", CorruptImage),
    "no directory": (b"II*\0" + bytes(10), CorruptImage),
    "directory beyond the end": (b"II*\0\xff\xff\0\0", CorruptImage),
    "directory that points to itself": (CIRCLE, CorruptImage),
    "next directory beyond the end": (tiff(8, 6, SMALL.tobytes(), following=2**32 - 5), CorruptImage),
    "strip longer than the file": (tiff(8, 6, SMALL.tobytes(), count=2**32 - 1), CorruptImage),
    "strip of no bytes": (tiff(8, 6, SMALL.tobytes(), count=0), CorruptImage),
    "strip beyond the end": (tiff(8, 6, SMALL.tobytes(), start=2**32 - 9), CorruptImage),
    "strip too short": (tiff(8, 6, SMALL.tobytes()[:40]), CorruptImage),
    "strip that expands beyond its size": (tiff(8, 6, bomb(64 << 20), compression=8), CorruptImage),
    "strip that expands too little": (tiff(8, 6, zlib.compress(bytes(9)), compression=8), CorruptImage),
    "strip of garbage": (tiff(8, 6, b"garbage", compression=8), CorruptImage),
    "LZW garbage": (tiff(8, 6, b"\xff" * 40, compression=5), CorruptImage),
    "a billion offsets": (tiff(8, 6, SMALL.tobytes(), more=((273, 4, 2**30, 8),)), CorruptImage),
    "tiles of 2^31": (
        tiff(
            8,
            6,
            SMALL.tobytes(),
            compression=8,
            more=((322, 4, 1, 2**31 - 16), (323, 4, 1, 2**31 - 16), (324, 4, 1, 8), (325, 4, 1, 48)),
        ),
        CorruptImage,
    ),
    "tiles of 16k": (
        tiff(
            8,
            6,
            SMALL.tobytes(),
            compression=8,
            more=((322, 4, 1, 16384), (323, 4, 1, 16384), (324, 4, 1, 8), (325, 4, 1, 48)),
        ),
        CorruptImage,
    ),
    "3 bits a sample": (tiff(8, 6, SMALL.tobytes(), bits=3), UnsupportedDepth),
    "99 bits a sample": (tiff(8, 6, SMALL.tobytes(), bits=99), UnsupportedDepth),
    "unknown compression": (tiff(8, 6, SMALL.tobytes(), compression=999), UnsupportedImage),
    "no JPEG inside": (tiff(8, 6, SMALL.tobytes(), compression=7), CorruptImage),
    "no JPEG 2000 inside": (tiff(8, 6, SMALL.tobytes(), compression=34712), CorruptImage),
    "WebP inside": (tiff(8, 6, SMALL.tobytes(), compression=50001), UnsupportedImage),
    "CMYK": (saved(Image.new("CMYK", (8, 6)), "tiff"), UnsupportedColor),
    "CIELab": (saved(Image.new("LAB", (8, 6)), "tiff"), UnsupportedColor),
    "YCbCr": (saved(Image.new("YCbCr", (8, 6)), "tiff"), UnsupportedColor),
    "unknown colours": (tiff(8, 6, SMALL.tobytes(), photometric=99), UnsupportedColor),
    "white as zero without a white": (tif(SMALL.astype(np.float32), photometric="miniswhite"), UnsupportedColor),
    "two pages": (
        saved(Image.fromarray(SMALL), "tiff", save_all=True, append_images=[Image.fromarray(np.tile(SMALL, 2))]),
        ManyFrames,
    ),
    "a volume in one page": (tiff(8, 6, bytes(96), more=((32997, 4, 1, 2),)), ManyFrames),
    "complex": (tif(SMALL.astype(np.complex64)), UnsupportedDtype),
    "uint64": (tif(SMALL.astype(np.uint64)), UnsupportedDtype),
    "int64": (tif(SMALL.astype(np.int64)), UnsupportedDtype),
    "no columns": (tiff(0, 6, b"x"), EmptyImage),
    "no rows": (tiff(8, 0, b"x"), EmptyImage),
    "no samples": (tiff(8, 6, b"x", samples=0), EmptyImage),
}


@pytest.mark.parametrize("kind", DAMAGED_TIFF)
def test_inconsistent_or_unsupported_tiff_is_refused(kind, limits, lean):
    encoded, problem = DAMAGED_TIFF[kind]
    started = time.process_time()
    with pytest.raises(problem):
        decode(encoded, limits)
    assert time.process_time() - started < 1


def test_oversized_tiff_tile_is_refused(limits):
    for side in (2**31 - 16, 16384):
        tiles = ((322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8), (325, 4, 1, 48))
        with pytest.raises(CorruptImage, match=f"tiles of {side} x {side}"):
            decode(tiff(8, 6, SMALL.tobytes(), compression=8, more=tiles), limits)


def test_missing_tiff_strip_is_refused_not_read_as_black(limits):
    for compression, data in ((1, SMALL.tobytes()[:24]), (8, zlib.compress(SMALL.tobytes()[:24]))):
        with pytest.raises(CorruptImage, match="1 offsets and 1 lengths for 2 strips"):
            decode(tiff(8, 6, data, compression=compression, more=((278, 4, 1, 3),)), limits)


def test_a_tiff_of_20_000_pages_is_refused_before_they_are_read(limits, lean):
    page = tiff(2, 2, b"abcd")
    size = len(page)
    pages = bytearray(b"II*\0" + struct.pack("<I", 8))
    for _ in range(20_000):
        at = len(pages)
        body = bytearray(page[8:])
        struct.pack_into("<I", body, size - 8 - 4 - 4, at + len(body))
        pages += body
    started = time.process_time()
    with pytest.raises(ManyFrames):
        read_header(bytes(pages), limits)
    assert time.process_time() - started < 0.2


def test_tifffile_warnings_are_not_logged(limits, caplog):
    for encoded, _ in DAMAGED_TIFF.values():
        with pytest.raises(Problem):
            decode(encoded, limits)
    assert not caplog.records


# NIfTI --------------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
DAMAGED_NIFTI = {
    "negative side": (nifti((4, -3, 2)), CorruptImage, "dim"),
    "no rows": (nifti((4, 0, 2)), EmptyImage, "0"),
    "dim[0] is 9": (nifti(count=9), CorruptImage, r"dim\[0\]"),
    "dim[0] is 0": (nifti(count=0), CorruptImage, r"dim\[0\]"),
    "dim[0] is 1": (nifti((4,)), CorruptImage, r"dim\[0\]"),
    "dim[0] is negative": (nifti(count=-3), CorruptImage, r"dim\[0\]"),
    "32767 in four axes": (nifti((32767,) * 4), ManyFrames, "dim"),
    "7 axes": (nifti((2,) * 7), ManyFrames, "dim"),
    "a series": (nifti((4, 3, 2, 5)), ManyFrames, "One volume|one volume"),
    "RGB": (nifti(datatype=128, bitpix=24), UnsupportedColor, "datatype"),
    "RGBA": (nifti(datatype=2304, bitpix=32), UnsupportedColor, "datatype"),
    "complex": (nifti(datatype=32, bitpix=64), UnsupportedDtype, "datatype"),
    "datatype 999": (nifti(datatype=999), UnsupportedDtype, "datatype is 999"),
    "datatype 1": (nifti(datatype=1), UnsupportedDtype, "datatype"),
    "float128": (nifti(datatype=1536, bitpix=128), UnsupportedDtype, "datatype"),
    "uint64": (nifti(datatype=1280, bitpix=64), UnsupportedDtype, "uint64"),
    "vox_offset -1e9": (nifti(offset=-1e9), CorruptImage, "vox_offset"),
    "vox_offset 1e9": (nifti(offset=1e9), CorruptImage, "vox_offset"),
    "vox_offset 10": (nifti(offset=10), CorruptImage, "vox_offset"),
    "vox_offset 352.5": (nifti(offset=352.5), CorruptImage, "vox_offset"),
    "vox_offset NaN": (nifti(offset=NAN), CorruptImage, "vox_offset"),
    "slope NaN": (nifti(slope=NAN), CorruptImage, "scl_slope"),
    "slope infinite": (nifti(slope=INF), CorruptImage, "scl_slope"),
    "intercept infinite": (nifti(inter=INF), CorruptImage, "scl_inter"),
    "slope that overflows": (nifti((4, 3, 2), b"\xff" * 24, slope=3e38), NonFinite, "infinite"),
    "singular affine": (nifti(sform=((1, 0, 0, 0), (2, 0, 0, 0), (0, 0, 1, 0))), BadAffine, "singular"),
    "NaN affine": (nifti(sform=((NAN, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))), BadAffine, "finite"),
    "infinite affine": (nifti(sform=((1, 0, 0, INF), (0, 1, 0, 0), (0, 0, 1, 0))), BadAffine, "finite"),
    "affine that overflows": (nifti(sform=((3e38, 0, 0, 0), (0, 3e38, 0, 0), (0, 0, 3e38, 0))), None, ""),
    "pixdim 0": (nifti(pixdim=(1, 0, 1)), BadAffine, "pixdim"),
    "pixdim negative": (nifti(pixdim=(1, -1, 1)), BadAffine, "pixdim"),
    "pixdim NaN": (nifti(pixdim=(1, 1, NAN)), BadAffine, "pixdim"),
    "no voxels": (nifti(data=b""), CorruptImage, "truncated"),
    "one byte too few": (nifti(data=bytes(23)), CorruptImage, "truncated"),
}


@pytest.mark.parametrize("kind", DAMAGED_NIFTI)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_nifti_field_out_of_range_is_refused_by_name(kind, packed, limits, lean):
    encoded, problem, named = DAMAGED_NIFTI[kind]
    if problem is None:  # huge, but a valid geometry
        assert np.isfinite(decode(encoded, limits).affine).all()
        return
    with pytest.raises(problem, match=named):
        decode(gzipped(encoded) if packed else encoded, limits)


def test_wrong_gzip_checksum_or_length_is_detected(limits):
    encoded = bytearray(gzipped(nifti((4, 3, 2), bytes(range(24)))))
    for place in (-8, -5, -4, -1):
        damaged = bytearray(encoded)
        damaged[place] ^= 1
        with pytest.raises(ChecksumMismatch):
            decode(bytes(damaged), limits)


def test_nan_and_infinity_are_refused_and_counted(limits):
    for value in (NAN, INF, -INF):
        pixels = SMALL.astype(np.float32)
        pixels[2, 3] = value
        for encoded in (tif(pixels), encode_nifti_gz(pixels), tif(pixels.astype(np.float64))):
            with pytest.raises(NonFinite, match="1 of 48"):
                decode(encoded, limits)
    with pytest.raises(NonFinite, match="float32"):
        decode(tif(np.full((2, 2), 1e300)), limits)


# Frames, sides, masks -----------------------------------------------------------------------------------------------


def test_animations_are_refused(limits):
    frames = [Image.fromarray(SMALL), Image.fromarray(SMALL[::-1].copy())]
    with pytest.raises(ManyFrames, match="2 frames"):
        decode(saved(frames[0], "png", save_all=True, append_images=frames[1:]), limits)
    with pytest.raises(UnsupportedImage):
        decode(saved(frames[0], "webp", save_all=True, append_images=frames[1:]), limits)


def test_zero_pixels_are_refused_and_one_pixel_accepted(limits):
    for encoded in (png(0, 0), png(5, 0), png(0, 5), nifti((4, 0))):
        with pytest.raises(EmptyImage):
            decode(encoded, limits)
    for shape in ((1, 1), (1, 9), (9, 1)):
        assert decode(encode_png(np.ones(shape, np.uint8)), limits).shape == shape


def test_a_mask_with_fractions_or_different_channels_is_refused(limits):
    with pytest.raises(MaskMismatch, match="2 of 4 mask values are fractions"):
        decode_mask(tif(np.array([[0, 0.5], [0.25, 1]], np.float32)), limits)
    with pytest.raises(MaskMismatch, match="3 channels"):
        decode_mask(encode_png(np.stack([SMALL, SMALL, SMALL + 1])), limits)
    with pytest.raises(UnsupportedDtype, match="32 bits"):
        decode_mask(tif(np.array([[2**40, 0]])), limits)
    for dtype in (np.complex64, np.uint64):
        with pytest.raises(UnsupportedDtype):
            decode_mask(tif(SMALL.astype(dtype)), limits)


# Chance -------------------------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(1).integers(0, 256, (24, 32), dtype=np.uint8)
WHOLE = {
    "png": encode_png(NOISE),
    "rgb png": encode_png(np.stack([NOISE] * 3)),
    "palette png": saved(Image.fromarray(NOISE).convert("P"), "png"),
    "jpeg": saved(Image.fromarray(SMOOTH), "jpeg"),
    "progressive jpeg": saved(Image.fromarray(np.dstack([SMOOTH] * 3)), "jpeg", progressive=True),
    "tiff": encode_tiff(NOISE.astype(np.float32)),
    "tiled tiff": tif(np.tile(NOISE, (2, 2)), tile=(16, 16), compression="lzw"),
    "nifti": nifti((16, 8, 6), NOISE.tobytes()),
    "nifti.gz": encode_nifti_gz(NOISE.reshape(3, 16, 16)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_file_is_refused(kind, limits, lean):
    whole = WHOLE[kind]
    decode(whole, limits)
    rng = random.Random(kind)
    cuts = {rng.randrange(len(whole)) for _ in range(200)} | {len(whole) - 1, len(whole) // 2}
    kept = [cut for cut in cuts if not _refused(whole[:cut], limits)]
    assert not kept


@pytest.mark.parametrize("kind", WHOLE)
def test_flipped_bit_never_crashes_the_reader(kind, limits, lean):
    rng = random.Random(kind)
    small = limits.model_copy(update={"max_pixels": 1_000_000, "max_voxels": 1_000_000, "max_decoded_bytes": 8_000_000})
    for _ in range(300):
        damaged = bytearray(WHOLE[kind])
        for _ in range(rng.choice((1, 1, 4))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        if not _refused(bytes(damaged), small):
            picture = decode(bytes(damaged), small)
            assert np.isfinite(picture.pixels).all() and picture.pixels.ndim in (3, 4)


def test_flipped_bit_never_changes_pixels_of_checksummed_formats(limits):
    rng = random.Random(7)
    for kind in ("png", "nifti.gz"):
        expected = decode(WHOLE[kind], limits).pixels
        for _ in range(200):
            damaged = bytearray(WHOLE[kind])
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            if not _refused(bytes(damaged), limits):
                np.testing.assert_array_equal(decode(bytes(damaged), limits).pixels, expected)


def _refused(encoded: bytes, limits) -> bool:
    """True when it is refused as a caller's mistake; anything but a 4xx problem fails the test."""
    try:
        decode(encoded, limits)
    except Problem as problem:
        assert 400 <= problem.status < 500 and problem.detail
        return True
    return False


# What a file expands to -----------------------------------------------------------------------------------------------


def expanding(megabytes: int) -> bytes:
    """The zlib stream of so many megabytes of zeros."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def with_pixels(encoded: bytes, body: bytes) -> bytes:
    """A PNG with another IDAT."""
    return encoded[:33] + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_png_whose_pixels_expand_beyond_its_header_is_refused_at_once(limits, lean):
    encoded = with_pixels(encode_png(np.zeros((1000, 1000), np.uint8)), expanding(1500))
    started = time.process_time()
    for read in (decode, decode_mask):
        with pytest.raises(CorruptImage, match="expand to more than the 1001000 bytes"):
            read(encoded, limits)
    assert time.process_time() - started < 0.2


def test_png_with_more_data_than_its_pixels_can_need_is_refused_before_it_is_read(limits, lean):
    encoded = with_pixels(encode_png(np.zeros((64, 64), np.uint8)), random.Random(0).randbytes(100_000))
    with pytest.raises(CorruptImage, match="IDAT chunks of the PNG hold more than the 73856 bytes"):
        decode(encoded, limits)
    with pytest.raises(CorruptImage, match="PLTE chunks of the PNG hold more"):
        decode(png(2, 1, color=3, rows=b"\0\0\1", before=chunk(b"PLTE", bytes(2000))), limits)


def test_png_with_one_row_too_many_or_too_few_is_refused(limits):
    sound = b"".join(b"\0" + row.tobytes() for row in SMALL)
    for rows, reason in (
        (sound + sound[:9], "expand to more"),
        (sound[:-9], "is truncated"),
        (sound[:-1], "truncated"),
    ):
        with pytest.raises(CorruptImage, match=reason):
            decode(png(*SMALL.shape[::-1], rows=rows), limits)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 9)])
def test_png_of_every_kind_and_size_inflates_to_what_its_header_says(limits, mode, size):
    image = Image.frombytes("L", size, random.Random(0).randbytes(size[0] * size[1])).convert(mode)
    if "A" in mode:
        image.putalpha(255)
    pixels = decode(saved(image, "png"), limits).pixels
    shown = image.convert("RGB" if mode in ("P", "RGBA") else "L") if mode in ("1", "P", "LA", "RGBA") else image
    expected = np.asarray(shown)
    np.testing.assert_array_equal(pixels, expected[None] if expected.ndim == 2 else np.moveaxis(expected, -1, 0))


def interlaced(pixels: np.ndarray) -> bytes:
    """An 8-bit grey PNG in the seven passes of Adam7."""
    passes = [pixels[top::down, left::across] for left, top, across, down in PASSES]
    rows = b"".join(b"\0" + row.tobytes() for each in passes if each.size for row in each)
    encoded = png(*pixels.shape[::-1], rows=rows)
    return encoded[:8] + chunk(b"IHDR", encoded[16:28] + b"\1") + encoded[33:]


PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (7, 3), (8, 8), (13, 21)])
def test_interlaced_png_of_every_size_is_read(limits, size):
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    np.testing.assert_array_equal(decode(interlaced(pixels), limits).pixels[0], pixels)


WAVES = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint8)
KINDS_OF_JPEG = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "full colour": {"subsampling": 0},
}


@pytest.mark.parametrize("kind", KINDS_OF_JPEG)
@pytest.mark.parametrize("image", [WAVES, np.stack([WAVES, 255 - WAVES, np.roll(WAVES, 70)], -1)], ids=["grey", "rgb"])
def test_jpeg_whose_data_end_before_its_frame_is_truncated(limits, kind, image):
    encoded = saved(Image.fromarray(image), "jpeg", **KINDS_OF_JPEG[kind])
    assert decode(encoded, limits).shape == (200, 300)
    start = encoded.index(b"\xff\xda")
    for part in (0.1, 0.5, 0.9):
        end = start + int(part * (len(encoded) - start))
        cut = encoded[:end].rstrip(b"\xff") + b"\xff\xd9"
        with pytest.raises(CorruptImage, match="is truncated"):
            decode(cut, limits)


def test_small_jpeg_that_declares_64_megapixels_is_truncated_without_being_decoded(limits, lean):
    encoded = saved(Image.fromarray(WAVES[:64, :64]), "jpeg")
    frame = encoded.index(b"\xff\xc0")
    encoded = encoded[: frame + 5] + struct.pack(">HH", 7999, 7999) + encoded[frame + 9 :]
    with pytest.raises(CorruptImage, match="is truncated"):
        decode(encoded, limits)


@pytest.mark.parametrize("progressive", [False, True])
def test_whole_jpeg_that_is_grey_as_missing_data_is_read(limits, progressive):
    for image in (np.full((40, 56), 128, np.uint8), np.full((40, 56, 3), 128, np.uint8)):
        encoded = saved(Image.fromarray(image), "jpeg", progressive=progressive)
        assert (decode(encoded, limits).pixels == 128).all()


def test_tiff_of_a_million_strips_is_refused_at_once(limits):
    count = 1_000_000
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((count, 8), np.uint8), rowsperstrip=1, photometric="minisblack")
    started = time.process_time()
    with pytest.raises(CorruptImage, match="1000000 strips"):
        decode(file.getvalue(), limits)
    assert time.process_time() - started < 3
