"""Pixels of a DICOM file: their type is known from its header.

Stored values become those that the file means: a modality table or slope and intercept are applied, palettes and YCbCr
become RGB, and MONOCHROME1 (white is low) is inverted within its stored bits, unless slope or intercept say that its
values measure something. No window is applied. The type is the narrowest of `_DTYPES` for every value that the stored
bits can take, and float32 where slope or intercept are fractions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import CorruptImage, UnsupportedColor, UnsupportedDepth
from app.imaging.dicom.codecs import decoder_for
from app.imaging.dicom.files import explained, number, pydicom

GREYS = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_MOST_SIDE = 65535


@dataclass(frozen=True)
class Kind:
    """What the frames of a file hold.

    rows, columns, frames   counts
    stored    dtype of the samples as stored
    dtype     dtype of what they become
    channels  1, or 3
    """

    rows: int
    columns: int
    frames: int
    stored: str
    dtype: str
    channels: int
    photometric: str

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.rows, self.columns


def kind_of(found: Any) -> Kind:
    """What the frames of a dataset hold, from its header; CorruptImage, UnsupportedColor, UnsupportedDepth."""
    rows, columns, frames = number(found, "Rows"), number(found, "Columns"), number(found, "NumberOfFrames", 1)
    if not (0 <= rows <= _MOST_SIDE and 0 <= columns <= _MOST_SIDE) or frames < 0:
        raise CorruptImage(f"The DICOM file declares {frames} frames of {rows} x {columns} pixels. Export it again.")
    photometric, samples = str(found.get("PhotometricInterpretation", "")).strip(), number(found, "SamplesPerPixel", 1)
    grey, palette = photometric in GREYS, photometric == PALETTE
    if not ((grey or palette) and samples == 1) and not (photometric in COLOURS and samples == 3):
        raise UnsupportedColor(
            f"The DICOM file has {samples} samples a pixel in another colour model than grey, palette, RGB or YCbCr."
            " Export it as one of these."
        )
    stored = _stored(found)
    if palette:
        dtype, channels = _palette_dtype(found), 3
    else:
        dtype, channels = (_meant(found, stored) if grey else stored), samples
    return Kind(rows, columns, frames, stored, dtype, channels, photometric)


def _stored(found: Any) -> str:
    if "FloatPixelData" in found or (number(found, "BitsAllocated") == 32 and "BitsStored" not in found):
        return "float32"
    if "DoubleFloatPixelData" in found or number(found, "BitsAllocated") == 64:
        return "float64"
    allocated = number(found, "BitsAllocated")
    bits, signed = number(found, "BitsStored", allocated), number(found, "PixelRepresentation", 0)
    if allocated not in (1, 8, 16, 32) or not 1 <= bits <= allocated or signed not in (0, 1):
        raise UnsupportedDepth(
            f"The DICOM file stores {bits} of {allocated} bits a sample; 1, 8, 16 and 32 bits, of which all or a part"
            " are used, can be read. Export it again."
        )
    return f"{'u' * (1 - signed)}int{max(allocated, 8)}"


def _range(found: Any, stored: str) -> tuple[int, int]:
    """The lowest and highest value that the stored bits can take."""
    bits = number(found, "BitsStored", number(found, "BitsAllocated"))
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if stored[0] == "i" else (0, (1 << bits) - 1)


def _meant(found: Any, stored: str) -> str:
    if "ModalityLUTSequence" in found:
        return "uint16" if _table_bits(found.ModalityLUTSequence[0].get("LUTDescriptor")) > 8 else "uint8"
    slope, inter = scaling(found)
    if stored.startswith("float"):
        return stored if (slope, inter) == (1, 0) else "float32"
    if (slope, inter) == (1, 0):
        return stored
    if slope != int(slope) or inter != int(inter) or "PerFrameFunctionalGroupsSequence" in found:
        return "float32"
    ends = sorted(int(end * slope + inter) for end in _range(found, stored))
    for dtype in _DTYPES:
        if np.iinfo(dtype).min <= ends[0] and ends[1] <= np.iinfo(dtype).max:
            return dtype
    return "float32"


def _palette_dtype(found: Any) -> str:
    return "uint16" if _table_bits(found.get("RedPaletteColorLookupTableDescriptor")) > 8 else "uint8"


def _table_bits(descriptor: Any) -> int:
    try:
        return int(descriptor[2])
    except (TypeError, ValueError, IndexError):
        raise CorruptImage("The DICOM file has a lookup table without a valid descriptor. Export it again.") from None


def scaling(found: Any, frame: int = 0) -> tuple[float, float]:
    """Slope and intercept of a frame: of the file, or of its functional groups (PS3.3 C.7.6.16.2.9)."""
    slope, inter = found.get("RescaleSlope"), found.get("RescaleIntercept")
    for group in groups(found, frame):
        if given := group.get("PixelValueTransformationSequence"):
            slope, inter = given[0].get("RescaleSlope"), given[0].get("RescaleIntercept")
    try:
        values = (1.0 if slope in (None, "") else float(slope), 0.0 if inter in (None, "") else float(inter))
    except (TypeError, ValueError):
        values = (float("nan"), 0.0)
    if not np.isfinite(values).all():
        raise CorruptImage("The DICOM rescale slope or intercept is no finite number. Export the file again.")
    return values


def groups(found: Any, frame: int) -> Iterator[Any]:
    """The functional groups of a frame: those of all frames, then its own."""
    for name, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = found.get(name)
        if items is not None and index < len(items):
            yield items[index]


def frames(found: Any, kind: Kind, *, raw: bool) -> Iterator[np.ndarray]:
    """(H, W, channels) of each frame, in `kind.dtype`; with `raw` the stored numbers, one channel of a palette."""
    decoder, plugin = decoder_for(str(found.file_meta.TransferSyntaxUID))
    count = 0
    with explained():
        for stored, _ in decoder.iter_array(found, raw=False, decoding_plugin=plugin):
            if count == kind.frames:
                break
            yield _becomes(found, kind, stored, count, raw=raw)
            count += 1
    if count < kind.frames:
        raise CorruptImage(f"The DICOM file declares {kind.frames} frames and holds {count}. Send the whole file.")


def _becomes(found: Any, kind: Kind, stored: np.ndarray, frame: int, *, raw: bool) -> np.ndarray:
    pixels = stored if stored.ndim == 3 else stored[..., None]
    if kind.photometric in COLOURS or raw:
        return pixels.astype(kind.stored if raw else kind.dtype, copy=False)
    if kind.photometric == PALETTE:
        coloured = pydicom().pixels.apply_color_lut(stored, found)
        return coloured.astype(kind.dtype, copy=False)
    if "ModalityLUTSequence" in found:
        return pydicom().pixels.apply_modality_lut(stored, found).astype(kind.dtype)[..., None]
    slope, inter = scaling(found, frame)
    if (slope, inter) == (1, 0):
        if kind.photometric == "MONOCHROME1" and pixels.dtype.kind in "ui":
            low, high = _range(found, kind.stored)
            return (low + high - pixels.astype(np.int64)).astype(kind.dtype)
        return pixels.astype(kind.dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and refused as such
        return (pixels * np.float64(slope) + inter).astype(kind.dtype)
