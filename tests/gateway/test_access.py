"""Every route of the document against every kind of caller, compared with a table that is written by hand.

A route that is missing here fails: whoever adds one says here who may use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from app.roles import ROLES
from app.routes.reference import operations
from app.settings import Settings
from app.store import keys
from tests.gateway.conftest import UNKNOWN, Gateway

PUBLIC, ANYONE = "public", "anyone with a key"

ACCESS = {
    "POST /v1/images": "images:write",
    "GET /v1/images": "images:read",
    "GET /v1/images/{image_id}": "images:read",
    "GET /v1/images/{image_id}/content": "images:read",
    "GET /v1/images/{image_id}/preview.png": "images:read",
    "DELETE /v1/images/{image_id}": "images:write",
    "POST /v1/jobs": "jobs:write",
    "GET /v1/jobs": "jobs:read",
    "GET /v1/jobs/{job_id}": "jobs:read",
    "POST /v1/jobs/{job_id}/cancel": "jobs:write",
    "POST /v1/jobs/{job_id}/resume": "jobs:write",
    "GET /v1/jobs/{job_id}/events": "jobs:read",
    "GET /v1/jobs/{job_id}/log": "jobs:read",
    "GET /v1/models": "models:read",
    "GET /v1/models/{name}": "models:read",
    "GET /v1/models/{name}/versions": "models:read",
    "GET /v1/models/{name}/versions/{number}": "models:read",
    "GET /v1/models/{name}/versions/{number}/manifest.json": "models:read",
    "GET /v1/models/{name}/versions/{number}/onnx": "models:read",
    "GET /v1/models/{name}/versions/{number}/safetensors": "models:read",
    "GET /v1/models/{name}/aliases": "models:read",
    "GET /v1/models/{name}/aliases/{alias}": "models:read",
    "PUT /v1/models/{name}/aliases/{alias}": "models:promote",
    "DELETE /v1/models/{name}/aliases/{alias}": "models:promote",
    "GET /v1/models/{name}/aliases/{alias}/history": "models:read",
    "POST /v1/models/{ref}/predict": "predict",
    "GET /v1/predictions": "images:read",
    "GET /v1/predictions/{prediction_id}": "images:read",
    "GET /v1/predictions/{prediction_id}/{file}": "images:read",
    "PUT /v1/predictions/{prediction_id}/reference": "images:write",
    "POST /v1/projects": "projects:admin",
    "GET /v1/projects": ANYONE,
    "GET /v1/projects/{project_id}": ANYONE,
    "POST /v1/keys": "keys:admin",
    "GET /v1/keys": "keys:admin",
    "GET /v1/keys/{key_id}": "keys:admin",
    "DELETE /v1/keys/{key_id}": "keys:admin",
    "GET /v2": PUBLIC,
    "GET /v2/health/live": PUBLIC,
    "GET /v2/health/ready": PUBLIC,
    "GET /v2/models": "models:read",
    "GET /v2/models/stats": "models:read",
    "GET /v2/models/{name}": "models:read",
    "GET /v2/models/{name}/versions/{number}": "models:read",
    "GET /v2/models/{name}/ready": "models:read",
    "GET /v2/models/{name}/versions/{number}/ready": "models:read",
    "GET /v2/models/{name}/config": "models:read",
    "GET /v2/models/{name}/versions/{number}/config": "models:read",
    "GET /v2/models/{name}/stats": "models:read",
    "GET /v2/models/{name}/versions/{number}/stats": "models:read",
    "POST /v2/models/{name}/infer": "predict",
    "POST /v2/models/{name}/versions/{number}/infer": "predict",
    "POST /v2/repository/index": "models:read",
    "POST /v2/repository/models/{name}/load": "models:promote",
    "POST /v2/repository/models/{name}/unload": "models:promote",
    "GET /livez": PUBLIC,
    "GET /readyz": PUBLIC,
    "GET /metrics": "metrics:read",
    "GET /openapi.json": ANYONE,
    "GET /docs": ANYONE,
}

MAY = {
    "viewer": {"images:read", "datasets:read", "jobs:read", "models:read"},
    "clinician": {"images:read", "datasets:read", "jobs:read", "models:read", "images:write", "predict"},
    "engineer": {"images:read", "datasets:read", "jobs:read", "models:read", "images:write", "predict", "datasets:write", "jobs:write", "models:write"},
    "admin": {
        "images:read", "datasets:read", "jobs:read", "models:read", "images:write", "predict", "datasets:write", "jobs:write", "models:write",
        "models:promote", "keys:admin", "metrics:read",
    },
    "operator": {"metrics:read", "projects:admin"},
}  # fmt: skip

EXAMPLES = {"number": "1", "name": "nothing", "model": "nothing", "ref": "nothing", "alias": "nothing", "file": "mask.png", "dataset": "nothing"}
"""What stands for a path parameter that is not an id."""


@pytest.fixture(scope="module")
def house(serve: Callable[..., Gateway], tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A gateway with a key for each role and each scope alone."""
    gateway = serve(Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("access"), min_free_bytes=0))
    with gateway.database.write() as session:
        for scope in sorted(MAY["admin"]):
            gateway.keys[f"only {scope}"] = keys.create(session, project="clinic", name=scope, role="admin", scopes=[scope])
    return gateway


def expected(needed: str, who: str | None) -> set[int]:
    """401 for nobody, 403 for those who lack the scope, and neither for those who have it."""
    if needed == PUBLIC:
        return set()
    if who in (None, "revoked", "expired"):
        return {401}
    has = {who.removeprefix("only ")} if who.startswith("only ") else MAY["admin" if who == "stranger" else who]
    return set() if needed == ANYONE or needed in has else {403}


def address(path: str) -> str:
    """The path with something in the place of each parameter that names nothing."""
    return re.sub(r"{(\w+)}", lambda match: EXAMPLES.get(match.group(1), UNKNOWN), path)


def test_every_route_lets_in_exactly_whom_the_table_names(house: Gateway) -> None:
    spec = house.ask("GET", "/openapi.json").json()
    routes = {f"{method} {path}": operation for method, path, operation in operations(spec)}
    assert set(routes) - set(ACCESS) == set(), "say in ACCESS who may use these routes"
    callers: list[str | None] = [None, "revoked", "expired", "stranger", *MAY, *(who for who in house.keys if who.startswith("only "))]
    wrong = []
    for route, needed in ACCESS.items():
        if route not in routes:
            continue
        method, path = route.split(" ")
        body = {"json": {}} if "application/json" in routes[route].get("requestBody", {}).get("content", {}) else {}
        for who in callers:
            answer = house.ask(method, address(path), who, **body)
            allowed = expected(needed, who)
            if (answer.status_code not in allowed) if allowed else (answer.status_code in (401, 403) or answer.status_code >= 500 and path != "/readyz"):
                wrong.append(f"{route} as {who}: {answer.status_code} {answer.text[:120]}")
    assert not wrong, "\n".join(wrong)


def test_roles_are_those_of_the_table() -> None:
    assert {role: set(scopes) for role, scopes in ROLES.items()} == MAY


def test_no_route_of_the_table_has_gone(house: Gateway) -> None:
    spec = house.ask("GET", "/openapi.json").json()
    assert set(ACCESS) - {f"{method} {path}" for method, path, _ in operations(spec)} == set()
