"""An image on its way in: bytes first, then the row that names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.errors import Conflict
from app.imaging import FORMATS, Picture
from app.imaging.spacing import in_mm, same, sized
from app.roles import Principal
from app.services import Services
from app.store import audit, images
from app.store.tables import Image
from app.upload import Upload


def columns(picture: Picture, upload: Upload, name: str | None = None) -> dict[str, Any]:
    """The columns of the row of an uploaded image.

    name  what to call it; None: as the file is called
    """
    return {
        "bytes": upload.bytes,
        "name": name or upload.name or f"image{FORMATS[picture.format].suffixes[0]}",
        "format": picture.format,
        "dimensions": len(picture.shape),
        "channels": picture.channels,
        "shape": list(picture.shape),
        "dtype": str(picture.pixels.dtype),
        "spacing_mm": list(picture.spacing_mm) if picture.spacing_mm else None,
    }


def known(
    services: Services, caller: Principal, sha256: str, picture: Picture, spacing_mm: Sequence[float] | None
) -> Picture:
    """The picture with the pixel size that is stated for it, else with the one that its row has when it is stored.

    Raises Conflict when the row has another one: what was measured on it would not fit any more.
    """
    with services.database.read() as session:
        row = images.find(session, caller.project_id, sha256)
    picture = sized(picture, spacing_mm)
    if row is None:
        return picture
    if spacing_mm is not None and not same(row.spacing_mm, spacing_mm):
        kept = in_mm(row.spacing_mm) if row.spacing_mm else "unknown size"
        raise Conflict(
            f"These bytes are image {row.id} already, with pixels of {kept}, and spacing_mm says {in_mm(spacing_mm)}."
            f" Change it first: PATCH /v1/images/{row.id}."
        )
    return sized(picture, row.spacing_mm)


def add(session: Session, caller: Principal, sha256: str, facts: dict[str, Any]) -> tuple[Image, bool]:
    """The row of an image whose bytes are stored, and whether it is new."""
    row, new = images.add(session, caller.project_id, sha256, **facts)
    if new:
        audit.note(session, caller, "image.upload", row.id)
    return row, new
