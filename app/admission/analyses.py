"""Reads masks and maps that are analysed or edited while the caller waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO
from uuid import UUID

import numpy as np

from app import imaging
from app.errors import TooManyPixels
from app.imaging import Header, Picture
from app.imaging.foreground import foreground, fraction
from app.imaging.spacing import sized
from app.roles import Principal
from app.schemas.topology import MaskOptions
from app.services import Services
from app.serving.analysis import MOST_PIXELS
from app.serving.answers import NIFTI_GZ, PNG
from app.store import images

Source = BinaryIO | bytes
"""An encoded image: a file that was sent, or the bytes of one that is stored."""


def stored(services: Services, caller: Principal, image_id: UUID) -> tuple[bytes, list[float] | None]:
    """The bytes of a stored image, and the size of its pixels."""
    with services.database.read() as session:
        row = images.get(session, caller.project_id, image_id)
    return services.blobs.read(caller.project_id, row.sha256), row.spacing_mm


def decoded(services: Services, source: Source, spacing_mm: Sequence[float] | None = None) -> Picture:
    """An image that is small enough to be analysed while the caller waits, with the pixel size that is stated for it;
    else TooManyPixels.
    """
    header = services.decoders.read_header(source)
    if header.pixels > MOST_PIXELS:
        raise TooManyPixels(
            f"The image has {header.pixels} pixels; {MOST_PIXELS} are analysed at once. Store it and submit a job of"
            " kind analyse."
        )
    return sized(services.decoders.decode_map(source), spacing_mm)


def mask_and_map(picture: Picture, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
    """(...) bool: the foreground; (...) float32 in [0, 1]: the map that it is cut from."""
    mask = foreground(picture, options.threshold, options.label)
    # With a label the mask is what was asked about, and the map behind it means nothing.
    return mask, fraction(picture) if options.label is None else mask.astype(np.float32)


def decoded_beside(services: Services, source: Source, picture: Picture, what: str, options: MaskOptions) -> Picture:
    """The `what` of an image on the grid of that; else MaskMismatch."""
    return imaging.onto(decoded(services, source), picture, what=what, resample=options.resample)


def encoded(services: Services, mask: np.ndarray, place: Picture | Header) -> tuple[bytes, str]:
    """(rows, columns) uint8 or bool as PNG, (planes, rows, columns) as NIfTI, and which of them it is."""
    if mask.ndim == 2:
        return imaging.encode_png(mask, services.settings.png_level), PNG
    return imaging.encode_nifti_gz(mask, place.affine, forms=place.forms), NIFTI_GZ
