"""Keys of the caller's project. A key is shown once and stored as a digest."""

from __future__ import annotations

from fastapi import Response

from app.admission import keys as admission
from app.errors import Conflict, IdempotencyConflict, IdempotencyInProgress, InvalidCursor, NotFound, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import Id, noun_router
from app.http.idempotency import once
from app.http.paging import Listing, Page
from app.http.resources import Read, ServicesDep, Write
from app.representations.keys import describe
from app.schemas.keys import Key, NewKey, ShownKey
from app.store import keys as store
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
    row, token = admission.create(session, caller, new)
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
    admission.revoke(session, caller, key_id)
    services.key_cache.forget()
