"""Database migrations: same schema as the code, repeatable, safe when interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError

from app.errors import Unavailable
from app.job_kinds import KINDS
from app.settings import Settings
from app.store import migrate
from app.store.session import Database
from app.store.tables import STATES, Base, Job, JobEvent, Project
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


PROJECT, JOB = uuid.UUID(int=1), uuid.UUID(int=2)
LONG_AGO = "2026-01-01 00:00:00+00:00"


def insert(connection: Connection, table: str, **values: object) -> None:
    """A row by its columns, whatever revision the table is at."""
    names = ", ".join(values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{names.replace(', ', ', :')})"), values)


def insert_job(connection: Connection, kind: str) -> None:
    """A project with one job that has one event."""
    owned = {"project_id": PROJECT.hex, "created_at": LONG_AGO}
    counted = dict.fromkeys(("schema_version", "attempt", "crashes", "fraction", "events"), 1)
    insert(connection, "projects", id=PROJECT.hex, name="clinic", created_at=LONG_AGO)
    job = {"id": JOB.hex, "kind": kind, "lane": "train", "state": "queued", "spec": "{}", "keep": False}
    insert(connection, "jobs", **job, **owned, **counted)
    event = {"job_id": JOB.hex, "number": 1, "event": "state", "attempt": 0, "data": "{}"}
    insert(connection, "job_events", **event, **owned)


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
        checks = {check["name"]: check["sqltext"] for check in inspector.get_check_constraints("jobs")}
        assert set(checks) == {"ck_jobs_state", "ck_jobs_kind"}
        assert all(f"'{kind}'" in checks["ck_jobs_kind"] for kind in KINDS)
        assert all(f"'{state}'" in checks["ck_jobs_state"] for state in STATES)
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


def test_rows_that_refer_to_a_changed_table_are_kept(empty):
    """SQLite copies the table and drops the old one, and with it whatever refers to it unless somebody takes care."""
    migrate.upgrade(empty, "0002")
    with empty.engine.begin() as connection:
        insert_job(connection, "train")
    migrate.upgrade(empty)
    with empty.write() as session:
        assert session.get(Job, JOB).kind == "train" and session.query(JobEvent).one().job_id == JOB
        session.delete(session.get(Job, JOB))
    with empty.read() as session:
        assert session.query(JobEvent).count() == 0, "references are enforced again"


def test_job_of_an_unknown_kind_cannot_be_stored(empty):
    migrate.upgrade(empty)
    with pytest.raises(IntegrityError, match="ck_jobs_kind"), empty.engine.begin() as connection:
        insert_job(connection, "nonsense")


@pytest.mark.parametrize("bare", ["sqlite"], indirect=True)  # Postgres enforces references meanwhile
def test_migration_that_breaks_a_reference_changes_nothing(empty):
    migrate.upgrade(empty)
    with empty.engine.begin() as connection:
        insert_job(connection, "train")
    with pytest.raises(RuntimeError, match="refer to nothing"), migrate.changing(empty) as connection:
        connection.execute(text("DELETE FROM projects"))
    with empty.read() as session:
        assert session.query(Project).count() == 1


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
    migrate.upgrade(empty)  # as an older gateway does when it starts
    with empty.read() as session:
        assert migrate.revision_of(session.connection()) == "9999"


def test_revisions_are_those_that_alembic_finds():
    scripts = ScriptDirectory(migrate.FOLDER)
    known = {script.revision for script in scripts.walk_revisions()}
    assert migrate.revisions() == (scripts.get_current_head(), known)


def test_start_on_a_current_database_does_not_import_alembic(bare, empty):
    migrate.upgrade(empty)
    code = (
        "import sys; from app.settings import get_settings; from app.store import migrate; from app.store.session"
        " import Database; migrate.upgrade(Database(get_settings())); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(bare), timeout=60)


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
        [sys.executable, "-c", KILLED], env=environment(bare), capture_output=True, text=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with empty.engine.connect() as connection:
        assert "projects" not in inspect(connection).get_table_names()
    migrate.upgrade(empty)
    assert differences(empty) == []


def test_downgrade_leaves_no_table(empty):
    from alembic import command

    migrate.upgrade(empty)
    with migrate.changing(empty) as connection:
        command.downgrade(migrate._config(connection), "base")
    with empty.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
