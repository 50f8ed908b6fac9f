"""Health, metrics, API reference, error handling and logs of the gateway."""

from __future__ import annotations

import ast
import contextlib
import html
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from prometheus_client import REGISTRY
from sqlalchemy import insert, text

from app import errors, imaging, logs
from app.http import telemetry
from app.openapi import document as reference
from app.openapi.reference import Operation, examples
from app.settings import Settings
from app.store.session import clock
from app.store.tables import Job, Worker
from tests.gateway import UNKNOWN, Gateway, told
from tests.images import noise_png
from tests.services import ROOT


def test_livez_says_only_that_the_process_is_alive(gateway: Gateway) -> None:
    assert gateway.http.get("/livez").json() == {"status": "ok"}


def test_readyz_reports_each_part(gateway: Gateway) -> None:
    answer = gateway.http.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert {name: check["status"] for name, check in answer.json()["checks"].items()} == {
        "database": "ok",
        "broker": "ok",
        "workers": "degraded",
    }
    with gateway.database.write() as session:
        session.execute(insert(Worker).values(id="w", lane="train", seen_at=clock()))
        session.execute(insert(Worker).values(id="w", lane="quick", seen_at=clock()))
    answer = gateway.http.get("/readyz").json()
    assert (answer["status"], answer["checks"]["workers"]["detail"]) == ("ok", "1 seen")
    gateway.services.draining.set()
    assert (gateway.http.get("/readyz").status_code, gateway.http.get("/readyz").json()["status"]) == (503, "draining")
    assert gateway.http.get("/livez").status_code == 200


def test_readyz_reports_a_missing_broker_and_requests_still_work(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(redis_url="redis://127.0.0.1:1/0"))
    answer = gateway.http.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["broker"]["status"]) == (200, "failed")
    assert gateway.upload(noise_png()).status_code == 201


