"""OHIF as npm has it, unmodified, on an address of its own with the PACS behind it."""

from __future__ import annotations

import mimetypes
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.services import ROOT, make
from tests.workers.answering import Answering

ENVIRONMENT = ".venv-ohif"
QUIET = "window.config.disableConfirmationPrompts = true; window.config.investigationalUseDialog = {option: 'never'};"


def settings() -> bytes:
    """The `app-config.js` that the how-to gives, without the questions that OHIF would ask first."""
    told = (ROOT / "docs" / "how-to" / "viewers.md").read_text()
    return (told.partition("```javascript\n")[2].partition("```")[0] + QUIET).encode()


@cache
def assets() -> Path:
    """The folder of the viewer's files; fetched once, in the version that tests/protocols/ohif.sha512 names."""
    if shutil.which("npm") is None:
        reason = "no npm, which fetches OHIF: install it with `apt-get install npm`"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    made = make(f"{ENVIRONMENT}/.installed")
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / ENVIRONMENT / "package" / "dist"


class Handler(Answering, BaseHTTPRequestHandler):
    """The viewer's files, its settings, and `/dicom-web` passed on with the credentials of the PACS."""

    pacs: str
    auth: tuple[str, str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/dicom-web"):
            headers = {"Accept": self.headers.get("Accept", "*/*")}
            answer = requests.get(self.pacs + self.path, headers=headers, auth=self.auth, timeout=30)
            self.tell(answer.status_code, answer.content, answer.headers.get("Content-Type", "text/plain"))
        elif path == "/app-config.js":
            self.tell(200, settings(), "text/javascript")
        else:
            file = assets() / path.lstrip("/")
            found = file if file.is_file() else assets() / "index.html"
            self.tell(200, found.read_bytes(), mimetypes.guess_type(found.name)[0] or "application/octet-stream")


@contextmanager
def viewer(pacs: str, auth: tuple[str, str]) -> Iterator[str]:
    """The address of OHIF before the PACS at an address."""
    assets()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"pacs": pacs, "auth": auth}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
