"""Writes masks as DICOM segmentations of the images that they were made from."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np

from app.errors import BadSeries, Invalid, NotAcceptable, Problem
from app.imaging.dicom import segments, series, single
from app.imaging.dicom.files import is_dicom, opened, pydicom
from app.imaging.dicom.identity import IDENTIFIERS
from app.imaging.dicom.places import planes_of

Kind = Literal["binary", "labelmap", "fractional"]
MEDIA_TYPE = "application/dicom"
RLE, PLAIN = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1"
SYNTAX = {"binary": PLAIN, "labelmap": RLE, "fractional": RLE}
"""Single bits cannot be compressed; of what highdicom compresses, every program reads RLE."""
SERIES_NUMBER = 9000
"""Of the series of segmentations: behind those of a scanner."""
Code = tuple[str, str, str]
"""Value, coding scheme and meaning, as ("59820001", "SCT", "Blood Vessel")."""
ANATOMY: Code = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
KNOWN: dict[str, tuple[Code, Code]] = {
    "vessel": (ANATOMY, ("59820001", "SCT", "Blood Vessel")),
    "artery": (ANATOMY, ("51114001", "SCT", "Artery")),
    "vein": (ANATOMY, ("29092000", "SCT", "Vein")),
    "heart": (ANATOMY, ("80891009", "SCT", "Heart")),
    "liver": (ANATOMY, ("10200004", "SCT", "Liver")),
    "kidney": (ANATOMY, ("64033007", "SCT", "Kidney")),
    "spleen": (ANATOMY, ("78961009", "SCT", "Spleen")),
    "lung": (ANATOMY, ("39607008", "SCT", "Lung")),
    "brain": (ANATOMY, ("12738006", "SCT", "Brain")),
    "bone": (ANATOMY, ("272673000", "SCT", "Bone")),
    "lesion": (ABNORMAL, ("52988006", "SCT", "Lesion")),
    "tumor": (ABNORMAL, ("108369006", "SCT", "Neoplasm")),
}
"""Category and type of classes by what they are called, where a model's manifest does not say them."""
DEFAULT = (ANATOMY, ANATOMY)
"""Of every other class."""


@dataclass(frozen=True)
class Author:
    """What made a segmentation.

    model, version   a reference such as "vessels:3", and the "3" in it
    key     all that decides the mask of an image: the same key and source give the same UIDs
    codes   category and type of classes by name, from the manifest
    """

    model: str
    version: str
    key: str
    codes: Mapping[str, tuple[Code, Code]] = field(default_factory=dict)


def can_write() -> bool:
    """Whether highdicom is installed; it has no wheels for the newest Python."""
    return importlib.util.find_spec("highdicom") is not None


def sources(stream: BinaryIO) -> tuple[list[Any], list[int]]:
    """The datasets that an image consists of, without pixels, and for each of their frames the plane that it is."""
    stream.seek(0)
    if is_dicom(stream.read(256)):
        found = [opened(stream, pixels=False)]
    else:
        files = series.listed(stream)
        if len(files.entries) > 1:
            _, grid = series.described(files)
            return [files.headers[plane.file] for plane in grid.planes], list(range(len(grid.planes)))
        found = files.headers
    if segments.is_segmentation(found[0]):
        raise Invalid("The image is itself a segmentation, so no segmentation can refer to it. Send the images.")
    _, grid = single.described(found[0])
    slots = [0] * len(grid.planes)
    for slot, plane in enumerate(grid.planes):
        slots[plane.frame] = slot
    return found, slots


def referred(stream: BinaryIO, patient: Any) -> tuple[list[Any], list[int]]:
    """What `sources` gives, with the patient and study of a dataset where the image itself has none.

    Raises NotAcceptable where highdicom is not installed.
    """
    if not can_write():
        raise NotAcceptable(
            "DICOM is written by highdicom, which has no packages for the Python that runs here. Ask for NIfTI, PNG or"
            " JSON."
        )
    found, slots = sources(stream)
    if patient is not None:
        for each in found:
            for name in IDENTIFIERS:
                setattr(each, name, patient.get(name, ""))
    return found, slots


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """BadSeries for what highdicom and pydicom raise, of several classes, on images that break the standard."""
    try:
        yield
    except (Problem, MemoryError):
        raise
    except Exception as error:
        raise BadSeries(
            f"No {what} can be made of this DICOM image: an element that it must repeat is missing or not valid (UIDs,"
            " dates, frame of reference). Export the image again, or ask for NIfTI, PNG or JSON."
        ) from error


