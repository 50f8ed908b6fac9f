"""Members of projects as the API takes and shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from app.schemas.base import Label, Schema, example
from app.schemas.keys import Role

MEMBER: dict[str, Any] = {
    "id": "01936f5e-7c00-7000-8000-00000000000c",
    "kind": "email",
    "value": "ana@hospital.example",
    "role": "clinician",
    "created_at": "2025-03-01T09:30:00Z",
}


class NewMember(Schema):
    """Who may do what in the project."""

    kind: Literal["subject", "email", "group"]
    """What the value is: `sub` of their tokens, an email address that the provider has verified, or one of the groups
    that their tokens list.
    """
    value: Label
    role: Role

    model_config = {
        **Schema.model_config,
        **example({"kind": "email", "value": "ana@hospital.example", "role": "clinician"}),
    }


class NewRole(Schema):
    """What a member may do from now on."""

    role: Role

    model_config = {**Schema.model_config, **example({"role": "engineer"})}


class Member(Schema):
    """Somebody of the OpenID provider, or a group of them, with a role in the project."""

    id: UUID
    kind: str
    value: str
    """An email address is in lower case."""
    role: str
    created_at: datetime

    model_config = {**Schema.model_config, **example(MEMBER)}
