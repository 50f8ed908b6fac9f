"""Slow, lying and disconnecting clients: limits, timeouts, and service for others."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import psutil
import pytest

from app.http import parser
from app.imaging import encode_tiff
from app.settings import Settings
from tests.api.test_bad_requests import GOOD, resident
from tests.gateway import Gateway, form, told
from tests.images import noise_png
from tests.services import wait_for

MiB = 2**20


def head(gateway: Gateway, line: str, **headers: str) -> bytes:
    """The first part of a request of the administrator."""
    lines = {"Host": "localhost", "Authorization": f"Bearer {gateway.keys['admin']}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return (
        f"{line} HTTP/1.1\r\n".encode()
        + b"".join(f"{name}: {value}\r\n".encode() for name, value in lines.items())
        + b"\r\n"
    )


def answer(raw: bytes) -> tuple[int, str]:
    """Status and code of a problem that came over a socket."""
    start, _, body = raw.partition(b"\r\n\r\n")
    assert b"application/problem+json" in start.lower(), raw[:300]
    return int(start[9:12]), json.loads(body)["code"]


# Lengths --------------------------------------------------------------------------------------------------------------


UPLOAD, JSON = ("POST /v1/images", "image/png"), ("POST /v1/keys", "application/json")


@pytest.mark.parametrize(
    ("line", "media"),
    [UPLOAD, JSON, ("POST /v1/models/blur/predict", "image/png"), ("POST /v2/models/blur/infer", "application/json")],
)
def test_content_length_of_ten_terabytes_is_refused_before_the_body(
    shared_gateway: Gateway, line: str, media: str
) -> None:
    raw = shared_gateway.raw(head(shared_gateway, line, Content_Type=media, Content_Length="10995116277760"))
    assert raw[9:12] == b"413" and b'"too_large"' in raw and b"connection: close" in raw.lower()


LENGTHS = {
    "less than nothing": ({"Content_Length": "-1"}, b"", (400, "invalid_request")),
    "a word": ({"Content_Length": "many"}, b"", (400, "invalid_request")),
    "with a sign": ({"Content_Length": "+5"}, b"12345", (400, "invalid_request")),
    "two numbers": ({"Content_Length": "2, 3"}, b"{}", (400, "invalid_request")),
    "and chunks": ({"Content_Length": "2", "Transfer_Encoding": "chunked"}, b"0\r\n\r\n", (400, "invalid_request")),
    "chunks that are no chunks": ({"Transfer_Encoding": "chunked"}, b"zz\r\n", (400, "invalid_request")),
    "a chunk without end": ({"Transfer_Encoding": "chunked"}, b"ffffffffffffffffff\r\n", (400, "invalid_request")),
    "another coding": ({"Transfer_Encoding": "gzip"}, b"", (400, "invalid_request")),
    "none": ({}, b"", (415, "unsupported_image")),
    "more than comes": ({"Content_Length": "100"}, b"\x89PNG", (400, "incomplete_body")),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_wrong_content_length_is_reported(shared_gateway: Gateway, case: str) -> None:
    headers, body, expected = LENGTHS[case]
    raw = shared_gateway.raw(
        head(shared_gateway, UPLOAD[0], Content_Type="image/png", **headers) + body,
        shut=case == "more than comes",
        seconds=5,
    )
    assert (answer(raw) if raw else None) in (expected, None if case == "more than comes" else expected)
    assert shared_gateway.count_everything() == {}


def test_bytes_after_a_short_content_length_are_the_next_request(shared_gateway: Gateway) -> None:
    with shared_gateway.connected(5) as connection:
        connection.sendall(
            head(shared_gateway, UPLOAD[0], Content_Type="image/png", Content_Length="4") + b"\x89PNGand more\r\n\r\n"
        )
        got = b""
        while piece := connection.recv(65536):
            got += piece
    assert b"HTTP/1.1 400" in got and got.endswith(b"}")
    assert shared_gateway.count_everything() == {}


@pytest.mark.parametrize(
    ("line", "media", "expected"), [(*UPLOAD, (415, "unsupported_image")), (*JSON, (400, "invalid_json"))]
)
def test_million_one_byte_chunks_take_bounded_time_and_memory(
    shared_gateway: Gateway, line: str, media: str, expected: tuple[int, str]
) -> None:
    bomb = (
        head(shared_gateway, line, Content_Type=media, Transfer_Encoding="chunked")
        + b"1\r\nx\r\n" * 1_000_000
        + b"0\r\n\r\n"
    )
    shared_gateway.raw(bomb, seconds=60)
    before, started = resident(), time.process_time()
    assert answer(shared_gateway.raw(bomb, seconds=60)) == expected
    assert resident() - before < 16 * MiB
    assert time.process_time() - started < 20


# Heads ----------------------------------------------------------------------------------------------------------------

HEADS = {
    "an address of 9 kB": (b"GET /v1/images?x=" + b"a" * 9_000, b"", 414),
    "an address of 200 kB": (b"GET /v1/images?x=" + b"a" * 200_000, b"", 431),
    "a header of 40 kB": (b"GET /v1/images", b"X-Long: " + b"a" * 40_000 + b"\r\n", 431),
    "a header of 200 kB": (b"GET /v1/images", b"X-Long: " + b"a" * 200_000 + b"\r\n", 431),
    "300 headers": (b"GET /v1/images", b"X-A: b\r\n" * 300, 431),
    "10000 headers": (b"GET /v1/images", b"X-A: b\r\n" * 10_000, 431),
    "a bare line feed in a header": (b"GET /v1/images", b"X-A: b\nX-Evil: c\r\n", 400),
    "a NUL in a header": (b"GET /v1/images", b"X-A: b\0c\r\n", 400),
    "a space before the colon": (b"GET /v1/images", b"X-A : b\r\n", 400),
    "an address with a space": (b"GET /v1/ images", b"", 400),
    "another version": (b"GET /v1/images HTTP/9.9\r\nX: ", b"", 400),
}


@pytest.mark.parametrize("case", HEADS)
def test_oversized_or_malformed_headers_are_refused_and_closed(shared_gateway: Gateway, case: str) -> None:
    line, headers, status = HEADS[case]
    raw = shared_gateway.raw(line + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")
    # What was still being sent may cut the answer off.
    assert (raw == b"" and len(line + headers) > 64 * 1024) or raw.startswith(b"HTTP/1.1 %d" % status), raw[:200]
    assert shared_gateway.http.get("/livez").status_code == 200


def test_response_headers_never_contain_received_line_breaks(shared_gateway: Gateway) -> None:
    for value in ("x%0d%0aSet-Cookie:%20a=b", "%0d%0a%0d%0a<html>"):
        got = shared_gateway.ask("GET", f"/v1/images/{value}?name={value}", headers={"X-Request-ID": "a b"})
        assert told(got) in ((404, "not_found"), (422, "invalid")) and "set-cookie" not in got.headers


# Names and ranges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\scans\\\\eye.png", "eye.png"),
        ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
        ("con", "con"),
        (".htaccess", "htaccess"),
        ("ä" * 2000, "ä" * 127),
        ("\u202egnp.exe", "gnp.exe"),
    ],
)
def test_file_name_in_a_form_is_only_a_label(sqlite_gateway: Gateway, sent: str, kept: str) -> None:
    headers, body = form([(f'form-data; name="file"; filename="{sent}"', noise_png())])
    image = sqlite_gateway.ask("POST", "/v1/images", content=body, headers=headers).json()
    assert image["name"] == kept
    disposition = sqlite_gateway.ask("GET", image["links"]["content"]).headers["content-disposition"]
    assert disposition.isascii() and disposition.startswith("attachment; filename=") and "<" not in disposition


def test_ten_thousand_ranges_are_refused(sqlite_gateway: Gateway) -> None:
    address = sqlite_gateway.upload(noise_png()).json()["links"]["content"]
    for count, expected in (
        (2, (416, "range_not_satisfiable")),
        (5_000, (416, "range_not_satisfiable")),
        (10_000, (431, "headers_too_large")),
    ):
        started = time.process_time()
        assert (
            told(sqlite_gateway.ask("GET", address, headers={"Range": "bytes=" + ",".join(["0-1"] * count)}))
            == expected
        )
        assert time.process_time() - started < 1


# Slowness -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(
    monkeypatch: pytest.MonkeyPatch, make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> Iterator[Gateway]:
    """A gateway whose 10 and 30 seconds of patience are 3."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    parser.room_for_files()  # client and gateway share this process
    for name in ("HEAD_S", "READ_S"):
        monkeypatch.setattr(parser, name, 3)
    yield serve(make_settings(body_timeout_s=3))
    resource.setrlimit(resource.RLIMIT_NOFILE, files)


