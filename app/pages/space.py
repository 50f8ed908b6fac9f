"""Volumes and their masks as NIfTI, for the viewer that runs in the browser.

Whatever a volume was sent as, the browser gets NIfTI: DICOM is read here, so no decoder has to run there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from app import imaging
from app.errors import NotFound, TooManyPixels
from app.pages import layers
from app.schemas.base import by
from app.services import Services
from app.store.tables import Image

MOST_VOXELS = 67_108_864
"""512 x 512 x 256: the browser keeps four bytes a voxel for the image and four for the mask on its graphics card."""
MOST_SIDE = 2048
"""Voxels along an axis; what graphics cards take as one texture."""
LARGE = 33_554_432
"""Bytes from which a page says how much will be loaded."""
MEDIA_TYPE = "application/gzip"


def offered(image: Image, mask: str | None = None, classes: Sequence[str] = ()) -> dict[str, Any] | None:
    """What a page needs to offer the volume in 3D; None for an image in 2D. `mask` is the address of its mask."""
    if image.dimensions == 2:
        return None
    return {
        "image": f"/images/{image.id}/volume.nii.gz",
        "axes": f"/images/{image.id}/axes.json",
        "mask": mask,
        "classes": [
            {"name": name, "colour": layers.CLASSES[(position - 1) % len(layers.CLASSES)]}
            for position, name in enumerate(classes)
            if position
        ],
        "fits": _fits(image),
        "bytes": prod(image.shape) * np.dtype(image.dtype).itemsize,
        "large": LARGE,
        "most_voxels": MOST_VOXELS,
        "most_side": MOST_SIDE,
    }


def image_file(services: Services, image: Image) -> bytes:
    """The first channel of a volume as .nii.gz in its own values.

    Raises NotFound and TooManyPixels as `require_fit` does.
    """
    picture = _picture(services, image)
    return imaging.encode_nifti_gz(picture.pixels[0], _affine(image, picture))


def mask_file(services: Services, image: Image, labels: np.ndarray) -> bytes:
    """Class positions (D, H, W) of a volume as .nii.gz of bytes, on the grid of `image_file`.

    Raises NotFound and TooManyPixels as `require_fit` does.
    """
    require_fit(image)
    header = services.decoders.read_header(services.blobs.read(image.project_id, image.sha256))
    return imaging.encode_nifti_gz(labels.astype(np.uint8), _affine(image, header))


def require_fit(image: Image) -> None:
    """Raise NotFound for an image in 2D and TooManyPixels for a volume that a browser does not hold."""
    if image.dimensions == 2:
        raise NotFound("This image has 2 dimensions; only volumes are shown in 3D. Its picture is at picture.png.")
    if not _fits(image):
        raise TooManyPixels(
            f"The volume is {by(image.shape)}; volumes of at most {MOST_VOXELS} voxels and {MOST_SIDE} along an axis"
            " are shown in 3D. Its page shows every plane."
        )


def _picture(services: Services, image: Image) -> imaging.Picture:
    require_fit(image)
    return services.decoders.decode(services.blobs.read(image.project_id, image.sha256))


def _fits(image: Image) -> bool:
    return prod(image.shape) <= MOST_VOXELS and max(image.shape) <= MOST_SIDE


def _affine(image: Image, placed: imaging.Picture | imaging.Header) -> np.ndarray:
    """(4, 4) from (column, row, plane) to millimetres (right, front, up), with the voxel size that is kept of the
    image. A volume that states no place lies as its planes are drawn: columns to the left of the body, rows to the
    back.
    """
    sizes = np.array((image.spacing_mm or (1.0, 1.0, 1.0))[::-1])
    if placed.affine is None:
        return np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])
    affine = np.array(placed.affine, float)
    if image.spacing_mm:
        affine[:3, :3] *= sizes / np.linalg.norm(affine[:3, :3], axis=0)
    return affine