def encode_segmentation(
    stream: BinaryIO,
    labels: np.ndarray,
    classes: Sequence[str],
    author: Author,
    *,
    kind: Kind = "binary",
    probability: np.ndarray | None = None,
    patient: Any = None,
) -> bytes:
    """A DICOM segmentation of the image in a file (a DICOM file, or a zip of a series).

    labels       (H, W) or (D, H, W) uint8 on the grid of the image: 0, and positions in `classes`
    classes      names, background first
    kind         binary: one bit for each segment; labelmap: one number for each voxel; fractional: `probability`
    probability  (K, ...) float in [0, 1] of each class but the background, for fractional
    patient      a dataset whose patient and study are written, where the image itself has none
    Raises BadSeries where the image lacks what a segmentation must repeat.
    """
    found, slots = referred(stream, patient)
    planes = labels if labels.ndim == 3 else labels[None]
    stored = planes[slots].astype(np.uint8)
    if kind == "fractional":
        assert probability is not None
        maps = probability if labels.ndim == 3 else probability[:, None]
        stored = np.clip(np.moveaxis(maps[:, slots], 0, -1), 0, 1).astype(np.float32)
    with refusing("segmentation"):
        return _written(found, stored, classes, author, kind)


def _written(found: list[Any], stored: np.ndarray, classes: Sequence[str], author: Author, kind: Kind) -> bytes:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    by = AlgorithmIdentificationSequence(
        name=author.model[:64], version=author.version[:64], family=codes.DCM.ArtificialIntelligence
    )
    described = [
        SegmentDescription(number, name[:64], *coded(name, author), "AUTOMATIC", by)
        for number, name in enumerate(classes[1:], start=1)
    ]
    series_uid, instance_uid = uids(found, author, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of masks without foreground, and of values that old scanners wrote
        made = Segmentation(
            found,
            stored,
            kind.upper(),
            described,
            series_instance_uid=series_uid,
            series_number=SERIES_NUMBER,
            sop_instance_uid=instance_uid,
            instance_number=1,
            manufacturer="toposerve",
            manufacturer_model_name=author.model[:64],
            software_versions=author.version[:64],
            device_serial_number="1",
            content_label="SEGMENTATION",
            transfer_syntax_uid=SYNTAX[kind],
        )
        if all(plane.position is None for plane in planes_of(found[0], 0, 1)):
            made.PatientOrientation = found[0].get("PatientOrientation", "")  # wanted where no position is said
        made.SeriesDescription = f"Segmentation by {author.model}"[:64]
        written = io.BytesIO()
        pydicom().dcmwrite(written, made, enforce_file_format=True)
    return written.getvalue()


def uids(found: Sequence[Any], author: Author, kind: str) -> tuple[str, str]:
    """UIDs of series and instance of what is made of these datasets: the same for the same author and kind."""
    digest = hashlib.sha256(f"{author.key} {kind}".encode())
    for each in found:
        digest.update(str(each.SOPInstanceUID).encode())
    return uid_of(digest.digest() + b"series"), uid_of(digest.digest())


def patient_of(found: Any) -> Any:
    """What a segmentation repeats of patient and study, and nothing else."""
    kept = pydicom().Dataset()
    for name in IDENTIFIERS:
        setattr(kept, name, found.get(name, ""))
    return kept


def file_of(found: Any) -> bytes:
    """The file of a dataset that came over the network."""
    content = io.BytesIO()
    pydicom().dcmwrite(content, found, enforce_file_format=True)
    return content.getvalue()


def read(content: bytes) -> Any:
    """The dataset of a file that was written here."""
    return pydicom().dcmread(io.BytesIO(content))


def coded(name: str, author: Author) -> tuple[Any, Any]:
    """Category and type of a class, as highdicom takes them."""
    from pydicom.sr.coding import Code as Coded

    category, kind = author.codes.get(name) or KNOWN.get(name.lower().removesuffix("s")) or DEFAULT
    return Coded(*category), Coded(*kind)


def uid_of(content: bytes) -> str:
    """A UID that is the same for the same content (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(content).digest()[:16], 'big')}"
