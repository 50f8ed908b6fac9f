"""Keeps loaded networks within a memory budget; the least recently used leaves first.

A version never changes, so a loaded network is never stale: moving an alias changes which version a request asks for,
and a request holds on to the one it got. So a swap can neither fail nor mix answers, and a network that left the
registry is freed when its last prediction ends.
"""

from __future__ import annotations

import fcntl
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from pydantic import ValidationError
from sqlalchemy import select

from app.errors import BlobCorrupt, ModelSignature, NotFound, Problem
from app.serving.batching import Batcher
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Predictor
from app.serving.providers import count_gpus, place
from app.serving.slots import Slots
from app.serving.statistics import Statistics
from app.settings import Settings
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import Alias, Model, ModelVersion

if TYPE_CHECKING:
    from app.serving.bounded import BoundedNetwork
    from app.serving.runtime import Network

log = structlog.get_logger()


Key = tuple[UUID, str | None]
"""A version, and the variant of it that is not the full network."""


@dataclass(frozen=True)
class Loaded:
    """A network in memory."""

    predictor: Predictor
    network: Network | BoundedNetwork


class Registry:
    """The warm networks of this process; safe to share between threads."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings):
        self._database, self._blobs, self._settings = database, blobs, settings
        self.slots = Slots(
            settings.predict_slots, settings.predict_queue, settings.predict_timeout_s, settings.predict_patience
        )
        """Who may predict now."""
        self.statistics = Statistics()
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Future[Loaded]] = OrderedDict()  # least recently used first
        self._load = Load(lambda: self.slots.taken)
        self._closing = threading.Event()
        self._warming: threading.Thread | None = None

    def get(self, project_id: UUID, version: ModelVersion, variant: str | None = None) -> Predictor:
        """The network of that version, loaded when it is not; callers that come meanwhile wait for the same load.

        variant   fp16 or int8 instead of the full network; NotFound names those there are
        Raises NotFound, Gone, BlobCorrupt, ModelSignature.
        """
        return self._entry(project_id, version, variant).result().predictor

    def network(self, version_id: UUID) -> Network | BoundedNetwork | None:
        """The network of that version if it is warm: its provider and size. Does not count as use."""
        with self._lock:
            entry = self._entries.get((version_id, None))
        return entry.result().network if entry is not None and entry.done() and entry.exception() is None else None

    def unload(self, version_id: UUID) -> None:
        """Let go of a network and its variants; running predictions end with them."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == version_id]:
                del self._entries[key]

    def warm(self) -> None:
        """Load every version that an alias names, in the background; what cannot be loaded is logged, and refused when
        asked for.
        """
        self._warming = threading.Thread(target=self._warm, name="warm models", daemon=True)
        self._warming.start()

    def wait_until_warm(self, timeout_s: float) -> bool:
        """True when the loading that `warm` began has ended."""
        if self._warming is not None:
            self._warming.join(timeout_s)
        return self._warming is None or not self._warming.is_alive()

    def close(self) -> None:
        """Stop predicting and warming, and let go of every network."""
        self.slots.close()
        self._closing.set()
        if self._warming is not None:
            self._warming.join()
        with self._lock:
            self._entries.clear()

    def _entry(self, project_id: UUID, version: ModelVersion, variant: str | None) -> Future[Loaded]:
        key = version.id, variant
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry
            entry = self._entries[key] = Future()
        try:
            entry.set_result(self._open(project_id, version, variant))
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)  # the next caller tries again
            entry.set_exception(error)
        else:
            self._make_room(key)
        return entry

    def _open(self, project_id: UUID, version: ModelVersion, variant: str | None) -> Loaded:
        manifest = read_manifest(version)
        sha256 = manifest.onnx_sha256 if variant is None else file_of(manifest, variant)[0]
        content = self._blobs.read(project_id, sha256)  # verifies the digest
        with self._noted(version) as ended_a_process:
            bounded = manifest.imported or self._settings.bounded_networks == "all" or ended_a_process
            network = self._network(content, manifest, self._device_of(version), bounded=bounded)
        log.info(
            "model_loaded",
            version=str(version.id),
            variant=variant,
            bounded=bounded,
            **{name: getattr(network, name) for name in ("provider", "device", "bytes", "threads", "batch")},
        )
        run = network if network.batch == 1 else Batcher(network, network.batch, self._settings.batch_wait_ms / 1000)
        return Loaded(Predictor(manifest, run, tile_batch=self._settings.tile_batch, extra=network.extra), network)

    def _network(self, content: bytes, manifest: Manifest, device: int, *, bounded: bool) -> Network | BoundedNetwork:
        """The network, loaded and warm, in this process or in one of its own."""
        settings = self._settings
        how: dict[str, Any] = {"threads": settings.onnx_threads, "order": settings.onnx_providers, "device": device}
        batch_most = min(settings.batch_most, settings.predict_slots)
        if bounded:
            from app.serving.bounded import BoundedNetwork, Bounds

            on_gpu = count_gpus() > 0 and settings.onnx_providers[:1] != ["cpu"]
            bounds = Bounds(None if on_gpu else settings.network_memory_bytes, settings.predict_timeout_s)
            return BoundedNetwork(content, manifest, self._load, bounds, batch_most=batch_most, **how)
        from app.serving.runtime import Network

        network = Network(content, manifest, self._load, **how)
        network.warm(batch_most=batch_most)
        return network

    @contextmanager
    def _noted(self, version: ModelVersion) -> Iterator[bool]:
        """True when an earlier process ended while it loaded this version.

        A file in the scratch folder says which version is being loaded; one that is there and that nobody has locked
        was left by such a process.
        """
        self._settings.scratch.mkdir(parents=True, exist_ok=True)
        note = self._settings.scratch / f"loading-{version.id}"
        left = note.exists()
        with note.open("a") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it is being loaded at this moment
                left = False
            try:
                yield left
            finally:
                if not left:
                    note.unlink(missing_ok=True)

    def _device_of(self, version: ModelVersion) -> int:
        """The GPU for a network that is about to be loaded; 0 where there is at most one."""
        gpus = count_gpus()
        if gpus < 2:
            return 0
        with self._database.read() as session:
            name = session.get_one(Model, version.model_id).name
        loaded: Counter[int] = Counter()
        with self._lock:
            for entry in self._entries.values():
                network = entry.result().network if entry.done() and entry.exception() is None else None
                if network is not None and network.device is not None:
                    loaded[network.device] += network.bytes
        return place(name, self._settings.gpu_placement, loaded, gpus)

    def _make_room(self, newest: Key) -> None:
        """Let the least recently used networks go until the rest fits; the newest stays even when it alone is too
        large.
        """
        with self._lock:
            sizes = {
                key: entry.result().network.bytes
                for key, entry in self._entries.items()
                if entry.done() and entry.exception() is None
            }
            total = sum(sizes.values())
            for key, size in sizes.items():
                if total <= self._settings.model_memory_bytes:
                    return
                if key != newest:
                    del self._entries[key]
                    total -= size

    def _warm(self) -> None:
        with self._database.read() as session:
            named = session.scalars(
                select(ModelVersion)
                .join(Alias, (Alias.model_id == ModelVersion.model_id) & (Alias.number == ModelVersion.number))
                .order_by(Alias.moved_at)  # the newest is loaded last, so it is the last to leave
            ).all()
        if named:
            _warm_topology()
        for version in named:
            if self._closing.is_set():
                return
            try:
                self.get(version.project_id, version)
            except Problem as problem:
                log.error("model_load_failed", version=str(version.id), code=problem.code, detail=problem.detail)
            except Exception:
                log.exception("model_load_failed", version=str(version.id))


