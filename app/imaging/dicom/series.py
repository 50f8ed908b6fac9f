"""Reads a zip of DICOM files as one volume.

The slices of one series, in any order and under any names. Files that are not DICOM and directories (DICOMDIR) are left
aside, and so is a second copy of the same instance. What is no single regular stack of planes is refused with the
reason: several series, orientations, sizes or points in time, missing and doubled slices.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from app.errors import BadSeries, UnsupportedImage
from app.imaging.archive import Archive, Entry
from app.imaging.dicom import segments, single
from app.imaging.dicom.files import explained, is_dicom, opened
from app.imaging.dicom.pixels import Kind, frames, kind_of
from app.imaging.dicom.places import Grid, arranged, planes_of
from app.imaging.picture import Header

SIGNATURE = b"PK\3\4"
GiB = 1024**3
_LIMITS: Any = SimpleNamespace(
    max_archive_entries=10_000, max_dataset_bytes=2 * GiB, max_archive_ratio=200, max_upload_bytes=1 * GiB
)
_HEAD = 1024


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip archive; what is in it is seen when it is opened."""
    return head.startswith(SIGNATURE)


@dataclass(frozen=True)
class Files:
    """The DICOM files of an archive.

    aside  files that are none, or directories
    twice  copies of an instance that came already
    """

    archive: Archive
    entries: list[Entry]
    headers: list[Any]
    aside: int
    twice: int


def read_header(stream: BinaryIO) -> Header:
    """Size, type and place of the volume, from the headers of all files."""
    files = listed(stream)
    if len(files.entries) == 1:
        return single.read_header(io.BytesIO(files.archive.read(files.entries[0])))
    kind, grid = described(files)
    return single.header_of(kind, grid, len(grid.planes))


def read_pixels(stream: BinaryIO, header: Header, *, raw: bool = False) -> np.ndarray:
    """(D, H, W, C), each slice rescaled by its own slope, in the order of the planes; of one file, what that holds."""
    files = listed(stream)
    if len(files.entries) == 1:
        return single.read_pixels(io.BytesIO(files.archive.read(files.entries[0])), header, raw=raw)
    kind, grid = described(files)
    dtype = kind.stored if raw else kind.dtype
    pixels: np.ndarray | None = None
    for slot, plane in enumerate(grid.planes):
        found = opened(io.BytesIO(files.archive.read(files.entries[plane.file])), pixels=True)
        own = kind_of(found)
        (frame,) = itertools.islice(frames(found, own, raw=raw), 1)
        if pixels is None:
            pixels = np.empty((len(grid.planes), *frame.shape), dtype)
        pixels[slot] = frame
    assert pixels is not None
    return pixels


def listed(stream: BinaryIO) -> Files:
    """The DICOM files of an archive with their headers; UnsupportedImage when there is none."""
    archive = Archive(stream, _LIMITS)
    entries, headers, seen, aside, twice = [], [], set(), 0, 0
    for entry in archive.entries:
        if not is_dicom(b"".join(itertools.islice(archive.pieces(entry), 1))[:_HEAD]):
            aside += 1
            continue
        try:
            found = opened(io.BytesIO(archive.read(entry)), pixels=False)
        except UnsupportedImage:  # a directory
            aside += 1
            continue
        instance = str(found.get("SOPInstanceUID", ""))
        if instance and instance in seen:
            twice += 1
            continue
        seen.add(instance)
        entries.append(entry)
        headers.append(found)
    if not entries:
        raise UnsupportedImage(
            "The zip archive holds no DICOM file, so it is no image. Send a DICOM series; a dataset goes to"
            " POST /v1/datasets."
        )
    return Files(archive, entries, headers, aside, twice)


def described(files: Files) -> tuple[Kind, Grid]:
    """What all files hold and the grid that they make together, or BadSeries."""
    for name, what in (
        ("SeriesInstanceUID", "series"),
        ("FrameOfReferenceUID", "frames of reference"),
        ("Modality", "modalities"),
    ):
        values = {str(found.get(name, "")) for found in files.headers}
        if len(values) > 1:
            raise BadSeries(f"The DICOM files are of {len(values)} {what}. Send one series.")
    kinds = [kind_of(found) for found in files.headers]
    if any(segments.is_segmentation(found) for found in files.headers) or any(kind.frames != 1 for kind in kinds):
        raise BadSeries("The zip archive holds several DICOM files, and some have several frames. Send each by itself.")
    for name in ("shape", "channels", "photometric"):
        values = {getattr(kind, name) for kind in kinds}
        if len(values) > 1:
            shown = ", ".join(str(value) for value in sorted(values, key=str)[:3])
            raise BadSeries(f"The DICOM images differ in {_WORDS[name]}: {shown}. Send one series.")
    with explained():
        grid = arranged([planes_of(found, file, 1)[0] for file, found in enumerate(files.headers)])
    stored, meant = ({getattr(kind, name) for kind in kinds} for name in ("stored", "dtype"))
    return Kind(*kinds[0].shape, 1, _common(stored), _common(meant), kinds[0].channels, kinds[0].photometric), grid


_WORDS = {"shape": "size", "channels": "colours", "photometric": "colour model"}


def _common(dtypes: set[str]) -> str:
    """One type that holds what the slices become, each by its own slope."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    joined = np.result_type(*dtypes).name
    return joined if joined in ("uint16", "int16", "uint32", "int32") else "float32"