def test_failing_database_gets_503_not_500(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        session.execute(text("ALTER TABLE images RENAME TO hidden"))
    try:
        status, code = told(gateway.ask("GET", "/v1/images"))
        assert (status, code) in ((503, "unavailable"), (500, "internal"))
    finally:
        with gateway.database.write() as session:
            session.execute(text("ALTER TABLE hidden RENAME TO images"))
    assert gateway.ask("GET", "/v1/images").status_code == 200


def test_locked_database_gets_503_with_retry_after(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(database_timeout_s=0.3))
    with gateway.database.write() as session:
        session.execute(text("SELECT 1"))
        answer = gateway.upload(noise_png())
    assert told(answer) == (503, "unavailable") and answer.headers["retry-after"] == "1"
    assert gateway.upload(noise_png()).status_code == 201


def test_every_answer_has_a_request_id_and_security_headers(sqlite_gateway: Gateway) -> None:
    for method, path in [
        ("GET", "/livez"),
        ("GET", "/nothing"),
        ("GET", "/v1/images"),
        ("PUT", "/livez"),
        ("POST", "/v1/keys"),
    ]:
        answer = sqlite_gateway.http.request(method, path)
        assert (
            answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "same-origin"
        )
        assert (
            "default-src 'self'" in answer.headers["content-security-policy"]
            and "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        )
        assert "unsafe" not in answer.headers["content-security-policy"] and answer.headers["x-request-id"]
        assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"
    for sent, kept in [("ward-3.42", True), ("a\tb", False), ("x" * 65, False), ("<script>", False)]:
        assert (
            sqlite_gateway.http.get("/livez", headers={"X-Request-ID": sent}).headers["x-request-id"] == sent
        ) is kept
    trace = "0af7651916cd43dd8448eb211c80319c"
    assert (
        sqlite_gateway.http.get("/livez", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}).headers[
            "x-request-id"
        ]
        == trace
    )


def test_unknown_routes_and_methods_get_a_problem(sqlite_gateway: Gateway) -> None:
    assert told(sqlite_gateway.http.get("/nothing")) == (404, "not_found")
    wrong = sqlite_gateway.http.put("/v1/images")
    assert told(wrong) == (405, "method_not_allowed") and {"GET", "POST"} <= set(wrong.headers["allow"].split(", "))
    assert sqlite_gateway.http.request("GET", "/v2/nothing").json()["error"]
    assert sqlite_gateway.http.get("/v2/nothing").headers["content-type"] == "application/json"
    assert set(sqlite_gateway.http.get("/monai/nothing").json()) == {"detail"}
    assert told(sqlite_gateway.ask("GET", "/v1/images/")) == (404, "not_found")


def test_unexpected_error_gets_500_without_details(sqlite_gateway: Gateway) -> None:
    def broken() -> None:
        raise RuntimeError("secret path /etc/shadow and SELECT * FROM keys")

    sqlite_gateway.app.add_api_route("/broken", broken)
    answer = sqlite_gateway.http.get("/broken")
    assert told(answer) == (500, "internal")
    assert "shadow" not in answer.text and "SELECT" not in answer.text and "RuntimeError" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_metric_labels_are_route_templates_never_ids(sqlite_gateway: Gateway) -> None:
    image = sqlite_gateway.upload(noise_png(), params={"name": "anna.png"}).json()
    for path in (
        f"/v1/images/{image['id']}",
        f"/v1/images/{UNKNOWN}",
        "/v1/images/anna",
        "/anna.php",
        "/v1/images?limit=7",
    ):
        sqlite_gateway.ask("GET", path)
    sqlite_gateway.raw(b"ANNA /v1/images HTTP/1.1\r\nHost: localhost\r\n\r\n")
    figures = sqlite_gateway.ask("GET", "/metrics", "admin")
    assert figures.headers["content-type"].startswith("text/plain") and "anna" not in figures.text.lower()
    assert UNKNOWN not in figures.text and image["id"] not in figures.text
    routes = {
        sample.labels["route"]
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("toposerve_request_seconds")
    }
    assert (
        "/v1/images/{image_id}" in routes
        and "unknown" in routes
        and routes <= telemetry.templates(sqlite_gateway.app) | {"/broken"}
    )


def test_metrics_grow_by_a_line_for_each_kind_of_answer_and_by_a_histogram_for_each_route(
    sqlite_gateway: Gateway,
) -> None:
    paths = ["/v1/jobs", f"/v1/jobs/{UNKNOWN}", "/v1/models", "/v1/images", "/v1/datasets"]

    def lines() -> list[str]:
        return sqlite_gateway.ask("GET", "/metrics", "admin").text.splitlines()

    def ask_everything() -> None:
        for path in paths:
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
                for who in ("admin", "viewer", None):
                    sqlite_gateway.ask(method, path, who)

    lines(), ask_everything()
    before = lines()
    ask_everything()
    assert len(lines()) == len(before)
    of_histograms = [line for line in before if line.startswith("toposerve_request_seconds")]
    routes = {re.search(r'route="([^"]*)"', line)[1] for line in of_histograms}
    assert len(of_histograms) <= 12 * len(routes) and not any("_created" in line for line in before)


def test_metrics_include_the_queue(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        for state in ("queued", "queued", "running", "succeeded"):
            session.add(Job(project_id=gateway.project_id, kind="train", lane="train", state=state, spec={}))
    lines = gateway.ask("GET", "/metrics", "operator").text.splitlines()
    assert (
        'toposerve_jobs{kind="train",state="queued"} 2.0' in lines
        and 'toposerve_jobs{kind="train",state="running"} 1.0' in lines
    )
    assert not [line for line in lines if 'state="succeeded"' in line]


def test_api_reference_lists_every_operation(sqlite_gateway: Gateway) -> None:
    spec = sqlite_gateway.ask("GET", "/openapi.json", "viewer").json()
    index = sqlite_gateway.ask("GET", "/docs", "viewer")
    assert index.headers["content-type"].startswith("text/html") and "<script" not in index.text
    tags = {tag for _, _, operation in reference.operations(spec) for tag in operation["tags"]}
    pages = {tag: sqlite_gateway.ask("GET", f"/docs?tag={tag}", "viewer").text for tag in tags}
    for method, path, operation in reference.operations(spec):
        page = pages[operation["tags"][0]]
        assert f"{method} {path}" in index.text and f"{method} {path}" in page, path
        assert operation["description"], path
        article = page.split(f'<section class="card" id="{operation["operationId"]}"')[1].split("</section>")[0]
        curl, python = (text.split("</pre>")[0] for text in article.split('<pre class="shell" tabindex="0">')[1:])
        assert curl.startswith("curl") and "client.request" in python and "{" not in curl.split("?")[0].split("--")[0]
    assert "images:read" in index.text and "clinician" in index.text
    assert "`" not in re.sub(r"<pre.*?</pre>", "", "".join(pages.values()), flags=re.DOTALL), "names are set as code"


def test_api_reference_is_searched_and_shows_types(sqlite_gateway: Gateway) -> None:
    def text(address: str) -> str:
        return html.unescape(sqlite_gateway.ask("GET", address, "viewer").text)

    found = text("/docs?q=skeleton+graph")
    assert "POST /v1/analyses/skeleton" in found and "POST /v1/jobs" not in found and "SkeletonGraph" in found
    assert "Nothing mentions zebra" in text("/docs?q=zebra")
    shape = text("/docs?shape=TrainSpec")
    assert 'href="/docs?shape=' in shape and "whole number, at least" in shape
    assert "number, above 0, below 1 or null" in text("/docs?tag=predictions")
    for unknown in ("tag=cow", "shape=Cow"):
        assert sqlite_gateway.ask("GET", f"/docs?{unknown}", "viewer").status_code == 404


def test_examples_of_the_api_reference_run(sqlite_gateway: Gateway, tmp_path: Path) -> None:
    """Every call without an id in its address that reads, and the upload of an image, by curl and in Python."""
    spec = sqlite_gateway.ask("GET", "/openapi.json", "viewer").json()
    (tmp_path / "image.png").write_bytes(imaging.encode_png(np.eye(12, dtype=np.uint8) * 255))
    url, key = str(sqlite_gateway.http.base_url).rstrip("/"), sqlite_gateway.keys["admin"]
    skipped = ("/v1/projects", "/metrics")  # for operators
    ran = 0
    for method, path, operation in reference.operations(spec):
        if (method, path) != ("POST", "/v1/images") and (method != "GET" or "{" in path or path in skipped):
            continue
        curl, python = examples(spec, Operation(method, path, operation))
        environment = os.environ | {"URL": url, "KEY": key}
        asked = ["bash", "-c", curl.replace("curl", "curl --silent --show-error --fail --globoff", 1)]
        done = subprocess.run(
            asked, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (curl, done.stderr)
        exec(compile(python.replace('Path("', f'Path("{tmp_path}/'), path, "exec"), {"URL": url, "KEY": key})
        ran += 1
    assert ran > 12


def examples_missing(spec: dict[str, Any]) -> list[str]:
    """Operations whose request or successful answer shows no example."""

    def shown(content: dict[str, Any]) -> bool:
        schema = content.get("schema", {})
        if (
            "example" in content
            or "examples" in content
            or schema.get("format") == "binary"
            or any(part.get("format") == "binary" for part in schema.get("properties", {}).values())
        ):
            return True
        return _has_example(spec, schema)

    missing = []
    for method, path, operation in reference.operations(spec):
        bodies = [("body", operation["requestBody"])] if "requestBody" in operation else []
        bodies += [(status, answer) for status, answer in operation["responses"].items() if status.startswith("2")]
        missing += [
            f"{method} {path} {where}"
            for where, body in bodies
            for content in body.get("content", {}).values()
            if not shown(content)
        ]
    return missing


def _has_example(spec: dict[str, Any], schema: dict[str, Any]) -> bool:
    if "$ref" in schema:
        return _has_example(spec, spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "examples" in schema or "example" in schema:
        return True
    parts = (
        schema.get("oneOf", [])
        + schema.get("anyOf", [])
        + ([schema["properties"]["items"]["items"]] if "items" in schema.get("properties", {}) else [])
    )
    return bool(parts) and all(_has_example(spec, part) for part in parts if part.get("type") != "null")


def test_every_operation_shows_an_example(sqlite_gateway: Gateway) -> None:
    assert examples_missing(sqlite_gateway.ask("GET", "/openapi.json").json()) == []


def test_every_problem_has_a_code_a_status_and_a_message() -> None:
    kinds = errors.every_problem()
    codes = [kind.code for kind in kinds]
    assert len(codes) == len(set(codes)), sorted(code for code in codes if codes.count(code) > 1)
    for kind in kinds:
        body = kind().body(instance="/x", request_id="r")
        assert (
            400 <= body["status"] <= 599
            and body["detail"].endswith(".")
            and body["title"]
            and body["type"].endswith(kind.code)
        )
        assert errors.by_code(kind.code) is kind


def test_a_problem_crosses_a_process_unchanged() -> None:
    sent = errors.Invalid("Two fields are wrong.", errors=[{"pointer": "/a", "detail": "no"}])
    arrived = errors.from_message(json.loads(json.dumps(sent.as_message())))
    assert (type(arrived), arrived.detail, arrived.errors) == (errors.Invalid, sent.detail, sent.errors)
    with pytest.raises(LookupError, match="'unheard_of'"):
        errors.by_code("unheard_of")


def test_every_problem_is_used_somewhere() -> None:
    """A class that nothing raises is a promise in the reference that nobody keeps."""
    trees = [ast.parse(path.read_text()) for package in ("app", "workers") for path in (ROOT / package).rglob("*.py")]
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {kind.__name__ for kind in errors.every_problem()} - used == set()


def test_every_ref_in_the_openapi_document_resolves(sqlite_gateway: Gateway) -> None:
    spec = sqlite_gateway.ask("GET", "/openapi.json").json()
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(spec)))
    assert named and named <= set(spec["components"]["schemas"])


# Logs


@pytest.fixture
def log_settings() -> Iterator[None]:
    """Puts back what `set_up` changes."""
    root = logging.getLogger()
    handlers, level, configured = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**configured)


def test_a_log_line_is_one_line_of_json_without_keys(log_settings: None, capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(Settings(_env_file=None))
    token = "ts_abcdefgh_" + "s" * 43
    structlog.get_logger().info(f'forged\n{{"event": "x"}} {token}', header=f"Bearer {token}")
    logging.getLogger("library").warning("said %s", token, extra={"job_id": "j"})
    try:
        raise ValueError(token)
    except ValueError:
        structlog.get_logger().exception("failed")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert len(lines) == 3 and "sss" not in str(lines) and "ts_abcd..." in str(lines)
    assert lines[1]["job_id"] == "j" and lines[1]["level"] == "warning" and "ValueError" in lines[2]["exception"]


def test_closed_stderr_loses_a_log_line_but_not_the_service(
    log_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    nobody_reads = io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True)
    monkeypatch.setattr(sys, "stderr", nobody_reads)
    logs.set_up(Settings(_env_file=None))
    for _ in range(3):
        structlog.get_logger().info("lost")  # raises BrokenPipeError inside
    with contextlib.suppress(BrokenPipeError):
        nobody_reads.close()


def test_head_is_answered_as_get_without_a_body(gateway: Gateway) -> None:
    image = gateway.upload(noise_png()).json()
    for path in ("/livez", "/v1/images", f"/v1/images/{image['id']}", f"/v1/images/{image['id']}/content", "/v1/none"):
        got, head = gateway.ask("GET", path), gateway.ask("HEAD", path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        if path != "/v1/none":  # its body names the request
            assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
    with gateway.connected() as connection:  # the connection is in order afterwards
        ask = "HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall((ask + ask.replace("HEAD", "GET")).encode())
        received = b""
        while b'"status"' not in received:
            received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 200") == 2