def _warm_topology() -> None:
    """Load the compiled kernels behind the topology report, which an installation with models will be asked for."""
    import numpy as np

    from topology.metrics import report

    report(np.eye(8, dtype=bool))


def file_of(manifest: Manifest, variant: str) -> tuple[str, int]:
    """(sha256, bytes) of a variant; NotFound names the variants there are, and why one is not."""
    made = manifest.variants.get(variant)  # type: ignore[call-overload]  # any text: get() answers None
    if made is not None and made.onnx_sha256 is not None and made.bytes is not None:
        return made.onnx_sha256, made.bytes
    if made is not None:
        raise NotFound(f"The variant {variant} was made and refused: {made.refused} Leave `variant` out.")
    kept = [name for name, each in manifest.variants.items() if each.refused is None]
    raise NotFound(
        f"This version has no variant {variant}. Variants: {', '.join(kept) or 'none'}. Name them in the training job:"
        " variants."
    )


def read_manifest(version: ModelVersion) -> Manifest:
    """The manifest of a version, checked against its row."""
    try:
        manifest = Manifest.model_validate(version.manifest)
    except ValidationError as error:
        places = ", ".join(".".join(str(part) for part in each["loc"]) or "manifest" for each in error.errors())
        raise ModelSignature(f"The manifest of this version cannot be used: {places}. Export it again.") from error
    if manifest.onnx_sha256 != version.onnx_sha256:
        raise BlobCorrupt(
            "The manifest of this version names another network than its row. Nothing was predicted; export it again."
        )
    return manifest
