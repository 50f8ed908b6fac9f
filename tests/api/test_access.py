"""Which key may use which route, compared with a hand-written table.

A route that is missing here fails: whoever adds one says here who may use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.routing import iter_route_contexts

from app.main import LATE
from app.openapi.document import operations
from app.roles import ROLES
from app.settings import Settings
from app.store import keys
from tests.gateway import UNKNOWN, Gateway

PUBLIC, ANYONE, SIGN_IN = "public", "anyone with a key", "whoever writes a key into the form"

ACCESS = {
    "POST /v1/images": "images:write",
    "GET /v1/images": "images:read",
    "GET /v1/images/{image_id}": "images:read",
    "GET /v1/images/{image_id}/content": "images:read",
    "GET /v1/images/{image_id}/preview.png": "images:read",
    "DELETE /v1/images/{image_id}": "images:write",
    "GET /v1/images/{image_id}/deletion": "images:read",
    "PATCH /v1/images/{image_id}": "images:write",
    "POST /v1/datasets": "datasets:write",
    "POST /v1/datasets/pairing": "datasets:write",
    "GET /v1/datasets": "datasets:read",
    "GET /v1/datasets/{name}": "datasets:read",
    "POST /v1/datasets/{name}/versions": "datasets:write",
    "GET /v1/datasets/{name}/versions": "datasets:read",
    "GET /v1/datasets/{name}/versions/{number}": "datasets:read",
    "GET /v1/datasets/{name}/versions/{number}/items": "datasets:read",
    "GET /v1/datasets/{name}/versions/{number}/plan": "datasets:read",
    "DELETE /v1/datasets/{name}/versions/{number}": "datasets:write",
    "GET /v1/datasets/{name}/versions/{number}/deletion": "datasets:read",
    "GET /v1/datasets/{name}/deletion": "datasets:read",
    "DELETE /v1/datasets/{name}": "datasets:write",
    "PATCH /v1/datasets/{name}": "datasets:write",
    "POST /v1/jobs": "jobs:write",
    "GET /v1/jobs": "jobs:read",
    "GET /v1/jobs/{job_id}": "jobs:read",
    "GET /v1/jobs/{job_id}/comparison": "jobs:read",
    "POST /v1/jobs/{job_id}/cancel": "jobs:write",
    "POST /v1/jobs/{job_id}/resume": "jobs:write",
    "GET /v1/jobs/{job_id}/deletion": "jobs:read",
    "DELETE /v1/jobs/{job_id}": "jobs:write",
    "GET /v1/jobs/{job_id}/events": "jobs:read",
    "GET /v1/jobs/{job_id}/log": "jobs:read",
    "GET /v1/jobs/{job_id}/results.csv": "jobs:read images:read",
    "GET /v1/jobs/{job_id}/results.zip": "jobs:read images:read",
    "GET /v1/models": "models:read",
    "GET /v1/models/{name}": "models:read",
    "GET /v1/models/{name}/versions": "models:read",
    "POST /v1/models/{name}/versions": "models:write",
    "GET /v1/models/{name}/versions/{number}": "models:read",
    "GET /v1/models/{name}/versions/{number}/manifest.json": "models:read",
    "GET /v1/models/{name}/versions/{number}/onnx": "models:read",
    "GET /v1/models/{name}/versions/{number}/bundle.zip": "models:read",
    "GET /v1/models/{name}/versions/{number}/safetensors": "models:read",
    "GET /v1/models/{name}/versions/{number}/deletion": "models:read",
    "DELETE /v1/models/{name}/versions/{number}": "models:write",
    "GET /v1/models/{name}/deletion": "models:read",
    "DELETE /v1/models/{name}": "models:promote",
    "PATCH /v1/models/{name}": "models:promote",
    "GET /v1/models/{name}/aliases": "models:read",
    "GET /v1/models/{name}/aliases/{alias}": "models:read",
    "PUT /v1/models/{name}/aliases/{alias}": "models:promote",
    "DELETE /v1/models/{name}/aliases/{alias}": "models:promote",
    "GET /v1/models/{name}/aliases/{alias}/history": "models:read",
    "POST /v1/models/{ref}/predict": "predict",
    "GET /v1/predictions": "images:read",
    "GET /v1/predictions/{prediction_id}": "images:read",
    "GET /v1/predictions/{prediction_id}/deletion": "images:read",
    "DELETE /v1/predictions/{prediction_id}": "images:write",
    "GET /v1/predictions/{prediction_id}/{file}": "images:read",
    "PUT /v1/predictions/{prediction_id}/reference": "images:write",
    "POST /v1/predictions/{prediction_id}/edits": "images:write",
    "GET /v1/predictions/{prediction_id}/edits": "images:read",
    "GET /v1/predictions/{prediction_id}/edits/mask": "images:read",
    "GET /v1/predictions/{prediction_id}/edits/{edit_id}": "images:read",
    "DELETE /v1/predictions/{prediction_id}/edits/{edit_id}": "images:write",
    "POST /v1/dicomweb/rules": "jobs:write",
    "GET /v1/dicomweb/rules": "jobs:read",
    "GET /v1/dicomweb/rules/{rule_id}": "jobs:read",
    "PATCH /v1/dicomweb/rules/{rule_id}": "jobs:write",
    "DELETE /v1/dicomweb/rules/{rule_id}": "jobs:write",
    "GET /v1/dicomweb/rules/{rule_id}/series": "jobs:read",
    "POST /v1/analyses/edits": "predict",
    "POST /v1/analyses": "predict",
    "POST /v1/analyses/simple-points": "predict",
    "POST /v1/analyses/skeleton": "predict",
    "POST /v1/projects": "projects:admin",
    "GET /v1/projects": ANYONE,
    "GET /v1/projects/{project_id}": ANYONE,
    "GET /v1/projects/{project_id}/retention": ANYONE,
    "PUT /v1/projects/{project_id}/retention": "retention:write",
    "POST /v1/keys": "keys:admin",
    "GET /v1/keys": "keys:admin",
    "GET /v1/keys/{key_id}": "keys:admin",
    "DELETE /v1/keys/{key_id}": "keys:admin",
    "POST /v1/members": "keys:admin",
    "GET /v1/members": "keys:admin",
    "GET /v1/members/{member_id}": "keys:admin",
    "PATCH /v1/members/{member_id}": "keys:admin",
    "DELETE /v1/members/{member_id}": "keys:admin",
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

PAGES = {
    "GET /login": PUBLIC,
    "POST /login": SIGN_IN,
    "POST /logout": ANYONE,
    "GET /login/openid": PUBLIC,
    "GET /login/openid/callback": PUBLIC,
    "GET /session/project": ANYONE,
    "POST /session/project": "being a person",
    "GET /static/{name}": PUBLIC,
    "GET /": ANYONE,
    "GET /index.json": ANYONE,
    "POST /images/{image_id}/predict": "predict images:write",
    "POST /predictions/{prediction_id}/reference": "images:write",
    "POST /datasets": "datasets:write",
    "POST /datasets/pairing": "datasets:write",
    "GET /jobs/new.json": "jobs:write",
    "GET /jobs/new": "jobs:write",
    "POST /jobs/new": "jobs:write",
    "GET /project.json": "keys:admin",
    "GET /project": "keys:admin",
    "POST /project/keys": "keys:admin",
    "POST /project/keys/{key_id}/revoke": "keys:admin",
    "POST /project/members": "keys:admin",
    "POST /project/members/{member_id}/role": "keys:admin",
    "POST /project/members/{member_id}/remove": "keys:admin",
    "POST /jobs/rules/{rule_id}": "jobs:write",
    "POST /project/retention": "retention:write",
    "GET /images/{image_id}/delete.json": "images:write",
    "GET /images/{image_id}/delete": "images:write",
    "POST /images/{image_id}/delete": "images:write",
    "GET /predictions/{prediction_id}/delete.json": "images:write",
    "GET /predictions/{prediction_id}/delete": "images:write",
    "POST /predictions/{prediction_id}/delete": "images:write",
    "GET /jobs/{job_id}/delete.json": "jobs:write",
    "GET /jobs/{job_id}/delete": "jobs:write",
    "POST /jobs/{job_id}/delete": "jobs:write",
    "GET /models/{name}": "models:read",
    "GET /images/{image_id}/axes.json": "images:read",
    "GET /images/{image_id}/volume.nii.gz": "images:read",
    "GET /predictions/{prediction_id}/layers/{name}.nii.gz": "images:read",
    "POST /models": "models:write",
    "GET /jobs/curves": "jobs:read",
    "GET /jobs/curves.json": "jobs:read",
    "POST /predictions/{prediction_id}/edits": "images:write",
    "POST /predictions/{prediction_id}/edits/{edit_id}/undo": "images:write",
    "POST /predictions/{prediction_id}/edits/reference": "images:write",
    "POST /predictions/{prediction_id}/edits/label": "images:write",
    "GET /predictions/{prediction_id}/persistence.json": "images:read",
    "GET /predictions/{prediction_id}/persistence": "images:read",
    "GET /images/queue.json": "images:read models:read",
    "GET /images/queue": "images:read models:read",
    "POST /images/queue": "images:read predict",
    "POST /images/{image_id}/label": "images:write",
    "GET /datasets/{name}": "datasets:read",
    "GET /models/{name}/versions/{number}/delete.json": "models:write",
    "GET /models/{name}/versions/{number}/delete": "models:write",
    "POST /models/{name}/versions/{number}/delete": "models:write",
    "GET /datasets/{name}/versions/{number}/delete.json": "datasets:write",
    "GET /datasets/{name}/versions/{number}/delete": "datasets:write",
    "POST /datasets/{name}/versions/{number}/delete": "datasets:write",
    "GET /images.json": "images:read",
    "GET /images": "images:read",
    "POST /images": "images:write",
    "GET /images/{image_id}.json": "images:read",
    "GET /images/{image_id}": "images:read",
    "GET /images/{image_id}/picture.png": "images:read",
    "GET /images/{image_id}/thumbnail.webp": "images:read",
    "GET /predictions/{prediction_id}/thumbnail.webp": "images:read",
    "GET /datasets.json": "datasets:read",
    "GET /datasets": "datasets:read",
    "GET /datasets/{name}/versions/{number}.json": "datasets:read images:read",
    "GET /datasets/{name}/versions/{number}": "datasets:read images:read",
    "GET /datasets/{name}/versions/{number}/items/{position}.webp": "datasets:read images:read",
    "POST /datasets/{name}/versions/{number}/items": "datasets:write",
    "GET /jobs.json": "jobs:read",
    "GET /jobs": "jobs:read",
    "GET /jobs/{job_id}.json": "jobs:read",
    "GET /jobs/{job_id}": "jobs:read",
    "POST /jobs/{job_id}/cancel": "jobs:write",
    "POST /jobs/{job_id}/resume": "jobs:write",
    "GET /models.json": "models:read",
    "GET /models": "models:read",
    "GET /models/{name}/versions/{number}.json": "models:read",
    "GET /models/{name}/versions/{number}": "models:read",
    "POST /models/{name}/versions/{number}/alias": "models:promote",
    "POST /models/{name}/versions/{number}/try": "predict images:write",
    "GET /predictions.json": "images:read",
    "GET /predictions": "images:read",
    "GET /predictions/{prediction_id}.json": "images:read",
    "GET /predictions/{prediction_id}": "images:read",
    "GET /predictions/{prediction_id}/layers/{name}.png": "images:read",
    "GET /predictions/{prediction_id}/layers/located.json": "images:read",
    "GET /predictions/{prediction_id}/layers/located.svg": "images:read",
    "GET /predictions/{a}/against/{b}.png": "images:read",
    "GET /compare.json": "models:read images:read",
    "GET /compare": "models:read images:read",
}
"""Routes for browsers; they are not in the document and obey the same scopes."""

WIRES = {
    "GET /monai/info/": "models:read images:read jobs:read",
    "GET /monai/logs/": "jobs:read",
    "GET /monai/logs/gpu": "jobs:read",
    "GET /monai/auth/": PUBLIC,
    "POST /monai/auth/token": SIGN_IN,
    "GET /monai/auth/token/valid": ANYONE,
    "POST /monai/infer/{model}": "predict images:read",
    "GET /monai/datastore/": "images:read",
    "PUT /monai/datastore/": "images:write",
    "GET /monai/datastore/image": "images:read",
    "PUT /monai/datastore/image": "images:write",
    "DELETE /monai/datastore/image": "images:write",
    "GET /monai/datastore/image/info": "images:read",
    "PUT /monai/datastore/image/info": "images:write",
    "GET /monai/datastore/label": "images:read",
    "PUT /monai/datastore/label": "images:write",
    "DELETE /monai/datastore/label": "images:write",
    "GET /monai/datastore/dataset": "images:read",
    "PUT /monai/session/": "images:write",
    "GET /monai/session/{session_id}": "images:read",
    "DELETE /monai/session/{session_id}": "images:write",
    "POST /monai/activelearning/{strategy}": "images:read predict",
    "POST /monai/train/": "jobs:write datasets:write",
    "POST /monai/train/{model}": "jobs:write datasets:write",
    "GET /monai/train/": "jobs:read",
    "DELETE /monai/train/": "jobs:write",
    "POST /monai/batch/infer/{model}": "jobs:write images:read",
    "GET /monai/batch/infer": "jobs:read",
    "DELETE /monai/batch/infer": "jobs:write",
    "GET /nninteractive/{ref}/healthz": PUBLIC,
    "GET /nninteractive/{ref}/{name}": "predict",
    "POST /nninteractive/{ref}/{name}": "predict",
    "GET /label-studio/{ref}/health": "predict",
    "POST /label-studio/{ref}/{name}": "predict",
}
"""Wires of other programs, which their own documents describe; they obey the same scopes."""

EVERY = ACCESS | PAGES | WIRES

READS = {"images:read", "datasets:read", "jobs:read", "models:read"}
MAY = {
    "viewer": READS,
    "clinician": READS | {"images:write", "predict"},
    "engineer": READS | {"images:write", "predict", "datasets:write", "jobs:write", "models:write"},
    "operator": {"metrics:read", "projects:admin"},
}
MAY["admin"] = MAY["engineer"] | {"models:promote", "keys:admin", "retention:write", "metrics:read"}

MAY_BE_AWAY = ("/readyz", "/v2/health/ready")
"""Answer 503 when there is nothing to be ready with."""

EXAMPLES = {
    "number": "1",
    "name": "nothing",
    "model": "nothing",
    "ref": "nothing",
    "alias": "nothing",
    "file": "mask.png",
    "dataset": "nothing",
    "position": "0",
    "session_id": "nothing",
    "strategy": "newest",
}
"""What stands for a path parameter that is not an id."""


@pytest.fixture(scope="module")
def gateway(serve: Callable[..., Gateway], tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A gateway with a key for each role and each scope alone."""
    gateway = serve(
        Settings(
            _env_file=None, data_dir=tmp_path_factory.mktemp("access"), min_free_bytes=0, wrong_keys_a_minute=100_000
        )
    )
    for prefix in LATE:
        gateway.ask("GET", prefix)  # loads what is below it
    with gateway.database.write() as session:
        for scope in sorted(MAY["admin"]):
            gateway.keys[f"only {scope}"] = keys.create(
                session, project="clinic", name=scope, role="admin", scopes=[scope]
            )
    return gateway


