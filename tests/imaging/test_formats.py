"""Image formats read pixel for pixel as reference libraries read them.

One file, though long, because every format is held to the same table of cases.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from app import imaging
from app.errors import BadAffine, Invalid, UnsupportedColor, UnsupportedDtype
from app.imaging import (
    decode,
    decode_mask,
    encode_nifti_gz,
    encode_png,
    encode_tiff,
    preview_png,
    read_header,
    sniff,
)
from app.imaging.exif import upright
from tests.imaging.crafted_files import chunk, exif, gzipped, nifti, png

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (13, 17), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (13, 17), dtype=np.uint16)


def saved(image: Image.Image, format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tif(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


# What comes out -----------------------------------------------------------------------------------------------------

SAVED_BY_OTHERS = {
    "8-bit grey PNG": (saved(Image.fromarray(GREY)), GREY),
    "16-bit grey PNG": (saved(Image.fromarray(DEEP)), DEEP),
    "RGB PNG": (saved(Image.fromarray(COLOR)), COLOR),
    "interlaced PNG": (png(1, 1, rows=b"\0\x07"), np.array([[7]], np.uint8)),
    "grey JPEG": (
        saved(Image.fromarray(GREY), "jpeg"),
        np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(GREY), "jpeg")))),
    ),
    "RGB JPEG": (
        saved(Image.fromarray(COLOR), "jpeg"),
        np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(COLOR), "jpeg")))),
    ),
    "progressive JPEG": (
        saved(Image.fromarray(COLOR), "jpeg", progressive=True),
        np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(COLOR), "jpeg", progressive=True)))),
    ),
    "uint8 TIFF": (tif(GREY), GREY),
    "uint16 TIFF": (tif(DEEP), DEEP),
    "int16 TIFF": (
        tif((DEEP.astype(np.int32) - 32768).astype(np.int16)),
        (DEEP.astype(np.int32) - 32768).astype(np.int16),
    ),
    "float32 TIFF in [0, 1]": (tif((DEEP / 65535).astype(np.float32)), (DEEP / 65535).astype(np.float32)),
    "RGB TIFF": (tif(COLOR, photometric="rgb"), COLOR),
    "planar RGB TIFF": (
        tif(np.ascontiguousarray(np.moveaxis(COLOR, -1, 0)), photometric="rgb", planarconfig="separate"),
        COLOR,
    ),
    "16-bit RGB TIFF": (tif(np.dstack([DEEP] * 3), photometric="rgb"), np.dstack([DEEP] * 3)),
    "big-endian TIFF": (tif(DEEP, byteorder=">"), DEEP),
    "BigTIFF": (tif(DEEP, bigtiff=True), DEEP),
    "tiled deflated TIFF": (
        tif(np.tile(DEEP, (4, 5)), tile=(16, 16), compression="zlib", predictor=True),
        np.tile(DEEP, (4, 5)),
    ),
    "LZW TIFF": (tif(GREY, compression="lzw"), GREY),
    "PackBits TIFF": (tif(GREY, compression="packbits"), GREY),
    "Zstandard TIFF": (tif(GREY, compression="zstd"), GREY),
    "five-channel TIFF": (
        tif(np.stack([GREY] * 5, -1), photometric="minisblack", planarconfig="contig"),
        np.stack([GREY] * 5, -1),
    ),
}


@pytest.mark.parametrize("kind", SAVED_BY_OTHERS)
def test_pixels_equal_those_of_the_reference_library(kind, limits):
    encoded, expected = SAVED_BY_OTHERS[kind]
    picture = decode(encoded, limits)
    assert picture.pixels.dtype == expected.dtype
    assert picture.pixels.flags.c_contiguous
    np.testing.assert_array_equal(picture.pixels, channels_first(expected))
    header = read_header(encoded, limits)
    assert (header.shape, header.channels, header.dtype) == (picture.shape, picture.channels, picture.pixels.dtype.name)


def test_interlaced_png_is_read_completely(limits):
    """Pillow cannot write Adam7, so one is written by hand: 2 x 2 pixels arrive in passes 1, 6 and 7."""
    passes = b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28"
    encoded = bytearray(png(2, 2, rows=passes))
    interlaced = png(2, 2, rows=passes).replace(encoded[12:29], b"IHDR" + bytes(encoded[16:28]) + b"\1")
    fixed = interlaced[:8] + chunk(b"IHDR", interlaced[16:29]) + interlaced[33:]
    np.testing.assert_array_equal(decode(fixed, limits).pixels[0], [[10, 20], [30, 40]])


def test_16_bit_rgb_png_keeps_its_depth_where_pillow_cuts_it(limits):
    deep = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
    encoded = encode_png(deep)
    np.testing.assert_array_equal(decode(encoded, limits).pixels, deep)
    assert np.asarray(Image.open(io.BytesIO(encoded))).dtype == np.uint8


def test_palette_image_becomes_rgb_and_palette_mask_its_indices(limits):
    palette = Image.fromarray(COLOR).quantize(7)
    for format in ("png", "tiff"):
        encoded = saved(palette, format)
        np.testing.assert_array_equal(
            decode(encoded, limits).pixels, channels_first(np.asarray(palette.convert("RGB")))
        )
        np.testing.assert_array_equal(decode_mask(encoded, limits), np.asarray(palette))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_low_bit_grey_is_scaled_in_images_and_kept_in_masks(bits, limits):
    levels = np.arange(2**bits)
    packed = np.packbits(((levels[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).reshape(-1)).tobytes()
    encoded = png(2**bits, 1, depth=bits, rows=b"\0" + packed)
    np.testing.assert_array_equal(decode(encoded, limits).pixels[0, 0], levels * 255 // (2**bits - 1))
    np.testing.assert_array_equal(decode_mask(encoded, limits)[0], levels * 255 if bits == 1 else levels)


def test_a_one_bit_palette_mask_gives_its_indexes(limits):
    encoded = png(2, 1, depth=1, color=3, rows=b"\0\x40", before=chunk(b"PLTE", bytes([9, 9, 9, 200, 0, 0])))
    np.testing.assert_array_equal(decode_mask(encoded, limits), [[0, 1]])
    np.testing.assert_array_equal(decode(encoded, limits).pixels[:, 0], [[9, 200], [9, 0], [9, 0]])


def test_one_bit_images_become_0_and_255(limits):
    mask = GREY > 127
    for encoded in (
        saved(Image.fromarray(mask)),
        saved(Image.fromarray(mask), "tiff"),
        tif(mask, photometric="minisblack"),
    ):
        np.testing.assert_array_equal(decode(encoded, limits).pixels[0], mask * np.uint8(255))
        np.testing.assert_array_equal(decode_mask(encoded, limits), mask * np.uint8(255))


def test_white_is_zero_is_inverted_in_images_and_kept_in_masks(limits):
    encoded = tif(GREY, photometric="miniswhite")
    np.testing.assert_array_equal(decode(encoded, limits).pixels[0], 255 - GREY)
    np.testing.assert_array_equal(decode_mask(encoded, limits), GREY)


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_constant_alpha_is_dropped_and_varying_alpha_refused(mode, format, limits):
    image = Image.fromarray(COLOR).convert(mode)
    expected = np.asarray(image)[..., : len(mode) - 1]
    np.testing.assert_array_equal(decode(saved(image, format), limits).pixels, np.moveaxis(expected, -1, 0))
    assert read_header(saved(image, format), limits).channels == len(mode) - 1
    image.putpixel((3, 3), (*image.getpixel((3, 3))[:-1], 0))
    with pytest.raises(UnsupportedColor, match="transparency"):
        decode(saved(image, format), limits)


def test_a_transparent_colour_counts_as_alpha(limits):
    flat = np.full((4, 4), 9, np.uint8)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(flat), transparency=200), limits).pixels[0], flat)
    with pytest.raises(UnsupportedColor):
        decode(saved(Image.fromarray(GREY), transparency=int(GREY[0, 0])), limits)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_applies_it(orientation, limits):
    from PIL import ImageOps

    gradient = np.add.outer(np.arange(16) * 4, np.arange(24) * 2).astype(np.uint8)
    tag = Image.Exif()
    tag[0x0112] = orientation
    for format in ("jpeg", "png", "tiff"):
        encoded = saved(Image.fromarray(gradient), format, exif=tag)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
        assert read_header(encoded, limits).shape == expected.shape
        np.testing.assert_array_equal(decode(encoded, limits).pixels[0], expected)


def test_damaged_exif_block_is_ignored(limits):
    for block in (b"", b"II*\0", exif(9), exif(0), b"XX" + exif(6)[2:], exif(6)[:12]):
        np.testing.assert_array_equal(decode(_with_exif(block), limits).pixels[0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(decode(_with_exif(exif(6)), limits).pixels[0], upright(np.array([[1, 2], [3, 4]]), 6))


def _with_exif(block: bytes) -> bytes:
    return png(2, 2, rows=b"\0\1\2\0\3\4", before=chunk(b"eXIf", block))


# NIfTI --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_a_volume_is_nibabels_array_with_its_axes_reversed(dtype, limits, tmp_path):
    stored = RNG.integers(0, 200, (5, 4, 3)).astype(dtype)
    affine = np.array([[-0.5, 0, 0, 10], [0, 0.7, 0.1, -4], [0, 0, 3, 7], [0, 0, 0, 1]])
    for end in (".nii", ".nii.gz"):
        path = tmp_path / f"volume{end}"
        nibabel.save(nibabel.Nifti1Image(stored, affine), path)
        picture = decode(path, limits)
        np.testing.assert_array_equal(picture.pixels[0], stored.transpose(2, 1, 0))
        assert picture.pixels.dtype == dtype
        np.testing.assert_allclose(picture.affine, affine, atol=1e-6)
        np.testing.assert_allclose(picture.spacing_mm, nibabel.load(path).header.get_zooms()[::-1], rtol=1e-6)


def test_nifti_slope_is_applied_as_in_nibabel(limits):
    encoded = nifti((3, 2, 2), bytes(range(12)), slope=0.5, inter=-3)
    expected = nibabel.Nifti1Image.from_bytes(encoded).get_fdata().transpose(2, 1, 0)
    picture = decode(encoded, limits)
    assert picture.pixels.dtype == np.float32
    np.testing.assert_allclose(picture.pixels[0], expected)


def test_nifti_2_and_big_endian_are_read(limits):
    stored = RNG.integers(0, 200, (5, 4, 3)).astype(np.int16)
    second = nibabel.Nifti2Image(stored, np.eye(4)).to_bytes()
    swapped = nibabel.Nifti1Image(stored, np.eye(4))
    swapped = nibabel.Nifti1Image(stored, np.eye(4), header=swapped.header.as_byteswapped(">")).to_bytes()
    for encoded in (second, gzipped(second), swapped, gzipped(swapped)):
        picture = decode(encoded, limits)
        np.testing.assert_array_equal(picture.pixels[0], stored.transpose(2, 1, 0))
        assert picture.pixels.dtype == np.int16 and picture.pixels.dtype.isnative


def test_spacing_and_affine_are_converted_to_millimetres(limits):
    sform = ((2, 0, 0, 5), (0, 3, 0, 0), (0, 0, 4, 0))
    metres, microns = (decode(nifti(pixdim=(2, 3, 4), sform=sform, units=unit), limits) for unit in (1, 3))
    assert metres.spacing_mm == (4000, 3000, 2000)
    assert metres.affine[0, 3] == 5000 and metres.affine[3].tolist() == [0, 0, 0, 1]
    assert microns.spacing_mm == pytest.approx((0.004, 0.003, 0.002))


def test_affine_comes_from_qform_or_from_spacing(limits):
    turned = decode(nifti(sform=None, qform=(0, 0, 1, 1, 2, 3), pixdim=(2, 3, 4)), limits)
    np.testing.assert_allclose(turned.affine, [[-2, 0, 0, 1], [0, -3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]], atol=1e-6)
    assert abs(np.linalg.det(decode(nifti(sform=None, pixdim=(2, 3, 4)), limits).affine)) == pytest.approx(24)
    with pytest.raises(BadAffine, match="quatern"):
        decode(nifti(sform=None, qform=(1, 1, 1, 0, 0, 0)), limits)


def test_trailing_axes_of_length_one_are_dropped(limits):
    assert decode(nifti((4, 3), bytes(range(12))), limits).pixels.shape == (1, 3, 4)
    assert decode(nifti((4, 3, 2, 1, 1, 1, 1)), limits).pixels.shape == (1, 2, 3, 4)
    assert decode(nifti((4, 3, 1)), limits).pixels.shape == (1, 3, 4), "one slice is an image"
    assert read_header(nifti((4, 3, 2, 1, 5)), limits).channels == 5


# Types --------------------------------------------------------------------------------------------------------------


def test_wide_types_become_the_first_type_that_holds_them_exactly(limits):
    cases = [
        (np.array([[0, 255]], np.int32), "uint8"),
        (np.array([[0, 256]], np.uint32), "uint16"),
        (np.array([[-1, 256]], np.int32), "int16"),
        (np.array([[-1, 70000]], np.int32), "float32"),
        (np.array([[-5, 5]], np.int8), "int16"),
        (np.array([[0.5, 2]], np.float64), "float32"),
        (np.array([[0.5, 2]], np.float16), "float32"),
        (np.array([[2**24 + 2, -70000]], np.int32), "float32"),
    ]
    for pixels, dtype in cases:
        picture = decode(tif(pixels), limits)
        assert picture.pixels.dtype == dtype
        np.testing.assert_array_equal(picture.pixels[0], pixels)
    with pytest.raises(UnsupportedDtype, match="16777217"):
        decode(tif(np.array([[-70000, 2**24 + 1]], np.int32)), limits)


def test_float_mask_of_whole_numbers_becomes_integers(limits):
    labels = np.array([[0, 1, 2], [255, 3, 0]])
    for dtype in ("uint8", "int16", "int32", "uint32", "int64", "float32", "float64"):
        for encoded in (tif(labels.astype(dtype)), encode_nifti_gz(labels.astype(dtype))):
            mask = decode_mask(encoded, limits)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, labels)
    assert decode_mask(tif(labels.astype(np.int32) - 5), limits).dtype == np.int16
    assert decode_mask(tif(labels.astype(np.int32) * 1000), limits).dtype == np.int32


def test_rgb_mask_with_equal_channels_becomes_one_channel(limits):
    np.testing.assert_array_equal(decode_mask(saved(Image.fromarray(np.dstack([GREY] * 3))), limits), GREY)


# Writing ------------------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(["uint8", "uint16", "int16", "float32"])


def images(dtypes, shapes):
    finite = {"allow_nan": False, "allow_infinity": False}
    return dtypes.flatmap(
        lambda dtype: arrays.arrays(dtype, shapes, elements=arrays.from_dtype(np.dtype(dtype), **finite))
    )


@pytest.mark.parametrize(("encode", "most_dimensions"), [(encode_tiff, 3), (encode_nifti_gz, 4)])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiff_and_nifti_round_trips_are_exact(encode, most_dimensions, data):
    from app.settings import Settings

    pixels = data.draw(images(DTYPES, arrays.array_shapes(min_dims=2, max_dims=most_dimensions, max_side=7)))
    picture = decode(encode(pixels), Settings())
    assert picture.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(picture.pixels, pixels.reshape(picture.pixels.shape))


@settings(max_examples=60, deadline=None)
@given(
    images(
        st.sampled_from(["uint8", "uint16"]), st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
    ),
    st.integers(0, 9),
)
def test_png_round_trip_is_exact_at_every_compression_level(pixels, level):
    from app.settings import Settings

    encoded = encode_png(pixels, level)
    np.testing.assert_array_equal(decode(encoded, Settings()).pixels, pixels)
    if pixels.dtype == np.uint8:
        np.testing.assert_array_equal(channels_first(np.asarray(Image.open(io.BytesIO(encoded)))), pixels)


def test_a_mask_is_written_as_0_and_255_and_other_types_are_refused(limits):
    mask = GREY > 99
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(mask)))), mask * 255)
    np.testing.assert_array_equal(decode(encode_nifti_gz(np.stack([mask] * 2)), limits).pixels[0, 1], mask)
    np.testing.assert_array_equal(decode_mask(encode_tiff(mask), limits), mask * 255)
    for pixels in (GREY.astype(np.float32), np.stack([GREY] * 2), GREY.astype(np.int16)):
        with pytest.raises(UnsupportedDtype, match="Ask for TIFF"):
            encode_png(pixels)


def test_written_files_contain_no_timestamp():
    assert encode_nifti_gz(GREY) == encode_nifti_gz(GREY.copy())
    assert encode_nifti_gz(GREY)[4:8] == bytes(4)  # gzip's time stamp
    assert encode_tiff(GREY) == encode_tiff(GREY.copy())
    assert encode_png(GREY[:, ::-1]) == encode_png(GREY[:, ::-1].copy())


def test_geometry_survives_reading_and_writing(limits):
    affine = np.array([[0.0, 0, 2, 1], [-0.5, 0, 0, 2], [0, 0.5, 0, 3], [0, 0, 0, 1]])
    picture = decode(encode_nifti_gz(np.zeros((4, 5, 6), np.float32), affine), limits)
    np.testing.assert_allclose(picture.affine, affine)
    assert picture.spacing_mm == (2.0, 0.5, 0.5)


# Previews -----------------------------------------------------------------------------------------------------------


def seen(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def test_preview_of_an_8_bit_image_is_the_image(limits):
    np.testing.assert_array_equal(seen(preview_png(decode(saved(Image.fromarray(COLOR)), limits))), COLOR)


def test_single_bright_pixel_does_not_darken_a_preview(limits):
    pixels = np.linspace(100, 200, 40 * 50).reshape(40, 50).astype(np.float32)
    pixels[3, 3] = 1e9
    shown = seen(preview_png(decode(tif(pixels), limits)))
    assert shown.min() == 0 and shown.max() == 255 and 100 < np.median(shown) < 155


def test_constant_image_has_a_preview(limits):
    assert seen(preview_png(decode(tif(np.full((4, 4), 7.0, np.float32)), limits))).shape == (4, 4)
    spike = np.zeros((40, 50), np.float32)
    spike[3, 3] = 5
    assert seen(preview_png(decode(tif(spike), limits))).max() == 255


def test_a_preview_shows_the_plane_that_is_asked_for(limits):
    volume = decode(encode_nifti_gz(np.stack([np.full((4, 5), value, np.uint8) for value in (10, 20, 30)])), limits)
    assert [int(seen(preview_png(volume, plane=plane))[0, 0]) for plane in (None, 0, 2)] == [20, 10, 30]
    for plane in (-1, 3):
        with pytest.raises(Invalid, match="planes 0 to 2"):
            preview_png(volume, plane=plane)


def test_a_large_image_is_shrunk_to_the_side_that_is_asked_for(limits):
    picture = decode(saved(Image.fromarray(np.tile(COLOR, (10, 20, 1)))), limits)
    assert seen(preview_png(picture, max_side=100)).shape == (38, 100, 3)
    assert seen(preview_png(picture)).shape == (130, 340, 3)


# Kinds --------------------------------------------------------------------------------------------------------------


def test_formats_are_recognised_by_their_bytes(limits):
    expected = {
        "png": SAVED_BY_OTHERS["RGB PNG"][0],
        "jpeg": SAVED_BY_OTHERS["RGB JPEG"][0],
        "tiff": SAVED_BY_OTHERS["BigTIFF"][0],
        "nifti": nifti(),
        "nifti_gz": gzipped(nifti()),
    }
    for format, encoded in expected.items():
        assert sniff(encoded).name == format == read_header(encoded, limits).format


def test_bytes_files_and_streams_are_read_alike(limits, tmp_path):
    path = tmp_path / "image.bin"
    path.write_bytes(saved(Image.fromarray(GREY)))
    with path.open("rb") as stream:
        for source in (path, path.read_bytes(), stream):
            np.testing.assert_array_equal(decode(source, limits).pixels[0], GREY)
        assert not stream.closed


def test_importing_the_decoder_loads_only_numpy():
    heavy = "PIL tifffile imagecodecs nibabel scipy numba topology torch"
    code = f"import sys, app.imaging; print([name for name in {heavy.split()} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_public_name_exists():
    assert all(hasattr(imaging, name) for name in imaging.__all__)


# Real files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["isbi12", "topomortar", "chase_db1", "dsb2018", "axon_sem"])
def test_real_images_and_masks_equal_pillows(name, data, limits):
    for folder in ("images", "masks"):
        for path in sorted((data(name) / folder).iterdir())[:2]:
            expected = np.asarray(Image.open(path))
            np.testing.assert_array_equal(decode(path, limits).pixels, channels_first(expected))
            if folder == "masks":
                np.testing.assert_array_equal(decode_mask(path, limits), expected)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("msd_hippocampus", "images"),
        ("msd_hippocampus", "masks"),
        ("sunnybrook_lv", "volumes"),
        ("sunnybrook_lv", "volume_masks"),
    ],
)
def test_real_volumes_equal_nibabels(name, folder, data, limits):
    for path in sorted((data(name) / folder).glob("*.nii.gz"))[:2]:
        reference = nibabel.load(path)
        picture = decode(path, limits)
        np.testing.assert_array_equal(picture.pixels[0], np.asanyarray(reference.dataobj).transpose(2, 1, 0))
        np.testing.assert_allclose(picture.affine, reference.affine)


def test_a_real_instance_mask_keeps_its_16_bits(data, limits):
    path = min((data("dsb2018") / "masks_instance").iterdir())
    np.testing.assert_array_equal(decode_mask(path, limits), np.asarray(Image.open(path)))


def test_a_volume_is_written_slice_by_slice(limits):
    volume = np.repeat(np.arange(64, dtype=np.uint8), 4 * 128 * 128).reshape(256, 128, 128)
    encode_nifti_gz(volume[:1])
    tracemalloc.start()
    try:
        encoded, peak = encode_nifti_gz(volume), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.3 * volume.nbytes
    np.testing.assert_array_equal(decode(encoded, limits).pixels[0], volume)


def test_picture_without_pixels_keeps_metadata_and_frees_memory(limits):
    picture = decode(encode_nifti_gz(np.stack([GREY] * 3), np.diag([0.5, 1.0, 2.0, 1.0])), limits)
    bare = picture.without_pixels()
    assert (bare.shape, bare.channels, bare.pixels.dtype, bare.spacing_mm) == (
        picture.shape,
        picture.channels,
        picture.pixels.dtype,
        picture.spacing_mm,
    )
    assert not bare.pixels.any() and set(bare.pixels.strides) == {0} and picture.pixels.any()
