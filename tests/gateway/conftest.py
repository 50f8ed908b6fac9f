"""A gateway behind a real socket, with a key of every role, a second project, and pictures to send."""

from __future__ import annotations

import io
import socket
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import uvicorn
from PIL import Image as Pillow
from sqlalchemy import func, select

from app.http.parser import Protocol
from app.main import build
from app.roles import ROLES
from app.settings import Settings
from app.store import keys, projects
from app.store.tables import ApiKey, Base, now
from tests.services import wait_for

OVERLOADED = ("api_keys", "projects", "secrets", "workers")
"""Tables that every gateway has rows in."""


class Gateway:
    """A running gateway; `ask` is one request as somebody."""

    def __init__(self, settings: Settings, app: Any, url: str):
        self.settings, self.app, self.url = settings, app, url
        self.services = app.state.services
        self.database, self.blobs = self.services.database, self.services.blobs
        self.http = httpx.Client(base_url=url, timeout=20)
        with self.database.write() as session:
            self.keys = {role: keys.create(session, project="clinic", name=role, role=role) for role in ROLES}
            self.keys["stranger"] = keys.create(session, project="elsewhere", name="stranger", role="admin")
            self.keys["revoked"] = keys.create(session, project="clinic", name="revoked", role="admin")
            keys.revoke(session, self.keys["revoked"][3:11])
            self.keys["expired"] = keys.create(
                session, project="clinic", name="expired", role="admin", expires_at=now() - timedelta(seconds=1)
            )
            self.project_id = projects.ensure(session, "clinic").id

    def ask(self, method: str, path: str, who: str | None = "admin", **options: Any) -> httpx.Response:
        """One request as the key of that name, or as nobody."""
        headers = {"Authorization": f"Bearer {self.keys[who]}"} if who else {}
        return self.http.request(method, path, headers=headers | options.pop("headers", {}), **options)

    def upload(self, content: bytes, media: str = "image/png", who: str = "admin", **options: Any) -> httpx.Response:
        """Send an image as raw body."""
        return self.ask(
            "POST",
            "/v1/images",
            who,
            content=content,
            headers={"Content-Type": media} | options.pop("headers", {}),
            **options,
        )

    def left(self) -> dict[str, int]:
        """Rows that requests leave, blobs, and temporary files."""
        with self.database.read() as session:
            rows = {
                table.name: session.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
                if table.name not in OVERLOADED
            }
        files = [
            path
            for path in self.settings.data_dir.rglob("*")
            if path.is_file() and not path.name.startswith("toposerve.db")
        ]
        return {name: count for name, count in rows.items() if count} | ({"files": len(files)} if files else {})

    def key_row(self, who: str) -> ApiKey:
        """The row of a key, as the database has it now."""
        with self.database.read() as session:
            return session.scalars(select(ApiKey).where(ApiKey.prefix == self.keys[who][3:11])).one()

    def connected(self, seconds: float = 10.0) -> socket.socket:
        """An open connection."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=seconds)

    def raw(self, request: bytes, *, seconds: float = 10.0, shut: bool = False) -> bytes:
        """Send bytes over a socket and read until the server closes or a whole answer is there."""
        with self.connected(seconds) as connection:
            try:
                connection.sendall(request)
                if shut:
                    connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before everything was sent; the answer is there to read
            return _read_answer(connection)


def _read_answer(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
            head, found, body = answer.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if found and length and len(body) >= int(length[0].split(b":")[1]):
                break
    except (ConnectionResetError, TimeoutError):
        pass
    return answer


@pytest.fixture(scope="session", autouse=True)
def _plain_log_lines() -> Iterator[None]:
    """As in service: without it structlog draws every local variable into a traceback."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(40),
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Gateway]]:
    """Start gateways on free ports; they end with the module."""
    running: list[tuple[uvicorn.Server, threading.Thread, Gateway]] = []

    def start(settings: Settings, **options: Any) -> Gateway:
        app = build(settings)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", http=Protocol, **options)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive(), what="the gateway")
        running.append((server, thread, Gateway(settings, app, "http://127.0.0.1:%d" % listener.getsockname()[1])))
        return running[-1][2]

    yield start
    for server, _, gateway in running:
        gateway.http.close()
        server.should_exit = True
    for _, thread, _ in running:
        thread.join(10)
        assert not thread.is_alive(), "the gateway did not end"


@pytest.fixture
def gateway(settings: Settings, serve: Callable[..., Gateway]) -> Gateway:
    """A gateway on each kind of database, with nothing in it but keys."""
    return serve(settings)


@pytest.fixture
def sqlite_gateway(make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> Gateway:
    """A gateway on SQLite, where the database does not matter."""
    return serve(make_settings())


@pytest.fixture(scope="module")
def one_gateway(serve: Callable[..., Gateway], tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """One gateway for all tests of the module that only ask for what is refused."""
    return serve(Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("one"), min_free_bytes=0))


def png(size: tuple[int, int] = (24, 32), seed: int = 0) -> bytes:
    """A grey PNG of noise; another seed is another image."""
    file = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def hollow_png(width: int, height: int) -> bytes:
    """A PNG whose header claims these sides and whose pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def form(parts: list[tuple[str, bytes]], boundary: bytes = b"edge") -> tuple[dict[str, str], bytes]:
    """Headers and body of a multipart form; each part is its Content-Disposition and its bytes."""
    body = b"".join(
        b"--" + boundary + b"\r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return {"Content-Type": "multipart/form-data; boundary=" + boundary.decode()}, body + b"--" + boundary + b"--\r\n"


def told(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem, after checking that it is one and echoes nothing it should not."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert {"type", "title", "status", "detail", "code", "errors", "instance", "request_id"} <= set(body)
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text and "sqlalchemy" not in response.text.lower()
    return response.status_code, body["code"]


UNKNOWN = str(uuid.UUID("01936f5e-7c00-7000-8000-00000000dead"))
HERE = Path(__file__).parent
