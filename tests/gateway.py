"""Starts gateways for tests, in this process or as child processes, with projects and keys.

`started` and the fixture `serve` start one in a thread of this process, `GatewayProcess` one that may be killed. The
fixtures: `gateway` is a new project in a gateway that the tests of a module share; `empty_gateway` and `sqlite_gateway`
are new gateways; `shared_gateway` is for requests that change nothing.
"""

from __future__ import annotations

import copy
import re
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvicorn
from sqlalchemy import func, select, update

from app.http.parser import Protocol
from app.main import build
from app.roles import ROLES
from app.settings import Settings
from app.store import keys, projects
from app.store.tables import ApiKey, Base, Job, ModelVersion, now
from tests.records import register
from tests.services import Process, environment, free_port, wait_for

ALWAYS_FILLED = ("api_keys", "projects", "secrets", "workers")
"""Tables that every gateway has rows in."""
PARSER = f"{Protocol.__module__}:{Protocol.__name__}"
UNKNOWN = str(uuid.UUID("01936f5e-7c00-7000-8000-00000000dead"))
"""An id that nothing has."""


class Gateway:
    """A running gateway as one project sees it.

    http      a client without a key
    keys      the project's key of every role, and `stranger` (admin of another project), `revoked` and `expired`
    database, blobs, services  what the gateway has opened
    """

    def __init__(self, settings: Settings, **options: Any):
        """Serve on a free port from a thread of this process; `options` are uvicorn's."""
        self.settings, self.app = settings, build(settings)
        listener = socket.create_server(("127.0.0.1", 0))
        config = {"log_config": None, "access_log": False, "lifespan": "on", "timeout_graceful_shutdown": 5}
        self.server = uvicorn.Server(uvicorn.Config(self.app, http=Protocol, **config | options))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started or not self.thread.is_alive(), what="the gateway", every=0.005)
        self.services = self.app.state.services
        self.database, self.blobs = self.services.database, self.services.blobs
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.enter_project("clinic", "elsewhere")

    def ask_to_stop(self) -> None:
        """End the server soon; `join` waits for it."""
        self.http.close()
        self.server.should_exit = True

    def join(self) -> None:
        self.thread.join(15)
        assert not self.thread.is_alive(), "the gateway did not stop"

    def enter_project(self, name: str, other: str) -> None:
        """Ask as this project from now on: it gets a key of every role, and the other one a stranger's."""
        with self.database.write() as session:
            self.project_id = projects.ensure(session, name).id
            self.keys = {role: keys.create(session, project=name, name=role, role=role) for role in ROLES}
            self.keys["stranger"] = keys.create(session, project=other, name="stranger", role="admin")
            self.keys["revoked"] = keys.create(session, project=name, name="revoked", role="admin")
            keys.revoke(session, self.keys["revoked"][3:11])
            self.keys["expired"] = keys.create(
                session, project=name, name="expired", role="admin", expires_at=now() - timedelta(seconds=1)
            )

    def new_project(self) -> Gateway:
        """The same gateway as a new project sees it, with nothing in it but keys."""
        mine, name = copy.copy(self), f"clinic-{uuid.uuid4().hex[:8]}"
        mine.enter_project(name, f"not-{name}")
        return mine

    def headers(self, who: str | None) -> dict[str, str]:
        """The headers of a request with the key of that name, or of nobody."""
        return {"Authorization": f"Bearer {self.keys[who]}"} if who else {}

    def ask(self, method: str, path: str, who: str | None = "engineer", **options: Any) -> httpx.Response:
        """One request with the key of that name, or as nobody."""
        return self.http.request(method, path, headers=self.headers(who) | options.pop("headers", {}), **options)

    def upload(self, content: bytes, media: str = "image/png", who: str = "engineer", **options: Any) -> httpx.Response:
        """Send an image as raw body."""
        headers = {"Content-Type": media} | options.pop("headers", {})
        return self.ask("POST", "/v1/images", who, content=content, headers=headers, **options)

    def predict(
        self,
        model: str,
        content: bytes,
        *,
        accept: str | None = None,
        media: str = "image/png",
        who: str = "clinician",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """One image to one model; `options` are the query: `predict("blur", content, threshold=0.4)`."""
        sent = {"Content-Type": media} | ({"Accept": accept} if accept else {}) | (headers or {})
        return self.ask("POST", f"/v1/models/{model}/predict", who, content=content, params=options, headers=sent)

    def register(self, name: str, content: bytes, **facts: Any) -> ModelVersion:
        """Put a network into the project: `register("blur", networks.blur())`."""
        return register(self.database, self.blobs, self.project_id, name, content, **facts)

    def count_everything(self) -> dict[str, int]:
        """Rows that requests leave, blobs and temporary files of the whole gateway, where there are any."""
        with self.database.read() as session:
            rows = {
                table.name: session.scalar(select(func.count()).select_from(table))
                for table in Base.metadata.sorted_tables
                if table.name not in ALWAYS_FILLED
            }
        paths = [path for path in self.settings.data_dir.rglob("*") if not path.name.startswith("toposerve.db")]
        files = sum(path.is_file() for path in paths)
        return {name: count for name, count in rows.items() if count} | ({"files": files} if files else {})

    def count_project(self) -> dict[str, int]:
        """Rows of the project in every table that a request may leave something in, and its files."""
        tables = [
            table for table in Base.metadata.sorted_tables if "project_id" in table.columns and table.name != "api_keys"
        ]
        with self.database.read() as session:
            rows = {
                table.name: session.scalar(
                    select(func.count()).select_from(table).where(table.c.project_id == self.project_id)
                )
                for table in tables
            }
        files = sum(project == self.project_id for project, _ in self.blobs.older_than(-60))
        unfinished = len(list((self.settings.data_dir / "blobs" / ".incoming").iterdir()))
        return rows | {"blobs": files, "unfinished": unfinished, "scratch": len(list(self.settings.scratch.glob("*")))}

    def cancel_jobs(self) -> None:
        """Take all jobs out of the queue, which projects share."""
        with self.database.write() as session:
            waiting = Job.state.in_(("queued", "running", "cancelling"))
            session.execute(update(Job).where(waiting).values(state="cancelled"))

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


@contextmanager
def started(settings: Settings, **options: Any) -> Iterator[Gateway]:
    """A gateway that serves until the block ends."""
    gateway = Gateway(settings, **options)
    try:
        yield gateway
    finally:
        gateway.ask_to_stop()
        gateway.join()


class GatewayProcess:
    """A gateway in a process of its own on a fixed port, which may be killed and started again.

    http       a client with the key, if there is one
    variables  more of the process's environment
    """

    def __init__(self, settings: Settings, log: Path, key: str | None = None, **variables: str):
        self.settings, self.log, self.port, self.variables = settings, log, free_port(), variables
        self.url = f"http://127.0.0.1:{self.port}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=20)

    def start(self, *, wait: bool = True) -> None:
        program = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create", "--http", PARSER]
        command = [*program, "--port", str(self.port), "--no-access-log", "--timeout-graceful-shutdown", "5"]
        variables = environment(self.settings, TOPOSERVE_PORT=str(self.port), **self.variables)
        self.process = Process(command, log=self.log, env=variables)
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        wait_for(self._ready, seconds=40, what=self.process.output)

    def _ready(self) -> bool:
        assert self.process.running, self.process.output()
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self.process.kill()
        self.http.close()

    def resident_bytes(self) -> int:
        """Memory now."""
        return self._memory("VmRSS")

    def peak_bytes(self) -> int:
        """Most memory since the start or `forget_peak`."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def told(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a problem, after checking that it is one and echoes nothing it should not."""
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert {"type", "title", "status", "detail", "code", "errors", "instance", "request_id"} <= set(body)
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text and "sqlalchemy" not in response.text.lower()
    return response.status_code, body["code"]


def form(parts: list[tuple[str, bytes]], boundary: bytes = b"edge") -> tuple[dict[str, str], bytes]:
    """Headers and body of a multipart form; each part is its Content-Disposition and its bytes."""
    body = b"".join(
        b"--" + boundary + b"\r\nContent-Disposition: " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return {"Content-Type": "multipart/form-data; boundary=" + boundary.decode()}, body + b"--" + boundary + b"--\r\n"


@pytest.fixture(scope="session", autouse=True)
def _plain_log_lines() -> Iterator[None]:
    """As in service: without it structlog draws every local variable into a traceback, which takes seconds."""
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
    """Start gateways on free ports; all end together with the module."""
    running: list[Gateway] = []

    def start(settings: Settings, **options: Any) -> Gateway:
        running.append(Gateway(settings, **options))
        return running[-1]

    yield start
    for gateway in running:
        gateway.ask_to_stop()
    for gateway in running:
        gateway.join()


@pytest.fixture(scope="module")
def module_gateway(module_settings: Settings, serve: Callable[..., Gateway]) -> Gateway:
    """A gateway on each kind of database, for all tests of a module."""
    return serve(module_settings)


@pytest.fixture
def gateway(module_gateway: Gateway) -> Iterator[Gateway]:
    """A new project, with nothing in it but keys, in the gateway of the module."""
    gateway = module_gateway.new_project()
    yield gateway
    gateway.cancel_jobs()


@pytest.fixture
def empty_gateway(settings: Settings, serve: Callable[..., Gateway]) -> Gateway:
    """A new gateway on each kind of database, with nothing in it but keys."""
    return serve(settings)


@pytest.fixture
def sqlite_gateway(make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> Gateway:
    """A new gateway on SQLite, where the database does not matter."""
    return serve(make_settings())


@pytest.fixture(scope="module")
def shared_gateway(serve: Callable[..., Gateway], tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """One gateway for all tests of the module that only ask for what is refused."""
    return serve(Settings(_env_file=None, data_dir=tmp_path_factory.mktemp("shared"), min_free_bytes=0))


@pytest.fixture
def predict(gateway: Gateway) -> Callable[..., httpx.Response]:
    """One image to one model: `predict("blur", content, accept="image/png", threshold=0.4)`."""
    return gateway.predict


@pytest.fixture
def registered(gateway: Gateway) -> Callable[..., ModelVersion]:
    """Register a network in the gateway's project: `registered("blur", networks.blur())`."""
    return gateway.register
