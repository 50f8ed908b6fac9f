"""Labels that were drawn on images in a viewer, and images kept for a while."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.store import rows
from app.store.tables import DatasetItem, Image, ImageLabel, ImageSession, now

FINAL = "final"
"""The tag of a label that counts as done."""

owned = partial(rows.owned, ImageLabel)
"""The labels of a project."""


def put(session: Session, image: Image, tag: str, **columns: Any) -> ImageLabel:
    """The label of an image under a tag; an earlier one is replaced. Its bytes must be stored already."""
    session.execute(delete(ImageLabel).where(ImageLabel.image_id == image.id, ImageLabel.tag == tag))
    row = ImageLabel(project_id=image.project_id, image_id=image.id, tag=tag, **columns)
    session.add(row)
    session.flush()
    return row


def get(session: Session, image: Image, tag: str) -> ImageLabel:
    """The label of an image under a tag; NotFound names the tags that it has."""
    row = session.scalar(owned(image.project_id).where(ImageLabel.image_id == image.id, ImageLabel.tag == tag))
    if row is None:
        tags = session.scalars(select(ImageLabel.tag).where(ImageLabel.image_id == image.id))
        raise NotFound(f"Image {image.id} has no label {tag}. Its labels: {rows.choices(sorted(tags))}.")
    return row


def of_images(session: Session, project_id: uuid.UUID, tag: str | None = None) -> Select[ImageLabel]:
    """The labels of a project, the oldest first, all or those of one tag."""
    query = owned(project_id).order_by(ImageLabel.id)
    return query if tag is None else query.where(ImageLabel.tag == tag)


def counts(session: Session, project_id: uuid.UUID) -> dict[str, int]:
    """How many images have a label, by tag."""
    query = select(ImageLabel.tag, func.count()).where(ImageLabel.project_id == project_id).group_by(ImageLabel.tag)
    return {row[0]: row[1] for row in session.execute(query.order_by(ImageLabel.tag))}


def unlabelled(project_id: uuid.UUID) -> Select[Image]:
    """The images of a project without a final label and without a mask in a dataset, the newest first."""
    done = select(ImageLabel.image_id).where(ImageLabel.project_id == project_id, ImageLabel.tag == FINAL)
    paired = select(DatasetItem.image_id).where(
        DatasetItem.project_id == project_id, DatasetItem.mask_sha256.is_not(None)
    )
    return rows.owned(Image, project_id).where(Image.id.not_in(done), Image.id.not_in(paired)).order_by(Image.id.desc())


def image_named(session: Session, project_id: uuid.UUID, name: str) -> Image:
    """The image with this id, or else the newest whose name is this, with or without its ending; NotFound."""
    found: Image | None = None
    with suppress(ValueError):  # a name
        found = session.scalar(rows.owned(Image, project_id).where(Image.id == uuid.UUID(name)))
    if found is None and name:
        same = (Image.name == name) | Image.name.startswith(f"{name}.", autoescape=True)
        found = next(
            (row for row in session.scalars(_newest(project_id, same)) if stem(row.name) in (name, stem(name))), None
        )
    if found is None:
        raise NotFound(f"No image is called {name[:64]!r} here. Upload it first, or send the file along.")
    return found


def _newest(project_id: uuid.UUID, condition: Any) -> Select[Image]:
    return rows.owned(Image, project_id).where(condition).order_by(Image.id.desc()).limit(64)


def stem(name: str) -> str:
    """A file name without its ending; `.nii.gz` is one."""
    return name.removesuffix(".gz").rpartition(".")[0] or name


# Sessions ------------------------------------------------------------------------------------------------------------

MOST_SESSIONS = 100
"""Images of one project that wait in sessions at once."""


def open_session(session: Session, project_id: uuid.UUID, *, expiry_s: int, **columns: Any) -> ImageSession:
    """A session for an image whose bytes are stored; the oldest of a project that has too many end."""
    mine = rows.owned(ImageSession, project_id)
    session.execute(delete(ImageSession).where(ImageSession.project_id == project_id, ImageSession.expires_at < now()))
    old: Sequence[uuid.UUID] = session.scalars(
        mine.with_only_columns(ImageSession.id).order_by(ImageSession.used_at.desc()).offset(MOST_SESSIONS - 1)
    ).all()
    session.execute(delete(ImageSession).where(ImageSession.id.in_(old)))
    row = ImageSession(
        project_id=project_id, expiry_s=expiry_s, expires_at=now() + timedelta(seconds=expiry_s), **columns
    )
    session.add(row)
    session.flush()
    return row


def require_session(session: Session, project_id: uuid.UUID, session_id: str) -> ImageSession:
    """That session of the project, unless it has ended; NotFound."""
    try:
        query = rows.owned(ImageSession, project_id).where(ImageSession.id == uuid.UUID(session_id))
        row = session.scalar(query.where(ImageSession.expires_at > now()))
    except ValueError:
        row = None
    if row is None:
        raise NotFound("There is no such session, or it has ended. Send the image again.")
    return row


def touch(row: ImageSession) -> None:
    """Let a session last for its whole time again."""
    row.used_at = now()
    row.expires_at = row.used_at + timedelta(seconds=row.expiry_s)
