"""API keys as the API takes and shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, Field

from app.roles import ROLES, SCOPES
from app.schemas.base import Label, Schema, example

Role = Literal["viewer", "clinician", "engineer", "admin", "operator"]
Scope = Literal[tuple(SCOPES)]  # type: ignore[valid-type]  # stated once, in app.roles

assert set(Role.__args__) == set(ROLES)  # type: ignore[attr-defined]  # typeshed hides it


def _in_the_future(moment: datetime) -> datetime:
    if moment <= datetime.now(UTC):
        raise ValueError("this moment has passed; give one in the future, or null")
    return moment


KEY: dict[str, Any] = {
    "id": "01936f5e-7c00-7000-8000-000000000002",
    "prefix": "ts_Zk3vQ8aB",
    "name": "PACS of ward 3",
    "role": "clinician",
    "scopes": [],
    "created_at": "2025-03-01T09:30:00Z",
    "expires_at": "2026-03-01T00:00:00Z",
    "revoked_at": None,
    "last_used_at": None,
}


class NewKey(Schema):
    """What a key is for, and how much it may do."""

    name: Label
    """Who or what will use it."""
    role: Role
    scopes: Annotated[list[Scope], Field(max_length=len(SCOPES))] = []  # type: ignore[valid-type]  # as above
    """Fewer scopes than the role has; empty means all of them."""
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_the_future)] | None = None
    """When it stops working; null means never."""

    model_config = {
        **Schema.model_config,
        **example({"name": "PACS of ward 3", "role": "clinician", "expires_at": "2126-03-01T00:00:00Z"}),
    }


class Key(Schema):
    """A key without its secret."""

    id: UUID
    prefix: str
    """The first part of the key: enough to find it, too little to use it."""
    name: str
    role: str
    scopes: list[str]
    """What it was limited to; empty means all of its role."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Exact to a minute."""

    model_config = {**Schema.model_config, **example(KEY)}


class ShownKey(Key):
    """A new key with its secret, which is shown this once."""

    key: str
    """Send it as `Authorization: Bearer ts_...`. It cannot be shown again."""

    model_config = {**Schema.model_config, **example({**KEY, "key": "ts_Zk3vQ8aB_" + "x" * 43})}
