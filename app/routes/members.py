"""Members of the caller's project: people of the OpenID provider and their roles."""

from __future__ import annotations

from fastapi import Response

from app.admission import members as admission
from app.errors import Conflict, IdempotencyConflict, IdempotencyInProgress, InvalidCursor, NotFound, may_answer
from app.http.callers import Caller, require
from app.http.endpoints import Id, noun_router
from app.http.idempotency import once
from app.http.paging import Listing, Page
from app.http.resources import Read, ServicesDep, Write
from app.schemas.members import Member, NewMember, NewRole
from app.store import members as store, tables

router = noun_router("members")


@router.post(
    "/members",
    status_code=201,
    dependencies=[require("keys:admin"), once],
    responses=may_answer(IdempotencyConflict, Conflict, IdempotencyInProgress),
)
def create_member(new: NewMember, caller: Caller, session: Write, services: ServicesDep, response: Response) -> Member:
    """Let somebody of the OpenID provider, or one of its groups, into this project."""
    row = admission.create(session, caller, new)
    services.key_cache.forget()
    response.headers["Location"] = f"/v1/members/{row.id}"
    return Member.of(row)


@router.get("/members", dependencies=[require("keys:admin")], responses=may_answer(InvalidCursor))
def list_members(caller: Caller, session: Read, page: Page) -> Listing[Member]:
    """The members of this project."""
    return page.listing(session, store.owned(caller.project_id), tables.Member.id, Member.of)


@router.get("/members/{member_id}", dependencies=[require("keys:admin")], responses=may_answer(NotFound))
def read_member(member_id: Id, caller: Caller, session: Read) -> Member:
    """One member."""
    return Member.of(store.get(session, caller.project_id, member_id))


@router.patch("/members/{member_id}", dependencies=[require("keys:admin")], responses=may_answer(NotFound))
def change_member(member_id: Id, new: NewRole, caller: Caller, session: Write, services: ServicesDep) -> Member:
    """Give a member another role. Every gateway notices within five seconds."""
    row = admission.change(session, caller, member_id, new.role)
    services.key_cache.forget()
    return Member.of(row)


@router.delete(
    "/members/{member_id}", status_code=204, dependencies=[require("keys:admin")], responses=may_answer(NotFound)
)
def remove_member(member_id: Id, caller: Caller, session: Write, services: ServicesDep) -> None:
    """End a membership. Every gateway notices within five seconds; what the member has made stays."""
    admission.remove(session, caller, member_id)
    services.key_cache.forget()
