"""Compressed bodies of requests and answers."""

from __future__ import annotations

import gzip
import json
import zlib

import httpx
import pytest

from app.http.accept import takes_gzip
from app.http.limits import FORM_ROOM
from tests.gateway import Gateway, told
from tests.images import noise_png

GZIP = {"Content-Encoding": "gzip", "Content-Type": "application/octet-stream"}


def test_a_gzipped_body_is_read_as_if_it_were_plain(gateway: Gateway) -> None:
    plain = gateway.upload(noise_png()).json()
    packed = gateway.ask("POST", "/v1/images", content=gzip.compress(noise_png()), headers=GZIP)
    assert (packed.status_code, packed.json()["id"]) == (200, plain["id"])
    named = gzip.compress(json.dumps({"kind": "analyse", "images": [plain["id"]]}).encode())
    json_gzip = GZIP | {"Content-Type": "application/json"}
    assert gateway.ask("POST", "/v1/jobs", "admin", content=named, headers=json_gzip).status_code == 202


def test_a_gzipped_body_that_arrives_byte_by_byte_is_read(gateway: Gateway) -> None:
    packed = gzip.compress(noise_png())
    pieces = (packed[at : at + 7] for at in range(0, len(packed), 7))
    assert gateway.ask("POST", "/v1/images", content=pieces, headers=GZIP).status_code == 201


def test_a_gzipped_body_expands_no_further_than_a_plain_one(gateway: Gateway) -> None:
    most = gateway.settings.max_json_bytes
    for size, answer in ((most + 1, (413, "expands_too_large")), (1 << 30, (413, "expands_too_large"))):
        packer = zlib.compressobj(9, wbits=31)
        bomb = b"".join(packer.compress(b" " * min(1 << 20, size - at)) for at in range(0, size, 1 << 20))
        sent = gateway.ask(
            "POST",
            "/v1/keys",
            "admin",
            content=bomb + packer.flush(),
            headers=GZIP | {"Content-Type": "application/json"},
        )
        assert told(sent) == answer
    assert most > FORM_ROOM


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(noise_png())[:-9], gzip.compress(noise_png()) + b"more", b""],
    ids=["none", "cut", "more behind", "empty"],
)
def test_a_body_that_is_no_whole_gzip_is_refused(gateway: Gateway, content: bytes) -> None:
    assert gateway.ask("POST", "/v1/images", content=content, headers=GZIP).status_code == 400
    assert gateway.count_project()["images"] == 0


def test_other_codings_are_refused_with_the_one_that_is_read(gateway: Gateway) -> None:
    refused = gateway.ask("POST", "/v1/images", content=b".", headers=GZIP | {"Content-Encoding": "br"})
    assert told(refused) == (415, "unsupported_media_type") and "gzip" in refused.json()["detail"]


def test_the_description_of_the_api_is_compressed_for_who_takes_it(shared_gateway: Gateway) -> None:
    plain = shared_gateway.ask("GET", "/openapi.json", headers={"Accept-Encoding": "identity"})
    packed = shared_gateway.ask("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers and packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()  # the client has expanded it
    assert int(packed.headers["content-length"]) * 4 < int(plain.headers["content-length"])


def packed_and_plain(gateway: Gateway, address: str, **headers: str) -> tuple[httpx.Response, httpx.Response]:
    """The answers to a caller who takes gzip and to one who does not."""
    packed, plain = (
        gateway.ask("GET", address, headers={"Accept-Encoding": coding} | headers) for coding in ("gzip", "identity")
    )
    assert packed.status_code == plain.status_code == 200
    return packed, plain


@pytest.mark.parametrize(
    ("address", "accept"),
    [
        ("/v1/images", "application/json"),
        ("/docs", "text/html"),
        ("/static/style.css", "*/*"),
        ("/static/viewer.js", "*/*"),
    ],
)
def test_long_texts_are_compressed_for_who_takes_it(gateway: Gateway, address: str, accept: str) -> None:
    for seed in range(4):
        gateway.upload(noise_png(seed=seed))
    packed, plain = packed_and_plain(gateway, address, Accept=accept)
    assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == ("gzip", False)
    assert "accept-encoding" in packed.headers["vary"].lower() and "accept-encoding" in plain.headers["vary"].lower()
    assert packed.content == plain.content  # the client has expanded it
    assert int(packed.headers["content-length"]) * 2 < int(plain.headers["content-length"])
    head = gateway.ask("HEAD", address, headers={"Accept-Encoding": "gzip", "Accept": accept})
    assert "content-length" not in head.headers and head.content == b""


def test_images_and_short_answers_are_not_compressed(gateway: Gateway) -> None:
    image = gateway.upload(noise_png(90, 90)).json()
    for address in (image["links"]["content"], image["links"]["preview"], "/v1/models", "/livez"):
        packed, plain = packed_and_plain(gateway, address)
        assert "content-encoding" not in packed.headers and packed.content == plain.content


def test_compressed_file_of_ours_is_kept_by_a_browser(shared_gateway: Gateway) -> None:
    packed, plain = packed_and_plain(shared_gateway, "/static/style.css")
    assert packed.headers["etag"] == "W/" + plain.headers["etag"]
    for known in (packed.headers["etag"], plain.headers["etag"]):
        again = shared_gateway.ask("GET", "/static/style.css", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")


def test_gzip_is_used_only_where_it_is_named() -> None:
    takes = ("gzip", "br, gzip;q=0.5", "GZIP", "gzip;q=1.0")
    assert all(takes_gzip(each) for each in takes)
    assert not any(takes_gzip(each) for each in ("", "br", "gzip;q=0", "gzip;q=0.0", "x-gzipped", "identity"))
