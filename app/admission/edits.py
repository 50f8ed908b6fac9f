"""Edits by hand of stored predictions: the mask as edited, and one more edit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from app.errors import Gone
from app.imaging import Header
from app.roles import Principal
from app.schemas.edits import NewEdit
from app.services import Services
from app.serving import answers, edits
from app.serving.edits import ClassMask
from app.store import audit, edits as store, predictions, tables


@dataclass(frozen=True)
class EditedPrediction:
    """A stored prediction, and its mask as its edits leave it."""

    row: tables.Prediction
    mask: ClassMask
    header: Header
    """Of the mask, with its place."""
    last: int
    """Number of the last edit, 0 without one."""


def read(services: Services, caller: Principal, prediction_id: UUID) -> EditedPrediction:
    """A stored prediction with its edits applied."""
    with services.database.read() as session:
        row = predictions.get(session, caller.project_id, prediction_id)
        manifest = session.get_one(tables.ModelVersion, row.model_version_id).manifest
        rows = store.in_order(session, row)
    mask, classes = _blob(services, row, "mask"), manifest["classes"]
    original = answers.positions(services.decoders.decode_mask(mask), classes)
    labels = edits.applied(original, [each.runs for each in rows])
    threshold = row.threshold if manifest["activation"] == "sigmoid" else None
    return EditedPrediction(
        row,
        ClassMask(original, labels, classes, threshold),
        services.decoders.read_header(mask),
        rows[-1].number if rows else 0,
    )


def make(
    services: Services, caller: Principal, prediction_id: UUID, wish: NewEdit, check: Callable[[], None]
) -> Callable[[Session], tuple[tables.PredictionEdit, tuple[int, ...]]]:
    """Work an edit out on the mask as it is; what is returned writes its row, or raises Conflict where another edit was
    made or undone since, and gives the row and the shape of the mask.

    check  called some times a second; what it raises ends the work
    """
    kept = read(services, caller, prediction_id)
    made = edits.made(
        wish.kind,
        wish.at,
        wish.to,
        mask=kept.mask,
        probability=services.decoders.decode(_blob(services, kept.row, "probability")).pixels,
        class_name=wish.class_name,
        check=check,
    )

    def rows(session: Session) -> tuple[tables.PredictionEdit, tuple[int, ...]]:
        row = store.add(
            session,
            predictions.get(session, caller.project_id, prediction_id),
            number=kept.last + 1,
            **wish.model_dump() | {"class_name": wish.class_name or kept.mask.classes[1]},
            **{name: getattr(made, name) for name in ("runs", "pixels", "box", "cost", "before", "after")},
        )
        audit.note(session, caller, "prediction.edit", row.id)
        return row, kept.mask.labels.shape

    return rows


def _blob(services: Services, row: tables.Prediction, name: str) -> bytes:
    if name not in row.artifacts:
        raise Gone(f"This prediction was stored without its {name}. Predict the image again with store=true.")
    return services.blobs.read(row.project_id, row.artifacts[name]["sha256"])
