"""What a small HTTP server of a test says."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any


class Answering(BaseHTTPRequestHandler):
    """A handler that keeps quiet and answers whole bodies."""

    def log_message(self, *_: Any) -> None:
        pass

    def tell(self, status: int, body: bytes, media: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
