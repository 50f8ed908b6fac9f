"""The HTTP parser of the gateway: uvicorn's fast one, with an end to headers that are too long or never end.

uvicorn bounds neither, so a few hundred half-sent requests would hold a process for ever. Pass it as `http=Protocol`.
"""

from __future__ import annotations

import json
from asyncio import Transport
from asyncio.events import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import HeadersTooLarge, InvalidRequest, Problem

HEAD_S = 10
"""Seconds until the headers of a request must be complete."""
HEAD_BYTES = 64 * 1024
"""Bytes of address and headers that are read at all; `Limits` accepts fewer and says so in better words."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._timer: TimerHandle | None = None
        self._head = 0
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

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

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        self._stop_waiting()
        body = json.dumps(problem.body()).encode()
        head: dict[str, Any] = {"content-type": "application/problem+json", "content-length": len(body), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        self.transport.write(f"HTTP/1.1 {problem.status} {problem.title}\r\n{lines}\r\n".encode() + body)
        self.transport.close()