def expected(needed: str, who: str | None) -> set[int]:
    """401 for nobody, 403 for those who lack the scope, and neither for those who have it."""
    if needed == PUBLIC:
        return set()
    if needed == SIGN_IN:
        return {401}  # a key in the header signs nobody in
    if who in (None, "revoked", "expired"):
        return {401}
    has = {who.removeprefix("only ")} if who.startswith("only ") else MAY["admin" if who == "stranger" else who]
    return set() if needed == ANYONE or has.issuperset(needed.split()) else {403}


def address(path: str) -> str:
    """The path with something in the place of each parameter that names nothing."""
    return re.sub(r"{(\w+)}", lambda match: EXAMPLES.get(match.group(1), UNKNOWN), path)


def test_each_route_admits_exactly_the_keys_in_the_access_table(gateway: Gateway) -> None:
    spec = gateway.ask("GET", "/openapi.json").json()
    takes_json = {
        f"{method} {path}"
        for method, path, operation in operations(spec)
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    assert routes_of(gateway) - set(EVERY) == set(), "say in ACCESS, PAGES or WIRES who may use these routes"
    callers: list[str | None] = [
        None,
        "revoked",
        "expired",
        "stranger",
        *MAY,
        *(who for who in gateway.keys if who.startswith("only ")),
    ]
    wrong = []
    for route, needed in EVERY.items():
        method, path = route.split(" ")
        for who in callers:
            answer = gateway.ask(method, address(path), who, **({"json": {}} if route in takes_json else {}))
            allowed, status = expected(needed, who), answer.status_code
            refused = status in (401, 403) or (status >= 500 and path not in MAY_BE_AWAY)
            if status not in allowed if allowed else refused:
                wrong.append(f"{route} as {who}: {status} {answer.text[:120]}")
    assert not wrong, "\n".join(wrong)


def routes_of(gateway: Gateway) -> set[str]:
    """Method and template of every route there is, in the document or not."""
    contexts = iter_route_contexts(gateway.app.router.routes)
    return {
        f"{method} {context.path_format}"
        for context in contexts
        for method in context.methods or ()
        if method != "HEAD"
    }


def test_roles_are_those_of_the_table() -> None:
    assert {role: set(scopes) for role, scopes in ROLES.items()} == MAY


def test_every_route_in_the_access_table_exists(gateway: Gateway) -> None:
    assert set(EVERY) - routes_of(gateway) == set()


def test_openapi_lists_every_route_except_pages(gateway: Gateway) -> None:
    spec = gateway.ask("GET", "/openapi.json").json()
    assert {f"{method} {path}" for method, path, _ in operations(spec)} == set(ACCESS)


def test_openapi_says_which_routes_need_a_key(gateway: Gateway) -> None:
    spec = gateway.ask("GET", "/openapi.json").json()
    for method, path, operation in operations(spec):
        ways = [] if ACCESS[f"{method} {path}"] == PUBLIC else [{"HTTPBearer": []}, {"APIKeyCookie": []}]
        assert operation.get("security", []) == ways, (method, path)
