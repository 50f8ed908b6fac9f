"""Stored images and masks as PNGs for a browser; of a volume, one plane.

Decoding takes memory, so it waits its turn behind `services.decode_slots`, holding neither a database connection nor a
thread.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Annotated, Any, TypeVar
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Query
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app import imaging
from app.errors import MaskMismatch
from app.http.paging import PageOf
from app.schemas.base import by
from app.services import Services
from app.settings import MiB
from app.store.tables import Image

FULL = 4096
"""Longest side of a picture in pixels; a larger image is shown reduced."""
THUMBNAIL = 222
"""Longest side of a picture in a list: one and a half times what it is shown at, for dense screens."""
QUALITY = 45
"""Of a WebP in a list."""
LISTED = 24
"""Pictures in one page of a list unless another number is asked for: of electron microscopy they take 375 kB."""
Found = TypeVar("Found")
Made = TypeVar("Made")


async def drawn(
    services: Services, find: Callable[[Session], Found], draw: Callable[[Found], bytes], media_type: str = "image/png"
) -> Response:
    """A picture: `find` reads the rows it needs, `draw` makes the bytes of them. A browser may keep it for an hour."""
    content = await made(services, find, draw)
    return Response(content, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})


def few(page: PageOf) -> PageOf:
    """The part of a list that is asked for, with `LISTED` pictures unless it says how many."""
    return page if "limit" in page.request.query_params else replace(page, limit=min(page.limit, LISTED))


async def listed(services: Services, find: Callable[[Session], Found], draw: Callable[[Found], bytes]) -> Response:
    """What `drawn` gives, as a WebP for a list."""
    return await drawn(services, find, lambda found: _webp(draw(found)), "image/webp")


def _webp(png: bytes) -> bytes:
    from PIL import Image as Pillow  # here, so that a gateway starts without it

    buffer = io.BytesIO()
    shown = Pillow.open(io.BytesIO(png))
    shown.convert("RGB" if shown.mode in ("P", "RGB", "RGBA") else "L").save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


async def made(services: Services, find: Callable[[Session], Found], make: Callable[[Found], Made]) -> Made:
    """What `make` makes of the rows that `find` reads, in its turn."""

    def look() -> Found:
        with services.database.read() as session:
            return find(session)

    found = await run_sync(look)
    return await run_sync(make, found, limiter=services.decode_slots)


@dataclass(frozen=True)
class Cut:
    """A plane through a volume: the axis it stands on (0 planes, 1 rows, 2 columns) and its number there."""

    axis: int
    index: int

    def through(self, volume: np.ndarray) -> np.ndarray:
        """The plane of an array whose last three axes are those of the volume."""
        return volume.take(self.index, axis=volume.ndim - 3 + self.axis)


def cut_of(image: Image, axis: int, plane: int | None) -> Cut | None:
    """The plane of an image that is asked for, the middle one unless another is; None for an image in 2D."""
    if image.dimensions == 2:
        return None
    count = int(image.shape[axis])
    return Cut(axis, count // 2 if plane is None else min(plane, count - 1))


Axis = Annotated[int, Query(ge=0, le=2, description="Axis that the plane of a volume stands on.")]
Plane = Annotated[int | None, Query(ge=0, lt=2**31, description="Number of the plane; default is the middle one.")]


class Kept:
    """The volumes that were looked at last, as 8 bits, so that the next plane of one needs no decoding."""

    def __init__(self, most_bytes: int):
        self._most, self._volumes, self._lock = most_bytes, OrderedDict[tuple[UUID, str], np.ndarray](), Lock()

    def get(self, key: tuple[UUID, str], make: Callable[[], np.ndarray]) -> np.ndarray:
        """The volume under this key (project and digest), made when it is not there."""
        with self._lock:
            if key in self._volumes:
                self._volumes.move_to_end(key)
                return self._volumes[key]
        made = make()
        with self._lock:
            self._volumes[key] = made
            while sum(each.nbytes for each in self._volumes.values()) > self._most and self._volumes:
                self._volumes.popitem(last=False)
        return made


KEPT = Kept(64 * MiB)
"""Of this process; keys are digests of what a caller may read by the time it is looked up."""


def shown(services: Services, image: Image, side: int = FULL, cut: Cut | None = None) -> bytes:
    """An image as an 8-bit PNG, its longest side at most `side` pixels; of a volume a plane in its true proportions."""
    if image.dimensions == 2:
        return imaging.preview_png(_decoded(services, image), max_side=side)
    volume = KEPT.get((image.project_id, image.sha256), lambda: imaging.shades(_decoded(services, image)))
    cut = cut or cut_of(image, 0, None)
    assert cut is not None  # the image is a volume
    return imaging.fitted_png(cut.through(volume), *displayed(image, cut, side))


def displayed(image: Image, cut: Cut, side: int = FULL) -> tuple[int, int]:
    """(rows, columns) in which a plane has the proportions of the body, its longest side at most `side`."""
    sides = [size for axis, size in enumerate(image.shape) if axis != cut.axis]
    spacing = [mm for axis, mm in enumerate(image.spacing_mm or (1.0, 1.0, 1.0)) if axis != cut.axis]
    extents = [size * mm / min(spacing) for size, mm in zip(sides, spacing, strict=True)]
    factor = min(1.0, side / max(extents))
    return max(1, round(extents[0] * factor)), max(1, round(extents[1] * factor))


def _decoded(services: Services, image: Image) -> imaging.Picture:
    return services.decoders.decode(services.blobs.read(image.project_id, image.sha256))


def labels(services: Services, project_id: UUID, sha256: str, image: Image) -> np.ndarray:
    """A stored mask as class indices, in the shape of its image."""
    mask = services.decoders.decode_mask(services.blobs.read(project_id, sha256))
    if list(mask.shape) != list(image.shape):
        raise MaskMismatch(
            f"The mask is {by(mask.shape)} pixels and its image {by(image.shape)}; they cannot be shown together."
        )
    return mask


def plane(mask: np.ndarray, cut: Cut | None = None) -> np.ndarray:
    """(H, W): the plane of a mask that `shown` shows, of a volume the middle one unless another is asked for."""
    if mask.ndim == 2:
        return mask
    return cut.through(mask) if cut else mask[len(mask) // 2]


def sides_of(image: Image, cut: Cut | None) -> tuple[int, int]:
    """(rows, columns) of pixels or voxels of what is shown."""
    rows, columns = [size for axis, size in enumerate(image.shape) if cut is None or axis != cut.axis]
    return rows, columns


def slices(image: Image, cut: Cut | None, address: str) -> dict[str, Any] | None:
    """What the viewer needs to go through a volume; None in 2D. `address` is that of the page."""
    if cut is None:
        return None
    last = image.shape[cut.axis] - 1
    return {
        "axis": cut.axis,
        "plane": cut.index,
        "sizes": list(image.shape),
        "axes": f"/images/{image.id}/axes.json",
        "before": f"{address}?axis={cut.axis}&plane={cut.index - 1}" if cut.index else None,
        "after": f"{address}?axis={cut.axis}&plane={cut.index + 1}" if cut.index < last else None,
        "across": [[name, f"{address}?axis={axis}"] for axis, name in enumerate(("Planes", "Rows", "Columns"))],
    }


def caption(cut: Cut | None, image: Image) -> str | None:
    """Which plane of a volume is shown."""
    if cut is None:
        return None
    noun = ("Plane", "Row", "Column")[cut.axis]
    return f"{noun} {cut.index + 1} of {image.shape[cut.axis]}; all figures are of the whole volume."
