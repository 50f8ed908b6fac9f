"""Keys of the caller's project. A key is shown once and stored as a digest."""

from __future__ import annotations

from fastapi import Response

from app.errors import (
    Conflict,
    Forbidden,
    IdempotencyConflict,
    IdempotencyInProgress,
    InvalidCursor,
    NotFound,
    may_answer,
)
from app.http.callers import Caller, require
from app.http.endpoints import Id, noun_router
from app.http.idempotency import once
from app.http.paging import Listing, Page
from app.http.resources import Read, ServicesDep, Write
from app.representations.keys import describe
from app.roles import granted
from app.schemas.keys import Key, NewKey, ShownKey
from app.store import audit, keys as store
from app.store.tables import ApiKey

router = noun_router("keys")


@router.post(
    "/keys",
    status_code=201,
    dependencies=[require("keys:admin"), once],
    responses=may_answer(IdempotencyConflict, Conflict, IdempotencyInProgress),
)
def create_key(new: NewKey, caller: Caller, session: Write, response: Response) -> ShownKey:
    """Make a key of this project. Its secret is in this answer and nowhere else."""
    if not granted(new.role, new.scopes) <= caller.scopes:
        raise Forbidden("A key cannot make one that may do more than itself. Choose a smaller role or fewer scopes.")
    row, token = store.add(
        session,
        project_id=caller.project_id,
        name=new.name,
        role=new.role,
        scopes=new.scopes,
        expires_at=new.expires_at,
    )
    audit.note(session, caller, "key.create", row.id)
    response.headers["Location"] = f"/v1/keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return ShownKey(**describe(row).model_dump(), key=token)


@router.get("/keys", dependencies=[require("keys:admin")], responses=may_answer(InvalidCursor))
def list_keys(caller: Caller, session: Read, page: Page) -> Listing[Key]:
    """The keys of this project, also those that have ended, without their secrets."""
    return page.listing(session, store.owned(caller.project_id), ApiKey.id, describe)


@router.get("/keys/{key_id}", dependencies=[require("keys:admin")], responses=may_answer(NotFound))
def read_key(key_id: Id, caller: Caller, session: Read) -> Key:
    """One key, without its secret."""
    return describe(store.get(session, caller.project_id, key_id))


@router.delete("/keys/{key_id}", status_code=204, dependencies=[require("keys:admin")], responses=may_answer(NotFound))
def revoke_key(key_id: Id, caller: Caller, session: Write, services: ServicesDep) -> None:
    """End a key. Every gateway notices within five seconds; doing it twice changes nothing."""
    store.revoke(session, store.get(session, caller.project_id, key_id).prefix)
    audit.note(session, caller, "key.revoke", key_id)
    services.key_cache.forget()
