"""A database that does not answer, is locked or has no room: what requests are told, and when."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url

from app.errors import StorageFull
from app.http.problems import problem_of
from app.settings import Settings
from tests.gateway import Gateway, told
from tests.images import noise_png
from tests.services import ROOT, wait_for
from tests.serving import networks

MOST_S = 6.0
"""Seconds to the answer of any request while the database does not answer."""


class Link:
    """A connection to Postgres that can be silenced: it takes what comes, also new connections, and answers nothing, as
    the kernel does for a server that was stopped.
    """

    def __init__(self, url: str):
        there = make_url(url)
        self.host = str(there.query.get("host") or there.host or "127.0.0.1")
        self.port = there.port or 5432
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.open = threading.Event()
        self.open.set()
        self.sockets: list[socket.socket] = []
        query = {name: value for name, value in there.query.items() if name != "host"}
        self.url = there.set(host="127.0.0.1", port=self.listener.getsockname()[1], query=query).render_as_string(
            hide_password=False
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self.open.wait()
        if self.host.startswith("/"):
            far = socket.socket(socket.AF_UNIX)
            far.connect(f"{self.host}/.s.PGSQL.{self.port}")
        else:
            far = socket.create_connection((self.host, self.port))
        self.sockets += [near, far]
        threading.Thread(target=self._copy, args=(far, near), daemon=True).start()
        self._copy(near, far)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.open.wait()
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()
        self.open.set()
        for each in self.sockets:
            each.close()


@pytest.fixture
def link(make_settings: Callable[..., Settings]) -> Iterator[tuple[Link, Settings]]:
    """A silenceable way to a database, and settings that go it."""
    settings = make_settings("postgres")
    assert settings.database_url is not None
    link = Link(settings.database_url)
    yield link, settings.model_copy(update={"database_url": link.url})
    link.close()


def test_every_request_is_answered_within_six_seconds_while_postgres_hangs(
    link: tuple[Link, Settings], serve: Callable[..., Gateway]
) -> None:
    way, settings = link
    gateway = serve(settings)
    paths = ["/v1/images", "/v1/jobs", "/v1/models", "/v1/predictions", "/v1/datasets"]
    with ThreadPoolExecutor(60) as threads:
        list(threads.map(lambda n: gateway.ask("GET", paths[n % 5]), range(20)))  # connections in the pool

        def ask(number: int) -> tuple[float, Any]:
            started = time.monotonic()
            answer = gateway.ask("GET", paths[number % 5])
            return time.monotonic() - started, answer

        gateway.services.key_cache.forget()
        way.open.clear()
        try:
            asked = [threads.submit(ask, number) for number in range(60)]
            time.sleep(1)
            assert gateway.http.get("/livez").elapsed.total_seconds() < 1
            answers = [each.result() for each in asked]
            assert {told(answer) for _, answer in answers} == {(503, "unavailable")}
            assert max(spent for spent, _ in answers) < MOST_S
            spent, answer = ask(0)  # and later ones do not wait at all
            assert told(answer) == (503, "unavailable") and spent < MOST_S
        finally:
            way.open.set()
    wait_for(lambda: gateway.ask("GET", "/v1/jobs").status_code == 200, seconds=10, what="the database")
    assert gateway.upload(noise_png()).status_code == 201


def test_statement_in_progress_when_postgres_hangs_is_given_up(
    link: tuple[Link, Settings], serve: Callable[..., Gateway]
) -> None:
    from sqlalchemy.exc import OperationalError

    way, settings = link
    gateway = serve(settings.model_copy(update={"database_timeout_s": 1}))
    threading.Timer(0.3, way.open.clear).start()
    started = time.monotonic()
    try:
        with pytest.raises(OperationalError), gateway.database.read() as session:
            session.execute(text("SELECT pg_sleep(0.9)"))
        assert time.monotonic() - started < 3
    finally:
        way.open.set()


@pytest.mark.parametrize("open_", [True, False], ids=["open", "with keys"])
def test_reads_go_on_while_another_process_holds_the_write_lock(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway], open_: bool
) -> None:
    gateway = serve(make_settings(open=open_, key_cache_s=0.01, database_timeout_s=3))
    who = None if open_ else "engineer"
    assert gateway.ask("GET", "/v1/jobs", who).status_code == 200
    lock = sqlite3.connect(gateway.settings.data_dir / "toposerve.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        started = time.monotonic()
        for _ in range(5):
            time.sleep(0.02)
            assert gateway.ask("GET", "/v1/jobs", who).status_code == 200
        assert time.monotonic() - started < 2
        assert told(gateway.upload(noise_png()))[0] == 503
    finally:
        lock.close()


def test_full_disk_of_the_database_is_told_as_507(
    make_settings: Callable[..., Settings], serve: Callable[..., Gateway]
) -> None:
    gateway = serve(make_settings())
    gateway.ask("GET", "/v1/jobs")
    with gateway.database.read() as session:
        pages = session.execute(text("PRAGMA page_count")).scalar_one()

    @event.listens_for(gateway.database.engine, "begin")
    def limit(connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    answers = [gateway.ask("POST", "/v1/keys", "admin", json={"name": "n" * 200, "role": "viewer"}) for _ in range(80)]
    refused = next(answer for answer in answers if answer.status_code != 201)
    assert told(refused) == (507, "insufficient_storage")
    assert gateway.ask("GET", "/v1/jobs").status_code == 200


def test_full_disk_of_postgres_is_told_as_507() -> None:
    import psycopg
    from sqlalchemy.exc import OperationalError

    error = OperationalError("INSERT", {}, psycopg.errors.DiskFull("could not extend file"))
    assert isinstance(problem_of(error), StorageFull)


def test_command_on_a_folder_that_cannot_be_used_says_so_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "toposerve.db").mkdir()  # root may write anywhere, but not into a folder that should be a file
    for folder in (tmp_path / "file" / "data", tmp_path):
        command = [sys.executable, "-m", "app.cli", "up", "--port", "0", "--data-dir", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert "Cannot use" in ended.stderr or "cannot be used" in ended.stderr, ended.stderr


def test_version_has_one_address(sqlite_gateway: Gateway) -> None:
    gateway = sqlite_gateway.new_project()
    gateway.register("blur", networks.blur())
    statuses = {
        text: gateway.ask("GET", f"/v1/models/blur/versions/{text}").status_code
        for text in ("1", "1.0", "01", "+1", "1e0", "%201", "1_0", "0", "-1", "one")
    }
    assert statuses.pop("1") == 200
    assert {statuses.pop(text) for text in ("0", "-1", "one")} == {422} and set(statuses.values()) == {404}
