"""Dependencies of endpoints: settings, a database session, the blob store, the model registry.

`Write` is one transaction for the whole endpoint, committed after the endpoint returned and before its answer is sent,
so an acknowledged change is durable. `Read` is one snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

from app.services import Services
from app.settings import Settings
from app.store.blobs import Blobs


async def services(request: Request) -> Services:
    """What the lifespan opened.

    Async, as every dependency that only looks: a plain one costs the change to a thread and back.
    """
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(services)]


async def _read(services: ServicesDep) -> AsyncIterator[Session]:
    # A request waits here, not in a thread: threads that wait for a connection would starve the ones that hold it.
    async with services.readers, contextmanager_in_threadpool(services.database.read()) as session:
        yield session


async def _write(services: ServicesDep) -> AsyncIterator[Session]:
    async with services.writers, contextmanager_in_threadpool(services.database.write()) as session:
        yield session


async def _settings(services: ServicesDep) -> Settings:
    return services.settings


async def _blobs(services: ServicesDep) -> Blobs:
    return services.blobs


# scope="function": left before the answer is sent; the default would acknowledge first and commit afterwards.
Read = Annotated[Session, Depends(_read, scope="function")]
Write = Annotated[Session, Depends(_write, scope="function")]
SettingsDep = Annotated[Settings, Depends(_settings)]
BlobsDep = Annotated[Blobs, Depends(_blobs)]
