"""Stored answers for Idempotency-Keys, one row for each key of a project, for 24 hours."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.errors import IdempotencyInProgress
from app.store.tables import IdempotentRequest, now

KEPT = timedelta(hours=24)


def claim(session: Session, project_id: uuid.UUID, key: str, fingerprint: str) -> IdempotentRequest | None:
    """Take the key for this transaction; the stored row when an earlier request has taken it.

    The row is committed with the deed, so a crash in between leaves neither. A second request that comes while the
    first still runs waits for its transaction, as long as the database lets it wait for a lock.
    """
    session.execute(delete(IdempotentRequest).where(IdempotentRequest.created_at < now() - KEPT))
    insert = sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgres_insert
    row: dict[str, Any] = {"project_id": project_id, "key": key, "fingerprint": fingerprint, "created_at": now()}
    try:
        taken = session.execute(
            insert(IdempotentRequest).values(row).on_conflict_do_nothing().returning(IdempotentRequest.key)
        ).first()
    except OperationalError as error:
        raise IdempotencyInProgress(retry_after_s=1) from error
    return None if taken else session.get_one(IdempotentRequest, (project_id, key))


def find(session: Session, project_id: uuid.UUID, key: str) -> IdempotentRequest | None:
    """The stored row of a key that was used in the last 24 hours."""
    row = session.get(IdempotentRequest, (project_id, key))
    return row if row is not None and row.created_at > now() - KEPT else None


def remember(
    session: Session, project_id: uuid.UUID, key: str, *, status: int, headers: dict[str, str], body: bytes | None
) -> None:
    """Store the answer beside the deed; `body` is None where the answer must not be kept."""
    row = session.get_one(IdempotentRequest, (project_id, key))
    row.status, row.headers, row.body = status, headers, body
    session.flush()
