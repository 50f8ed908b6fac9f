"""DICOM is read as its files mean it: values, colours, places, series, segmentations; and refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut

from app.errors import (
    BadSeries,
    CorruptImage,
    EmptyImage,
    ExpandsTooLarge,
    IdentifyingPixels,
    ManyFrames,
    MaskMismatch,
    NoPixelData,
    Problem,
    TooManyPixels,
    UnsupportedColor,
    UnsupportedDepth,
    UnsupportedImage,
    UnsupportedTransferSyntax,
)
from app.imaging import decode, decode_labels, decode_mask, onto, read_header
from app.imaging.dicom.identity import cleaned
from tests.imaging.dicom_files import AXIAL, dataset, segmentation, slices, uid, written, zipped

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
COMPRESSED = (
    *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"),
    *("MR_small_implicit.dcm", "JPEG2000.dcm", "J2K_pixelrep_mismatch.dcm"),
    *("JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
    *("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_jpeg_no_color_transform.dcm", "image_dfl.dcm"),
    *("SC_rgb_rle_16bit.dcm", "SC_rgb_rle_2frame.dcm", "SC_ybr_full_422_uncompressed.dcm", "SC_rgb_jls_lossy_line.dcm"),
    *("examples_jpeg2k.dcm", "examples_palette.dcm", "examples_overlay.dcm", "CT_small.dcm", "rtdose_1frame.dcm"),
)
"""Files of many makers in pydicom's wheel, of every transfer syntax and colour model that is read."""
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
SLOPE = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7) - 60


@pytest.mark.parametrize("name", COMPRESSED)
def test_pixels_are_those_that_pydicom_reads(name, limits):
    content = (SAMPLES / name).read_bytes()
    found = pydicom.dcmread(io.BytesIO(content))
    expected = found.pixel_array
    if found.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, found)
    elif found.SamplesPerPixel == 1:
        expected = apply_modality_lut(expected, found)
    picture = decode(content, limits)
    pixels = np.moveaxis(picture.pixels, 0, -1)
    np.testing.assert_allclose(pixels if picture.channels > 1 else pixels[..., 0], expected, rtol=1e-6)
    assert read_header(content, limits).shape == picture.shape


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm"])
def test_pixels_are_those_that_dcmtk_reads(name, limits, tmp_path, dcmtk):
    """12 bits of JPEG and lossless JPEG, which pydicom's own plugins do not read."""
    dcmtk("dcmdjpeg", str(SAMPLES / name), str(tmp_path / "plain.dcm"))
    expected = pydicom.dcmread(tmp_path / "plain.dcm").pixel_array
    pixels = np.moveaxis(decode((SAMPLES / name).read_bytes(), limits).pixels, 0, -1)
    np.testing.assert_allclose(pixels.reshape(expected.shape).astype(int), expected, atol=1)


def test_a_file_that_is_tiff_and_dicom_is_dicom(limits):
    content = (SAMPLES / "CT_small.dcm").read_bytes()
    assert content.startswith(b"II*\0") and read_header(content, limits).format == "dicom"


