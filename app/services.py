"""What a gateway process opens at its start and shares between requests."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyio import CapacityLimiter

from app.imaging.decoders import Decoders
from app.settings import Settings
from app.store.blobs import Blobs
from app.store.session import Database

if TYPE_CHECKING:
    from app.http.key_cache import KeyCache
    from app.http.wrong_keys import WrongKeys
    from app.oidc.provider import Provider
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
    wrong_keys: WrongKeys
    decoders: Decoders
    """Every image that came over the wire is decoded by these."""
    provider: Provider | None = None
    """The OpenID provider whose people may call, if one is configured."""
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
