"""An image on its way in: bytes first, then the row that names them."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.imaging import FORMATS, Picture
from app.roles import Principal
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


def add(session: Session, caller: Principal, sha256: str, facts: dict[str, Any]) -> tuple[Image, bool]:
    """The row of an image whose bytes are stored, and whether it is new."""
    row, new = images.add(session, caller.project_id, sha256, **facts)
    if new:
        audit.note(session, caller, "image.upload", row.id)
    return row, new
