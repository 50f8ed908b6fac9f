"""Rows of one project, found by id or name, and the numbers of versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Select, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from app.errors import NotFound
from app.store.tables import Dataset, DatasetVersion, Model, ModelVersion, Owned, now

T = TypeVar("T", bound=Owned)
N = TypeVar("N", Dataset, Model)
V = TypeVar("V", DatasetVersion, ModelVersion)
LISTED = 10
"""How many valid choices a refusal names before it only counts them."""


def owned(table: type[T], project_id: UUID) -> Select[T]:
    """The rows of a project."""
    return select(table).where(table.project_id == project_id)


def get(table: type[T], session: Session, project_id: UUID, row_id: UUID) -> T:
    """The row of that id in this project, or NotFound."""
    row = session.scalar(owned(table, project_id).where(table.id == row_id))
    if row is None:
        raise NotFound
    return row


@contextmanager
def held(session: Session, *wanted: tuple[type[Owned], Sequence[UUID]]) -> Iterator[list[Sequence[Any]]]:
    """The rows of these tables with these ids, read by one query for each table; until the end of the block
    `session.get` and `session.get_one` answer them without another.
    """
    # Named, because the session itself forgets what nobody else holds.
    found = [session.scalars(select(table).where(table.id.in_(set(ids)))).all() if ids else [] for table, ids in wanted]
    yield found


def choices(values: list[str]) -> str:
    """The valid choices as people write them: `a, b, c`, or `a, b, ... (120 in all)`."""
    if not values:
        return "there are none yet"
    shown = ", ".join(values[:LISTED])
    return shown if len(values) <= LISTED else f"{shown}, ... ({len(values)} in all)"


def named(table: type[N], session: Session, project_id: UUID, name: str) -> N:
    """The model or dataset of that name; NotFound names the others."""
    row = session.scalar(owned(table, project_id).where(table.name == name))
    if row is None:
        names = session.scalars(select(table.name).where(table.project_id == project_id).order_by(table.name))
        noun = table.__name__
        raise NotFound(f"No {noun.lower()} is named {name}. {noun}s: {choices(list(names))}.")
    return row


def numbered(table: type[V], session: Session, row: Dataset | Model, versions: Select[V], number: int) -> V:
    """The version of that number among those of a model or dataset; NotFound names the others."""
    version = session.scalar(versions.where(table.number == number))
    if version is None:
        numbers = session.scalars(versions.with_only_columns(table.number).order_by(table.number.desc()))
        there = choices([str(each) for each in numbers])
        raise NotFound(f"{type(row).__name__} {row.name} has no version {number}. Versions: {there}.")
    return version


def locked(table: type[N], session: Session, project_id: UUID, name: str) -> N:
    """The model or dataset of that name, made when it does not exist; who wants it meanwhile waits for the commit."""
    insert_unless_there(
        session,
        table,
        {"id": uuid7(), "created_at": now(), "project_id": project_id, "name": name, "last_version": 0},
    )
    wanted = owned(table, project_id).where(table.name == name).with_for_update()
    return session.scalars(wanted.execution_options(populate_existing=True)).one()


def next_number(session: Session, row: Dataset | Model) -> int:
    """The number of the next version: one more than the last, also when that was deleted.

    It comes from a counter in the locked row, so numbers have no holes and two callers get two.
    """
    table = type(row)
    counted = update(table).where(table.id == row.id).values(last_version=table.last_version + 1)
    return session.scalars(counted.returning(table.last_version)).one()


def insert_unless_there(session: Session, table: type[Owned], values: dict[str, Any]) -> None:
    """Insert a row, or nothing: of two that bring the same name or bytes at once, the loser takes the winner's row."""
    insert = (sqlite if session.get_bind().dialect.name == "sqlite" else postgresql).insert
    session.execute(insert(table).values(values).on_conflict_do_nothing())
