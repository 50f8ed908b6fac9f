"""Structured reports of topology on DICOM images.

TID 1500 of PS3.16: one group of measurements for each class (TID 1501), with the class as its finding. Betti numbers
have no standard codes, so theirs are our own (scheme 99TOPOSERVE); lengths, areas and volumes have those of SNOMED CT.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, BinaryIO

from app.imaging.dicom import writing
from app.imaging.dicom.files import pydicom
from app.imaging.dicom.writing import Author, Code

KIND = "report"
SERIES_NUMBER = 9001
SCHEME = "99TOPOSERVE"
COUNTS: dict[str, Code] = {
    "beta0": ("beta0", SCHEME, "Number of components (Betti-0)"),
    "beta1": ("beta1", SCHEME, "Number of loops (Betti-1)"),
    "beta2": ("beta2", SCHEME, "Number of cavities (Betti-2)"),
    "euler": ("euler", SCHEME, "Euler characteristic"),
    "branch_points": ("branch_points", SCHEME, "Number of branch points of the skeleton"),
    "end_points": ("end_points", SCHEME, "Number of end points of the skeleton"),
}
"""Figures of a topology report without a unit."""
PROCEDURE: Code = ("363679005", "SCT", "Imaging procedure")
LENGTH: Code = ("410668003", "SCT", "Length")
SIZES: dict[int, tuple[Code, str]] = {
    2: (("42798000", "SCT", "Area"), "mm2"),
    3: (("118565006", "SCT", "Volume"), "mm3"),
}
"""By number of axes: what the foreground measures, and its unit."""


def encode_report(
    stream: BinaryIO,
    report: Mapping[str, Mapping[str, Any]],
    author: Author,
    *,
    spacing_mm: Sequence[float] | None,
    patient: Any = None,
) -> bytes:
    """A structured report (Comprehensive SR) on the image in a file (a DICOM file, or a zip of a series).

    report      topology by class, as `app.serving.answers.topology` gives it
    author      as for the segmentation, whose UIDs differ
    spacing_mm  of the image; None: lengths and sizes are left out, because a pixel is no unit of them
    patient     a dataset whose patient and study are written, where the image itself has none
    Raises BadSeries where the image lacks what a report must repeat.
    """
    found, _ = writing.referred(stream, patient)
    with writing.refusing("report"):
        return _written(found, report, author, spacing_mm)


def _written(
    found: list[Any], report: Mapping[str, Mapping[str, Any]], author: Author, spacing_mm: Sequence[float] | None
) -> bytes:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    series_uid, instance_uid = writing.uids(found, author, KIND)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=series_uid, name="toposerve", manufacturer_name="toposerve", model_name=author.model[:64]
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=sr.CodedConcept(*PROCEDURE),
        title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[
            _group(name, facts, author, spacing_mm, writing.uid_of(f"{instance_uid} {number}".encode()))
            for number, (name, facts) in enumerate(report.items(), start=1)
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that old scanners wrote
        made = sr.ComprehensiveSR(
            evidence=found,
            content=content,
            series_instance_uid=series_uid,
            series_number=SERIES_NUMBER,
            sop_instance_uid=instance_uid,
            instance_number=1,
            manufacturer="toposerve",
            is_complete=True,
        )
        made.SeriesDescription = f"Topology by {author.model}"[:64]
        written = io.BytesIO()
        pydicom().dcmwrite(written, made, enforce_file_format=True)
    return written.getvalue()


def _group(
    name: str, facts: Mapping[str, Any], author: Author, spacing_mm: Sequence[float] | None, tracking_uid: str
) -> Any:
    """What was counted in one class."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    category, kind = writing.coded(name, author)
    measured = [(code, facts[figure], codes.UCUM.NoUnits) for figure, code in COUNTS.items() if figure in facts]
    if spacing_mm is not None:
        size, unit = SIZES[len(spacing_mm)]
        measured += [
            (LENGTH, facts["skeleton_length"], sr.CodedConcept("mm", "UCUM", "millimeter")),
            (size, facts["foreground"] * prod(spacing_mm), sr.CodedConcept(unit, "UCUM", unit)),
        ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(tracking_uid, name[:64]),
        finding_category=category,
        finding_type=kind,
        algorithm_id=sr.AlgorithmIdentification(author.model[:64], author.version[:64]),
        measurements=[sr.Measurement(sr.CodedConcept(*code), value, unit) for code, value, unit in measured],
    )
