"""Images as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import model_validator

from app.schemas.base import Address, Label, Schema, Spacing, example

IMAGE = {
    "id": "01936f5e-7c00-7000-8000-000000000001",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "bytes": 262144,
    "name": "retina-0042.png",
    "format": "png",
    "dimensions": 2,
    "channels": 3,
    "shape": [584, 565],
    "dtype": "uint8",
    "spacing_mm": None,
    "created_at": "2025-03-01T09:30:00Z",
    "links": {
        "self": "/v1/images/01936f5e-7c00-7000-8000-000000000001",
        "content": "/v1/images/01936f5e-7c00-7000-8000-000000000001/content",
        "preview": "/v1/images/01936f5e-7c00-7000-8000-000000000001/preview.png",
    },
}


class Image(Schema):
    """A stored image and what its header says."""

    id: UUID
    sha256: str
    """Of the stored bytes; the same bytes are the same image."""
    bytes: int
    name: str
    """The name it was first uploaded under; a label, never a path."""
    format: str
    """By the bytes, not the name: the first column of docs/reference/formats.md, such as png or nifti_gz."""
    dimensions: int
    """2 for an image, 3 for a volume."""
    channels: int
    shape: list[int]
    """[rows, columns] or [planes, rows, columns]."""
    dtype: str
    """Of the pixels as they are read: uint8, uint16, int16 or float32."""
    spacing_mm: list[float] | None
    """Size of a pixel along each side of `shape`; null where neither the file nor its sender says."""
    created_at: datetime
    links: dict[str, Address]

    model_config = {**Schema.model_config, **example(IMAGE)}


class ChangedImage(Schema):
    """What may be changed of an image: its label, and the size of its pixels."""

    name: Label | None = None
    spacing_mm: Spacing | None = None
    """Counts instead of what the file says, in everything that is computed from now on."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.name is None and self.spacing_mm is None:
            raise ValueError("state name, spacing_mm or both")
        return self

    model_config = {**Schema.model_config, **example({"name": "retina-0042.png", "spacing_mm": [0.01, 0.01]})}
