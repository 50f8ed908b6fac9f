"""Images as the API and the pages show them."""

from __future__ import annotations

from app.schemas.images import Image
from app.store import tables


def describe(row: tables.Image) -> Image:
    """An image as the API and the pages show it."""
    here = f"/v1/images/{row.id}"
    return Image.of(row, links={"self": here, "content": f"{here}/content", "preview": f"{here}/preview.png"})
