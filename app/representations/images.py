"""Images as the API and the pages show them."""

from __future__ import annotations

from app.schemas.images import Image
from app.store import tables


def describe(row: tables.Image) -> Image:
    """An image as the API and the pages show it."""
    here = f"/v1/images/{row.id}"
    return Image(
        id=row.id,
        sha256=row.sha256,
        bytes=row.bytes,
        name=row.name,
        format=row.format,
        dimensions=row.dimensions,
        channels=row.channels,
        shape=row.shape,
        dtype=row.dtype,
        spacing_mm=row.spacing_mm,
        created_at=row.created_at,
        links={"self": here, "content": f"{here}/content", "preview": f"{here}/preview.png"},
    )
