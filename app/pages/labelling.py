"""Labels of images: masks as edited by hand, kept for the next training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.admission import amendments, analyses, edits
from app.admission.amendments import Changes
from app.errors import Forbidden, Invalid
from app.http.callers import Caller, require
from app.http.resources import ServicesDep
from app.imaging import Header, sniff
from app.imaging.formats import HEAD_BYTES
from app.pages.rendering import Facts, new_router, see, uuid_of
from app.roles import Principal
from app.services import Services
from app.store import audit, datasets, images, labels
from app.store.tables import Dataset, Image

router = new_router()
MOST_DATASETS = 100
"""Datasets that a form proposes, the newest ones."""


def datasets_for(session: Session, image: Image, classes: list[str]) -> list[Facts]:
    """The newest versions of datasets that take a label of these classes on this image."""
    rows = session.scalars(datasets.all_of(image.project_id).order_by(Dataset.id.desc()).limit(MOST_DATASETS))
    versions = [(row, datasets.newest(session, row)) for row in rows]
    return [
        {"ref": f"{row.name}@{version.number}", "name": row.name}
        for row, version in versions
        if version is not None
        and (version.dimensions, version.channels) == (image.dimensions, image.channels)
        and set(version.classes[1:]) == set(classes[1:])
    ]


@router.post("/predictions/{prediction_id}/edits/label", dependencies=[require("images:write")])
async def edits_as_label(prediction_id: str, request: Request, caller: Caller, services: ServicesDep) -> Response:
    """The form that makes the mask as edited the label of its image, and of a dataset's next version."""
    async with request.form() as form:
        ref = str(form.get("dataset") or "")
    work = partial(_edits_kept, services, caller, uuid_of(prediction_id), ref)
    return see(await run_sync(work, limiter=services.dataset_slots))


def _edits_kept(services: Services, caller: Principal, prediction_id: UUID, ref: str) -> str:
    edited = edits.read(services, caller, prediction_id)
    label = Label(edited.row.image_id, edited.mask.labels, edited.mask.classes, edited.header)
    return kept(services, caller, label, ref) or f"/predictions/{prediction_id}"


@dataclass(frozen=True)
class Label:
    """What somebody says is on an image."""

    image_id: UUID
    labels: np.ndarray
    """(...) uint8 position in `classes`, IGNORE where nothing is labelled."""
    classes: Sequence[str]
    place: Header


def kept(services: Services, caller: Principal, label: Label, ref: str) -> str | None:
    """Keep a label as the final one of its image and, where `ref` names the newest version of a dataset, in its next
    version; the address of that.
    """
    rows, values = None, {name: position for position, name in enumerate(label.classes) if position}
    shown = label.labels
    if ref:
        if not caller.may("datasets:write"):
            raise Forbidden("A new version of a dataset needs the scope datasets:write. Keep the label without one.")
        name, number = _version_of(ref)
        with services.database.read() as session:
            version = datasets.require_version(session, datasets.require(session, caller.project_id, name), number)
        values = amendments.plain_values(version)
        shown = amendments.in_values(shown, label.classes, version)
    content, _ = analyses.encoded(services, shown, label.place)
    if ref:
        rows = amendments.amend(services, caller, name, number, Changes(masks={label.image_id: content}))
    sha256, size = services.blobs.put(caller.project_id, content)
    columns = {"sha256": sha256, "bytes": size, "format": sniff(content[:HEAD_BYTES]).name, "label_map": values}
    with services.database.write() as session:
        image = images.get(session, caller.project_id, label.image_id)
        labels.put(session, image, labels.FINAL, **columns, drawn_by=caller.who)
        audit.note(session, caller, "image.label", f"{image.id} {labels.FINAL}")
        return f"/datasets/{name}/versions/{rows(session).number}" if rows else None


def _version_of(ref: str) -> tuple[str, int]:
    name, _, number = ref.partition("@")
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise Invalid(f"The dataset is {ref[:64]!r}; it must be one of the list, such as vessels@1.")
    return name, int(number)