def open_connections(gateway: Gateway) -> list[int]:
    """Ports of the clients whose connections the gateway holds."""
    port = int(gateway.url.rsplit(":", 1)[1])
    return [
        each.raddr.port
        for each in psutil.Process().net_connections("tcp")
        if each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
    ]


def holds(gateway: Gateway, client: socket.socket) -> bool:
    """Whether the gateway still holds the connection of this client."""
    return client.getsockname()[1] in open_connections(gateway)


def large_image(gateway: Gateway) -> str:
    """The address of bytes that no socket buffer holds."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000), dtype=np.uint8)
    return gateway.upload(encode_tiff(noise), "image/tiff").json()["links"]["content"]


def reader(gateway: Gateway, address: str) -> socket.socket:
    """A client that asks for bytes and has hardly any room for them."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = gateway.url.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    connection.sendall(head(gateway, f"GET {address}"))
    return connection


@contextmanager
def slow_clients(gateway: Gateway, heads: int, bodies: int, readers: int) -> Iterator[None]:
    """So many clients that began something and do not go on."""
    address = large_image(gateway)
    with ExitStack() as stack:
        for _ in range(heads):
            stack.enter_context(gateway.connected()).sendall(b"GET /v1/images HTTP/1.1\r\nHost: loc")
        for _ in range(bodies):
            stack.enter_context(gateway.connected()).sendall(
                head(gateway, UPLOAD[0], Content_Type="image/png", Content_Length="5000") + b"\x89PNG"
            )
        for _ in range(readers):
            stack.enter_context(reader(gateway, address))
        yield


