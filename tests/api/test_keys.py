"""Keys and projects over HTTP."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.errors import Invalid
from app.store import keys, projects
from app.store.tables import now
from tests.gateway import UNKNOWN, Gateway, told


def test_new_key_is_shown_once_works_and_can_be_revoked(gateway: Gateway) -> None:
    made = gateway.ask("POST", "/v1/keys", "admin", json={"name": "PACS", "role": "clinician"})
    key = made.json()
    assert made.status_code == 201 and made.headers["cache-control"] == "no-store"
    gateway.keys["pacs"] = key["key"]
    assert gateway.ask("GET", "/v1/images", "pacs").status_code == 200
    listed = gateway.ask("GET", "/v1/keys", "admin")
    assert key["key"] not in listed.text and key["prefix"] in listed.text
    shown = gateway.ask("GET", made.headers["location"], "admin").json()
    assert shown == {name: value for name, value in key.items() if name != "key"} | {
        "last_used_at": shown["last_used_at"]
    }
    for _ in range(2):
        assert gateway.ask("DELETE", made.headers["location"], "admin").status_code == 204
    assert told(gateway.ask("GET", "/v1/images", "pacs")) == (401, "unauthenticated")
    assert gateway.ask("GET", made.headers["location"], "admin").json()["revoked_at"] is not None


def test_keys_of_another_project_get_404(gateway: Gateway) -> None:
    theirs = gateway.ask("POST", "/v1/keys", "stranger", json={"name": "x", "role": "viewer"}).json()
    for method in ("GET", "DELETE"):
        assert told(gateway.ask(method, f"/v1/keys/{theirs['id']}", "admin")) == (404, "not_found")
        assert told(gateway.ask(method, f"/v1/keys/{UNKNOWN}", "admin")) == (404, "not_found")
    assert theirs["prefix"] not in gateway.ask("GET", "/v1/keys", "admin").text
    gateway.keys["theirs"] = theirs["key"]
    assert gateway.ask("GET", "/v1/images", "theirs").status_code == 200


def test_key_cannot_create_a_key_with_more_rights(gateway: Gateway) -> None:
    limited = gateway.ask(
        "POST", "/v1/keys", "admin", json={"name": "desk", "role": "admin", "scopes": ["keys:admin", "images:read"]}
    ).json()
    gateway.keys["desk"] = limited["key"]
    assert told(gateway.ask("POST", "/v1/images", "desk", content=b"", headers={"Content-Type": "image/png"})) == (
        403,
        "forbidden",
    )
    assert told(gateway.ask("POST", "/v1/keys", "desk", json={"name": "x", "role": "admin"})) == (403, "forbidden")
    assert told(gateway.ask("POST", "/v1/keys", "admin", json={"name": "x", "role": "operator"})) == (403, "forbidden")
    assert (
        gateway.ask(
            "POST", "/v1/keys", "desk", json={"name": "x", "role": "viewer", "scopes": ["images:read"]}
        ).status_code
        == 201
    )


WRONG_FIELDS = [
    ({"role": "viewer"}, "/name"),
    ({"name": "", "role": "viewer"}, "/name"),
    ({"name": "x" * 256, "role": "viewer"}, "/name"),
    ({"name": "a\0b", "role": "viewer"}, "/name"),
    ({"name": "x", "role": "root"}, "/role"),
    ({"name": "x", "role": "viewer", "scopes": ["images:write"]}, "/scopes"),
    ({"name": "x", "role": "viewer", "scopes": ["all"]}, "/scopes/0"),
    ({"name": "x", "role": "viewer", "expires_at": "2001-01-01T00:00:00Z"}, "/expires_at"),
    ({"name": "x", "role": "viewer", "expires_at": "2101-01-01T00:00:00"}, "/expires_at"),
    ({"name": "x", "role": "viewer", "roles": "admin"}, "/roles"),
    ([], ""),
    ("x", ""),
    (None, ""),
    ({"name": {"a": 1}, "role": "viewer"}, "/name"),
]


def test_invalid_field_is_named_by_its_pointer(gateway: Gateway) -> None:
    for body, pointer in WRONG_FIELDS:
        answer = gateway.ask("POST", "/v1/keys", "admin", json=body)
        assert told(answer) == (422, "invalid"), body
        assert pointer in [error["pointer"] for error in answer.json()["errors"]], answer.text
        assert '"input"' not in answer.text and "2001" not in answer.text and "\\u0000" not in answer.text
    assert sum(gateway.count_project().values()) == 0


def test_keys_can_be_managed_on_the_host_without_http(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        token = keys.create(session, project="new", name="first", role="operator", expires_at=now() + timedelta(days=1))
        assert projects.find(session, "new") is not None
        assert ("first", "new") in [(row.name, project) for row, project in keys.every(session)]
        assert keys.revoke(session, token[3:11]) and not keys.revoke(session, "nothing0")
        with pytest.raises(Invalid, match=r"no role 'boss'\. Use one of: viewer, clinician"):
            keys.create(session, project="new", name="x", role="boss")


def test_project_is_visible_to_itself_and_to_the_operator(empty_gateway: Gateway) -> None:
    made = empty_gateway.ask("POST", "/v1/projects", "operator", json={"name": "retina"})
    assert made.status_code == 201
    assert told(empty_gateway.ask("POST", "/v1/projects", "operator", json={"name": "retina"})) == (409, "conflict")
    assert told(empty_gateway.ask("POST", "/v1/projects", "admin", json={"name": "mine"})) == (403, "forbidden")
    assert [project["name"] for project in empty_gateway.ask("GET", "/v1/projects").json()["items"]] == ["clinic"]
    assert {"clinic", "elsewhere", "retina"} <= {
        project["name"] for project in empty_gateway.ask("GET", "/v1/projects", "operator").json()["items"]
    }
    assert told(empty_gateway.ask("GET", made.headers["location"], "admin")) == (404, "not_found")
    assert empty_gateway.ask("GET", made.headers["location"], "operator").json() == made.json()
    assert told(empty_gateway.ask("GET", "/v1/images", "operator")) == (403, "forbidden")
    for name in ("", "a b", "../x", "x" * 65, "-x", "ä"):
        assert told(empty_gateway.ask("POST", "/v1/projects", "operator", json={"name": name})) == (422, "invalid")
