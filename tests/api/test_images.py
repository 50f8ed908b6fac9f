"""Images over HTTP: upload, download, preview, deletion."""

from __future__ import annotations

import base64
import errno
import gzip
import hashlib
import io
import threading
import uuid
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image as Pillow
from sqlalchemy import select

from app.settings import Settings
from app.store.tables import AuditLine, Dataset, DatasetItem, DatasetVersion, Image
from tests.gateway import UNKNOWN, Gateway, form, told
from tests.images import hollow_png, noise_png


def test_an_image_comes_back_as_it_was_sent(gateway: Gateway) -> None:
    content = noise_png()
    answer = gateway.upload(content, params={"name": "retina 7.png"})
    image = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == f"/v1/images/{image['id']}"
    assert (image["sha256"], image["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert (image["format"], image["dimensions"], image["channels"], image["shape"], image["dtype"]) == (
        "png",
        2,
        1,
        [24, 32],
        "uint8",
    )
    assert image["name"] == "retina 7.png" and uuid.UUID(image["id"]).version == 7
    got = gateway.ask("GET", image["links"]["content"], "viewer")
    assert got.content == content and got.headers["content-type"] == "image/png"
    assert (
        got.headers["content-disposition"] == "attachment; filename=\"retina 7.png\"; filename*=UTF-8''retina%207.png"
    )
    assert got.headers["x-content-type-options"] == "nosniff" and "sandbox" in got.headers["content-security-policy"]
    assert gateway.ask("GET", answer.headers["location"]).json() == image


def test_the_same_bytes_are_the_same_image_and_another_project_has_its_own(gateway: Gateway) -> None:
    first, second = gateway.upload(noise_png()), gateway.upload(noise_png(), params={"name": "again.png"})
    elsewhere = gateway.upload(noise_png(), who="stranger")
    assert (first.status_code, second.status_code, elsewhere.status_code) == (201, 200, 201)
    assert first.json() == second.json()
    assert elsewhere.json()["id"] != first.json()["id"]
    assert told(gateway.ask("GET", first.headers["location"], "stranger")) == (404, "not_found")


def test_ten_uploads_of_one_image_at_once_make_one_image(gateway: Gateway) -> None:
    answers: list[tuple[int, str]] = []

    def send() -> None:
        answer = gateway.upload(noise_png())
        answers.append((answer.status_code, answer.json()["id"]))

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 10 and {status for status, _ in answers} <= {200, 201}
    assert len({image_id for _, image_id in answers}) == 1
    assert gateway.count_project()["images"] == 1


def test_image_can_be_uploaded_as_a_form(gateway: Gateway) -> None:
    headers, body = form(
        [
            ('form-data; name="name"', b"eye.png"),
            ('form-data; name="file"; filename="C:\\\\scans\\\\..\\\\ward.png"', noise_png()),
        ]
    )
    answer = gateway.ask("POST", "/v1/images", headers=headers, content=body)
    assert answer.status_code == 201 and answer.json()["name"] in ("eye.png", "ward.png")
    headers, body = form([('form-data; name="file"; filename="../../etc/passwd"', noise_png(seed=1))])
    assert gateway.ask("POST", "/v1/images", headers=headers, content=body).json()["name"] == "passwd"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("<img src=x onerror=alert(1)>.png", "<img src=x onerror=alert(1)>.png"),
        ("a\r\nSet-Cookie: b=c", "aSet-Cookie: b=c"),
        ("\u202egnp.exe", "gnp.exe"),
        ("ä" * 200, "ä" * 127),
        ("Gefäß 3.png", "Gefäß 3.png"),
    ],
)
def test_image_name_is_a_label_and_never_a_path(sqlite_gateway: Gateway, sent: str, kept: str) -> None:
    image = sqlite_gateway.upload(noise_png(), params={"name": sent}).json()
    assert image["name"] == kept
    got = sqlite_gateway.ask("GET", image["links"]["content"])
    assert got.content == noise_png() and "set-cookie" not in got.headers
    assert got.headers["content-disposition"].isascii()


