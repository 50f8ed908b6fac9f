"""Roles and scopes: what a key or a person may do.

A role is a set of scopes; a key may be given fewer scopes than its role has.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.errors import Invalid

SCOPES = {
    "images:read": "See images and predictions, and download them.",
    "images:write": "Upload and delete images.",
    "datasets:read": "See datasets and their statistics.",
    "datasets:write": "Make datasets and new versions of them.",
    "jobs:read": "See jobs, their events and their logs.",
    "jobs:write": "Submit, cancel and resume jobs.",
    "models:read": "See models and download them.",
    "models:write": "Register and delete model versions.",
    "models:promote": "Move the aliases of models.",
    "predict": "Predict and analyse.",
    "keys:admin": "Make and revoke keys of the project, and say who its members are.",
    "retention:write": "Say how long the project keeps what it stores.",
    "metrics:read": "Read the figures of the whole installation.",
    "projects:admin": "See and make projects.",
}

_VIEWER = frozenset({"images:read", "datasets:read", "jobs:read", "models:read"})
_CLINICIAN = _VIEWER | {"images:write", "predict"}
_ENGINEER = _CLINICIAN | {"datasets:write", "jobs:write", "models:write"}
_ADMIN = _ENGINEER | {"models:promote", "keys:admin", "retention:write", "metrics:read"}

ROLES: dict[str, frozenset[str]] = {
    "viewer": _VIEWER,
    "clinician": _CLINICIAN,
    "engineer": _ENGINEER,
    "admin": _ADMIN,
    # Looks after the machine, not after the patients: no image content.
    "operator": frozenset({"metrics:read", "projects:admin"}),
}


@dataclass(frozen=True)
class Person:
    """Somebody whom an OpenID provider vouches for."""

    subject: str
    """What the provider calls them, for ever."""
    email: str | None
    """Their address in lower case, if the provider has verified it."""
    groups: tuple[str, ...]

    @property
    def who(self) -> str:
        """How the audit names them, in 64 characters at most: the address, else the subject or its digest."""
        if self.email is not None and len(self.email) <= 64:
            return self.email
        named = f"oidc:{self.subject}"
        return named if len(named) <= 64 else f"oidc:{hashlib.sha256(self.subject.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class Principal:
    """Somebody with a project and a list of what they may do there."""

    project_id: uuid.UUID
    who: str
    """`ts_<prefix>` of the key, `who` of a person, or `open`; what the audit and the job rows say."""
    role: str
    scopes: frozenset[str]
    key_id: uuid.UUID | None = None
    person: Person | None = None
    projects: tuple[str, ...] = ()
    """Names of all projects that a person may choose, this one included."""

    def may(self, scope: str) -> bool:
        """True when the caller has the scope."""
        return scope in self.scopes


def greatest(roles: Iterable[str]) -> str:
    """The role among these that may do most; of equals the one that ROLES names first."""
    there = set(roles)
    return max((role for role in ROLES if role in there), key=lambda role: len(ROLES[role]))


def granted(role: str, scopes: Sequence[str]) -> frozenset[str]:
    """What a key may do: everything its role may, or only the scopes it was given."""
    allowed = ROLES.get(role, frozenset())
    return allowed & frozenset(scopes) if scopes else allowed


def check_grant(role: str, scopes: Sequence[str]) -> None:
    """Refuse a role that does not exist and scopes that the role does not have."""
    if role not in ROLES:
        raise Invalid(
            f"There is no role {role[:32]!r}. Use one of: {', '.join(ROLES)}.",
            errors=[{"pointer": "/role", "detail": "not a role"}],
        )
    beyond = sorted(set(scopes) - ROLES[role])
    if beyond:
        raise Invalid(
            f"The role {role} does not have {', '.join(beyond)[:200]}. It has: {', '.join(sorted(ROLES[role]))}.",
            errors=[{"pointer": "/scopes", "detail": "not among the scopes of the role"}],
        )
