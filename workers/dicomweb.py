"""The dicomweb job: segmentations of series of a PACS, with reports.

Nothing is kept here: identities are taken out before a slice touches the disk (a folder of the job, removed with it),
and those that a segmentation repeats stay in memory. UIDs follow from the network, what was asked and the slices, so a
job that is run again, or submitted twice, finds its segmentation in the PACS and stores nothing.
"""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app import imaging
from app.errors import Problem, Unavailable
from app.imaging import Picture
from app.imaging.dicom import identity, reports, writing
from app.schemas.dicomweb_rules import NO_IMAGES
from app.store.tables import ModelVersion
from workers.pacs import Archive
from workers.predict import answered
from workers.work import Failed, Work

if TYPE_CHECKING:
    from app.serving.prediction import Question

OF_PACS = ("pacs_denied", "pacs_unavailable", "pacs_not_configured")
"""Failures of the whole job; everything else is one series' own."""


@dataclass(frozen=True)
class Fetched:
    """A series as it came: its slices without identities, and a dataset with what a segmentation repeats of them."""

    path: Path
    patient: Any


def dicomweb(work: Work) -> None:
    """Segment every series that was asked for; a series that cannot be is noted and does not stop the others."""
    spec = work.claim.spec
    pacs = Archive(spec["pacs"], work)
    with work.database.read() as session:
        network = session.get_one(ModelVersion, uuid.UUID(spec["model_version_id"]))
    work.installation.registry.get(work.claim.project_id, network)
    wanted = [spec["series"]] if spec["series"] else _image_series(pacs, spec["study"])
    stored: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    work.heartbeat.progress(phase="segment", step=0, steps=len(wanted))
    for number, series in enumerate(wanted, start=1):
        work.heartbeat.check()
        try:
            stored.append({"series": series} | _segmented(work, pacs, network, series))
        except Unavailable:
            raise
        except (Problem, Failed) as error:
            if error.code in OF_PACS:
                raise
            failed.append({"series": series, "code": error.code, "detail": error.detail})
            work.heartbeat.record("log", level="warning", message=f"Series {series}: {error.detail}", code=error.code)
        work.heartbeat.progress(step=number, fraction=number / len(wanted))
    if failed and not stored:
        raise Failed(failed[0]["code"], failed[0]["detail"])  # a job that segmented nothing did not succeed
    work.finish(lambda session: {"items": len(stored), "stored": stored, "failed": failed})


def _image_series(pacs: Archive, study: str) -> list[str]:
    """The series of a study that hold images, each once."""
    found = [each["uid"] for each in pacs.series_of(study) if each["modality"] not in NO_IMAGES]
    if not found:
        raise Failed("pacs_not_found", "The study has no series of images.")
    return list(dict.fromkeys(found))


def _segmented(work: Work, pacs: Archive, network: ModelVersion, series: str) -> dict[str, Any]:
    """Where the segmentation of a series and the report on it are, made and stored unless they are there."""
    from app.serving import answers, segmentation_objects
    from app.serving.registry import read_manifest

    spec, manifest = work.claim.spec, read_manifest(network)
    kind: writing.Kind = spec["segmentation"]
    fetched = pacs.ask(lambda: _fetched(work, pacs, spec["study"], series))
    by = segmentation_objects.author(spec["model"], manifest, {"threshold": spec["threshold"]})
    with fetched.path.open("rb") as source:
        found = writing.sources(source)[0]
        places = {"segmentation": writing.uids(found, by, kind)}
        if spec.get("report"):  # jobs that were queued by an earlier release do not say
            places["report"] = writing.uids(found, by, reports.KIND)
        told = {name: instance for name, (_, instance) in places.items()}
        told |= {f"{name}_series": of for name, (of, _) in places.items()}
        missing = [name for name, place in places.items() if not pacs.holds(spec["study"], *place)]
        if not missing:
            return told | {"was_there": True}
        picture = imaging.decode(source, work.settings)
        labels, probability = _predicted(work, network, picture, manifest.dimensions)
        work.heartbeat.check()
        made = []
        if "segmentation" in missing:
            made.append(
                writing.encode_segmentation(
                    source, labels, manifest.classes, by, kind=kind, probability=probability, patient=fetched.patient
                )
            )
        if "report" in missing:
            counted = answers.topology(labels, manifest.classes, picture.spacing_mm)
            made.append(
                reports.encode_report(source, counted, by, spacing_mm=picture.spacing_mm, patient=fetched.patient)
            )
    fetched.path.unlink()
    for content in made:
        pacs.store(writing.read(content))
    return told | {"was_there": False}


def _fetched(work: Work, pacs: Archive, study: str, series: str) -> Fetched:
    """The series in a zip in the folder of the job."""
    path, patient, size = work.folder / "series.zip", None, 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, found in enumerate(pacs.instances_of(study, series)):
            work.heartbeat.check()
            work.heartbeat.touch()
            made = io.BytesIO()
            identity.cleaned(io.BytesIO(writing.file_of(found)), made, keep=False)
            patient = patient or writing.patient_of(found)
            size += made.tell()
            if size > identity.MOST_BYTES:
                raise Failed(
                    "series_too_large", f"The series has more than {identity.MOST_BYTES} bytes, the most that is read."
                )
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.dcm"), made.getvalue())
    if patient is None:
        raise Failed("pacs_not_found", "The series has no instances in the PACS.")
    return Fetched(path, patient)


def _predicted(
    work: Work, network: ModelVersion, picture: Picture, dimensions: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Class positions, and where they were asked for the maps of the foreground classes; a network of images sees a
    volume plane by plane.
    """
    question = _question(work.claim.spec)
    if not (picture.is_volume and dimensions == 2):
        found = answered(work, network, picture, question).segmentation
        return found.labels, _foreground(found)
    planes = [answered(work, network, plane, question).segmentation for plane in _planes(work, picture)]
    maps = [shares for plane in planes if (shares := _foreground(plane)) is not None]
    return np.stack([plane.labels for plane in planes]), np.stack(maps, axis=1) if maps else None


def _planes(work: Work, picture: Picture) -> Iterator[Picture]:
    for number in range(picture.planes):
        work.heartbeat.check()
        work.heartbeat.touch()
        spacing = picture.spacing_mm[1:] if picture.spacing_mm else None
        pixels = np.ascontiguousarray(picture.pixels[:, number])
        yield replace(picture, pixels=pixels, spacing_mm=spacing, affine=None)


def _foreground(found: Any) -> np.ndarray | None:
    """(K, ...) of the classes but the background, where the map was asked for."""
    maps = found.probability
    return maps if maps is None or len(maps) < len(found.classes) else maps[1:]


def _question(spec: dict[str, Any]) -> Question:
    from app.serving.prediction import Question

    return Question(threshold=spec["threshold"], probability=spec["segmentation"] == "fractional")
