"""Takes identities out of an uploaded file before anything else is done with it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial

from app.errors import UnsupportedImage
from app.imaging.decoders import Decoders
from app.imaging.formats import HEAD_BYTES, sniff
from app.settings import Settings
from app.upload import Upload

RELATED = "multipart/related"
"""Media type of a body whose parts are DICOM files, as DICOMweb sends them (PS3.18 8.6.1.2)."""


def admitted(
    decoders: Decoders, settings: Settings, upload: Upload, *, boundary: str | None = None
) -> tuple[Upload, list[str]]:
    """The upload as it may be kept, and sentences about what its sender may not expect.

    A file of a format that may name people comes back without identities, under a name only where its sender chose one;
    every other file as it is. What it is called in a camera or an archive may be the name of a patient too.

    boundary  of a multipart/related body; None: the upload is a file
    """
    upload.file.seek(0)
    head = upload.file.read(HEAD_BYTES)
    upload.file.seek(0)
    if boundary is None and not names_people(head):
        return upload, []
    keep = settings.dicom_identifiers == "keep"
    file, warnings = decoders.cleaned(upload.file, keep=keep, boundary=boundary)
    digest, size = hashlib.sha256(), 0
    for piece in iter(partial(file.read, 1 << 20), b""):
        digest.update(piece)
        size += len(piece)
    file.seek(0)
    name = upload.name if keep else upload.fields.get("name") or None
    return replace(upload, file=file, sha256=digest.hexdigest(), bytes=size, name=name), warnings


def names_people(head: bytes) -> bool:
    """Whether a file that begins so is of a format that may name people."""
    try:
        return sniff(head).names_people
    except UnsupportedImage:
        return False
