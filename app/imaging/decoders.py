"""Decodes images in a few warm child processes with limits on memory and processor time.

A file that breaks a decoder then breaks a child, and its sender is told.

Small files of the formats marked `light` (PNG and JPEG, by far the most) are decoded in the calling thread: their
headers are read by our own code, and below `SMALL` pixels even the worst cannot hurt. Everything else goes to a child.
Children start when they are first needed and stay; one that crashes or takes too long is replaced. They end by
themselves when this process is gone.

A child costs about 0.3 s once and 33 MiB. Through a warm one an image takes a few milliseconds and its copying longer:
1.6 to 1.8 times for 2048 x 2048, about 3 times for 512 x 512 (`python -m benchmarks.decoding`, 2 busy cores).
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import structlog

from app import sandbox
from app.errors import CorruptImage, ExpandsTooLarge, Problem, Unavailable, from_message
from app.imaging.decode import KEPT, decode, decode_labels, decode_map
from app.imaging.formats import HEAD_BYTES, sniff
from app.imaging.grids import onto
from app.imaging.header import File, opened, read_header
from app.imaging.picture import Forms, Header, Picture, Source
from app.sandbox.exchange import array_of, is_sealed, memory, receive, send

if TYPE_CHECKING:
    from app.settings import Settings


SMALL = 4_000_000
"""Pixels of a file of a `light` format that is decoded without a child."""
PATIENCE = 3
"""Seconds of waiting for each second of processor that a child may use: the machine does other work."""
DTYPES = {*KEPT, "int32"}

log = structlog.get_logger()


class Decoders:
    """The functions of `app.imaging` that read images, in children; safe to share between threads, which wait for a
    free one.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(settings.decode_children):
            self._free.put(None)  # a place whose child has not been started
        self._alive: set[_Child] = set()
        self._lock, self._closed = threading.Lock(), False

    def decode(self, source: Source) -> Picture:
        """See `app.imaging.decode`; also ExpandsTooLarge and CorruptImage for what a child did not survive."""
        return decode(source, self._settings) if self._is_small(source) else self._picture("decode", source)

    def decode_map(self, source: Source) -> Picture:
        """See `app.imaging.decode_map`."""
        return decode_map(source, self._settings) if self._is_small(source) else self._picture("decode_map", source)

    def decode_labels(self, source: Source, *, above: float | None = None, colours: bool = False) -> Picture:
        """See `app.imaging.decode_labels`."""
        if self._is_small(source):
            return decode_labels(source, self._settings, above=above, colours=colours)
        return self._picture("decode_labels", source, above=above, colours=colours)

    def unpack(self, source: Source, *, axes: int) -> Picture:
        """See `app.imaging.packed.unpack`."""
        return self._picture("unpack", source, axes=axes)

    def decode_mask(
        self, source: Source, *, like: Picture | Header | None = None, resample: bool = False
    ) -> np.ndarray:
        """See `app.imaging.decode_mask`."""
        labels = self.decode_labels(source)
        return (labels if like is None else onto(labels, like, resample=resample)).pixels[0]

    def _picture(self, what: str, source: Source, **options: Any) -> Picture:
        facts, pixels = self._ask(what, source, options)
        return Picture(pixels, **_place(facts))

    def read_header(self, source: Source) -> Header:
        """See `app.imaging.read_header`."""
        header = self._own_header(source)
        if header is not None:
            return header
        facts, _ = self._ask("read_header", source, {})
        return Header(
            shape=tuple(facts["shape"]),
            channels=facts["channels"],
            dtype=facts["dtype"],
            **_place(facts),
        )

    def cleaned(self, source: Source, *, keep: bool, boundary: str | None = None) -> tuple[BinaryIO, list[str]]:
        """See `app.imaging.dicom.identity.cleaned`: the file that it writes, and its sentences."""
        facts, descriptor = self._answer("cleaned", source, {"keep": keep, "boundary": boundary})
        if descriptor is None or not is_sealed(descriptor):
            raise CorruptImage("The decoder's answer is not complete. Send the file again.")
        file = File(io.FileIO(descriptor))
        file.seek(0)  # the position is the one that the child left
        return file, facts["warnings"]

    def close(self) -> None:
        """End every child, also those at work."""
        with self._lock:
            self._closed, alive = True, list(self._alive)
        for child in alive:
            child.end()

    @property
    def alive(self) -> list[int]:
        """Process ids of the children that run now."""
        with self._lock:
            return [child.pid for child in self._alive]

    def _is_small(self, source: Source) -> bool:
        header = self._own_header(source)
        return header is not None and header.pixels < SMALL

    def _own_header(self, source: Source) -> Header | None:
        """The header of a `light` format, which our own code reads here; None for what a child has to open."""
        with opened(source) as stream:
            stream.seek(0)
            if not sniff(stream.read(HEAD_BYTES)).light:
                return None
            return read_header(stream, self._settings)

    def _ask(self, what: str, source: Source, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        facts, pixels = self._answer(what, source, options)
        return facts, None if pixels is None else _mapped(pixels, tuple(facts["shape"]), facts["dtype"])

    def _answer(self, what: str, source: Source, options: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        settings = self._settings
        limits = {name: getattr(settings, name) for name in ("max_pixels", "max_voxels", "max_decoded_bytes")}
        question = {
            "what": what,
            "options": options,
            "limits": limits,
            "cpu_s": settings.decode_cpu_s,
            "memory_bytes": settings.decode_memory_bytes,
        }
        with _descriptor(source) as descriptor, self._child() as child:
            facts, pixels = child.ask(question, descriptor, settings.decode_cpu_s * PATIENCE)
        if "code" in facts:
            if "unforeseen" in facts:
                log.error("decoder_failed", error=facts["unforeseen"])
            raise from_message(facts)
        return facts, pixels

    @contextmanager
    def _child(self) -> Iterator[_Child]:
        """A child of one's own for a while; what it did not survive becomes a problem, and its place is free for
        another.
        """
        child, kept = self._free.get(), None
        try:
            if child is not None and child.has_ended:  # while nobody asked it anything, so this image is not to blame
                self._retire(child, EOFError())
                child = None
            child = child or self._started()
            yield child
            kept = child
        except (OSError, EOFError, ValueError) as error:
            assert child is not None
            raise self._retire(child, error) from None
        finally:
            self._free.put(kept)

    def _started(self) -> _Child:
        with self._lock:
            if self._closed:
                raise Unavailable("The service is being stopped. Send it again shortly.")
            child = _Child(self._settings.decode_memory_bytes)
            self._alive.add(child)
        return child

    def _retire(self, child: _Child, error: Exception) -> Problem:
        """Give up a child that has ended or does not answer; what the sender of its image is told."""
        with self._lock:
            self._alive.discard(child)
            closed = self._closed
        status = child.end()
        if closed:
            return Unavailable("The service is being stopped. Send it again shortly.")
        log.warning("decoder_crashed", status=status, error=repr(error))
        if isinstance(error, TimeoutError) or status == -signal.SIGXCPU:
            return ExpandsTooLarge(
                f"The image needs more than {self._settings.decode_cpu_s} s to be decoded. Save it with a simpler"
                " compression, or send a part of it."
            )
        return CorruptImage("The image made its decoder crash: it is damaged. Save it again.")


class _Child:
    """One running child."""

    def __init__(self, memory_bytes: int):
        self._connection, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "app.imaging.decoder_process", str(theirs.fileno())]
            self._process = sandbox.start(
                command, memory_bytes=memory_bytes, threads=1, gpu=False, pass_fds=[theirs.fileno()]
            )
        self.pid = self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, question: dict[str, Any], descriptor: int, timeout_s: float) -> tuple[dict[str, Any], int | None]:
        """The answer and the descriptor of its pixels; TimeoutError, EOFError, OSError, ValueError."""
        self._connection.settimeout(timeout_s)
        send(self._connection, question, descriptor)
        return receive(self._connection)

    def end(self) -> int:
        """Let it go, or kill it when it does not; how it ended, which may be of itself before."""
        with contextlib.suppress(OSError):  # it has gone already
            self._connection.shutdown(socket.SHUT_RDWR)
        status = self._process.wait_or_kill(0.2)
        self._connection.close()
        return status