def durations(gateway: Gateway, count: int) -> list[float]:
    """Seconds of good requests, all of which are answered."""
    spent = []
    for seed in range(count):
        started = time.perf_counter()
        assert gateway.upload(noise_png(seed=seed)).status_code in (200, 201)
        spent.append(time.perf_counter() - started)
    return spent


def test_500_slow_clients_are_closed_and_a_good_one_is_served_meanwhile(impatient: Gateway) -> None:
    alone = durations(impatient, 40)
    with slow_clients(impatient, heads=320, bodies=140, readers=40):
        assert len(open_connections(impatient)) > 100  # on a busy machine the first are closed before the last begin
        beside = durations(impatient, 40)
        print(
            f"p99 beside 500 slow clients {np.quantile(beside, 0.99):.3f} s, alone {np.quantile(alone, 0.99):.3f} s"
        )  # pytest -rP shows it
        wait_for(
            lambda: len(open_connections(impatient)) <= 2, seconds=30, what="the slow ones to be closed", every=0.2
        )
    assert impatient.count_everything()["images"] == 41


def test_stalled_reader_is_disconnected_and_a_slow_one_is_served(
    impatient: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "READ_S", 0.5)
    address = large_image(impatient)
    with reader(impatient, address) as silent, reader(impatient, address) as slow:
        wait_for(lambda: holds(impatient, silent) and holds(impatient, slow), what="both connections")
        got = 0
        while got < 2000 * 3000 and (piece := slow.recv(4096)):
            got += len(piece)
            time.sleep(0.001)
        wait_for(lambda: not holds(impatient, silent), what="the one that takes nothing to be cut off")
    assert got >= 2000 * 3000


def test_connections_over_the_limit_get_retry_after(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings(), limit_concurrency=4)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(gateway.connected())
        wait_for(lambda: len(open_connections(gateway)) == 4, what="the connections")
        raw = gateway.raw(head(gateway, "GET /livez"))
        assert answer(raw) == (503, "busy") and b"retry-after: 1" in raw.lower()
    wait_for(lambda: not open_connections(gateway), what="the connections to end")
    assert gateway.http.get("/livez").status_code == 200


def test_aborted_upload_is_cleaned_up_within_a_second(sqlite_gateway: Gateway) -> None:
    for sent in (10, 3 * MiB):
        with sqlite_gateway.connected() as connection:
            connection.sendall(
                head(sqlite_gateway, UPLOAD[0], Content_Type="image/png", Content_Length=str(10 * MiB))
                + b"\x89PNG\r\n\x1a\n"
                + b"x" * sent
            )
            port = connection.getsockname()[1]
        scratch = str(sqlite_gateway.settings.scratch)
        wait_for(
            lambda scratch=scratch, port=port: (
                not [file for file in psutil.Process().open_files() if file.path.startswith(scratch)]
                and port not in open_connections(sqlite_gateway)
            ),
            seconds=1,
            what="the temporary file to go",
        )
    assert sqlite_gateway.count_everything() == {}


def test_fifty_bad_clients_do_not_affect_good_ones(shared_gateway: Gateway) -> None:
    """Every bad request of this file at the same time, over and over, while keys are made."""
    ended, bad = (
        threading.Event(),
        [
            head(shared_gateway, UPLOAD[0], Content_Type="image/png", **headers) + body
            for headers, body, _ in LENGTHS.values()
        ],
    )
    bad += [line + b" HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" for line, headers, _ in HEADS.values()]

    def annoy(first: int) -> None:
        number = first
        while not ended.is_set():
            shared_gateway.raw(bad[number % len(bad)], seconds=0.2)
            number += 1

    threads = [threading.Thread(target=annoy, args=(number,), daemon=True) for number in range(50)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            got = shared_gateway.ask(
                "POST", "/v1/keys", "admin", content=GOOD, headers={"Content-Type": "application/json"}
            )
            assert got.status_code == 201
            assert shared_gateway.ask("DELETE", f"/v1/keys/{got.json()['id']}", "admin").status_code in (200, 204)
    finally:
        ended.set()
        for thread in threads:
            thread.join(10)
