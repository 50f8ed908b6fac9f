"""Stored images and masks as PNGs for a browser; of a volume, its middle plane.

Decoding takes memory, so it waits its turn behind `services.decode_slots`, holding neither a database connection nor a
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app import imaging
from app.errors import MaskMismatch
from app.schemas.base import by
from app.services import Services
from app.store.tables import Image

FULL = 4096
"""Longest side of a picture in pixels; a larger image is shown reduced."""
THUMBNAIL = 296
Found = TypeVar("Found")
Made = TypeVar("Made")


async def drawn(
    services: Services, find: Callable[[Session], Found], draw: Callable[[Found], bytes], media_type: str = "image/png"
) -> Response:
    """A picture: `find` reads the rows it needs, `draw` makes the bytes of them. A browser may keep it for an hour."""
    content = await made(services, find, draw)
    return Response(content, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})


async def made(services: Services, find: Callable[[Session], Found], make: Callable[[Found], Made]) -> Made:
    """What `make` makes of the rows that `find` reads, in its turn."""

    def look() -> Found:
        with services.database.read() as session:
            return find(session)

    found = await run_sync(look)
    return await run_sync(make, found, limiter=services.decode_slots)


def shown(services: Services, image: Image, side: int = FULL) -> bytes:
    """An image as an 8-bit PNG, its longest side at most `side` pixels."""
    return imaging.preview_png(
        services.decoders.decode(services.blobs.read(image.project_id, image.sha256)), max_side=side
    )


def labels(services: Services, project_id: UUID, sha256: str, image: Image) -> np.ndarray:
    """A stored mask as class indices, in the shape of its image."""
    mask = services.decoders.decode_mask(services.blobs.read(project_id, sha256))
    if list(mask.shape) != list(image.shape):
        raise MaskMismatch(
            f"The mask is {by(mask.shape)} pixels and its image {by(image.shape)}; they cannot be shown together."
        )
    return mask


def plane(mask: np.ndarray) -> np.ndarray:
    """(H, W): the plane of a mask that `shown` shows, of a volume the middle one."""
    return mask if mask.ndim == 2 else mask[len(mask) // 2]


def caption(image: Image) -> str | None:
    """Which plane of a volume is shown."""
    return (
        f"Plane {image.shape[0] // 2 + 1} of {image.shape[0]}, the middle one; all figures are of the whole volume."
        if image.dimensions == 3
        else None
    )