@pytest.mark.parametrize(
    ("stored", "elements", "expected", "dtype"),
    [
        (
            [0, 1, 4095],
            {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"},
            [4095, 4094, 0],
            "uint16",
        ),
        (
            [0, 1024, 4095],
            {"BitsStored": 12, "HighBit": 11, "RescaleSlope": 1, "RescaleIntercept": -1024},
            [-1024, 0, 3071],
            "int16",
        ),
        ([0, 10, 20], {"RescaleSlope": 0.5, "RescaleIntercept": 1}, [1, 6, 11], "float32"),
        (
            [0, 10, 20],
            {"RescaleSlope": 2, "RescaleIntercept": 0, "PhotometricInterpretation": "MONOCHROME1"},
            [0, 20, 40],
            "uint32",
        ),
        ([0, 0xF001, 0x0FFF], {"BitsStored": 12, "HighBit": 11}, [0, 1, 0x0FFF], "uint16"),
    ],
    ids=["white is low", "Hounsfield", "fractions", "white is low, measured", "unused bits"],
)
def test_stored_values_become_what_they_mean(stored, elements, expected, dtype, limits):
    content = written(dataset(np.array([stored], np.uint16), **elements))
    assert read_header(content, limits).dtype == dtype
    assert decode(content, limits).pixels[0, 0].tolist() == expected


def test_signed_values_of_10_bits_are_read(limits):
    stored = np.array([[-512, -1, 0, 511]], np.int16)
    content = written(dataset(stored & 0x03FF, BitsStored=10, HighBit=9, PixelRepresentation=1))
    assert decode(content, limits).pixels[0].tolist() == stored.tolist()


def test_a_mask_keeps_its_stored_numbers(limits):
    content = written(dataset(np.array([[0, 1, 2]], np.uint8), PhotometricInterpretation="MONOCHROME1", RescaleSlope=3))
    assert decode_mask(content, limits).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("order", [1, -1])
def test_every_voxel_of_a_series_lies_where_its_file_says(directions, order, limits):
    files = slices(SLOPE, directions=directions)
    picture = decode(zipped(files[::order]), limits)
    assert picture.spacing_mm == pytest.approx((2.5, 0.8, 0.6)) and picture.pixels.dtype == np.int16
    np.testing.assert_array_equal(picture.pixels[0], SLOPE)
    for plane, file in enumerate(files):
        for row, column in ((0, 0), (5, 0), (2, 6)):
            along, down = np.array(file.ImageOrientationPatient).reshape(2, 3)
            left, back, up = np.array(file.ImagePositionPatient) + 0.6 * column * along + 0.8 * row * down
            here = picture.affine @ (column, row, plane, 1)
            np.testing.assert_allclose(here[:3], (-left, -back, up), atol=1e-4)


def test_one_slice_is_an_image_with_its_place(limits):
    picture = decode(written(slices(SLOPE)[0]), limits)
    assert picture.shape == (6, 7) and picture.spacing_mm == (0.8, 0.6)
    np.testing.assert_allclose(picture.affine[:3, 3], (10, 20, 30))


def test_junk_in_the_archive_is_left_aside_and_copies_count_once(limits):
    files = slices(SLOPE)
    directory = (SAMPLES / "dicomdirtests" / "DICOMDIR").read_bytes()
    archive = {"DICOMDIR": directory, "README.TXT": b"hello", "a": files[0], "copy of a": files[0]}
    archive |= {f"SE1/{number}": file for number, file in enumerate(files[1:])}
    np.testing.assert_array_equal(decode(zipped(archive), limits).pixels[0], SLOPE)
    into = io.BytesIO()
    said = cleaned(io.BytesIO(zipped(archive)), into, keep=False)
    assert "1 files of the archive came twice" in said[0] and "2 files" in said[1]


def test_each_slice_has_its_own_slope(limits):
    files = slices(SLOPE)
    for number, file in enumerate(files):
        file.RescaleSlope, file.RescaleIntercept = 1 + number / 2, 0
    expected = SLOPE * (1 + np.arange(5) / 2)[:, None, None]
    np.testing.assert_allclose(decode(zipped(files), limits).pixels[0], expected)


def changed(number: int, **elements):
    files = slices(SLOPE)
    for name, value in elements.items():
        setattr(files[number], name, value)
    return files


NOT_ONE_SERIES = {
    "a missing slice": ([*slices(SLOPE)[:2], *slices(SLOPE)[3:]], "1 slices are missing"),
    "two series": ([*slices(SLOPE), *slices(SLOPE, series="another")], "2 series"),
    "two orientations": (changed(2, ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, -1.0]), "than one orientation"),
    "two phases": (
        [*slices(SLOPE), *[changed(n, SOPInstanceUID=uid("late", str(n)))[n] for n in range(5)]],
        "2 images at each of 5",
    ),
    "a doubled slice": ([*slices(SLOPE), changed(1, SOPInstanceUID=uid("again"))[1]], "same position"),
    "two sizes": ([*slices(SLOPE)[:4], slices(np.zeros((5, 8, 8), np.int16))[4]], "size"),
    "uneven planes": (changed(4, ImagePositionPatient=[-10.0, -20.0, 40.9]), "unevenly"),
    "a tilted gantry": (
        [changed(n, ImagePositionPatient=[-10.0, -20.0 + 0.5 * n, 30 + 2.5 * n])[n] for n in range(5)],
        "shifted sideways",
    ),
    "no places": ([changed(n, ImagePositionPatient=None)[n] for n in range(5)], "do not say where"),
    "two spacings": (changed(3, PixelSpacing=[1.0, 1.0]), "pixel spacings"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_ONE_SERIES)
def test_what_is_no_stack_of_planes_is_refused_with_the_reason(case, limits):
    files, reason = NOT_ONE_SERIES[case]
    for function in (read_header, decode):
        with pytest.raises(BadSeries, match=reason):
            function(zipped(files), limits)


def meta_of(content: bytes) -> int:
    """Where the data set of a file begins."""
    return 132 + 12 + struct.unpack("<I", content[140:144])[0]


def deflated_bomb() -> bytes:
    content = written(dataset(SLOPE[0], syntax="1.2.840.10008.1.2.1.99"))
    return content[: meta_of(content)] + zlib.compress(bytes(700_000_000), 9, wbits=-15)


def patched(**elements) -> bytes:
    return written(dataset(SLOPE[0].astype(np.uint16), **elements))


def nested(depth: int) -> bytes:
    content = patched()
    items = struct.pack("<HH2sHI", 0x0008, 0x1111, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return content[: meta_of(content)] + items * depth


HOSTILE = {
    "deflated to 700 MB": (deflated_bomb, ExpandsTooLarge),
    "no columns": (lambda: patched(Columns=0), EmptyImage),
    "no frames": (lambda: patched(NumberOfFrames=0), EmptyImage),
    "-3 frames": (lambda: patched(NumberOfFrames=-3), CorruptImage),
    "2^31 frames": (lambda: patched(NumberOfFrames=2**31 - 1), ManyFrames),
    "60 000 frames of 65 535": (lambda: patched(NumberOfFrames=60_000, Rows=65535, Columns=65535), TooManyPixels),
    "larger than its data": (lambda: patched(Rows=512), CorruptImage),
    "17 of 16 bits": (lambda: patched(BitsStored=17), UnsupportedDepth),
    "24 bits": (lambda: patched(BitsAllocated=24), UnsupportedDepth),
    "255 samples": (lambda: patched(SamplesPerPixel=255), UnsupportedColor),
    "CMYK": (lambda: patched(PhotometricInterpretation="CMYK", SamplesPerPixel=4), UnsupportedColor),
    "slope of no number": (lambda: patched(RescaleSlope=1.25).replace(b"1.25", b"one "), CorruptImage),
    "a private syntax": (
        lambda: patched().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"),
        UnsupportedTransferSyntax,
    ),
    "5000 nested sequences": (lambda: nested(5000), CorruptImage),
    "a report": ((SAMPLES / "test-SR.dcm").read_bytes, NoPixelData),
    "an ECG": ((SAMPLES / "waveform_ecg.dcm").read_bytes, NoPixelData),
    "a film": ((SAMPLES / "examples_ybr_color.dcm").read_bytes, ManyFrames),
    "a directory": ((SAMPLES / "dicomdirtests" / "DICOMDIR").read_bytes, UnsupportedImage),
    "unknown syntax": ((SAMPLES / "meta_missing_tsyntax.dcm").read_bytes, UnsupportedTransferSyntax),
    "cut short": (lambda: patched()[:-20], CorruptImage),
    "a zip without DICOM": (lambda: zipped({"a.txt": b"hello"}), UnsupportedImage),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused(case, limits):
    make, problem = HOSTILE[case]
    content = make()
    with pytest.raises(problem):
        decode(content, limits)
    try:
        clean = cleaned_bytes(content)
    except problem:
        return
    with pytest.raises(problem):  # what the door lets in is refused behind it
        decode(clean, limits)


def cleaned_bytes(content: bytes, *, keep: bool = False) -> bytes:
    into = io.BytesIO()
    cleaned(io.BytesIO(content), into, keep=keep)
    return into.getvalue()


def test_files_cut_short_anywhere_are_refused_or_read_whole(limits):
    content = (SAMPLES / "MR_small_RLE.dcm").read_bytes()
    whole = decode(content, limits).pixels
    read = 0
    for end in range(140, len(content), 97):
        try:
            np.testing.assert_array_equal(decode(content[:end], limits).pixels, whole)
            read += 1
        except Problem:
            continue
    assert read <= 1, "only the padding behind the pixels may be missing"


@pytest.mark.parametrize("name", [*COMPRESSED[:6], "liver_1frame.dcm"])
def test_what_is_cleaned_has_the_same_pixels_and_is_the_same_every_time(name, limits):
    content = (SAMPLES / name).read_bytes()
    once = cleaned_bytes(content)
    np.testing.assert_array_equal(decode(once, limits).pixels, decode(content, limits).pixels)
    assert cleaned_bytes(once) == once == cleaned_bytes(content)


def test_identities_are_taken_out_wherever_they_stand():
    planted = "Planted^Patient"
    found = dataset(SLOPE[0], PatientName=planted, PatientID=planted, InstitutionName=planted, StudyDescription=planted)
    found.PatientComments = found.OperatorsName = found.ImageComments = found.DeviceSerialNumber = planted
    found.StudyDate, found.PatientBirthDate, found.AccessionNumber = "20010203", "19560708", "A-1234"
    block = found.private_block(0x0009, planted, create=True)
    block.add_new(1, "LO", planted)
    item = pydicom.Dataset()
    item.PatientName = item.ImageComments = planted
    item.RescaleSlope = 1
    found.PerFrameFunctionalGroupsSequence = [item]
    found.file_meta.SourceApplicationEntityTitle = planted[:16]
    found.preamble = (planted.encode() * 9)[:128]
    content = written(found)
    made = cleaned_bytes(content)
    for trace in (b"Planted", b"20010203", b"19560708", b"A-1234"):
        assert trace in content and trace not in made
    clean = pydicom.dcmread(io.BytesIO(made))
    assert clean.PatientIdentityRemoved == "YES" and clean.PatientName == "" and clean.StudyInstanceUID == uid("study")
    kept = pydicom.dcmread(io.BytesIO(cleaned_bytes(content, keep=True)))
    assert kept.PatientName == planted and "InstitutionName" not in kept and "PatientIdentityRemoved" not in kept


def test_text_burned_into_pixels_is_refused():
    content = written(dataset(SLOPE[0], BurnedInAnnotation="YES"))
    with pytest.raises(IdentifyingPixels, match="Blank the text"):
        cleaned_bytes(content)
    assert cleaned_bytes(content, keep=True)


LABELS = np.zeros((5, 6, 7), np.uint8)
LABELS[1, 2, 3] = LABELS[3, 4, 1:4] = 1
LABELS[3, 1, 1:5] = 2


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_a_segmentation_is_read_on_the_grid_of_its_image(kind, directions, limits):
    files = slices(SLOPE, directions=directions)
    content = segmentation(files[::-1], LABELS[::-1], kind)
    image = decode(zipped(files), limits)
    read = decode_labels(content, limits)
    assert read.sparse
    np.testing.assert_array_equal(onto(read, image).pixels[0], LABELS)
    np.testing.assert_array_equal(onto(decode_labels(cleaned_bytes(content), limits), image).pixels[0], LABELS)


def test_a_segmentation_of_another_scan_is_refused(limits):
    image = decode(zipped(slices(SLOPE, origin=(0.0, 0.0, 3.0))), limits)
    content = segmentation(slices(SLOPE), LABELS, "BINARY")
    with pytest.raises(MaskMismatch):
        onto(decode_labels(content, limits), image)
