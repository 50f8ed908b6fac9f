"""Reads the images and the label masks of a dataset version as arrays."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import imaging
from app.errors import Problem
from app.imaging import LabelMap, Picture
from app.imaging.masks import Here, class_indexes
from app.imaging.spacing import sized
from app.store.tables import DatasetItem, DatasetVersion, Image
from workers.work import Failed, Work

UNUSABLE = ("blob_missing", "blob_corrupt")


@dataclass(frozen=True)
class ItemRows:
    """One item with the row of its image; without a mask where `item.mask_sha256` is None."""

    item: DatasetItem
    image: Image


def dataset_version(session: Session, version_id: str) -> DatasetVersion:
    """The version that admission wrote into the spec."""
    return session.get_one(DatasetVersion, uuid.UUID(version_id))


def pairs_of(session: Session, version: DatasetVersion) -> Sequence[ItemRows]:
    """The items of a version in their order."""
    query = (
        select(DatasetItem, Image)
        .join(Image, Image.id == DatasetItem.image_id)
        .where(DatasetItem.version_id == version.id)
    )
    return [ItemRows(item, image) for item, image in session.execute(query.order_by(DatasetItem.position))]


def picture_of(work: Work, image: Image) -> Picture:
    """The decoded image with its row's pixel size; Gone or BlobCorrupt when its bytes are not what was uploaded."""
    return sized(imaging.decode(work.blobs.read(work.claim.project_id, image.sha256), work.settings), image.spacing_mm)


def labels_of(work: Work, item: DatasetItem, version: DatasetVersion, picture: Picture) -> np.ndarray | None:
    """Class indexes (...) uint8 of the item's mask on the grid of its image, `imaging.IGNORE` where nothing is
    labelled; None without a mask.
    """
    if item.mask_sha256 is None:
        return None
    mask = work.blobs.read(work.claim.project_id, item.mask_sha256)
    return class_indexes(Here(work.settings), mask, LabelMap.parse(version.label_map), picture)


def read_pair(work: Work, pair: ItemRows, version: DatasetVersion) -> tuple[Picture, np.ndarray | None]:
    """Both sides of an item; Failed names the item when its bytes cannot be used any more."""
    try:
        picture = sized(picture_of(work, pair.image), version.spacing_mm)
        return picture, labels_of(work, pair.item, version, picture)
    except Problem as problem:
        if problem.status == 503:
            raise
        code = "input_corrupt" if problem.code in UNUSABLE else "input_invalid"
        raise Failed(code, f"Item {pair.item.name} of the dataset cannot be used: {problem.detail}") from problem
