"""Datasets over HTTP: uploads, versions, statistics, refusals."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import stat
import struct
import threading
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gateway import Gateway, told
from tests.images import archive, drawing, noise_png, pairs, png
from tests.records import add_model_row

RING_AND_ISLAND = drawing("""
    ................
    .#######........
    .#.....#........
    .#.....#.....##.
    .#######........
    ................ """)


def upload(
    gateway: Gateway,
    content: bytes,
    name: str = "bars",
    label_map: Any = None,
    role: str | None = "engineer",
    path: str = "/v1/datasets",
    **headers: str,
) -> Any:
    params = {"name": name} if path == "/v1/datasets" else {}
    params |= {"label_map": json.dumps(label_map)} if label_map else {}
    return gateway.ask(
        "POST", path, role, params=params, content=content, headers={"Content-Type": "application/zip"} | headers
    )


def test_datasets_need_write_scope_and_are_hidden_from_other_projects(gateway: Gateway) -> None:
    content = archive(pairs())
    assert {
        role: upload(gateway, content, role=role).status_code
        for role in (None, "viewer", "clinician", "operator", "engineer")
    } == {None: 401, "viewer": 403, "clinician": 403, "operator": 403, "engineer": 201}
    for tail in ("", "/versions", "/versions/1", "/versions/1/items"):
        statuses = {
            role: gateway.ask("GET", f"/v1/datasets/bars{tail}", role).status_code
            for role in (None, "operator", "stranger", "viewer")
        }
        assert statuses == {None: 401, "operator": 403, "stranger": 404, "viewer": 200}, tail
    assert gateway.ask("DELETE", "/v1/datasets/bars/versions/1", "clinician").status_code == 403
    assert gateway.ask("DELETE", "/v1/datasets/bars/versions/1", "stranger").status_code == 404
    assert upload(gateway, content, path="/v1/datasets/bars/versions", role="stranger").status_code == 404


def test_archive_becomes_a_version_with_statistics(gateway: Gateway) -> None:
    image = (RING_AND_ISLAND * 100 + np.arange(16)).astype(np.uint8)
    answer = upload(
        gateway,
        archive({"images/train/a.png": png(image), "masks/train/a.png": png(RING_AND_ISLAND)}),
        label_map={"vessel": 255, "ignore": 7},
    )
    version = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/datasets/bars/versions/1")
    assert (version["ref"], version["classes"], version["label_map"], version["channels"], version["pairs"]) == (
        "bars@1",
        ["background", "vessel"],
        {"vessel": 255, "ignore": 7},
        1,
        1,
    )
    assert version["statistics"]["betti"]["vessel"]["max"] == [2, 1] and version["statistics"]["shapes"] == {
        "6 x 16": 1
    }
    assert [(warning["code"], warning["item"]) for warning in version["warnings"]] == [("tiny_islands", "train/a")]
    item = gateway.ask("GET", version["links"]["items"]).json()["items"][0]
    assert (item["name"], item["split"], item["shape"], item["statistics"]["betti"]) == (
        "train/a",
        "train",
        [6, 16],
        {"vessel": [2, 1]},
    )
    stored = gateway.ask("GET", item["links"]["image"]).json()
    assert (stored["name"], stored["format"], stored["shape"], stored["dtype"]) == ("a.png", "png", [6, 16], "uint8")
    assert gateway.ask("GET", stored["links"]["content"]).content == png(image)


def test_classes_keep_the_order_in_which_the_label_map_names_them(gateway: Gateway) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[1:3], mask[4:6], mask[7] = 1, 2, 9
    label_map = {"background": 0, "myelin": 1, "axon": 2, "ignore": [9, 10]}
    version = upload(
        gateway, archive({"images/a.png": png(mask), "masks/a.png": png(mask)}), label_map=label_map
    ).json()
    again = gateway.ask("GET", version["links"]["self"]).json()
    assert list(again["label_map"].items()) == [("background", 0), ("myelin", 1), ("axon", 2), ("ignore", [9, 10])]
    assert again["classes"] == ["background", "myelin", "axon"] and again["statistics"]["pixels"] == {
        "background": 24,
        "myelin": 16,
        "axon": 16,
    }


def test_same_content_is_the_same_version_and_new_content_the_next(gateway: Gateway) -> None:
    first = upload(gateway, archive(pairs()))
    packed = upload(gateway, archive(pairs(), compression=zipfile.ZIP_DEFLATED))
    assert (first.status_code, packed.status_code, packed.json()) == (201, 200, first.json())
    taken = upload(gateway, archive(pairs(seed=1)))
    assert (taken.status_code, taken.json()["code"]) == (
        409,
        "conflict",
    ) and "/v1/datasets/bars/versions" in taken.json()["detail"]
    here = "/v1/datasets/bars/versions"
    second = upload(gateway, archive(pairs(seed=1)), path=here)
    meaning = upload(gateway, archive(pairs()), path=here, label_map={"bar": 255})
    assert [
        (answer.status_code, answer.json()["version"])
        for answer in (second, meaning, upload(gateway, archive(pairs()), path=here))
    ] == [(201, 2), (201, 3), (200, 1)]
    assert [version["version"] for version in gateway.ask("GET", here).json()["items"]] == [3, 2, 1]
    shown = gateway.ask("GET", "/v1/datasets/bars").json()
    assert (
        shown["versions"],
        shown["latest"]["version"],
        [each["name"] for each in gateway.ask("GET", "/v1/datasets").json()["items"]],
    ) == (3, 3, ["bars"])


def test_concurrent_uploads_get_distinct_version_numbers(gateway: Gateway) -> None:
    upload(gateway, archive(pairs(1)))
    got: list[int] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: got.append(
                upload(gateway, archive(pairs(2, seed=seed)), path="/v1/datasets/bars/versions").json()["version"]
            )
        )
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(2, 10))


def test_upload_repeated_under_one_idempotency_key_gets_the_first_answer(gateway: Gateway) -> None:
    once = {"Idempotency-Key": "monday"}
    first, second = (upload(gateway, archive(pairs()), **once) for _ in range(2))
    other = upload(gateway, archive(pairs(seed=1)), **once)
    assert (first.status_code, second.status_code, other.status_code) == (
        201,
        201,
        422,
    ) and first.json() == second.json()
    assert other.json()["code"] == "idempotency_key_reused" and gateway.count_project()["dataset_versions"] == 1


def test_a_form_may_carry_the_archive_its_name_and_its_label_map(gateway: Gateway) -> None:
    answer = gateway.ask(
        "POST",
        "/v1/datasets",
        files={"file": ("bars.zip", archive(pairs()))},
        data={"name": "formed", "label_map": '{"bar": 255}'},
    )
    assert (answer.status_code, answer.json()["ref"], answer.json()["classes"]) == (
        201,
        "formed@1",
        ["background", "bar"],
    )
    wrong = gateway.ask(
        "POST", "/v1/datasets", files={"file": ("bars.zip", archive(pairs()))}, data={"name": "b a", "patient": "x"}
    )
    assert wrong.status_code == 422


def test_stored_images_become_a_version_without_a_second_copy(gateway: Gateway) -> None:
    ids = {
        name: (
            gateway.ask(
                "POST",
                "/v1/images",
                params={"name": name.rpartition("/")[2]},
                content=content,
                headers={"Content-Type": "image/png"},
            ).json()["id"]
        )
        for name, content in pairs(2).items()
    }
    before = gateway.count_project()
    wanted = [
        {"image": ids[f"images/0{number}.png"], "mask": ids[f"masks/0{number}.png"], "split": split, "group": "ann"}
        for number, split in ((0, "train"), (1, "val"))
    ]
    answer = gateway.ask("POST", "/v1/datasets", json={"name": "named", "label_map": {"bar": 255}, "pairs": wanted})
    assert (answer.status_code, answer.json()["ref"], answer.json()["statistics"]["splits"]) == (
        201,
        "named@1",
        {"train": 1, "val": 1},
    )
    items = gateway.ask("GET", "/v1/datasets/named/versions/1/items").json()["items"]
    assert [(item["name"], item["image"], item["split"], item["group"]) for item in items] == [
        ("00", wanted[0]["image"], "train", "ann"),
        ("01", wanted[1]["image"], "val", "ann"),
    ]
    after = gateway.count_project()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "datasets": 1,
        "dataset_versions": 1,
        "dataset_items": 2,
        "audit": 1,
    }
    assert gateway.ask("DELETE", f"/v1/images/{wanted[0]['image']}").status_code == 409


def test_missing_images_of_pairs_are_named(gateway: Gateway) -> None:
    mine = gateway.ask(
        "POST", "/v1/images", content=png(np.eye(8, dtype=bool)), headers={"Content-Type": "image/png"}
    ).json()["id"]
    unknown = str(uuid.uuid4())
    problem = gateway.ask(
        "POST",
        "/v1/datasets",
        json={"name": "named", "pairs": [{"image": mine, "mask": mine}, {"image": mine, "mask": unknown}]},
    ).json()
    assert (problem["status"], [error["pointer"] for error in problem["errors"]]) == (422, ["/pairs/1/mask"])
    stolen = gateway.ask(
        "POST", "/v1/datasets", "stranger", json={"name": "named", "pairs": [{"image": mine, "mask": mine}]}
    ).json()
    assert [error["pointer"] for error in stolen["errors"]] == ["/pairs/0/image", "/pairs/0/mask"]
    for body, pointer in (
        ({"name": "named", "pairs": []}, "/pairs"),
        ({"name": "named", "pairz": []}, "/pairz"),
        ({"name": "a/b", "pairs": [{"image": mine, "mask": mine}]}, "/name"),
    ):
        problem = gateway.ask("POST", "/v1/datasets", json=body).json()
        assert problem["status"] == 422 and pointer in [error["pointer"] for error in problem["errors"]]


def test_items_are_listed_in_their_order_page_by_page(gateway: Gateway) -> None:
    upload(gateway, archive(pairs(5)))
    address, names = "/v1/datasets/bars/versions/1/items?limit=2", []
    while address:
        page = gateway.ask("GET", address)
        names += [item["name"] for item in page.json()["items"]]
        address = page.links["next"]["url"] if "next" in page.links else ""
    assert names == ["00", "01", "02", "03", "04"]


def test_dataset_version_in_use_cannot_be_deleted(gateway: Gateway) -> None:
    first = upload(gateway, archive(pairs())).json()
    upload(gateway, archive(pairs(seed=1)), path="/v1/datasets/bars/versions")
    job = gateway.ask(
        "POST", "/v1/jobs", json={"kind": "train", "dataset": "bars@1", "model": "bars", "patch": [32, 32], "steps": 1}
    )
    assert job.status_code == 202
    kept = gateway.ask("DELETE", "/v1/datasets/bars/versions/1")
    assert (kept.status_code, kept.json()["code"]) == (
        409,
        "conflict",
    ) and "1 jobs and 0 model versions" in kept.json()["detail"]
    assert [gateway.ask("DELETE", "/v1/datasets/bars/versions/2").status_code for _ in range(2)] == [204, 404]
    assert upload(gateway, archive(pairs(seed=2)), path="/v1/datasets/bars/versions").json()["version"] == 3
    add_model_row(
        gateway, dataset_version_id=uuid.UUID(gateway.ask("GET", "/v1/datasets/bars/versions/3").json()["id"])
    )
    assert "0 jobs and 1 model versions" in gateway.ask("DELETE", "/v1/datasets/bars/versions/3").json()["detail"]
    assert gateway.ask("GET", "/v1/datasets/bars/versions/1").json() == first


def bad_archives() -> dict[str, tuple[bytes, int, str]]:
    """Archives that are refused, each with its answer; `{}` is a good one that was damaged."""
    good = pairs(2)
    whole = archive(good)
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as file:
        entry = zipfile.ZipInfo("images/x.png")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(entry, "/etc/passwd")
    mask = np.zeros((64, 48), np.uint8)
    mask[3, 3] = 77
    header = bytearray(png(np.zeros((4, 4), np.uint8)))
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    return {
        "nothing": (b"", 415, "unsupported_archive"),
        "a text": (b"hello, this is not a zip archive" * 10, 415, "unsupported_archive"),
        "an image": (good["images/00.png"], 415, "unsupported_archive"),
        "a zip without entries": (archive({}), 422, "bad_dataset"),
        "a truncated zip": (whole[: len(whole) // 2], 422, "bad_archive_entry"),
        "a path that climbs": (archive(good | {"../evil.png": b"x"}), 422, "bad_archive_entry"),
        "an absolute path": (archive(good | {"/etc/evil.png": b"x"}), 422, "bad_archive_entry"),
        "a link": (link.getvalue(), 422, "bad_archive_entry"),
        "an archive in an archive": (archive(good | {"images/more.zip": whole}), 422, "bad_archive_entry"),
        "an image without a mask": (archive(good | {"images/02.png": good["images/00.png"]}), 422, "bad_dataset"),
        "other folders": (archive({"pictures/a.png": good["images/00.png"]}), 422, "bad_dataset"),
        "a mask of another size": (
            archive(good | {"masks/00.png": png(np.zeros((32, 48), bool))}),
            422,
            "mask_mismatch",
        ),
        "a truncated image": (archive(good | {"images/00.png": good["images/00.png"][:300]}), 422, "corrupt_image"),
        "a text as image": (archive(good | {"images/00.png": b"hello"}), 415, "unsupported_image"),
        "an empty file as mask": (archive(good | {"masks/01.png": b""}), 415, "unsupported_image"),
        "a label nobody named": (archive(good | {"masks/00.png": png(mask)}), 422, "unknown_label"),
        "a colour image among grey ones": (
            archive(good | {"images/00.png": png(np.zeros((64, 48, 3), np.uint8))}),
            422,
            "bad_dataset",
        ),
        "more pixels than are accepted": (archive(good | {"images/00.png": bytes(header)}), 413, "too_many_pixels"),
        "zeros that expand": (
            archive(good | {"images/00.png": b"\0" * 50_000_000}, compression=zipfile.ZIP_DEFLATED),
            413,
            "expands_too_large",
        ),
    }


def test_bad_archive_is_refused_with_its_own_message_and_stores_nothing(gateway: Gateway) -> None:
    before, wrong = gateway.count_project(), {}
    for case, (content, status, code) in bad_archives().items():
        answer = upload(gateway, content, label_map={"background": 0, "bar": 255})
        problem = answer.json()
        if (answer.status_code, problem["code"], answer.headers["content-type"]) != (
            status,
            code,
            "application/problem+json",
        ) or len(problem["detail"]) < 20:
            wrong[case] = problem
    assert not wrong and gateway.count_project() == before


def test_invalid_dataset_request_is_refused_with_the_reason(gateway: Gateway) -> None:
    content = archive(pairs(2))
    cases: dict[str, tuple[Any, int, str]] = {
        "no name": (
            gateway.ask("POST", "/v1/datasets", content=content, headers={"Content-Type": "application/zip"}),
            422,
            "invalid",
        ),
        "a name that is a path": (upload(gateway, content, name="../bars"), 422, "invalid"),
        "a map that is not JSON": (
            gateway.ask(
                "POST",
                "/v1/datasets?name=bars&label_map=bar",
                content=content,
                headers={"Content-Type": "application/zip"},
            ),
            400,
            "invalid_json",
        ),
        "a map of words": (upload(gateway, content, label_map={"bar": "white"}), 422, "invalid"),
        "one value for two names": (
            upload(gateway, content, label_map={"bar": 255, "vessel": 255}),
            422,
            "bad_dataset",
        ),
        "a text": (upload(gateway, b"bars", **{"Content-Type": "text/plain"}), 415, "unsupported_archive"),
        "a damaged body": (upload(gateway, content, **{"Content-Digest": "sha-256=:AAAA:"}), 422, "checksum_mismatch"),
    }
    assert {case: (answer.status_code, answer.json()["code"]) for case, (answer, _, _) in cases.items()} == {
        case: (status, code) for case, (_, status, code) in cases.items()
    }
    assert gateway.count_project()["datasets"] == 0


def test_archive_over_the_limit_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    url = gateway.http.base_url
    connection = http.client.HTTPConnection(url.host, url.port, timeout=10)
    headers = gateway.headers("engineer") | {"Content-Type": "application/zip", "Content-Length": str(9 * 1024**3)}
    connection.request("POST", "/v1/datasets?name=bars", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (413, "too_large")
    connection.close()


@pytest.fixture
def isbi12() -> Path:
    folder = Path(os.environ.get("TOPOSERVE_DATA_SHARED", Path(__file__).parents[2] / "../shared/data")) / "isbi12"
    if not folder.exists():
        pytest.skip(f"{folder} holds the real images; set TOPOSERVE_DATA_SHARED to the folder that has isbi12/")
    return folder


def test_real_membranes_have_the_betti_numbers_of_their_manifest(gateway: Gateway, isbi12: Path) -> None:
    with (isbi12 / "manifest.csv").open() as manifest:
        rows = [row for row in csv.DictReader(manifest) if row["role"] == "mask"][:6]
    entries = {}
    for row in rows:
        name = Path(row["file"]).name
        entries |= {
            f"isbi12/masks/{name}": (isbi12 / "masks" / name).read_bytes(),
            f"isbi12/images/{name}": (isbi12 / "images" / name).read_bytes(),
        }
    version = upload(gateway, archive(entries), name="isbi12", label_map={"membrane": 0}).json()
    items = gateway.ask("GET", version["links"]["items"]).json()["items"]
    assert {item["name"]: "/".join(map(str, item["statistics"]["betti"]["membrane"])) for item in items} == {
        Path(row["file"]).stem: row["betti"].rpartition(":")[2] for row in rows
    }


PLACES = [("train", "ring"), ("train", "two"), ("val", "blank")]
ARCHIVE = {"Content-Type": "application/zip"}


def test_items_are_found_by_name_part_class_warning_and_betti_numbers(gateway: Gateway) -> None:
    blank = np.zeros((24, 24), np.uint8)
    ring = blank.copy()
    ring[4:20, 4:20], ring[8:16, 8:16] = 1, 0
    two = blank.copy()
    two[2:6, 2:6] = two[12:16, 12:16] = 2
    files = {f"images/{part}/{name}.png": noise_png(24, 24, seed=seed) for seed, (part, name) in enumerate(PLACES)}
    files |= {
        f"masks/{part}/{name}.png": png(mask) for (part, name), mask in zip(PLACES, (ring, two, blank), strict=True)
    }
    params = {"name": "shapes", "label_map": '{"background": 0, "ring": 1, "dot": 2}'}
    made = gateway.ask("POST", "/v1/datasets", params=params, content=archive(files), headers=ARCHIVE)
    assert made.status_code == 201, made.text

    def found(**query: Any) -> list[str]:
        answer = gateway.ask("GET", "/v1/datasets/shapes/versions/1/items", params=query)
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    assert found() == ["train/ring", "train/two", "val/blank"]
    assert found(part="val") == found(warning="empty_mask") == found(item="BLANK") == ["val/blank"]
    assert found(class_name="dot", beta0_least=2) == ["train/two"]
    assert found(beta1_least=1) == ["train/ring"] and found(warning="lossy_mask") == []
    assert found(class_name="ring", sort="-pixels") == ["train/ring"]
    page = gateway.ask("GET", "/v1/datasets/shapes/versions/1/items", params={"sort": "-name", "limit": 2}).json()
    rest = gateway.ask(
        "GET", "/v1/datasets/shapes/versions/1/items", params={"sort": "-name", "cursor": page["next_cursor"]}
    ).json()
    assert [item["name"] for item in page["items"] + rest["items"]] == ["val/blank", "train/two", "train/ring"]
    for query in ({"class_name": "cell"}, {"beta2_least": 1}, {"sort": "beta2"}, {"warning": "ugly"}, {"part": "all"}):
        refused = gateway.ask("GET", "/v1/datasets/shapes/versions/1/items", params=query)
        assert told(refused) == (422, "invalid"), query
