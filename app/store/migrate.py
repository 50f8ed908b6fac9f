"""Bring the database to the shape that this code needs.

Every step runs in one transaction that is begun here, so a process killed half-way leaves the old shape, and starting
again is all the recovery there is. Processes that start together wait for each other: on Postgres by an advisory lock,
on SQLite by its write lock.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError

from app.errors import Unavailable
from app.store.session import Database

FOLDER = Path(__file__).parents[2] / "migrations"
NAMES = re.compile(r'^(revision|down_revision) = "(\w+)"$', re.MULTILINE)
LOCK = 0x746F706F  # "topo": the advisory lock of this service
PATIENCE_S = 300.0


def upgrade(database: Database, revision: str = "head") -> None:
    """Apply every migration that is missing, once, however many processes ask.

    Raises OperationalError when the database does not answer.
    """
    if revision == "head" and _is_current(database):
        return  # as at nearly every start, without the 10 MiB and 0.2 s that Alembic takes
    from alembic import command

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with changing(database) as connection:
                command.upgrade(_config(connection), revision)
            return
        except OperationalError as error:
            # Another starter may hold SQLite's write lock for longer than one busy timeout.
            if "database is locked" not in str(error) or time.monotonic() > deadline:
                raise


@contextmanager
def changing(database: Database) -> Iterator[Connection]:
    """A transaction that may change tables, while no other process does.

    SQLite changes a table by copying it and dropping the old one, and a dropped table takes with it every row that
    refers to it, so references are not enforced meanwhile and are checked before the transaction ends. (Procedure:
    sqlite.org/lang_altertable.html, section 7.)
    """
    with database.engine.connect() as connection:
        _enforce_references(connection, False)
        try:
            with connection.begin():
                _wait_for_others(connection)
                yield connection
                _check_references(connection)
        finally:
            _enforce_references(connection, True)


def _enforce_references(connection: Connection, on: bool) -> None:
    if connection.dialect.name == "sqlite":
        driver = connection.connection.driver_connection  # itself, because inside a transaction this does nothing
        assert driver is not None
        driver.execute(f"PRAGMA foreign_keys={'ON' if on else 'OFF'}")


def _check_references(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(3)
        if broken:
            raise RuntimeError(f"The migration left rows that refer to nothing: {[tuple(row) for row in broken]}.")


def revision_of(connection: Connection) -> str | None:
    """The revision of the schema that a database has; None before the first migration."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@cache
def revisions() -> tuple[str, frozenset[str]]:
    """The revision that this code needs, and every one that it knows, read from the files of the migrations."""
    named = [dict(NAMES.findall(path.read_text("utf-8"))) for path in (FOLDER / "versions").glob("[!_]*.py")]
    known = frozenset(names["revision"] for names in named)
    [head] = known - {names.get("down_revision") for names in named}
    return head, known


def check(database: Database) -> None:
    """Raises Unavailable, with what to do, unless the database has the shape that this code needs."""
    if not _is_current(database):
        with database.engine.connect() as connection:
            current = revision_of(connection)
        raise Unavailable(
            f"The database is at revision {current or 'none'} and this code needs {revisions()[0]}. Run"
            " `toposerve db upgrade`."
        )


def _is_current(database: Database) -> bool:
    """Whether the database has the shape that this code needs.

    A database that is newer than this code has it: a change comes before the code that needs it.
    """
    head, known = revisions()
    with database.engine.connect() as connection:
        current = revision_of(connection)
    return current == head or (current is not None and current not in known)


def _config(connection: Connection | None) -> Any:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _wait_for_others(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        return  # BEGIN IMMEDIATE has waited already
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.patience_s = math.inf
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    connection.execute(
        text("SET LOCAL lock_timeout = '10s'")
    )  # fail on a busy table rather than hold everybody up behind us
