"""API keys: `ts_<8 characters>_<43 characters>`, of which only a SHA-256 is kept.

The secret is 256 random bits, so a slow password hash would add nothing; the first part finds the row, the digest of
the second part is compared in constant time, and against a dummy where there is no row.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from app.roles import check_grant
from app.store import projects, rows
from app.store.tables import ApiKey, Project, now

ALPHABET = string.digits + string.ascii_letters
PREFIX, SECRET = 8, 43
"""Characters of the two parts; 43 base-62 characters are 256 bits."""
USED_EVERY = timedelta(minutes=1)
"""How exact `last_used_at` is: a write for every request would cost more than the request."""

DUMMY = hashlib.sha256(b"no key has this digest").hexdigest()


def create(
    session: Session,
    *,
    project: str,
    name: str,
    role: str,
    scopes: Sequence[str] = (),
    expires_at: datetime | None = None,
) -> str:
    """Make a key, and its project where there is none; returns the key, which is never seen again."""
    return add(
        session,
        project_id=projects.ensure(session, project).id,
        name=name,
        role=role,
        scopes=scopes,
        expires_at=expires_at,
    )[1]


def add(
    session: Session,
    *,
    project_id: uuid.UUID,
    name: str,
    role: str,
    scopes: Sequence[str] = (),
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """The row of a new key and the key itself."""
    check_grant(role, scopes)
    prefix, secret = _random(PREFIX), _random(SECRET)
    row = ApiKey(
        project_id=project_id,
        prefix=prefix,
        digest=digest(secret),
        name=name,
        role=role,
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row, f"ts_{prefix}_{secret}"


def verify(session: Session, token: str) -> ApiKey | None:
    """The row of a valid key: known, not revoked, not expired. Unknown and wrong keys take the same time."""
    prefix, _, secret = token.removeprefix("ts_").partition("_")
    row = live(session, prefix)
    same = hmac.compare_digest(digest(secret), row.digest if row else DUMMY)
    return row if row is not None and same else None


def live(session: Session, prefix: str) -> ApiKey | None:
    """The row of a key that is neither revoked nor expired."""
    row = session.scalar(select(ApiKey).where(ApiKey.prefix == prefix))
    if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now()):
        return None
    return row


def touch(session: Session, row_id: uuid.UUID) -> None:
    """Note that a key was used, at most once a minute."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now() - USED_EVERY)
    session.execute(update(ApiKey).where(ApiKey.id == row_id, stale).values(last_used_at=now()))


owned = partial(rows.owned, ApiKey)
"""The keys of a project."""
get = partial(rows.get, ApiKey)
"""The key of that id in this project, or NotFound."""


def every(session: Session) -> Sequence[tuple[ApiKey, str]]:
    """Every key of the installation with the name of its project, oldest first."""
    query = select(ApiKey, Project.name).join(Project, Project.id == ApiKey.project_id).order_by(ApiKey.id)
    return [(row, name) for row, name in session.execute(query)]


def revoke(session: Session, prefix: str) -> bool:
    """End a key now; True when there was one. Ending it twice changes nothing."""
    row = session.scalar(select(ApiKey).where(ApiKey.prefix == prefix))
    if row is None:
        return False
    row.revoked_at = row.revoked_at or now()
    return True


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
