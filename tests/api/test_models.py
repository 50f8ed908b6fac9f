"""Models over HTTP: cards, files, aliases, promotion gates."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest
from sqlalchemy import select

from app.store import models as store
from app.store.tables import AuditLine, Model
from tests.gateway import Gateway
from tests.records import add_dataset_row, add_evaluation, add_model_row

CHAMPION = "/v1/models/bars/aliases/champion"


def move(gateway: Gateway, version: int, role: str = "admin", **options: Any) -> Any:
    return gateway.ask("PUT", CHAMPION, role, json={"version": version} | options.pop("body", {}), **options)


def test_model_routes_need_a_key_and_hide_other_projects(gateway: Gateway) -> None:
    add_model_row(gateway)
    move(gateway, 1)
    here = "/v1/models/bars"
    addresses = [
        here,
        f"{here}/versions",
        f"{here}/versions/1",
        f"{here}/versions/1/manifest.json",
        f"{here}/versions/1/onnx",
        f"{here}/versions/1/safetensors",
    ]
    addresses += [f"{here}/aliases", CHAMPION, f"{CHAMPION}/history"]
    for address in addresses:
        statuses = {
            role: gateway.ask("GET", address, role).status_code for role in (None, "operator", "stranger", "viewer")
        }
        assert statuses == {None: 401, "operator": 403, "stranger": 404, "viewer": 200}, address
    assert gateway.ask("GET", "/v1/models", "stranger").json()["items"] == []


def test_unknown_model_or_version_is_refused_with_the_existing_ones(gateway: Gateway) -> None:
    add_model_row(gateway)
    move(gateway, 1)
    said = {
        address: gateway.ask("GET", f"/v1/models/{address}").json()["detail"]
        for address in ("bras", "bars/versions/9", "bars/aliases/champ", "bars/aliases/champ/history")
    }
    assert said["bras"].endswith("Models: bars.") and said["bars/versions/9"].endswith("Versions: 1.")
    assert said["bars/aliases/champ"].endswith("Aliases: champion.") and said["bars/aliases/champ/history"].endswith(
        "Aliases: champion."
    )
    for wrong in ("bars/versions/0", "bars/versions/99999999999", "b%20a", "bars/versions/two"):
        assert gateway.ask("GET", f"/v1/models/{wrong}").status_code == 422


def test_model_card_shows_every_fact_of_a_version(gateway: Gateway) -> None:
    data = add_dataset_row(gateway)
    add_model_row(gateway, dataset_version_id=data.id, training_s=12.5)
    move(gateway, 1)
    card = gateway.ask("GET", "/v1/models/bars/versions/1").json()
    assert (card["ref"], card["dataset"], card["aliases"], card["training_s"]) == (
        "bars:1",
        "bars@1",
        ["champion"],
        12.5,
    )
    assert (card["metrics"], card["software"], card["manifest"]["classes"]) == (
        {"dice": 0.9, "cldice": 0.8},
        {"torch": "2.13.0"},
        ["background", "bar"],
    )
    assert card["onnx"] == {
        "sha256": hashlib.sha256(b"onnx of bars:1").hexdigest(),
        "bytes": 14,
        "href": "/v1/models/bars/versions/1/onnx",
    }
    assert gateway.ask("GET", card["links"]["manifest"]).json() == card["manifest"]


def test_models_and_versions_are_listed_newest_first(gateway: Gateway) -> None:
    for number in (1, 2, 3):
        add_model_row(gateway, number=number)
    add_model_row(gateway, "cells")
    assert [(each["name"], each["latest"]) for each in gateway.ask("GET", "/v1/models").json()["items"]] == [
        ("cells", 1),
        ("bars", 3),
    ]
    page = gateway.ask("GET", "/v1/models/bars/versions?limit=2").json()
    rest = gateway.ask("GET", f"/v1/models/bars/versions?limit=2&cursor={page['next_cursor']}").json()
    assert [each["version"] for each in page["items"] + rest["items"]] == [3, 2, 1]


def test_model_file_supports_ranges_and_conditional_requests(gateway: Gateway) -> None:
    add_model_row(gateway)
    address = "/v1/models/bars/versions/1/onnx"
    whole = gateway.ask("GET", address)
    etag = f'"{hashlib.sha256(whole.content).hexdigest()}"'
    assert (whole.content, whole.headers["etag"], whole.headers["content-disposition"].split(";")[0]) == (
        b"onnx of bars:1",
        etag,
        "attachment",
    )
    part = gateway.ask("GET", address, headers={"Range": "bytes=5-6"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"of", "bytes 5-6/14")
    assert gateway.ask("GET", address, headers={"If-None-Match": etag}).status_code == 304
    assert gateway.ask("GET", address, headers={"Range": "bytes=99-"}).status_code == 416
    assert gateway.ask("GET", "/v1/models/bars/versions/1/safetensors").content == b"weights of bars:1"


def test_missing_or_damaged_model_file_is_never_sent(gateway: Gateway) -> None:
    version = add_model_row(gateway, weights_sha256=None, weights_bytes=None)
    path = gateway.blobs.local_path(gateway.project_id, version.onnx_sha256)
    assert gateway.ask("GET", "/v1/models/bars/versions/1/safetensors").json()["code"] == "not_found"
    path.write_bytes(b"onnx of bars:2")
    damaged = gateway.ask("GET", "/v1/models/bars/versions/1/onnx")
    path.unlink()
    missing = gateway.ask("GET", "/v1/models/bars/versions/1/onnx")
    assert (damaged.status_code, damaged.json()["code"], missing.status_code, missing.json()["code"]) == (
        500,
        "blob_corrupt",
        410,
        "blob_missing",
    )


def test_moving_an_alias_needs_the_promote_scope(gateway: Gateway) -> None:
    add_model_row(gateway)
    assert {role: move(gateway, 1, role).status_code for role in (None, "engineer", "stranger", "admin")} == {
        None: 401,
        "engineer": 403,
        "stranger": 404,
        "admin": 200,
    }
    assert gateway.ask("DELETE", CHAMPION, "engineer").status_code == 403
    assert move(gateway, 7).status_code == 404
    for body, pointer in (
        ({"version": "1"}, "/version"),
        ({"version": 1, "gat": {}}, "/gat"),
        ({"version": 1, "gate": {"min_dice": 1.5}}, "/gate/min_dice"),
    ):
        answer = gateway.ask("PUT", CHAMPION, "admin", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_alias_history_survives_rollback_and_deletion(gateway: Gateway) -> None:
    for number in (1, 2):
        add_model_row(gateway, number=number)
    for version in (1, 2, 2, 1):
        assert move(gateway, version).json()["version"] == version
    assert gateway.ask("DELETE", CHAMPION, "admin").status_code == 204
    assert gateway.ask("DELETE", CHAMPION, "admin").status_code == 404
    history = gateway.ask("GET", f"{CHAMPION}/history").json()["items"]
    assert [(line["from_version"], line["to_version"]) for line in history] == [(1, None), (2, 1), (1, 2), (None, 1)]
    assert history[0]["moved_by"].startswith("ts_") and gateway.ask("GET", "/v1/models/bars/aliases").json() == []


def test_alias_moves_are_audited(gateway: Gateway) -> None:
    add_model_row(gateway)
    move(gateway, 1)
    gateway.ask("DELETE", CHAMPION, "admin")
    with gateway.database.read() as session:
        lines = [
            (line.what, line.object)
            for line in session.scalars(
                select(AuditLine).where(AuditLine.project_id == gateway.project_id).order_by(AuditLine.id)
            )
        ]
    assert lines == [("alias.move", "bars@champion -> 1"), ("alias.remove", "bars@champion")]


def test_alias_move_with_a_stale_etag_is_refused(gateway: Gateway) -> None:
    for number in (1, 2, 3):
        add_model_row(gateway, number=number)
    assert move(gateway, 1, headers={"If-Match": '"1-0"'}).json()["code"] == "precondition_failed"
    etag = move(gateway, 1).headers["etag"]
    assert gateway.ask("GET", CHAMPION).headers["etag"] == etag == gateway.ask("GET", CHAMPION).json()["etag"]
    assert move(gateway, 2, headers={"If-Match": etag}).status_code == 200
    late = move(gateway, 3, headers={"If-Match": etag})
    assert (late.status_code, gateway.ask("DELETE", CHAMPION, "admin", headers={"If-Match": etag}).status_code) == (
        412,
        412,
    )
    assert "points to version 2" in late.json()["detail"] and gateway.ask("GET", CHAMPION).json()["version"] == 2
    assert move(gateway, 3, headers={"If-Match": "*"}).status_code == 200


def test_concurrent_alias_moves_leave_a_gapless_history(gateway: Gateway) -> None:
    for number in range(1, 9):
        add_model_row(gateway, number=number)
    threads = [threading.Thread(target=move, args=(gateway, number)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = gateway.ask("GET", f"{CHAMPION}/history?limit=50").json()["items"][::-1]
    assert [line["from_version"] for line in history] == [None] + [line["to_version"] for line in history[:-1]]
    assert len(history) == 8 and gateway.ask("GET", CHAMPION).json()["version"] == history[-1]["to_version"]


def test_gate_on_validation_metrics_names_every_failing_metric(gateway: Gateway) -> None:
    add_model_row(gateway, metrics={"dice": 0.91, "cldice": 0.85, "beta0_error": 3.0})
    refused = move(
        gateway, 1, body={"gate": {"min_dice": 0.95, "min_cldice": 0.8, "max_beta0_error": 2, "max_beta1_error": 1}}
    )
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert [error["detail"] for error in refused.json()["errors"]] == [
        "dice is 0.91, min_dice is 0.95",
        "beta0_error is 3, max_beta0_error is 2",
        "beta1_error was not measured; max_beta1_error is 1",
    ]
    assert gateway.ask("GET", CHAMPION).status_code == 404
    passed = move(gateway, 1, body={"gate": {"min_dice": 0.91, "max_beta0_error": 3}})
    history = gateway.ask("GET", f"{CHAMPION}/history").json()["items"]
    assert passed.status_code == 200 and history[0]["gate"]["bounds"] == {"min_dice": 0.91, "max_beta0_error": 3.0}


def test_gate_on_a_dataset_uses_its_newest_evaluation(gateway: Gateway) -> None:
    data, version = add_dataset_row(gateway), add_model_row(gateway)
    gate = {"gate": {"dataset": "bars@1", "min_dice": 0.8, "max_beta0_error": 1}}
    assert "was not evaluated on bars@1" in move(gateway, 1, body=gate).json()["detail"]
    add_evaluation(gateway, version, data.id, [{"dice": 0.9, "beta0_error": 0}, {"dice": 0.7, "beta0_error": 1}])
    assert move(gateway, 1, body=gate).status_code == 200
    add_evaluation(gateway, version, data.id, [{"dice": 0.9, "beta0_error": 4}, {"dice": 0.9, "beta0_error": 0}])
    assert "beta0_error is 2, max_beta0_error is 1" in move(gateway, 1, body=gate).json()["detail"]
    add_evaluation(gateway, version, data.id, [{"rule_violations": 3}, {"rule_violations": None}])
    kept = {"gate": {"dataset": "bars@1", "max_rule_violations": 2}}
    assert "rule_violations is 3, max_rule_violations is 2" in move(gateway, 1, body=kept).json()["detail"]
    unknown = move(gateway, 1, body={"gate": {"dataset": "nowhere", "min_dice": 0.8}})
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/gate/dataset")


@pytest.mark.parametrize("ref, number", [("bars", 2), ("bars:1", 1), ("bars@champion", 1)])
def test_model_reference_is_a_name_a_number_or_an_alias(gateway: Gateway, ref: str, number: int) -> None:
    for each in (1, 2):
        add_model_row(gateway, number=each)
    move(gateway, 1)
    with gateway.database.read() as session:
        found, version = store.resolve(session, gateway.project_id, ref)
        assert (found.name, version.number) == ("bars", number) and isinstance(found, Model)
