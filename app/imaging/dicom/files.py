"""Opens DICOM files with pydicom, within limits, and says what is wrong with the others.

pydicom raises a dozen unrelated classes on hostile bytes and logs what it finds in callers' files, so it is imported
here only: silent, lenient where a value breaks a rule of style, and every error one of ours.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from app.errors import CorruptImage, ExpandsTooLarge, NoPixelData, Problem, UnsupportedImage, UnsupportedTransferSyntax

PREAMBLE, MAGIC = 128, b"DICM"
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR, which names other files."""
DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
JPEG, JPEG_LOSSLESS = (_JPEG + "50", _JPEG + "51"), (_JPEG + "57", _JPEG + "70")
JPEG_LS, JPEG_2000 = (_JPEG + "80", _JPEG + "81"), (_JPEG + "90", _JPEG + "91")
HTJ2K = (_JPEG + "201", _JPEG + "202", _JPEG + "203")
SYNTAXES = {
    **dict.fromkeys((IMPLICIT, EXPLICIT, BIG_ENDIAN), "uncompressed"),
    DEFLATED: "deflated",
    RLE: "RLE",
    **dict.fromkeys(JPEG, "JPEG"),
    **dict.fromkeys(JPEG_LOSSLESS, "lossless JPEG"),
    **dict.fromkeys(JPEG_LS, "JPEG-LS"),
    **dict.fromkeys(JPEG_2000, "JPEG 2000"),
    **dict.fromkeys(HTJ2K, "High-Throughput JPEG 2000"),
}
"""The transfer syntaxes that are read, in words."""
MOST_INFLATED = 512 * 1024 * 1024
"""Bytes that a deflated file may have once inflated."""
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PIXEL_GROUP = 0x7FE0


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM."""
    return head[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def pydicom() -> Any:
    """The library, made silent and lenient."""
    import pydicom

    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    return pydicom


@contextmanager
def explained() -> Iterator[None]:
    """Whatever goes wrong with a file inside becomes a problem of that file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Problem, MemoryError):
        raise
    except Exception as error:
        raise CorruptImage(
            "The DICOM file cannot be read: it is damaged or cut short. Export it again and send it whole."
        ) from error


def opened(stream: BinaryIO, *, pixels: bool, tags: Sequence[str] = ()) -> Any:
    """The dataset of a file, with its meta header in `file_meta`.

    pixels  whether the pixel data are read as well
    tags    keywords of the elements that are read; none: all of them
    Raises UnsupportedImage (a directory), UnsupportedTransferSyntax, NoPixelData, ExpandsTooLarge and CorruptImage.
    """
    with explained():
        found, body = _parsed(stream, pixels, tags)
        has_pixels = any(name in found for name in PIXELS) if pixels else len(body.read(8)) == 8
        if "Rows" not in found or "Columns" not in found or not has_pixels:
            raise NoPixelData(
                "The DICOM file holds no pixels: it is a report, a document or a structure set, or it is cut short."
                " Send images."
            )
        return found


def without_pixels(stream: BinaryIO, *, tags: Sequence[str]) -> Any:
    """The dataset of a file that needs no pixels, such as a structure set. Raises as `opened`, but NoPixelData."""
    with explained():
        return _parsed(stream, False, tags)[0]


def _parsed(stream: BinaryIO, pixels: bool, tags: Sequence[str]) -> tuple[Any, BinaryIO]:
    """The dataset, and the stream behind what was read of it."""
    dicom = pydicom()
    meta, syntax = _meta(stream)
    body = _inflated(stream) if syntax == DEFLATED else stream
    wanted = [dicom.tag.Tag(name) for name in (*tags, "SpecificCharacterSet")] if tags else None
    stop = None if pixels else (lambda tag, vr, length: tag >> 16 == PIXEL_GROUP)
    found = dicom.filereader.read_dataset(
        body, syntax == IMPLICIT, syntax != BIG_ENDIAN, stop_when=stop, specific_tags=wanted
    )
    found.set_original_encoding(syntax == IMPLICIT, syntax != BIG_ENDIAN, "iso8859")
    found.file_meta = meta
    if syntax == DEFLATED:
        meta.TransferSyntaxUID = dicom.uid.ExplicitVRLittleEndian
    return found, body


def _meta(stream: BinaryIO) -> tuple[Any, str]:
    """The meta header, with the stream at its end, and the transfer syntax."""
    dicom = pydicom()
    stream.seek(0)
    if not is_dicom(stream.read(PREAMBLE + len(MAGIC))):
        raise UnsupportedImage("The bytes are no DICOM file: the mark DICM at byte 128 is missing.")
    meta = dicom.dataset.FileMetaDataset(
        dicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    )
    if meta.get("MediaStorageSOPClassUID") == DIRECTORY:
        raise UnsupportedImage("This is a DICOMDIR, which names other files. Send the images themselves.")
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax not in SYNTAXES:
        names = ", ".join(dict.fromkeys(SYNTAXES.values()))
        raise UnsupportedTransferSyntax(
            f"The transfer syntax of the DICOM file is not read here; these are: {names}. Export it as one of them."
        )
    return meta, syntax


def _inflated(stream: BinaryIO) -> BinaryIO:
    """The data set of a file whose rest is deflated (PS3.5 A.5), within `MOST_INFLATED` bytes."""
    inflater, whole = zlib.decompressobj(-15), io.BytesIO()
    raw = b""
    while not inflater.eof:
        raw = raw or stream.read(1 << 20)
        if not raw:
            raise CorruptImage("The deflated DICOM file is cut short. Send the whole file.")
        whole.write(inflater.decompress(raw, 1 << 20))
        raw = inflater.unconsumed_tail
        if whole.tell() > MOST_INFLATED:
            raise ExpandsTooLarge(
                f"The deflated DICOM file has more than {MOST_INFLATED} bytes once inflated. Export it with another"
                " compression."
            )
    whole.seek(0)
    return whole


def number(found: Any, keyword: str, default: int | None = None) -> int:
    """A whole number of a dataset; CorruptImage, naming it, where it is missing or none."""
    value = found.get(keyword)
    try:
        if value is None or value == "":
            if default is None:
                raise ValueError
            return default
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise CorruptImage(f"The DICOM element {keyword} is missing or no whole number. Export it again.") from None


def numbers(found: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """The real numbers of an element, None where it is absent or empty; CorruptImage where they are not `count` finite
    ones.
    """
    value = found.get(keyword)
    if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
        return None
    try:
        found_ = tuple(float(each) for each in ([value] if count == 1 and not _is_list(value) else value))
    except (TypeError, ValueError):
        found_ = ()
    if len(found_) != count or not all(abs(each) < 1e9 for each in found_):
        raise CorruptImage(f"The DICOM element {keyword} holds no {count} finite numbers. Export it again.")
    return found_


def _is_list(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes)
