"""A whole installation in one file: every row of one moment and their bytes.

A tar archive: `toposerve.json` (what it is), `rows/<table>.jsonl` and `blobs/<project>/<sha256>`. Rows are read in one
snapshot while the service runs; bytes never change once they are stored, so those that rows name are consistent with
them whenever they are copied. It holds the secret that signs sessions and the digests of keys: keep it as safe as the
service. A backup of SQLite can be restored into Postgres, and one of a folder into S3.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import tarfile
import tempfile
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Table, insert, select
from sqlalchemy.orm import Session
from sqlalchemy.types import LargeBinary, Uuid

from app.errors import BadArchive, Conflict, Gone, StorageFull
from app.store.blobs import Blobs
from app.store.migrate import changing, revision_of, upgrade
from app.store.named_blobs import all_named
from app.store.session import Database
from app.store.tables import Base, Project, UtcDateTime, now

FORMAT = "toposerve-backup/1"
LEFT_OUT = ("workers",)
"""Tables that say which processes live, which is nobody's business after a restore."""
AT_ONCE = 500
"""Rows inserted by one statement."""


@dataclass(frozen=True)
class Copied:
    """What a backup holds, or what was restored; `missing` are bytes that rows name and that are not stored."""

    rows: int
    blobs: int
    bytes: int
    missing: tuple[str, ...] = ()


def backup(database: Database, blobs: Blobs, target: Path) -> Copied:
    """Write everything to `target`, which is complete once it has its name. FileExistsError where it is there."""
    if target.exists():
        raise FileExistsError(17, "It is there already; name a file that is not", str(target))
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            copied = _write(database, blobs, file)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, target)  # unlike a rename it never replaces what somebody else has put there meanwhile
    except OSError as error:
        if error.errno in (28, 122):
            raise StorageFull(f"There is no room for {target}.") from error
        raise
    finally:
        part.unlink(missing_ok=True)
    return copied


def _write(database: Database, blobs: Blobs, file: IO[bytes]) -> Copied:
    rows = {}
    with tarfile.open(fileobj=file, mode="w") as archive:
        with database.read() as session:
            about = {"format": FORMAT, "made_at": now().isoformat(), "revision": revision_of(session.connection())}
            _add(archive, "toposerve.json", json.dumps(about).encode())
            named = all_named(session)
            for table in _tables():
                rows[table.name] = _add_rows(archive, session, table)
        count, size, missing = 0, 0, []
        for project_id, sha256 in sorted(named):
            try:
                length = blobs.size(project_id, sha256)
                with blobs.open(project_id, sha256) as content:
                    info = tarfile.TarInfo(f"blobs/{project_id}/{sha256}")
                    info.size, info.mode = length, 0o600
                    archive.addfile(info, content)
            except Gone:
                missing.append(sha256)
                continue
            count, size = count + 1, size + length
    return Copied(sum(rows.values()), count, size, tuple(missing))


def restore(database: Database, blobs: Blobs, source: Path) -> Copied:
    """Put a backup into an installation that has no project yet.

    Bytes come first and rows in one transaction at the end, so an interrupted restore has no row and can be repeated.
    Raises Conflict where there is something, BadArchive for what is no backup, or one of another schema.
    """
    upgrade(database)
    blobs.prepare()
    with database.read() as session:
        if session.scalar(select(Project.id).limit(1)) is not None:
            raise Conflict("This installation has projects. Restore into an empty database and an empty store.")
    try:
        with tarfile.open(source, mode="r:") as archive:
            return _read(database, blobs, archive)
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise BadArchive(f"{source.name} is no whole backup ({type(error).__name__}). Nothing was restored.") from error


def _read(database: Database, blobs: Blobs, archive: tarfile.TarFile) -> Copied:
    about = json.loads(_content(archive, "toposerve.json").read())
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise BadArchive("This is no backup of toposerve.")
    with database.read() as session:
        needed = revision_of(session.connection())
    if about.get("revision") != needed:
        raise BadArchive(
            f"The backup has schema {about.get('revision')} and this version needs {needed}. Restore it with the"
            " version that made it, then upgrade."
        )
    count, size = 0, 0
    for info in archive:
        kind, _, name = info.name.partition("/")
        if kind != "blobs" or not info.isfile():
            continue
        project, _, sha256 = name.partition("/")
        content = archive.extractfile(info)
        assert content is not None
        if blobs.put_file(uuid.UUID(project), content)[0] != sha256:
            raise BadArchive(f"The bytes of {sha256[:12]}... in the backup are damaged. Nothing was restored.")
        count, size = count + 1, size + info.size
    rows = 0
    with changing(database) as connection:
        for table in reversed(_tables()):
            connection.execute(table.delete())  # what opening the installation has made, such as its secret
        for table in _tables():
            rows += _insert(connection, table, _content(archive, f"rows/{table.name}.jsonl"))
    return Copied(rows, count, size)


def _tables() -> list[Table]:
    return [table for table in Base.metadata.sorted_tables if table.name not in LEFT_OUT]


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    archive.addfile(info, io.BytesIO(content))


def _add_rows(archive: tarfile.TarFile, session: Session, table: Table) -> int:
    count = 0
    with tempfile.TemporaryFile() as file:
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=AT_ONCE)
        for row in session.execute(query).mappings():
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}).encode() + b"\n")
            count += 1
        info = tarfile.TarInfo(f"rows/{table.name}.jsonl")
        info.size, info.mode = file.tell(), 0o600
        file.seek(0)
        archive.addfile(info, file)
    return count


def _plain(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _insert(connection: Connection, table: Table, lines: IO[bytes]) -> int:
    count, waiting = 0, []
    for line in lines:
        row = json.loads(line)
        waiting.append({name: _typed(table.c[name].type, value) for name, value in row.items()})
        if len(waiting) == AT_ONCE:
            connection.execute(insert(table), waiting)
            count, waiting = count + len(waiting), []
    if waiting:
        connection.execute(insert(table), waiting)
    return count + len(waiting)


def _typed(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(kind, Uuid):
        return uuid.UUID(value)
    if isinstance(kind, UtcDateTime):
        return datetime.fromisoformat(value)
    if isinstance(kind, LargeBinary):
        return base64.b64decode(value)
    if isinstance(value, str) and kind.python_type is float:
        return float(value)
    return value


def _content(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise KeyError(name)
    return found
