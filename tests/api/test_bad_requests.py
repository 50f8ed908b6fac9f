"""Malformed requests get their exact status and code."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.http import limits, parser
from app.settings import Settings
from app.strict_json import DEEPEST, parse
from tests.gateway import Gateway, form, told
from tests.images import noise_png

JSON = {"Content-Type": "application/json"}
GOOD = b'{"name": "x", "role": "viewer"}'


def post(gateway: Gateway, body: bytes, **headers: str):  # type: ignore[no-untyped-def]
    return gateway.ask("POST", "/v1/keys", "admin", content=body, headers=JSON | headers)


BAD_JSON = {
    "nothing inside": b"{",
    "trailing junk": GOOD + b"x",
    "two documents": GOOD + GOOD,
    "NaN": b'{"name": NaN, "role": "viewer"}',
    "Infinity": b'{"name": Infinity}',
    "minus Infinity": b'{"name": -Infinity}',
    "a number beyond all": b'{"name": 1e999}',
    "a number of 5000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "a repeated key": b'{"name": "x", "role": "viewer", "role": "admin"}',
    "a repeated key inside": b'{"name": {"a": 1, "a": 2}}',
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "latin-1": '{"name": "Gefäß"}'.encode("latin-1"),
    "utf-16": GOOD.decode().encode("utf-16"),
    "half a surrogate pair": b'{"name": "\\ud800", "role": "viewer"}',
    "half a surrogate pair as a key": b'{"\\udfff": 1}',
    "half a surrogate pair in a list": b'{"name": [["\\ud800"]]}',
    "100000 levels": b"[" * 100_000,
    "100000 objects": b'{"a":' * 100_000,
    "one level too many": b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
    "single quotes": b"{'name': 'x'}",
    "a bare NUL": b'{"name": "\x00"}',
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_json_that_is_not_strict_gets_400(shared_gateway: Gateway, body: bytes) -> None:
    assert told(post(shared_gateway, body)) == (400, "invalid_json")


def test_strict_json_parses_like_the_standard_library() -> None:
    for text in (
        '{"a": [1, -2.5e3, true, null, "\\u00e4\\ud83d\\ude00", {"b": "[[[{{{\\"[["}]}',
        "[" * DEEPEST + "]" * DEEPEST,
        '"x"',
        "9007199254740993",
    ):
        assert parse(text.encode()) == json.loads(text)


def test_hostile_json_is_parsed_in_bounded_time() -> None:
    for body in (
        b'"' + b'\\"' * 500_000,
        b'{"' + b"\\" * 1_000_001,
        b"[" * 1_000_000,
        b'"' * 1_000_000,
        b'{"a": "' + b"x" * 1_000_000,
    ):
        started = time.process_time()
        with pytest.raises(Exception, match=r"body|nested"):
            parse(body)
        assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=latin-1"}, 415, "unsupported_media_type"),
        ({"Content-Type": ""}, 415, "unsupported_media_type"),
        ({**JSON, "Content-Encoding": "gzip"}, 400, "invalid_request"),
        ({**JSON, "Content-Encoding": "gzip, gzip"}, 415, "unsupported_media_type"),
        ({**JSON, "Content-Encoding": "br"}, 415, "unsupported_media_type"),
    ],
)
def test_json_body_needs_its_content_type_and_no_compression(
    shared_gateway: Gateway, headers: dict[str, str], status: int, code: str
) -> None:
    answer = shared_gateway.ask("POST", "/v1/keys", "admin", content=GOOD, headers=headers)
    assert told(answer) == (status, code)


def test_body_at_the_size_limit_is_accepted_and_one_byte_more_refused(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(max_json_bytes=1000, max_upload_bytes=5000))
    padded = GOOD[:-1] + b" " * (1000 - len(GOOD)) + b"}"
    assert post(gateway, padded, **{"Content-Type": "application/json; charset=UTF-8"}).status_code == 201
    assert told(post(gateway, padded + b" ")) == (413, "too_large")
    chunks = iter([padded, b" "])
    assert told(gateway.ask("POST", "/v1/keys", "admin", content=chunks, headers=JSON)) == (413, "too_large")
    most = gateway.settings.max_upload_bytes + limits.FORM_ROOM
    assert told(gateway.upload(b"x" * most)) == (415, "unsupported_image")
    assert told(gateway.upload(b"x" * (most + 1))) == (413, "too_large")
    assert gateway.count_everything() == {"audit": 1}


RAW = {
    "ten terabytes announced": (
        b"POST /v1/keys",
        b"Content-Type: application/json\r\nContent-Length: 10995116277760\r\n",
        b"",
        b"413",
    ),
    "a negative length": (b"POST /v1/keys", b"Content-Type: application/json\r\nContent-Length: -1\r\n", b"", b"400"),
    "two lengths": (
        b"POST /v1/keys",
        b"Content-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n",
        b"{}",
        b"400",
    ),
    "a length and chunks": (
        b"POST /v1/keys",
        b"Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"400",
    ),
    "an address of 9000 bytes": (b"GET /v1/images?x=" + b"a" * 9000, b"", b"", b"414"),
    "headers of 40000 bytes": (b"GET /v1/images", b"X-Long: " + b"a" * 40_000 + b"\r\n", b"", b"431"),
    "300 headers": (b"GET /v1/images", b"".join(b"X-%d: a\r\n" % number for number in range(300)), b"", b"431"),
    "two hosts": (b"GET /v1/images", b"Host: localhost\r\n", b"", b"400"),
    "a header on two lines": (b"GET /v1/images", b"X-Folded: a\r\n b\r\n", b"", b"400"),
    "a header without a name": (b"GET /v1/images", b": a\r\n", b"", b"400"),
    "TRACE": (b"TRACE /v1/images", b"", b"", b"405"),
    "an unknown method": (b"BREW /v1/images", b"", b"", b"400"),
}


@pytest.mark.parametrize(("line", "headers", "body", "status"), RAW.values(), ids=RAW.keys())
def test_a_malformed_request_is_refused_and_the_next_one_is_served(
    shared_gateway: Gateway, line: bytes, headers: bytes, body: bytes, status: bytes
) -> None:
    key = shared_gateway.keys["admin"].encode() if b"POST" in line else b""
    answer = shared_gateway.raw(
        line + b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + b"\r\n" + headers + b"\r\n" + body
    )
    assert answer[9:12] == status, answer[:300]
    assert shared_gateway.http.get("/livez").status_code == 200


def test_headers_that_never_end_are_refused_before_they_fill_memory(shared_gateway: Gateway) -> None:
    before = resident()
    answer = shared_gateway.raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 20_000)
    assert answer.startswith(b"HTTP/1.1 431") and b'"headers_too_large"' in answer
    answer = shared_gateway.raw(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 20_000_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")  # the rest of what was sent may cut the answer off
    assert resident() - before < 60 * 2**20
    assert shared_gateway.http.get("/livez").status_code == 200


def test_connection_is_closed_when_headers_do_not_arrive(
    shared_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "HEAD_S", 0.4)
    for sent in (b"", b"GET /livez HTTP/1.1\r\nHost: loc", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /li"):
        started = time.monotonic()
        with shared_gateway.connected() as connection:
            connection.sendall(sent)
            connection.settimeout(5)
            while connection.recv(65536):
                pass
        assert time.monotonic() - started < 3


def test_parser_errors_are_answered_as_problems(shared_gateway: Gateway) -> None:
    head, _, body = shared_gateway.raw(b"NOT HTTP\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and b"application/problem+json" in head
    assert json.loads(body)["code"] == "invalid_request"


def test_a_request_without_a_host_or_to_another_one_is_refused(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(trusted_hosts=["seg.clinic.example", "127.0.0.1"]))
    assert gateway.raw(b"GET /livez HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400")
    for host, status in [
        ("seg.clinic.example", 200),
        ("SEG.clinic.example:8000", 200),
        ("evil.example", 400),
        ("seg.clinic.example.evil.example", 400),
        ("a b", 400),
        ("", 400),
    ]:
        assert gateway.http.get("/livez", headers={"Host": host}).status_code == status, host


def test_a_body_that_ends_early_is_incomplete_and_leaves_nothing(shared_gateway: Gateway) -> None:
    key = shared_gateway.keys["admin"].encode()
    head = (
        b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        + key
        + b"\r\nContent-Type: image/png\r\n"
    )
    shared_gateway.raw(
        head + b"Content-Length: %d\r\n\r\n" % (len(noise_png()) + 5) + noise_png(), shut=True, seconds=2
    )
    shared_gateway.raw(
        head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(noise_png()) + noise_png() + b"\r\n",
        shut=True,
        seconds=2,
    )
    assert shared_gateway.count_everything() == {}


def test_upload_without_data_times_out(make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> None:
    gateway = serve(make_settings(body_timeout_s=0.5))
    key = gateway.keys["admin"].encode()
    for path in (b"/v1/keys", b"/v1/images"):
        head = (
            b"POST "
            + path
            + b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
            + key
            + b"\r\nContent-Type: application/json\r\n"
        )
        head = head.replace(b"application/json", b"image/png") if path == b"/v1/images" else head
        started = time.monotonic()
        answer = gateway.raw(head + b"Content-Length: 100\r\n\r\n{")
        assert (
            answer.startswith(b"HTTP/1.1 408") and b"slow_request" in answer and b"connection: close" in answer.lower()
        )
        assert time.monotonic() - started < 5
    assert gateway.count_everything() == {}


def test_slow_upload_times_out_even_without_pauses(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(body_timeout_s=0.6))
    ended = threading.Event()

    def drops():  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 10
        while not ended.wait(0.05) and time.monotonic() < deadline:
            yield b" "

    try:
        answer = gateway.ask("POST", "/v1/keys", "admin", content=drops(), headers=JSON)
        assert told(answer) == (408, "slow_request")
    finally:
        ended.set()


def forms() -> dict[str, tuple[dict[str, str], bytes, int, str]]:
    file = ('form-data; name="file"; filename="a.png"', noise_png())
    headers, good = form([file])
    _, many_fields = form([('form-data; name="name"', b"x")] * 2000)
    _, many_files = form([file] * 2000)
    _, long_field = form([('form-data; name="name"', b"x" * 2_000_000), file])
    _, two_files = form([file, file])
    _, no_file = form([('form-data; name="name"', b"x")])
    _, other_field = form([('form-data; name="patient"', b"x"), file])
    _, nameless = form([("form-data", b"x")])
    return {
        "2000 fields": (headers, many_fields, 422, "invalid"),
        "2000 files": (headers, many_files, 422, "invalid"),
        "a field of 2 MB": (headers, long_field, 422, "invalid"),
        "two files": (headers, two_files, 422, "invalid"),
        "no file": (headers, no_file, 422, "invalid"),
        "no part": (headers, b"--edge--\r\n", 422, "invalid"),
        "another field": (headers, other_field, 422, "invalid"),
        "a part without a name": (headers, nameless, 422, "invalid"),
        "cut in the file": (headers, good[:-30], 400, "incomplete_body"),
        "cut before the last edge": (headers, good[:-4], 400, "incomplete_body"),
        "cut in a header": (headers, good[:30], 400, "incomplete_body"),
        "nothing": (headers, b"", 400, "incomplete_body"),
        "a header of 1 MB": (headers, b"--edge\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n", 400, "invalid_request"),
        "10000 headers": (headers, b"--edge\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n", 400, "invalid_request"),
        "no boundary": ({"Content-Type": "multipart/form-data"}, good, 400, "invalid_request"),
        "a long boundary": (
            {"Content-Type": "multipart/form-data; boundary=" + "b" * 5000},
            good,
            400,
            "invalid_request",
        ),
        "a preamble of 50 MB": (headers, b"x" * 50_000_000, 400, "invalid_request"),
    }


def resident() -> int:
    """Bytes of memory this process, client and gateway, holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("case", forms().keys())
