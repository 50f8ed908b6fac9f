"""Queries for models, their versions and aliases.

A reference is `name` (its newest version), `name@alias` or `name:3`. Whoever asks for something unknown is told what
there is, of their own project only.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.errors import NotFound, PreconditionFailed
from app.store.rows import choices, named, numbered, owned
from app.store.tables import Alias, AliasMove, Model, ModelVersion, now


def split(ref: str) -> tuple[str, str | None, int | None]:
    """(name, alias, number) of a reference; at most one of the last two is set."""
    name, at, alias = ref.partition("@")
    if at:
        return name, alias, None
    name, colon, number = ref.partition(":")
    return name, None, int(number) if colon else None


all_of = partial(owned, Model)
"""The models of a project."""
require = partial(named, Model)
"""The model of that name; NotFound names the others."""


def versions_of(model: Model) -> Select[ModelVersion]:
    """The versions of a model."""
    return select(ModelVersion).where(ModelVersion.model_id == model.id)


def require_version(session: Session, model: Model, number: int) -> ModelVersion:
    """That version of the model; NotFound names the others."""
    return numbered(ModelVersion, session, model, versions_of(model), number)


def newest(session: Session, model: Model) -> ModelVersion | None:
    """The version with the largest number; None while the first is still training."""
    return session.scalar(versions_of(model).order_by(ModelVersion.number.desc()).limit(1))


def newest_of_project(session: Session, project_id: UUID, most: int) -> list[tuple[str, ModelVersion]]:
    """(name of the model, version) of the newest versions of all models of a project."""
    query = (
        select(Model.name, ModelVersion)
        .join(ModelVersion, ModelVersion.model_id == Model.id)
        .where(Model.project_id == project_id)
        .order_by(ModelVersion.id.desc())
        .limit(most)
    )
    return [(name, version) for name, version in session.execute(query)]


def resolve(session: Session, project_id: UUID, ref: str) -> tuple[Model, ModelVersion]:
    """What a reference points to now: `name`, `name@alias` or `name:3`."""
    name, alias, number = split(ref)
    query = (
        select(Model, ModelVersion)
        .join(ModelVersion, ModelVersion.model_id == Model.id)
        .where(Model.project_id == project_id, Model.name == name)
    )
    if alias is not None:
        query = query.join(Alias, (Alias.model_id == Model.id) & (Alias.number == ModelVersion.number)).where(
            Alias.alias == alias
        )
    elif number is not None:
        query = query.where(ModelVersion.number == number)
    found = session.execute(query.order_by(ModelVersion.number.desc()).limit(1)).first()
    if found is None:
        raise _unknown(session, project_id, name, alias, number)
    return found[0], found[1]


def ref_of(session: Session, version: ModelVersion) -> str:
    """`name:3` of a version."""
    return f"{session.get_one(Model, version.model_id).name}:{version.number}"


def _unknown(session: Session, project_id: UUID, name: str, alias: str | None, number: int | None) -> NotFound:
    """Which part of the reference is unknown, with what there is instead."""
    try:
        model = require(session, project_id, name)
        if alias is not None:
            require_alias(session, model, alias)
        if number is not None:
            require_version(session, model, number)
    except NotFound as unknown:
        return unknown
    return NotFound(f"Model {name} has no version yet. Wait for its training job.")


# Aliases ------------------------------------------------------------------------------------------------------------


def aliases(session: Session, model: Model) -> list[Alias]:
    """The aliases of a model, by name."""
    return list(session.scalars(select(Alias).where(Alias.model_id == model.id).order_by(Alias.alias)))


def require_alias(session: Session, model: Model, alias: str) -> Alias:
    """That alias of the model; NotFound names the others."""
    row = session.scalar(select(Alias).where(Alias.model_id == model.id, Alias.alias == alias))
    if row is None:
        raise NotFound(
            f"Model {model.name} has no alias {alias}. Aliases:"
            f" {choices([each.alias for each in aliases(session, model)])}."
        )
    return row


def moves_of(model: Model, alias: str) -> Select[AliasMove]:
    """The history of an alias; it stays when the alias is removed."""
    return select(AliasMove).where(AliasMove.model_id == model.id, AliasMove.alias == alias)


def etag(alias: Alias) -> str:
    """Changes whenever the alias moves, also when it moves back."""
    return f'"{alias.number}-{alias.moved_at.timestamp():.6f}"'


def move_alias(
    session: Session,
    model: Model,
    alias: str,
    version: ModelVersion,
    *,
    who: str,
    gate: dict[str, Any] | None,
    expected: str | None,
) -> Alias:
    """Point the alias to the version and write the line of history; both or neither. Where it points already, nothing
    is written.

    `expected` is an If-Match value: PreconditionFailed when the alias has moved since.
    """
    _lock(session, model)
    row = session.scalar(select(Alias).where(Alias.model_id == model.id, Alias.alias == alias))
    _expect(row, expected)
    if row is not None and row.number == version.number:
        return row
    before = row.number if row else None
    if row is None:
        row = Alias(project_id=model.project_id, model_id=model.id, alias=alias, number=version.number)
        session.add(row)
    row.number, row.moved_at = version.number, now()
    _remember(session, row, who, from_number=before, to_number=version.number, gate=gate)
    return row


def remove_alias(session: Session, model: Model, alias: str, *, who: str, expected: str | None) -> None:
    """Take the alias away; its history gets one more line."""
    _lock(session, model)
    row = require_alias(session, model, alias)
    _expect(row, expected)
    session.delete(row)
    _remember(session, row, who, from_number=row.number)


def _remember(session: Session, alias: Alias, who: str, **moved: Any) -> None:
    owner = {"project_id": alias.project_id, "model_id": alias.model_id}
    session.add(AliasMove(**owner, alias=alias.alias, moved_by=who, **moved))
    session.flush()


def _lock(session: Session, model: Model) -> None:
    # Two callers must not both see "no such alias"; SQLite's writer is alone anyway and ignores FOR UPDATE.
    session.execute(select(Model.id).where(Model.id == model.id).with_for_update())


def _expect(row: Alias | None, expected: str | None) -> None:
    if expected is None or (expected == "*" and row is not None):
        return
    if row is None:
        raise PreconditionFailed("If-Match was sent but the alias does not exist. Leave the header out to make it.")
    if etag(row) not in [tag.strip() for tag in expected.split(",")]:
        raise PreconditionFailed(
            f"The alias points to version {row.number} since {row.moved_at:%Y-%m-%d %H:%M:%S} UTC, not to what you"
            " read. Read it again."
        )
