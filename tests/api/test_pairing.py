"""Pairs of an archive, shown before they are used, over HTTP."""

from __future__ import annotations

from tests.gateway import Gateway, told
from tests.images import archive, pairs

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
    assert shown == {"pairs": [], "count": 4, "is_known": True, "patterns": [], "ignored": []}


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