def test_a_bad_form_gets_its_exact_answer_and_leaves_nothing(shared_gateway: Gateway, case: str) -> None:
    headers, body, status, code = forms()[case]
    answer = shared_gateway.ask("POST", "/v1/images", content=body, headers=headers)
    assert told(answer) == (status, code), answer.text
    assert shared_gateway.count_everything() == {}


def test_bad_requests_do_not_leak_memory(shared_gateway: Gateway) -> None:
    cases = [case for case in forms().values() if len(case[1]) < 5_000_000]

    def send() -> None:
        for headers, body, status, _ in cases:
            assert shared_gateway.ask("POST", "/v1/images", content=body, headers=headers).status_code == status
        assert post(shared_gateway, b"[" * 900_000).status_code == 400

    send()
    before = resident()
    for _ in range(10):
        send()
    assert resident() - before < 30 * 2**20


def test_upload_memory_does_not_grow_with_its_size(shared_gateway: Gateway) -> None:
    peak, before = 0, resident()

    def pieces():  # type: ignore[no-untyped-def]
        nonlocal peak
        for _ in range(200):
            yield b"\x89PNG" + b"x" * (2**20 - 4)
            peak = max(peak, resident())

    assert told(shared_gateway.ask("POST", "/v1/images", content=pieces(), headers={"Content-Type": "image/png"}))[
        0
    ] in (
        415,
        422,
    )
    assert peak - before < 40 * 2**20  # client and gateway share this process
    assert shared_gateway.count_everything() == {}
