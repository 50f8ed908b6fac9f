"""What `toposerve doctor` looks at: settings, folder, database, bytes, broker, workers and models."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from app.errors import Problem
from app.settings import MiB, Settings

if TYPE_CHECKING:
    from app.store.blobs import Blobs
    from app.store.session import Database
    from app.store.tables import ModelVersion


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `well` is None for what works and yet may surprise."""

    name: str
    well: bool | None
    said: str


class Unwell(Exception):
    """Something that does not work, said in a sentence."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at each part; a part that fails does not keep the others from being looked at."""
    from app.store.session import Database

    yield _found("folder", lambda: _folder(settings))
    yield _found("disk", lambda: _disk(settings))
    database: list[Database] = []

    def opened() -> str:
        if settings.database_file is not None and not settings.database_file.exists():
            raise Unwell(f"There is no {settings.database_file}. `toposerve up` or `toposerve db upgrade` makes it.")
        database.append(Database(settings))
        return _database(database[0])

    yield _found("database", opened)
    yield _found("bytes", lambda: _bytes(settings))
    yield _found("broker", lambda: _broker(settings))
    if database:
        yield _workers(database[0], settings)
        yield from _models(database[0], settings)
        database[0].dispose()
    yield _runtime(settings)
    yield _keys(settings)


def _found(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look())
    except (Unwell, Problem) as problem:
        return Finding(name, False, str(problem))
    except Exception as error:  # whatever a driver raises: it is what the doctor was called for
        first = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        return Finding(name, False, f"{type(error).__name__}: {first[:300]}")


def _folder(settings: Settings) -> str:
    probe = settings.data_dir / f".doctor-{uuid.uuid4().hex}"
    if not settings.data_dir.is_dir():
        raise Unwell(f"{settings.data_dir.absolute()} is no folder. `toposerve up` makes it; check --data-dir.")
    try:
        probe.write_bytes(b"x")
    except OSError as error:
        raise Unwell(f"{settings.data_dir.absolute()} cannot be written: {error.strerror}.") from None
    finally:
        probe.unlink(missing_ok=True)
    return f"{settings.data_dir.absolute()} can be written"


def _disk(settings: Settings) -> str:
    folder = settings.data_dir if settings.data_dir.is_dir() else settings.data_dir.absolute().parent
    free = shutil.disk_usage(folder).free
    if free < settings.min_free_bytes:
        raise Unwell(
            f"{free // MiB} MiB are free and TOPOSERVE_MIN_FREE_BYTES keeps {settings.min_free_bytes // MiB}: uploads"
            " are answered 507. Make room."
        )
    return f"{free // MiB} MiB free"


def _database(database: Database) -> str:
    from sqlalchemy import text

    from app.store import migrate

    migrate.check(database)
    with database.read() as session:
        kind = session.connection().dialect.name
        if kind == "sqlite":
            said = session.execute(text("PRAGMA quick_check(1)")).scalar_one()
            if said != "ok":
                raise Unwell(f"The database is damaged ({said}). Restore the newest backup.")
        return f"{kind} answers, schema {migrate.revision_of(session.connection())}"


def _bytes(settings: Settings) -> str:
    from app.store.blobs import Blobs

    blobs, nobody = Blobs(settings), uuid.UUID(int=0)
    content = uuid.uuid4().bytes
    sha256, _ = blobs.put(nobody, content)
    try:
        if blobs.read(nobody, sha256) != content:
            raise Unwell("The store gives other bytes than it was given.")
    finally:
        blobs.delete(nobody, sha256)
    return f"{settings.blobs.partition('://')[0]} store keeps, gives and deletes"


def _broker(settings: Settings) -> str:
    if settings.redis_url is None:
        return "none: workers look at the rows themselves"
    import redis

    with redis.Redis.from_url(settings.redis_url, socket_timeout=3, socket_connect_timeout=3) as client:
        client.ping()
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "unknown")
    if policy != "noeviction":
        raise Unwell(f"Redis has maxmemory-policy {policy}, and workers refuse to start. Set it to noeviction.")
    return "redis answers and evicts nothing"


def _workers(database: Database, settings: Settings) -> Finding:
    from sqlalchemy import distinct, func, select

    from app.store.session import clock
    from app.store.tables import FINISHED, Job, Worker

    try:
        with database.read() as session:
            seen = select(func.count(distinct(Worker.id))).where(Worker.seen_at > clock() - settings.lease_s)
            count = session.scalar(seen) or 0
            waiting = session.scalar(select(func.count()).select_from(Job).where(Job.state.not_in(FINISHED))) or 0
    except Exception as error:
        return Finding("workers", False, f"They cannot be counted ({type(error).__name__}).")
    if count:
        return Finding("workers", True, f"{count} seen within {settings.lease_s:g} s; {waiting} jobs are not finished")
    return Finding("workers", None, f"none seen; {waiting} jobs wait. Start one with `toposerve worker`.")


def _models(database: Database, settings: Settings) -> Iterator[Finding]:
    """Every version that an alias names: its bytes are whole, and the runtime opens them."""
    from sqlalchemy import select

    from app.store.blobs import Blobs
    from app.store.tables import Alias, Model, ModelVersion

    try:
        with database.read() as session:
            query = (
                select(Model.name, Alias.alias, ModelVersion)
                .join(Alias, Alias.model_id == Model.id)
                .join(ModelVersion, (ModelVersion.model_id == Model.id) & (ModelVersion.number == Alias.number))
                .order_by(Model.name, Alias.alias)
            )
            rows = session.execute(query).all()
    except Exception as error:
        yield Finding("models", False, f"They cannot be listed ({type(error).__name__}).")
        return
    blobs = Blobs(settings)
    for model, alias, version in rows:
        yield _found(f"{model}@{alias}", partial(_model, blobs, version))
    if not rows:
        yield Finding("models", None, "No alias names a version, so no network is loaded at start.")


def _model(blobs: Blobs, version: ModelVersion) -> str:
    import onnxruntime

    content = blobs.read(version.project_id, version.onnx_sha256)
    try:
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception:
        raise Unwell(f"Version {version.number} is whole and the runtime does not open it. Export it again.") from None
    return f"version {version.number} is whole and opens, {len(content) // 1024} KiB"


def _runtime(settings: Settings) -> Finding:
    import onnxruntime

    names = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
    there = [name for name in settings.onnx_providers if names[name] in onnxruntime.get_available_providers()]
    return Finding("runtime", True, f"onnxruntime {onnxruntime.__version__} with {', '.join(there) or 'cpu'}")


def _keys(settings: Settings) -> Finding:
    if settings.open:
        return Finding("keys", None, "open: everybody who reaches this machine is an administrator")
    from app.settings import is_loopback

    if not is_loopback(settings.host) and not settings.secure_cookies:
        return Finding("keys", None, f"asked for; {settings.host} is public and TOPOSERVE_SECURE_COOKIES is off")
    return Finding("keys", True, "asked for")