@contextmanager
def _descriptor(source: Source) -> Iterator[int]:
    """A file descriptor for an encoded image, of its own file where it has one."""
    with opened(source) as stream:
        try:
            own = stream.fileno()
        except OSError:  # io.UnsupportedOperation: bytes in memory have none
            own = None
        if own is not None:
            yield own
            return
        descriptor = memory()
        try:
            stream.seek(0)
            for piece in iter(lambda: stream.read(1 << 20), b""):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            yield descriptor
        finally:
            os.close(descriptor)


def _place(facts: dict[str, Any]) -> dict[str, Any]:
    spacing_mm, affine = facts["spacing_mm"], facts["affine"]
    return {
        "format": facts["format"],
        "spacing_mm": spacing_mm and tuple(spacing_mm),
        "orientation": facts["orientation"],
        "is_bilevel": facts["is_bilevel"],
        "sparse": facts["sparse"],
        "forms": facts["forms"] and Forms(**facts["forms"]),
        "affine": None if affine is None else np.array(affine),
    }


def _mapped(descriptor: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The pixels of an answer, as large as it says they are."""
    try:
        pixels = array_of(descriptor, shape, dtype)
    except ValueError:
        pixels = None
    if pixels is None or pixels.dtype.name not in DTYPES:
        raise CorruptImage("The decoder's answer does not fit its own description. Save the image again.")
    return pixels
