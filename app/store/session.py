"""Sessions with the database, SQLite (WAL) or Postgres, with the same guarantees.

`database.write()` is a transaction that will change rows: on SQLite it takes the write lock at once (BEGIN IMMEDIATE),
because a lock upgraded later ignores the busy timeout. `database.read()` sees one snapshot and takes no write lock.
Commits are durable before they are acknowledged (SQLite synchronous=FULL; Postgres synchronous_commit as installed:
on).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import Float

from app.settings import Settings


class clock(FunctionElement[float]):  # noqa: N801 written like a function of SQL
    """The database's own clock, seconds since 1970, so that a worker with a wrong clock steals no lease."""

    type = Float(53)
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgres_clock(element: clock, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class Database:
    """The engine and its two kinds of transaction."""

    def __init__(self, settings: Settings):
        self.engine = make_engine(settings)
        # queue.put finds the address of the broker in the session that it writes with
        self._writer = sessionmaker(self.engine, expire_on_commit=False, info={"redis_url": settings.redis_url})
        self._reader = sessionmaker(self.engine.execution_options(read_only=True), expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, or rolls back when it raises."""
        with self._writer.begin() as session:
            yield session

    def after_write(self, tell: Callable[[], object]) -> None:
        """Call `tell` after every commit of a `write` of this process."""
        event.listen(self._writer, "after_commit", lambda _session: tell())

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that changes nothing."""
        with self._reader() as session:
            yield session

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def make_engine(settings: Settings) -> Engine:
    """An engine with the time limits and pragmas that the promises need."""
    url = settings.database
    if url.startswith("sqlite"):
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        if settings.database_file is not None:  # it holds the secret that signs sessions
            settings.database_file.touch(0o600)
            settings.database_file.chmod(0o600)
        engine = create_engine(url, connect_args={"timeout": settings.database_timeout_s, "check_same_thread": False})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    from app.store import postgres  # and with it its driver, which an embedded database does not need

    return postgres.make_engine(url, settings.database_timeout_s)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # isolation_level None hands BEGIN over to _begin_sqlite; the driver would start its transactions too late.
    connection.isolation_level = None
    for pragma in ("foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")
    _switch_to_wal(connection)


def _switch_to_wal(connection: Any) -> None:
    # The busy timeout does not cover the switch to WAL: processes that start together must wait for each other here.
    import sqlite3

    for attempt in range(100):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if attempt == 99:
                raise
            time.sleep(0.05)


def _begin_sqlite(connection: Any) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
