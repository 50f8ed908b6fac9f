"""Arrays as PNG and NIfTI, against Pillow, imagecodecs and nibabel."""

import gzip
import io

import imagecodecs
import nibabel
import numpy as np
import pytest
from PIL import Image

from app import imaging
from tests.images import noise
from toposerve_client import files

GREY, RGB, DEEP = noise(21, 34), noise(21, 34, 3), noise(21, 34).astype(np.uint16) * 257


@pytest.mark.parametrize("pixels", [GREY, RGB, DEEP, GREY[:1], GREY[:, :1], GREY[::2, ::-3]])
def test_png_is_read_by_pillow_and_imagecodecs_as_it_was(pixels):
    content = files.to_png(pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    np.testing.assert_array_equal(imagecodecs.png_decode(content), pixels)
    np.testing.assert_array_equal(files.from_png(content), pixels)


@pytest.mark.parametrize("kind", ["NO", "NONE", "SUB", "UP", "AVG", "PAETH", "ALL"])
@pytest.mark.parametrize("pixels", [GREY, RGB, DEEP])
def test_every_filter_of_png_is_undone(pixels, kind):
    smooth = (np.cumsum(pixels.astype(np.int64), axis=1) // 7 % (np.iinfo(pixels.dtype).max + 1)).astype(pixels.dtype)
    content = imagecodecs.png_encode(smooth, filter=getattr(imagecodecs.PNG.FILTER, kind))
    np.testing.assert_array_equal(files.from_png(content), smooth)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (1, 5, 7)])
def test_nifti_is_read_by_nibabel_and_the_service_as_it_was(dtype, shape, tmp_path, make_settings):
    array = noise(*shape).astype(dtype)
    spacing = (0.5, 0.75, 2.0)[-len(shape) :]
    content = files.to_nifti(array, spacing)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    np.testing.assert_array_equal(image.get_fdata().T, array)
    assert image.header.get_zooms() == pytest.approx(spacing[::-1]) and image.get_data_dtype() == dtype
    picture = imaging.decode(content, make_settings())
    sides = shape[-2:] if shape[0] == 1 else shape  # the service takes a volume of one plane as an image
    assert picture.shape == sides and picture.spacing_mm == pytest.approx(spacing[-len(sides) :])
    np.testing.assert_array_equal(picture.pixels[0], array.reshape(sides))
    back = files.from_nifti(content)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (2, 3, 5, 7), (2, 1, 5, 7)])
def test_nifti_of_the_service_is_read(shape):
    array = noise(*shape).astype(np.float32) / 255
    np.testing.assert_array_equal(files.from_nifti(imaging.encode_nifti_gz(array)), array)


def test_arrays_go_in_the_form_that_keeps_every_number():
    for array in (GREY, RGB, DEEP):
        assert files.encoded(array).startswith(files.SIGNATURE)
    for array in (noise(3, 5, 7), GREY.astype(np.float32), GREY.astype(np.int16)):
        np.testing.assert_array_equal(files.from_nifti(files.encoded(array)), array)
    np.testing.assert_array_equal(files.decoded(files.encoded(GREY > 100)), (GREY > 100) * np.uint8(255))
    assert not files.encoded(GREY, (0.5, 0.5)).startswith(files.SIGNATURE)


def test_masks_of_any_integer_type_go_as_the_smallest():
    for dtype in (np.int64, np.uint64, np.int8):
        content = files.labels_of((GREY > 100).astype(dtype))
        np.testing.assert_array_equal(files.decoded(content), GREY > 100)
    assert files.decoded(files.labels_of(GREY.astype(np.int64) * 300)).max() == int(GREY.max()) * 300
    assert files.decoded(files.labels_of(GREY.astype(np.int64) - 300)).min() == int(GREY.min()) - 300


@pytest.mark.parametrize(
    ("image", "spacing_mm", "error", "said"),
    [
        (np.zeros(5, np.uint8), None, ValueError, r"shape \(5,\)"),
        (np.zeros((0, 5), np.uint8), None, ValueError, "no side of 0"),
        (np.zeros((5, 5), np.int64), None, ValueError, "int64"),
        (np.zeros((5, 5), complex), None, ValueError, "complex128"),
        (GREY, (1.0,), ValueError, "each of the 2 axes"),
        (GREY, (1.0, 0.0), ValueError, "above 0"),
        (RGB, (1.0, 1.0), ValueError, "RGB"),
        ("nowhere.png", None, FileNotFoundError, "no file nowhere.png"),
        ("nowhere.png", (1.0, 1.0), ValueError, "a file says its own"),
        ([[1, 2]], None, TypeError, "this is list"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_sent(image, spacing_mm, error, said):
    with pytest.raises(error, match=said):
        files.content_of(image, spacing_mm)


def test_other_bytes_are_refused_with_what_can_be_read():
    with pytest.raises(ValueError, match="neither PNG nor NIfTI"):
        files.decoded(b"GIF89a" + bytes(400))
    palette = io.BytesIO()
    Image.fromarray(GREY).convert("P").save(palette, "png")
    with pytest.raises(ValueError, match="colour type 3"):
        files.decoded(palette.getvalue())
