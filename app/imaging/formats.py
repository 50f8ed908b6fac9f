"""Recognises the format of an image by its bytes, never by its name."""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum

from app.errors import UnsupportedImage

HEAD_BYTES = 65536
"""How much of a file `sniff` wants to see: a gzip header may carry a long name before the NIfTI header inside."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
_NIFTI_MAGICS = {348: ((344, b"n+1\0"),), 540: ((4, b"n+2\0\r\n\x1a\n"),)}


class Format(StrEnum):
    """The accepted formats; the value is the word used in the API."""

    PNG = "png"
    JPEG = "jpeg"
    TIFF = "tiff"
    NIFTI = "nifti"
    NIFTI_GZ = "nifti_gz"

    @property
    def media_type(self) -> str:
        """The Content-Type under which such bytes are served."""
        return _MEDIA_TYPES[self]

    @property
    def extension(self) -> str:
        """The end of a file name, with its dot."""
        return _EXTENSIONS[self]


_MEDIA_TYPES = {
    Format.PNG: "image/png",
    Format.JPEG: "image/jpeg",
    Format.TIFF: "image/tiff",
    Format.NIFTI: "application/octet-stream",
    Format.NIFTI_GZ: "application/gzip",
}
_EXTENSIONS = {
    Format.PNG: ".png",
    Format.JPEG: ".jpg",
    Format.TIFF: ".tif",
    Format.NIFTI: ".nii",
    Format.NIFTI_GZ: ".nii.gz",
}


def sniff(head: bytes) -> Format:
    """The format of a file that begins with `head` (`HEAD_BYTES` of it, or all if shorter).

    Refuses everything else with UnsupportedImage, also what other libraries would open.
    """
    if head.startswith(PNG_SIGNATURE):
        return Format.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if head.startswith(_TIFF_SIGNATURES):
        return Format.TIFF
    if _is_nifti(head):
        return Format.NIFTI
    if head.startswith(b"\x1f\x8b") and _is_nifti(_inflated_start(head)):
        return Format.NIFTI_GZ
    if head[128:132] == b"DICM":
        raise UnsupportedImage(
            "This is DICOM, which is not read here. Convert it to NIfTI (a series) or to PNG or TIFF (one image), and"
            " send that."
        )
    what = "The body is empty" if not head else "The bytes are none of PNG, JPEG, TIFF or NIfTI (.nii, .nii.gz)"
    raise UnsupportedImage(f"{what}. Send an image in one of these formats.")


def _is_nifti(head: bytes) -> bool:
    if len(head) < 348:
        return False
    sizes = {struct.unpack(order + "i", head[:4])[0] for order in "<>"}
    return any(head[at:].startswith(magic) for size in sizes for at, magic in _NIFTI_MAGICS.get(size, ()))


def _inflated_start(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 348)
    except zlib.error:
        return b""
