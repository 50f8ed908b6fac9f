"""Database migrations: same schema as the code, repeatable, safe when interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from app.errors import Unavailable
from app.settings import Settings
from app.store import migrate
from app.store.session import Database
from app.store.tables import Base, Project
from tests.services import environment


@pytest.fixture(params=["sqlite", "postgres"])
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database without any table."""
    if request.param == "sqlite":
        yield Settings(_env_file=None, data_dir=tmp_path)
        return
    server = request.getfixturevalue("postgres")
    url = server.create()
    yield Settings(_env_file=None, data_dir=tmp_path, database_url=url)
    server.drop(url)


@pytest.fixture
def empty(bare: Settings) -> Iterator[Database]:
    database = Database(bare)
    yield database
    database.dispose()


def differences(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)


def test_migrated_schema_equals_tables(empty):
    assert differences(empty), "the comparison sees that an empty database differs"
    migrate.upgrade(empty)
    assert differences(empty) == []


def test_constraints_are_named_and_checked_alike(empty):
    migrate.upgrade(empty)
    with empty.engine.connect() as connection:
        inspector = inspect(connection)
        assert [check["name"] for check in inspector.get_check_constraints("jobs")] == ["ck_jobs_state"]
        assert {unique["name"] for unique in inspector.get_unique_constraints("model_versions")} == {
            "uq_model_versions_model_id_number",
            "uq_model_versions_job_id",
        }
        assert all(key["name"] for table in inspector.get_table_names() for key in inspector.get_foreign_keys(table))


def test_a_second_run_changes_nothing_and_keeps_rows(empty):
    migrate.upgrade(empty)
    with empty.write() as session:
        session.add(Project(name="kept"))
    migrate.upgrade(empty)
    with empty.read() as session:
        assert session.query(Project).one().name == "kept"


def test_concurrent_migrations_both_succeed(bare, empty):
    databases = [Database(bare) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, databases))
    for database in databases:
        database.dispose()
    assert differences(empty) == []


def test_outdated_database_is_refused_with_a_suggestion(empty):
    with pytest.raises(Unavailable, match="toposerve db upgrade"):
        migrate.check(empty)
    migrate.upgrade(empty)
    migrate.check(empty)


def test_a_database_that_is_newer_than_the_code_is_used(empty):
    migrate.upgrade(empty)
    with empty.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrate.check(empty)


KILLED = """
import os, signal, sys
from alembic.operations import Operations
from app.settings import get_settings
from app.store import migrate
from app.store.session import Database

create, count = Operations.create_table, 0
def create_then_die(self, *args, **kw):
    global count
    count += 1
    if count > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return create(self, *args, **kw)
Operations.create_table = create_then_die
migrate.upgrade(Database(get_settings()))
"""


def test_interrupted_migration_is_completed_by_the_next(bare, empty):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env=environment(bare), capture_output=True, text=True, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with empty.engine.connect() as connection:
        assert "projects" not in inspect(connection).get_table_names()
    migrate.upgrade(empty)
    assert differences(empty) == []


def test_downgrade_leaves_no_table(empty):
    from alembic import command

    migrate.upgrade(empty)
    with empty.engine.begin() as connection:
        command.downgrade(migrate._config(connection), "base")
    with empty.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
