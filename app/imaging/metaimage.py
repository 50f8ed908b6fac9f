"""MetaImage (.mha): voxels behind a text header, as ITK writes them.

Read here and not by ITK, whose 50 MB wheels open paths only, decode without bounds, and know no header without voxels.
Source: MetaIO documentation, MetaImage tags; axes and places are left, back, up.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import numpy as np

from app.errors import CorruptImage, UnsupportedDtype, UnsupportedImage
from app.imaging import voxels
from app.imaging.picture import Header

MOST_HEADER = 64 * 1024
_FIRST = re.compile(rb"(ObjectType|NDims|Comment)\s*=[^\0]*?\bElementDataFile\s*=", re.DOTALL)
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def is_metaimage(head: bytes) -> bool:
    """Whether a file that begins so is a MetaImage."""
    return _FIRST.match(head) is not None


def read_header(stream: BinaryIO) -> Header:
    """Sides, channels, type, spacing and affine; refuses a header whose voxels are in another file."""
    fields, _ = _fields(stream)
    return _header(fields)


def read_pixels(stream: BinaryIO, header: Header, *, raw: bool = False) -> np.ndarray:
    """(H, W, C) or (D, H, W, C) in the stored dtype."""
    fields, start = _fields(stream)
    packed = fields.get("CompressedData", "False").lower() == "true"
    count = header.pixels * header.channels
    stored = voxels.read(stream, start, "zlib" if packed else "raw", count, _dtype(fields))
    return stored.reshape(*header.shape, header.channels)


def _fields(stream: BinaryIO) -> tuple[dict[str, str], int]:
    """The fields of the header, and where the voxels begin."""
    stream.seek(0)
    head = stream.read(MOST_HEADER)
    end = re.search(rb"ElementDataFile\s*=\s*([^\n]*)\n", head)
    if end is None:
        raise CorruptImage("The MetaImage header has no line ElementDataFile. Send the whole file.")
    lines = head[: end.end()].decode("latin-1").splitlines()
    fields = {name.strip(): value.strip() for name, mark, value in (line.partition("=") for line in lines) if mark}
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise UnsupportedImage(
            f"This is the header of a MetaImage whose voxels are in another file, {fields['ElementDataFile'][:60]!r}."
            " Save it as one file, .mha."
        )
    if fields.get("BinaryData", "True").lower() != "true":
        raise UnsupportedImage("The voxels of the MetaImage are written as text. Save it as binary.")
    return fields, end.end()


def _header(fields: dict[str, str]) -> Header:
    axes = voxels.numbers(fields.get("NDims", ""), 1, "NDims", int)[0]
    if not 2 <= axes <= 4:
        raise CorruptImage(f"The field NDims is {axes}; 2 or 3 can be read. Save one plane or one volume.")
    sizes = voxels.numbers(fields.get("DimSize", ""), axes, "DimSize", int)
    channels = voxels.numbers(fields.get("ElementNumberOfChannels", "1"), 1, "ElementNumberOfChannels", int)[0]
    ones = " ".join("1" * axes)
    spacing = voxels.numbers(fields.get("ElementSpacing", fields.get("ElementSize", ones)), axes, "ElementSpacing")
    stated = next((fields[name] for name in ("TransformMatrix", "Orientation", "Rotation") if name in fields), None)
    affine = np.zeros((4, 4))
    if stated is not None and axes == 3:
        origin = next((fields[name] for name in ("Offset", "Position", "Origin") if name in fields), "0 0 0")
        directions = np.reshape(voxels.numbers(stated, 9, "TransformMatrix"), (3, 3)).T  # an axis after the other
        placed = np.eye(4)
        placed[:3, :3] = directions * spacing
        placed[:3, 3] = voxels.numbers(origin, 3, "Offset")
        affine = voxels.FROM_LPS @ placed
    known = spacing if "ElementSpacing" in fields or "ElementSize" in fields else None
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes, known = sizes[:-1], known and known[:-1]
    return voxels.header_of(sizes, channels, _dtype(fields), known, affine)


def _dtype(fields: dict[str, str]) -> np.dtype[Any]:
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise UnsupportedDtype(
            f"The field ElementType is {kind[:40]!r}; {', '.join(_TYPES)} can be read. Convert it to float32 or int16."
        )
    swapped = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    return np.dtype((">" if swapped else "<") + _TYPES[kind])
