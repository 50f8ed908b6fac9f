"""What an endpoint may ask for in its signature: settings, a database session, the blob store, the model registry.

`Write` is one transaction for the whole endpoint, committed after the endpoint returned and before its answer is sent,
so an acknowledged change is durable. `Read` is one snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

from app.imaging.decoders import Decoders
from app.settings import Settings
from app.store.blobs import Blobs
from app.store.session import Database

if TYPE_CHECKING:
    from app.http.key_cache import KeyCache
    from app.serving.names import Names
    from app.serving.registry import Registry

READERS = 16
"""Requests that hold a snapshot at once; with the writers they stay below the 30 connections of the pool."""


@dataclass(frozen=True)
class Services:
    """Everything that is opened once per process and shared by all requests."""

    settings: Settings
    database: Database
    blobs: Blobs
    secret: bytes
    """Signs sessions and cursors; shared by all processes of the installation."""
    key_cache: KeyCache
    registry: Registry
    names: Names
    decoders: Decoders
    """Every image that came over the wire is decoded by these."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the process was told to stop: answers in progress end, event streams end themselves."""
    decode_slots: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Images that are decoded at once outside of predictions: each may take `max_decoded_bytes`."""
    dataset_slots: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Datasets that are read and counted at once: each holds one image, for minutes, and must not keep single images
    waiting.
    """
    readers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(READERS))
    writers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(8))


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
