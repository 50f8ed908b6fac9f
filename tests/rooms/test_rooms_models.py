"""Models over HTTP: cards, files, aliases and the gate in front of them."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import pytest
from sqlalchemy import select

from app.store import models as store
from app.store.tables import AuditLine, Model
from tests.rooms.house import House, dataset, evaluation, model

CHAMPION = "/v1/models/bars/aliases/champion"


def move(house: House, version: int, role: str = "admin", **options: Any) -> Any:
    return house.ask("PUT", CHAMPION, role, json={"version": version} | options.pop("body", {}), **options)


def test_every_address_of_models_wants_a_key_and_hides_other_projects(house: House) -> None:
    model(house)
    move(house, 1)
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
            role: house.ask("GET", address, role).status_code for role in (None, "operator", "stranger", "viewer")
        }
        assert statuses == {None: 401, "operator": 403, "stranger": 404, "viewer": 200}, address
    assert house.ask("GET", "/v1/models", "stranger").json()["items"] == []


def test_whoever_asks_for_something_unknown_is_told_what_there_is(house: House) -> None:
    model(house)
    move(house, 1)
    said = {
        address: house.ask("GET", f"/v1/models/{address}").json()["detail"]
        for address in ("bras", "bars/versions/9", "bars/aliases/champ", "bars/aliases/champ/history")
    }
    assert said["bras"].endswith("Models: bars.") and said["bars/versions/9"].endswith("Versions: 1.")
    assert said["bars/aliases/champ"].endswith("Aliases: champion.") and said["bars/aliases/champ/history"].endswith(
        "Aliases: champion."
    )
    for wrong in ("bars/versions/0", "bars/versions/99999999999", "b%20a", "bars/versions/two"):
        assert house.ask("GET", f"/v1/models/{wrong}").status_code == 422


def test_the_card_holds_every_fact_of_a_version(house: House) -> None:
    data = dataset(house)
    model(house, dataset_version_id=data.id, training_s=12.5)
    move(house, 1)
    card = house.ask("GET", "/v1/models/bars/versions/1").json()
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
    assert house.ask("GET", card["links"]["manifest"]).json() == card["manifest"]


def test_models_and_versions_are_listed_newest_first(house: House) -> None:
    for number in (1, 2, 3):
        model(house, number=number)
    model(house, "cells")
    assert [(each["name"], each["latest"]) for each in house.ask("GET", "/v1/models").json()["items"]] == [
        ("cells", 1),
        ("bars", 3),
    ]
    page = house.ask("GET", "/v1/models/bars/versions?limit=2").json()
    rest = house.ask("GET", f"/v1/models/bars/versions?limit=2&cursor={page['next_cursor']}").json()
    assert [each["version"] for each in page["items"] + rest["items"]] == [3, 2, 1]


def test_a_file_comes_whole_in_part_or_not_at_all_when_the_caller_has_it(house: House) -> None:
    model(house)
    address = "/v1/models/bars/versions/1/onnx"
    whole = house.ask("GET", address)
    etag = f'"{hashlib.sha256(whole.content).hexdigest()}"'
    assert (whole.content, whole.headers["etag"], whole.headers["content-disposition"].split(";")[0]) == (
        b"onnx of bars:1",
        etag,
        "attachment",
    )
    part = house.ask("GET", address, headers={"Range": "bytes=5-6"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"of", "bytes 5-6/14")
    assert house.ask("GET", address, headers={"If-None-Match": etag}).status_code == 304
    assert house.ask("GET", address, headers={"Range": "bytes=99-"}).status_code == 416
    assert house.ask("GET", "/v1/models/bars/versions/1/safetensors").content == b"weights of bars:1"


def test_a_missing_or_damaged_file_is_never_sent_as_if_it_were_right(house: House) -> None:
    version = model(house, weights_sha256=None, weights_bytes=None)
    path = house.blobs.local_path(house.project_id, version.onnx_sha256)
    assert house.ask("GET", "/v1/models/bars/versions/1/safetensors").json()["code"] == "not_found"
    path.write_bytes(b"onnx of bars:2")
    damaged = house.ask("GET", "/v1/models/bars/versions/1/onnx")
    path.unlink()
    missing = house.ask("GET", "/v1/models/bars/versions/1/onnx")
    assert (damaged.status_code, damaged.json()["code"], missing.status_code, missing.json()["code"]) == (
        500,
        "blob_corrupt",
        410,
        "blob_missing",
    )


def test_only_who_may_promote_moves_an_alias(house: House) -> None:
    model(house)
    assert {role: move(house, 1, role).status_code for role in (None, "engineer", "stranger", "admin")} == {
        None: 401,
        "engineer": 403,
        "stranger": 404,
        "admin": 200,
    }
    assert house.ask("DELETE", CHAMPION, "engineer").status_code == 403
    assert move(house, 7).status_code == 404
    for body, pointer in (
        ({"version": "1"}, "/version"),
        ({"version": 1, "gat": {}}, "/gat"),
        ({"version": 1, "gate": {"min_dice": 1.5}}, "/gate/min_dice"),
    ):
        answer = house.ask("PUT", CHAMPION, "admin", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_an_alias_keeps_its_history_when_it_moves_back_and_when_it_goes(house: House) -> None:
    for number in (1, 2):
        model(house, number=number)
    for version in (1, 2, 2, 1):
        assert move(house, version).json()["version"] == version
    assert house.ask("DELETE", CHAMPION, "admin").status_code == 204
    assert house.ask("DELETE", CHAMPION, "admin").status_code == 404
    history = house.ask("GET", f"{CHAMPION}/history").json()["items"]
    assert [(line["from_version"], line["to_version"]) for line in history] == [(1, None), (2, 1), (1, 2), (None, 1)]
    assert history[0]["moved_by"].startswith("ts_") and house.ask("GET", "/v1/models/bars/aliases").json() == []


def test_every_move_is_in_the_audit(house: House) -> None:
    model(house)
    move(house, 1)
    house.ask("DELETE", CHAMPION, "admin")
    with house.database.read() as session:
        lines = [
            (line.what, line.object)
            for line in session.scalars(
                select(AuditLine).where(AuditLine.project_id == house.project_id).order_by(AuditLine.id)
            )
        ]
    assert lines == [("alias.move", "bars@champion -> 1"), ("alias.remove", "bars@champion")]


def test_an_alias_that_moved_meanwhile_is_not_moved_by_who_read_the_old_one(house: House) -> None:
    for number in (1, 2, 3):
        model(house, number=number)
    assert move(house, 1, headers={"If-Match": '"1-0"'}).json()["code"] == "precondition_failed"
    etag = move(house, 1).headers["etag"]
    assert house.ask("GET", CHAMPION).headers["etag"] == etag == house.ask("GET", CHAMPION).json()["etag"]
    assert move(house, 2, headers={"If-Match": etag}).status_code == 200
    late = move(house, 3, headers={"If-Match": etag})
    assert (late.status_code, house.ask("DELETE", CHAMPION, "admin", headers={"If-Match": etag}).status_code) == (
        412,
        412,
    )
    assert "points to version 2" in late.json()["detail"] and house.ask("GET", CHAMPION).json()["version"] == 2
    assert move(house, 3, headers={"If-Match": "*"}).status_code == 200


def test_an_alias_moved_by_eight_at_once_has_a_history_without_a_gap(house: House) -> None:
    for number in range(1, 9):
        model(house, number=number)
    threads = [threading.Thread(target=move, args=(house, number)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = house.ask("GET", f"{CHAMPION}/history?limit=50").json()["items"][::-1]
    assert [line["from_version"] for line in history] == [None] + [line["to_version"] for line in history[:-1]]
    assert len(history) == 8 and house.ask("GET", CHAMPION).json()["version"] == history[-1]["to_version"]


def test_a_gate_by_validation_figures_names_every_figure_that_fails(house: House) -> None:
    model(house, metrics={"dice": 0.91, "cldice": 0.85, "beta0_error": 3.0})
    refused = move(
        house, 1, body={"gate": {"min_dice": 0.95, "min_cldice": 0.8, "max_beta0_error": 2, "max_beta1_error": 1}}
    )
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert [error["detail"] for error in refused.json()["errors"]] == [
        "dice is 0.91, min_dice is 0.95",
        "beta0_error is 3, max_beta0_error is 2",
        "beta1_error was not measured; max_beta1_error is 1",
    ]
    assert house.ask("GET", CHAMPION).status_code == 404
    passed = move(house, 1, body={"gate": {"min_dice": 0.91, "max_beta0_error": 3}})
    history = house.ask("GET", f"{CHAMPION}/history").json()["items"]
    assert passed.status_code == 200 and history[0]["gate"]["bounds"] == {"min_dice": 0.91, "max_beta0_error": 3.0}


def test_a_gate_on_a_dataset_asks_for_its_newest_evaluation(house: House) -> None:
    data, version = dataset(house), model(house)
    gate = {"gate": {"dataset": "bars@1", "min_dice": 0.8, "max_beta0_error": 1}}
    assert "was not evaluated on bars@1" in move(house, 1, body=gate).json()["detail"]
    evaluation(house, version, data.id, [{"dice": 0.9, "beta0_error": 0}, {"dice": 0.7, "beta0_error": 1}])
    assert move(house, 1, body=gate).status_code == 200
    evaluation(house, version, data.id, [{"dice": 0.9, "beta0_error": 4}, {"dice": 0.9, "beta0_error": 0}])
    assert "beta0_error is 2, max_beta0_error is 1" in move(house, 1, body=gate).json()["detail"]
    unknown = move(house, 1, body={"gate": {"dataset": "nowhere", "min_dice": 0.8}})
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/gate/dataset")


@pytest.mark.parametrize("ref, number", [("bars", 2), ("bars:1", 1), ("bars@champion", 1)])
def test_a_reference_is_a_name_a_number_or_an_alias(house: House, ref: str, number: int) -> None:
    for each in (1, 2):
        model(house, number=each)
    move(house, 1)
    with house.database.read() as session:
        found, version = store.resolve(session, house.project_id, ref)
        assert (found.name, version.number) == ("bars", number) and isinstance(found, Model)
