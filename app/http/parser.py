"""uvicorn's HTTP parser, with time limits for slow headers and slow readers.

uvicorn bounds neither, so a few hundred half-sent requests or half-read answers would hold a process for ever. Pass it
as `http=Protocol`.
"""

from __future__ import annotations

import fcntl
import json
import resource
import struct
import termios
from asyncio import Transport
from asyncio.events import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import Busy, HeadersTooLarge, InvalidRequest, Problem

HEAD_S = 10
"""Seconds until the headers of a request must be complete."""
HEAD_BYTES = 64 * 1024
"""Bytes of address and headers that are read at all; `RequestLimits` accepts fewer and says so in better words."""
READ_S = 30
"""Seconds between two looks at a reader that keeps us waiting."""
READ_PACE = 1024
"""Bytes per second that such a reader must take; one that takes fewer holds a file and memory for nothing."""
MOST_CONNECTIONS = 4096
"""Connections of one process; more requests than that are told to come back."""


def room_for_files() -> None:
    """Let this process open as many files as the system allows: each connection may need its socket and a temporary
    file.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Protocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # uvicorn narrows what asyncio passes
        self._timer: TimerHandle | None = None
        self._reader_timer: TimerHandle | None = None
        self._head = 0
        # uvicorn's own refusal is no problem that a client knows.
        self._most, self.limit_concurrency = self.limit_concurrency, None
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:
            self._head += len(data)
        super().data_received(data)
        # Still waiting after all this: one head is longer than is read.
        if self._timer is not None and self._head > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadersTooLarge())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        crowded = self._most is not None and len(self.connections) > self._most
        self.app = _come_back if crowded else self.config.loaded_app
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """The parser gave up: say so in the one shape that errors have."""
        self._refuse(InvalidRequest(f"{msg} Check its first line and its headers."))

    def _expect_head(self) -> None:
        if self._timer is None:
            self._head = 0
            self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_reader(self) -> None:
        self._reader_timer = self.loop.call_later(READ_S, self._look_at_reader, self._waiting_to_be_read())

    def _look_at_reader(self, before: int) -> None:
        if before - self._waiting_to_be_read() < READ_PACE * READ_S:
            self.transport.abort()  # closing would wait for the reader
        else:
            self._watch_reader()

    def _waiting_to_be_read(self) -> int:
        """Bytes here and in the system's buffer, which takes some megabytes at a time and would hide what a slow reader
        does.
        """
        sent = self.transport.get_extra_info("socket")
        return (
            self.transport.get_write_buffer_size()
            + struct.unpack("i", fcntl.ioctl(sent, termios.TIOCOUTQ, bytes(4)))[0]
        )

    def _stop_watching(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        self._stop_waiting()
        head, body = _told(problem)
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self.transport.write(f"HTTP/1.1 {problem.status} {problem.title}\r\n{lines}\r\n".encode() + body)
        self.transport.close()


def _told(problem: Problem) -> tuple[dict[str, str], bytes]:
    body = json.dumps(problem.body()).encode()
    return {
        "content-type": "application/problem+json",
        "content-length": str(len(body)),
        "connection": "close",
    } | problem.headers(), body


async def _come_back(scope: Any, receive: Any, send: Any) -> None:
    head, body = _told(
        Busy("More connections are open than this process serves. Try again in a second.", retry_after_s=1)
    )
    await send(
        {
            "type": "http.response.start",
            "status": Busy.status,
            "headers": [(name.encode(), value.encode()) for name, value in head.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
