"""Pairs of an archive, shown before they are used, over HTTP."""

from __future__ import annotations

from tests.gateway import Gateway, told
from tests.images import archive, pairs
from tests.imaging.test_annotations import EXPORTS, exported

ZIP = {"Content-Type": "application/zip"}
OTHER = {
    name.replace("images/", "scans/").replace("masks/", "labels/"): content for name, content in pairs().items()
} | {"README.md": b"how it was made"}


def test_pairs_are_shown_refused_and_then_used(gateway: Gateway) -> None:
    content = archive(OTHER)
    shown = gateway.ask("POST", "/v1/datasets/pairing", content=content, headers=ZIP).json()
    assert (shown["count"], shown["is_known"], shown["ignored"]) == (4, False, ["README.md"])
    assert shown["pairs"][0] == {
        "name": "00",
        "image": "scans/00.png",
        "mask": "labels/00.png",
        "split": None,
        "group": None,
    }
    assert gateway.count_project()["datasets"] == 0
    refused = gateway.ask("POST", "/v1/datasets", params={"name": "bars"}, content=content, headers=ZIP)
    assert told(refused) == (422, "bad_dataset") and "labels/ (4 .png)" in refused.json()["detail"]
    params = {"name": "bars", "pairing": "proposed"}
    made = gateway.ask("POST", "/v1/datasets", params=params, content=content, headers=ZIP)
    assert (made.status_code, made.json()["pairs"]) == (201, 4)
    assert [each["code"] for each in made.json()["warnings"]] == ["ignored_files"]
    assert "README.md" in made.json()["warnings"][0]["detail"]


def test_a_known_layout_needs_no_proposal(gateway: Gateway) -> None:
    shown = gateway.ask("POST", "/v1/datasets/pairing", content=archive(pairs()), headers=ZIP).json()
    assert shown == {"pairs": [], "count": 4, "is_known": True, "export": None, "patterns": [], "ignored": []}


def test_an_export_of_an_annotation_tool_becomes_a_dataset(gateway: Gateway) -> None:
    content = exported(EXPORTS["COCO"])
    shown = gateway.ask("POST", "/v1/datasets/pairing", content=content, headers=ZIP).json()
    assert (shown["export"], shown["count"], shown["is_known"]) == ("COCO", 2, True)
    made = gateway.ask("POST", "/v1/datasets", params={"name": "cells"}, content=content, headers=ZIP)
    assert made.status_code == 201, made.text
    facts = made.json()
    assert (facts["classes"], facts["pairs"]) == (["background", "tissue", "cell"], 2)
    assert "1 boxes" in next(each["detail"] for each in facts["warnings"] if each["code"] == "ignored_shapes")
    again = gateway.ask("POST", "/v1/datasets/cells/versions", content=content, headers=ZIP)
    assert (again.status_code, again.json()["version"]) == (200, 1)
    merged = {"name": "merged", "label_map": '{"background": 0, "anything": [1, 2]}'}
    made = gateway.ask("POST", "/v1/datasets", params=merged, content=content, headers=ZIP)
    assert made.json()["classes"] == ["background", "anything"], made.text


def test_only_who_may_write_datasets_is_shown_pairs(gateway: Gateway) -> None:
    content = archive(OTHER)
    statuses = [
        gateway.ask("POST", "/v1/datasets/pairing", who, content=content, headers=ZIP).status_code
        for who in (None, "viewer", "engineer")
    ]
    assert statuses == [401, 403, 200]
    nothing = gateway.ask("POST", "/v1/datasets/pairing", content=archive({"a.png": b"."}), headers=ZIP)
    assert told(nothing) == (422, "bad_dataset")
    assert told(gateway.ask("POST", "/v1/datasets/pairing", content=b"no", headers=ZIP)) == (415, "unsupported_archive")
