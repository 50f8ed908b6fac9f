"""Serving below a path prefix of a proxy, such as https://host/toposerve/.

Inside, every address is as if there were no prefix. It is taken off requests here and put before the addresses of
answers: in the headers `Location` and `Link`, and in the attributes of pages. Addresses in JSON
get it where they are written, because only there they differ from other texts (`app.schemas.base.Address`).
"""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.schemas.base import ROOT_PATH

ATTRIBUTE = rb'(\s(?:href|src|action|formaction|data-[a-z-]+)=")(?=/(?!/|%b/))'
"""Where an address of ours begins in a page, unless with the prefix. Texts of people hold no `"`: it is escaped."""


class RootPath:
    """Takes the prefix off what is asked and puts it before what is answered.

    A request without the prefix is answered as well, because some proxies take it off themselves.
    """

    def __init__(self, app: ASGIApp, root_path: str):
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        token = ROOT_PATH.set(self.root_path)
        try:
            await self.app(self._inner(scope), receive, _Prefixed(self.root_path, send))
        finally:
            ROOT_PATH.reset(token)

    def _inner(self, scope: Scope) -> Scope:
        path: str = scope["path"]
        if path != self.root_path and not path.startswith(self.root_path + "/"):
            return scope
        raw = scope.get("raw_path") or path.encode()  # the prefix has no character that an address would escape
        return {**scope, "path": path[len(self.root_path) :] or "/", "raw_path": raw[len(self.root_path) :] or b"/"}


class _Prefixed:
    """`send` of one answer; a page is kept until it is whole, because its length changes."""

    def __init__(self, root_path: str, send: Send):
        self.root_path = root_path
        self.send = send
        self.start: Message | None = None
        self.page = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            self._prefix(headers)
            message = {**message, "headers": headers.raw}
            if headers.get("content-type", "").startswith("text/html"):
                self.start = message
                return
        elif message["type"] == "http.response.body" and self.start is not None:
            self.page += message.get("body", b"")
            if message.get("more_body"):
                return
            start, self.start = self.start, None
            prefix = self.root_path.encode()
            body = re.sub(ATTRIBUTE % re.escape(prefix[1:]), rb"\1" + prefix, bytes(self.page))
            headers = MutableHeaders(raw=start["headers"])
            if body:
                headers["content-length"] = str(len(body))
            else:  # an answer to HEAD: the length of what it leaves out is not known here
                del headers["content-length"]
            await self.send(start)
            message = {**message, "body": body}
        await self.send(message)

    def _prefix(self, headers: MutableHeaders) -> None:
        for name, before in (("location", ""), ("link", "<")):
            if re.match(before + "/(?!/)", headers.get(name, "")):
                headers[name] = before + self.root_path + headers[name][len(before) :]
