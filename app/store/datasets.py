"""Datasets, their immutable versions and their items: every query that other files need.

A reference is `name` (its newest version) or `name@1`. A version never changes; the same pairs and the same label map
under one name are the same version, however often they are sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from app.errors import Conflict, NotFound
from app.store.rows import insert_unless_there, locked, named, next_number, numbered, owned
from app.store.tables import Dataset, DatasetItem, DatasetVersion, Image, now

TAKEN = "Dataset {name} exists with other content. Add this as its next version: POST /v1/datasets/{name}/versions."


@dataclass(frozen=True)
class Draft:
    """A version that has been read and counted and waits for its number."""

    digest: str
    columns: dict[str, Any]
    """What was found out: classes, label_map, channels, dimensions, statistics, warnings."""
    items: list[DraftItem]


@dataclass(frozen=True)
class DraftItem:
    """A pair whose bytes are stored;
    `image` holds the columns of its image row, or only the `id` of one that exists.
    """

    name: str
    image: dict[str, Any]
    mask_sha256: str | None
    """None: an image without a mask."""
    split: str | None
    group: str | None
    statistics: dict[str, Any]


all_of = partial(owned, Dataset)
"""The datasets of a project."""
require = partial(named, Dataset)
"""The dataset of that name; NotFound names the others."""


def versions_of(dataset: Dataset) -> Select[DatasetVersion]:
    """The versions of a dataset."""
    return select(DatasetVersion).where(DatasetVersion.dataset_id == dataset.id)


def items_of(version: DatasetVersion) -> Select[DatasetItem]:
    """The pairs of a version."""
    return select(DatasetItem).where(DatasetItem.version_id == version.id)


def require_version(session: Session, dataset: Dataset, number: int) -> DatasetVersion:
    """That version of the dataset; NotFound names the others."""
    return numbered(DatasetVersion, session, dataset, versions_of(dataset), number)


def newest(session: Session, dataset: Dataset) -> DatasetVersion | None:
    """The version with the largest number; None when all were deleted."""
    return session.scalar(versions_of(dataset).order_by(DatasetVersion.number.desc()).limit(1))


def resolve(session: Session, project_id: UUID, ref: str) -> tuple[Dataset, DatasetVersion]:
    """What a reference points to now: `name` or `name@1`."""
    name, at, number = ref.partition("@")
    dataset = require(session, project_id, name)
    version = require_version(session, dataset, int(number)) if at else newest(session, dataset)
    if version is None:
        raise NotFound(f"Dataset {name} has no version any more. Upload one.")
    return dataset, version


def ref_of(session: Session, version_id: UUID) -> str:
    """`name@1` of a version."""
    name, number = session.execute(
        select(Dataset.name, DatasetVersion.number)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(DatasetVersion.id == version_id)
    ).one()
    return f"{name}@{number}"


def is_taken(session: Session, project_id: UUID, name: str, digest: str) -> bool:
    """True when the name has versions and none of them has this content."""
    dataset = session.scalar(all_of(project_id).where(Dataset.name == name))
    return (
        dataset is not None
        and dataset.last_version > 0
        and session.scalar(versions_of(dataset).where(DatasetVersion.digest == digest)) is None
    )


def add_version(
    session: Session, project_id: UUID, name: str, draft: Draft, *, must_be_new: bool
) -> tuple[Dataset, DatasetVersion, bool]:
    """Number and write the draft: (dataset, version, whether it was new). Two callers get two numbers.

    Content that a version of this name already has answers that version. Conflict when `must_be_new` and the name is
    taken by other content.
    """
    dataset = locked(Dataset, session, project_id, name)
    same = session.scalar(versions_of(dataset).where(DatasetVersion.digest == draft.digest))
    if same is not None:
        return dataset, same, False
    if must_be_new and dataset.last_version:
        raise Conflict(TAKEN.format(name=name))
    owner = {"project_id": project_id, "dataset_id": dataset.id}
    version = DatasetVersion(**owner, number=next_number(session, dataset), digest=draft.digest, **draft.columns)
    session.add(version)
    session.flush()
    _add_items(session, version, draft.items)
    return dataset, version, True


def _add_items(session: Session, version: DatasetVersion, items: list[DraftItem]) -> None:
    # One order everywhere, so that two uploads that share images wait for each other instead of locking each other out.
    images = {
        item.name: _image(session, version.project_id, item.image)
        for item in sorted(items, key=lambda item: str(item.image.get("sha256")))
    }
    # Ids that fall as positions rise: lists show the newest id first, so they show the pairs in their order.
    ids = sorted((uuid7() for _ in items), reverse=True)
    for position, (item_id, item) in enumerate(zip(ids, items, strict=True)):
        session.add(
            DatasetItem(
                id=item_id,
                project_id=version.project_id,
                version_id=version.id,
                position=position,
                name=item.name,
                image_id=images[item.name],
                mask_sha256=item.mask_sha256,
                split=item.split,
                group=item.group,
                statistics=item.statistics,
            )
        )
    session.flush()


def _image(session: Session, project_id: UUID, columns: dict[str, Any]) -> UUID:
    """The row of these bytes in this project, made when there is none."""
    mine = select(Image.id).where(Image.project_id == project_id)
    if "id" in columns:
        # Held until the commit, so that nobody deletes the image under the new version.
        found = session.scalar(mine.where(Image.id == columns["id"]).with_for_update(read=True))
        if found is None:
            raise Conflict(f"Image {columns['id']} was deleted meanwhile. Upload it again.")
        return found
    insert_unless_there(session, Image, {"id": uuid7(), "created_at": now(), "project_id": project_id} | columns)
    return session.scalars(mine.where(Image.sha256 == columns["sha256"])).one()
