"""Makes DICOM files and series by pydicom, highdicom's lower half: pixels, place and identity as tests need them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, SECONDARY = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*words: str) -> str:
    """A UID that is the same for the same words."""
    return str(generate_uid(entropy_srcs=list(words)))


def dataset(pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Dataset:
    """(H, W), (H, W, 3), (D, H, W) or (D, H, W, 3) integers or floats, with elements by keyword on top."""
    made = Dataset()
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    rows, columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    frames = pixels.shape[0] if pixels.ndim - colour == 3 else 1
    made.SOPClassUID, made.SOPInstanceUID = SECONDARY, uid(str(elements), str(pixels.tobytes()[:4096]))
    made.StudyInstanceUID, made.SeriesInstanceUID = uid("study"), uid("series")
    made.Modality, made.PatientName, made.PatientID = "OT", "Doe^Jane", "4711"
    for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(made, name, "")
    made.ReferringPhysicianName = ""
    made.Rows, made.Columns, made.SamplesPerPixel = rows, columns, 3 if colour else 1
    if frames > 1:
        made.NumberOfFrames = frames
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        made.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    made.BitsAllocated = bits
    if pixels.dtype.kind == "f":
        setattr(made, "FloatPixelData" if bits == 32 else "DoubleFloatPixelData", pixels.tobytes())
    else:
        made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, int(pixels.dtype.kind == "i")
        content = pixels.tobytes()
        made.PixelData = content + b"\0" * (len(content) % 2)
        made["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in elements.items():
        setattr(made, name, value)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def written(made: Dataset) -> bytes:
    """The file of a dataset."""
    buffer = io.BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


def slices(
    volume: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.6),
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    directions: Sequence[float] = AXIAL,
    series: str = "series",
    **elements: Any,
) -> list[Dataset]:
    """The slices of a (D, H, W) volume, plane by plane along the cross product of the directions.

    spacing  (plane, row, column) in mm; origin and directions as DICOM has them (left, back, up)
    """
    normal = np.cross(directions[:3], directions[3:])
    return [
        dataset(
            plane,
            SOPClassUID=CT,
            SOPInstanceUID=uid(series, str(number)),
            SeriesInstanceUID=uid(series),
            FrameOfReferenceUID=uid("frame of reference"),
            Modality="CT",
            InstanceNumber=number + 1,
            ImagePositionPatient=[float(each) for each in np.round(origin + number * spacing[0] * normal, 6)],
            ImageOrientationPatient=[float(each) for each in directions],
            PixelSpacing=[float(spacing[1]), float(spacing[2])],
            SliceThickness=float(spacing[0]),
            **elements,
        )
        for number, plane in enumerate(volume)
    ]


def zipped(files: Sequence[Dataset | bytes] | Mapping[str, Dataset | bytes]) -> bytes:
    """A zip of files, without suffixes."""
    named = files if isinstance(files, Mapping) else {f"IM{number:04d}": file for number, file in enumerate(files)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in named.items():
            archive.writestr(name, file if isinstance(file, bytes) else written(file))
    return buffer.getvalue()


def structure_set(regions: Mapping[str, Sequence[Sequence[Sequence[float]]]], kind: str = "CLOSED_PLANAR") -> bytes:
    """Regions by name, each a list of contours of corners (left, back, up) in mm."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", uid("structures", str(regions))
    made.StudyInstanceUID, made.SeriesInstanceUID = uid("study"), uid("structures")
    made.Modality, made.PatientName, made.PatientID = "RTSTRUCT", "Doe^Jane", "4711"
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=7):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        drawn.ContourSequence = []
        for corners in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(corners)
            contour.ContourData = [f"{value:.4f}" for corner in corners for value in corner]
            drawn.ContourSequence.append(contour)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return written(made)


def segmentation(source: Sequence[Dataset], labels: np.ndarray, kind: str) -> bytes:
    """A segmentation of labels 0, 1, ... (D, H, W) by highdicom; segments that no plane holds leave it out."""
    pytest.importorskip("highdicom", reason="highdicom needs pyjpegls, which has no wheel for this Python")
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    classes = int(labels.max())
    described = [
        SegmentDescription(
            number,
            f"class {number}",
            codes.SCT.AnatomicalStructure,
            codes.SCT.BloodVessel,
            SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in range(1, classes + 1)
    ]
    stored = np.stack([labels == number for number in range(1, classes + 1)], -1) if kind == "FRACTIONAL" else labels
    made = Segmentation(
        [*source], stored.astype(float) if kind == "FRACTIONAL" else stored, kind, described, uid("seg series"), 7,
        uid("seg", kind), 1, "maker", "model", "1", "serial",
    )  # fmt: skip
    return written(made)