def test_image_list_is_paged_newest_first_with_a_signed_cursor(gateway: Gateway) -> None:
    ids = [gateway.upload(noise_png(seed=seed)).json()["id"] for seed in range(5)]
    seen, address = [], "/v1/images?limit=2"
    while address:
        answer = gateway.ask("GET", address)
        seen += [item["id"] for item in answer.json()["items"]]
        address = answer.links.get("next", {}).get("url")
        assert (address is None) == (answer.json()["next_cursor"] is None)
    assert seen == ids[::-1]
    cursor = gateway.ask("GET", "/v1/images?limit=2").json()["next_cursor"]
    forged = cursor[:5] + ("0" if cursor[5] != "0" else "1") + cursor[6:]
    assert told(gateway.ask("GET", "/v1/images", params={"cursor": forged})) == (400, "invalid_cursor")
    assert told(gateway.ask("GET", "/v1/images", "stranger", params={"cursor": cursor})) == (400, "invalid_cursor")
    assert told(gateway.ask("GET", "/v1/keys", "admin", params={"cursor": cursor})) == (400, "invalid_cursor")
    for limit in ("0", "-1", "201", "1e9", "x"):
        assert told(gateway.ask("GET", "/v1/images", params={"limit": limit})) == (422, "invalid")


def test_one_byte_range_can_be_requested(sqlite_gateway: Gateway) -> None:
    content = noise_png(64, 64)
    address = sqlite_gateway.upload(content).json()["links"]["content"]
    whole = sqlite_gateway.ask("GET", address)
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(content)
    for asked, part in [
        ("bytes=0-9", content[:10]),
        ("bytes=10-", content[10:]),
        ("bytes=-7", content[-7:]),
        (f"bytes=5-{size * 9}", content[5:]),
        (f"bytes=-{size * 9}", content),
    ]:
        got = sqlite_gateway.ask("GET", address, headers={"Range": asked})
        assert (got.status_code, got.content) == (206, part), asked
        start = size - len(part) if asked.startswith("bytes=-") else int(asked[6:].split("-")[0])
        assert got.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{size}"
    for asked in (
        f"bytes={size}-",
        "bytes=9-3",
        "bytes=0-0,5-9",
        "bytes=" + ",".join("0-1" for _ in range(5000)),
        "bytes=-0",
        "bytes=-",
        "bytes=" + "9" * 30 + "-",
    ):
        assert told(sqlite_gateway.ask("GET", address, headers={"Range": asked})) == (416, "range_not_satisfiable")
    stale = sqlite_gateway.ask("GET", address, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, content)
    known = sqlite_gateway.ask("GET", address, headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


def test_damaged_bytes_are_never_sent_and_missing_ones_get_410(gateway: Gateway) -> None:
    image = gateway.upload(noise_png()).json()
    path = gateway.blobs.local_path(gateway.project_id, image["sha256"])
    damaged = bytearray(path.read_bytes())
    damaged[40] ^= 1
    path.write_bytes(damaged)
    assert told(gateway.ask("GET", image["links"]["content"])) == (500, "blob_corrupt")
    assert told(gateway.ask("GET", image["links"]["preview"])) == (500, "blob_corrupt")
    path.unlink()
    assert told(gateway.ask("GET", image["links"]["content"])) == (410, "blob_missing")
    assert gateway.upload(noise_png()).status_code == 200
    assert gateway.ask("GET", image["links"]["content"]).content == noise_png()


def test_the_preview_is_a_small_png_that_a_browser_may_keep(sqlite_gateway: Gateway) -> None:
    deep = (np.add.outer(np.arange(40), np.arange(50)) * 700).astype(np.uint16)
    file = io.BytesIO()
    Pillow.fromarray(deep).save(file, "tiff")
    image = sqlite_gateway.upload(file.getvalue(), "image/tiff").json()
    assert image["dtype"] == "uint16"
    got = sqlite_gateway.ask("GET", image["links"]["preview"])
    shown = np.asarray(Pillow.open(io.BytesIO(got.content)))
    assert got.headers["content-type"] == "image/png" and shown.dtype == np.uint8 and shown.shape[:2] == (40, 50)
    assert shown.min() < 10 and shown.max() > 245
    known = sqlite_gateway.ask("GET", image["links"]["preview"], headers={"If-None-Match": got.headers["etag"]})
    assert known.status_code == 304
    assert told(sqlite_gateway.ask("GET", image["links"]["preview"], params={"plane": 1})) == (422, "invalid")
    assert told(sqlite_gateway.ask("GET", image["links"]["preview"], params={"plane": -1})) == (422, "invalid")


def test_a_volume_keeps_its_spacing_and_shows_the_plane_that_is_asked_for(sqlite_gateway: Gateway) -> None:
    nibabel = pytest.importorskip("nibabel")
    voxels = np.zeros((8, 10, 4), np.int16)
    voxels[2:6, 3:7, 2] = 1000
    volume = nibabel.Nifti1Image(voxels, np.diag([0.5, 0.7, 2.0, 1.0]))
    image = sqlite_gateway.upload(gzip.compress(volume.to_bytes()), "application/gzip").json()
    assert (image["format"], image["dimensions"], image["shape"]) == ("nifti_gz", 3, [4, 10, 8])
    assert image["spacing_mm"] == pytest.approx([2.0, 0.7, 0.5])
    empty, full = (sqlite_gateway.ask("GET", image["links"]["preview"], params={"plane": plane}) for plane in (0, 2))
    assert empty.headers["etag"] != full.headers["etag"]
    assert np.asarray(Pillow.open(io.BytesIO(full.content))).std() > 0
    assert told(sqlite_gateway.ask("GET", image["links"]["preview"], params={"plane": 4})) == (422, "invalid")


def test_image_can_be_deleted_unless_a_dataset_uses_it(gateway: Gateway) -> None:
    kept, free = gateway.upload(noise_png(seed=1)).json(), gateway.upload(noise_png(seed=2)).json()
    with gateway.database.write() as session:
        owner = {"project_id": gateway.project_id}
        dataset = Dataset(name="isbi12", **owner)
        session.add(dataset)
        session.flush()
        version = DatasetVersion(
            dataset_id=dataset.id,
            number=3,
            digest="0" * 64,
            classes=["a", "b"],
            label_map={},
            channels=1,
            dimensions=2,
            statistics={},
            warnings=[],
            **owner,
        )
        session.add(version)
        session.flush()
        session.add(
            DatasetItem(
                version_id=version.id,
                position=0,
                name="x",
                image_id=uuid.UUID(kept["id"]),
                mask_sha256="0" * 64,
                statistics={},
                **owner,
            )
        )
    refused = gateway.ask("DELETE", kept["links"]["self"])
    assert told(refused) == (409, "conflict") and "isbi12@3" in refused.json()["detail"]
    assert gateway.ask("DELETE", free["links"]["self"]).status_code == 204
    assert told(gateway.ask("GET", free["links"]["self"])) == (404, "not_found")
    assert told(gateway.ask("DELETE", free["links"]["self"])) == (404, "not_found")
    assert told(gateway.ask("DELETE", kept["links"]["self"], "stranger")) == (404, "not_found")
    assert gateway.ask("GET", kept["links"]["self"]).status_code == 200


def test_uploads_and_deletions_are_audited_with_the_request(gateway: Gateway) -> None:
    image = gateway.upload(noise_png(), headers={"X-Request-ID": "ward-3.42"}).json()
    gateway.ask("DELETE", image["links"]["self"])
    with gateway.database.read() as session:
        mine = select(AuditLine).where(AuditLine.project_id == gateway.project_id)
        lines = session.scalars(mine.order_by(AuditLine.id)).all()
    assert [(line.what, line.object) for line in lines] == [
        ("image.upload", image["id"]),
        ("image.delete", image["id"]),
    ]
    assert lines[0].request_id == "ward-3.42" and lines[0].who == gateway.keys["engineer"][:11]


def test_content_digest_is_checked_when_it_is_sent(sqlite_gateway: Gateway) -> None:
    right = base64.b64encode(hashlib.sha256(noise_png()).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    assert told(sqlite_gateway.upload(noise_png(), headers={"Content-Digest": f"sha-256=:{wrong}:"})) == (
        422,
        "checksum_mismatch",
    )
    assert told(sqlite_gateway.upload(noise_png(), headers={"Content-Digest": "sha-256=:no base64:"})) == (
        400,
        "invalid_request",
    )
    assert sqlite_gateway.count_everything() == {}
    assert (
        sqlite_gateway.upload(noise_png(), headers={"Content-Digest": f"sha-512=:AAAA:, sha-256=:{right}:"}).status_code
        == 201
    )


BAD_IMAGES = [
    ("nothing", b"", 415, "unsupported_image"),
    ("text", b"hello", 415, "unsupported_image"),
    ("a web page", b"<!doctype html><script>alert(1)</script>", 415, "unsupported_image"),
    ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415, "unsupported_image"),
    ("a program", b"\x7fELF" + b"\0" * 200, 415, "unsupported_image"),
    ("half a gif", b"GIF89a" + b"\0" * 200, 422, "corrupt_image"),
    ("a pickle", b"\x80\x04\x95" + b"\0" * 200, 415, "unsupported_image"),
    ("half a png", noise_png(64, 64)[:900], 422, "corrupt_image"),
    ("a png without pixels", hollow_png(64, 64), 422, "corrupt_image"),
    ("a png without sides", hollow_png(0, 64), 422, "empty_image"),
    ("too many pixels", hollow_png(50_000, 50_000), 413, "too_many_pixels"),
    ("a thin giant", hollow_png(80_000_000, 1), 413, "too_many_pixels"),
]


@pytest.mark.parametrize(
    ("content", "status", "code"), [case[1:] for case in BAD_IMAGES], ids=[case[0] for case in BAD_IMAGES]
)
def test_invalid_image_is_refused_and_not_stored(
    shared_gateway: Gateway, content: bytes, status: int, code: str
) -> None:
    assert told(shared_gateway.upload(content)) == (status, code)
    assert shared_gateway.count_everything() == {}


def test_image_with_a_flipped_byte_never_causes_500(sqlite_gateway: Gateway) -> None:
    content, generator = noise_png(16, 16), np.random.default_rng(5)
    for _ in range(40):
        flipped = bytearray(content)
        flipped[int(generator.integers(len(content)))] ^= int(generator.integers(1, 256))
        assert sqlite_gateway.upload(bytes(flipped)).status_code in (200, 201, 413, 415, 422)


def test_unknown_image_gets_404_on_every_route(gateway: Gateway) -> None:
    for path in ("", "/content", "/preview.png"):
        assert told(gateway.ask("GET", f"/v1/images/{UNKNOWN}{path}")) == (404, "not_found")
    for wrong in ("1", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "1' or 1=1", "x" * 3000, "٣" * 36):
        assert told(gateway.ask("GET", f"/v1/images/{wrong}"))[0] in (404, 422)


def test_image_rows_match_acknowledged_uploads(gateway: Gateway) -> None:
    acknowledged = {gateway.upload(noise_png(seed=seed)).json()["id"] for seed in range(3)}
    gateway.upload(b"no image")
    with gateway.database.read() as session:
        assert {
            str(row) for row in session.scalars(select(Image.id).where(Image.project_id == gateway.project_id))
        } == acknowledged


def test_full_disk_gets_507_and_stores_nothing(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = serve(make_settings(min_free_bytes=2**60))
    assert told(full.upload(noise_png())) == (507, "insufficient_storage")
    assert full.count_everything() == {} and full.ask("GET", "/v1/images").status_code == 200
    full = serve(make_settings())

    def no_space(_folder: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.http.uploads._nameless", no_space)
    assert told(full.upload(b"\x89PNG" + b"x" * 2_000_000)) == (507, "insufficient_storage")
    assert full.count_everything() == {}
