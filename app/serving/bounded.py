"""Runs a network in a child process, with limits on memory and time.

Imported networks run so: their trial cannot foresee every image, and what they take beyond the limits must not be taken
from the service. Called as `app.serving.runtime.Network` is. A child answers one batch after the other; one that runs
out of memory, crashes or does not end in time is replaced when the next batch comes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from app import sandbox
from app.errors import ModelResources, ModelSignature, PredictionTimeout, from_message
from app.sandbox.exchange import array_of, receive, sealed, send
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Stop, Stopped
from app.serving.providers import Provider

LOOK_S = 0.05
"""Time between two looks whether somebody still waits for the answer."""
LOAD_S = 60.0
"""Time that a child gets to load its network."""
GRACE_S = 1.0
"""Time that a run gets to end when it was asked to; then its process is killed."""
THREAD_BYTES = 72 * 1024 * 1024
"""Address space that a thread takes before it does anything: its stack and its part of the heap."""
PROCESS_BYTES = 96 * 1024 * 1024
"""Memory of a child beside its network: the interpreter, NumPy and ONNX Runtime."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Bounds:
    """What one network may take."""

    memory_bytes: int | None
    """Of its process; None for no limit, where the driver of a GPU takes more address space than there is memory."""
    run_s: float
    """Seconds of one run."""


class BoundedNetwork:
    """One network in a child of its own. Safe to share between threads, which wait for each other."""

    def __init__(
        self,
        content: bytes,
        manifest: Manifest,
        load: Load,
        bounds: Bounds,
        *,
        threads: int | None,
        order: Sequence[Provider] = ("cpu",),
        device: int = 0,
        batch_most: int = 1,
    ):
        self._manifest, self._load, self._bounds = manifest, load, bounds
        self._opening = {
            "manifest": manifest.model_dump(mode="json"),
            "size": len(content),
            "threads": threads,
            "order": list(order),
            "device": device,
            "batch_most": batch_most,
        }
        self._content = sealed(np.frombuffer(content, np.uint8))
        weakref.finalize(self, os.close, self._content)
        self._lock = threading.Lock()
        self._child: _Child | None = _Child(self._opening, self._content, bounds)
        facts = self._child.facts
        self.provider: str = facts["provider"]
        self.device: int | None = facts["device"]
        self.threads: int | None = facts["threads"]
        self.batch: int = facts["batch"]
        self.bytes: int = facts["bytes"] + PROCESS_BYTES

    @property
    def place(self) -> str:
        """Provider and GPU, as of a network in this process."""
        return self.provider if self.device is None else f"{self.provider}:{self.device}"

    @property
    def pid(self) -> int | None:
        """The child that runs now."""
        return self._child.pid if self._child is not None else None

    def __call__(self, batch: np.ndarray, stop: Stop) -> np.ndarray:
        """(N, C, ...) float32 to (N, K, ...) float32.

        Stopped when `stop` was asked; ModelResources, PredictionTimeout.
        """
        return self._run(None, (len(batch), self._manifest.outputs, *batch.shape[2:]), batch, stop)

    def extra(self, name: str, batch: np.ndarray, stop: Stop) -> np.ndarray:
        """One output of the network by its name: (N, 2) float32."""
        return self._run(name, (len(batch), 2), batch, stop)

    def _run(self, output: str | None, shape: tuple[int, ...], batch: np.ndarray, stop: Stop) -> np.ndarray:
        with self._load.one_more(), self._turn(stop):
            child, kept = self._child or _Child(self._opening, self._content, self._bounds), None
            try:
                said, answer = child.run({"output": output, "shape": batch.shape}, batch, stop)
                if "failed" not in said:
                    kept = child
            finally:
                if kept is None:  # what the memory of a network that failed holds, nobody knows
                    child.end()
                self._child = kept
        if "stopped" in said:
            raise Stopped
        if answer is None:
            log.warning("network_failed", error=said["failed"])
            raise ModelResources
        if answer.shape != shape or answer.dtype != np.float32:
            raise ModelSignature(f"Asked with {batch.shape} the network answers {answer.shape}; {shape} was expected.")
        return answer

    @contextmanager
    def _turn(self, stop: Stop) -> Iterator[None]:
        """The child for oneself; Stopped when nobody waits any more."""
        while not self._lock.acquire(timeout=LOOK_S):
            stop.check()
        try:
            stop.check()
            yield
        finally:
            self._lock.release()


class _Child:
    """One running child; it ends with this object at the latest."""

    def __init__(self, opening: dict[str, Any], content: int, bounds: Bounds):
        self._bounds = bounds
        self._connection, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "app.serving.network_process", str(theirs.fileno())]
            limit, cores = bounds.memory_bytes, opening["threads"] or os.cpu_count() or 1
            process = sandbox.start(
                command,
                memory_bytes=limit and limit + cores * THREAD_BYTES,
                threads=1,  # of NumPy; ONNX Runtime has its own
                gpu=limit is None,
                pass_fds=[theirs.fileno()],
            )
        self.pid = process.pid
        self.end = weakref.finalize(self, _ended, process, self._connection)
        """Kill it; the second time does nothing."""
        try:
            self.facts, _ = self._asked(opening, content, Stop(), LOAD_S)
        except (PredictionTimeout, ModelResources):
            self.end()
            raise ModelResources("The network did not get ready within the memory and time of one network.") from None
        if "code" in self.facts:
            raise from_message(self.facts)
        if "failed" in self.facts:
            log.warning("network_not_loaded", error=self.facts["failed"])
            raise ModelResources

    def run(self, message: dict[str, Any], batch: np.ndarray, stop: Stop) -> tuple[dict[str, Any], np.ndarray | None]:
        """What the child says about a batch; ModelResources when it ended, PredictionTimeout when it did not answer,
        Stopped when it did not even stop.
        """
        held = sealed(batch)
        try:
            said, descriptor = self._asked(message, held, stop, self._bounds.run_s)
        finally:
            os.close(held)
        if descriptor is None:
            return said, None
        try:
            return said, array_of(descriptor, tuple(said["shape"]), said["dtype"])
        except (KeyError, ValueError):
            return {"failed": "an answer that does not fit its own description"}, None

    def _asked(
        self, message: dict[str, Any], descriptor: int, stop: Stop, timeout_s: float
    ) -> tuple[dict[str, Any], int | None]:
        deadline, asked = time.monotonic() + timeout_s, False
        try:
            send(self._connection, message, descriptor)
            while not self._is_readable():
                if stop.asked and not asked:
                    asked, deadline = True, min(deadline, time.monotonic() + GRACE_S)
                    send(self._connection, {})
                if time.monotonic() > deadline:
                    raise Stopped if asked else PredictionTimeout()
            self._connection.settimeout(GRACE_S)  # the rest of a line that has begun
            return receive(self._connection)
        except (OSError, EOFError, ValueError) as error:
            log.warning("network_process_ended", pid=self.pid, error=repr(error))
            raise ModelResources from None

    def _is_readable(self) -> bool:
        poll = select.poll()  # not select(), which knows no descriptor above 1024
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(LOOK_S * 1000))


def _ended(process: sandbox.Process, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.close()
    process.kill()
    process.wait()
