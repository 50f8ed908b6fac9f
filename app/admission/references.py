"""Measures a stored prediction against a reference mask that is sent later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from app import imaging
from app.errors import Invalid
from app.imaging.dicom.structures import HEAD_BYTES, MOST_BYTES, is_structure_set, labels_of, regions_of
from app.imaging.header import opened
from app.imaging.labels import value_counts
from app.imaging.picture import Source
from app.roles import Principal
from app.services import Services
from app.serving import answers
from app.store import audit, images, predictions, tables
from app.upload import Upload


def measure(
    services: Services, caller: Principal, prediction_id: UUID, source: Upload | UUID, *, resample: bool = False
) -> Callable[[Session], tables.Prediction]:
    """Measure a stored prediction against a reference and store that; what is returned writes the rows, in which an
    earlier reference is replaced.

    source    a mask, or the id of a stored image that is one
    resample  bring a mask on another grid to that of the prediction by its nearest voxels, instead of refusing it
    """
    from topology.metrics import EXACT

    with services.database.read() as session:
        row = predictions.get(session, caller.project_id, prediction_id)
        image, classes = session.get_one(tables.Image, row.image_id), predictions.classes_of(session, row)
        sha256 = images.get(session, caller.project_id, source).sha256 if isinstance(source, UUID) else ""
    content = services.blobs.read(caller.project_id, sha256) if isinstance(source, UUID) else source.file
    shown = services.decoders.decode_labels(services.blobs.read(row.project_id, row.artifacts["mask"]["sha256"]))
    labels = answers.positions(shown.pixels[0], classes)
    drawn = _contours(content, classes, shown)
    if drawn is None:
        sent = imaging.onto(services.decoders.decode_labels(content), shown, what="reference", resample=resample)
        drawn = sent.pixels[0]
    reference = positions(drawn, classes)
    figures = answers.measurements(labels, reference, classes, image.spacing_mm)
    kept = (
        imaging.encode_png(reference, services.settings.png_level)
        if reference.ndim == 2
        else imaging.encode_nifti_gz(reference, shown.affine, forms=shown.forms)
    )
    sha256, _ = services.blobs.put(caller.project_id, kept)

    def rows(session: Session) -> tables.Prediction:
        row = predictions.get(session, caller.project_id, prediction_id)
        predictions.set_reference(
            session, row, sha256, figures, metric_spec=EXACT.as_dict(), metric_digest=EXACT.digest()
        )
        audit.note(session, caller, "prediction.reference", row.id)
        return row

    return rows


def _contours(content: Source, classes: Sequence[str], shown: imaging.Picture) -> Any:
    """What a DICOM structure set draws of the classes by their names, as positions; None where it is none.

    Invalid, with the names there are, where none of its regions is called like a class.
    """
    with opened(content) as stream:
        stream.seek(0)
        if not is_structure_set(stream.read(HEAD_BYTES)):
            return None
        stream.seek(0)
        regions = regions_of(stream.read(MOST_BYTES + 1))
    known = {name.casefold(): name for name in classes[1:]}
    named = [replace(each, name=known[each.name.casefold()]) for each in regions if each.name.casefold() in known]
    if not named:
        there = ", ".join(sorted({each.name for each in regions})[:10]) or "none with closed contours"
        raise Invalid(
            f"No region of the structure set is called like a class of the model ({', '.join(classes[1:])}). Its"
            f" regions: {there}. Rename one."
        )
    return labels_of(named, classes[1:], shown)


def difference_png(services: Services, row: tables.Prediction, classes: Sequence[str]) -> bytes:
    """Where a stored prediction and its reference agree and differ, as a picture; see `answers.difference`."""
    labels, reference = _labels(services, row, classes), _reference(services, row)
    return imaging.encode_png(answers.difference(labels, reference), services.settings.png_level)


def positions(mask: Any, classes: Sequence[str]) -> Any:
    """Class positions of a mask that a caller sent: 0 and 255 for two classes, or positions, with IGNORE where nothing
    is labelled.
    """
    values = set(value_counts(mask))
    if len(classes) == 2 and values <= {0, 255}:
        return (mask > 0).astype("uint8")
    meaning = imaging.LabelMap(
        tuple((name, (position,)) for position, name in enumerate(classes) if position),
        background=(0,),
        ignore=(imaging.IGNORE,),
    )
    return imaging.to_index(mask, meaning)[0]


def _labels(services: Services, row: tables.Prediction, classes: Sequence[str]) -> Any:
    return answers.positions(
        services.decoders.decode_mask(services.blobs.read(row.project_id, row.artifacts["mask"]["sha256"])), classes
    )


def _reference(services: Services, row: tables.Prediction) -> Any:
    assert row.reference_sha256 is not None
    return services.decoders.decode_mask(services.blobs.read(row.project_id, row.reference_sha256))
