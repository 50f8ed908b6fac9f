"""A PACS in a thread: QIDO, WADO and STOW over a dictionary, which can be away, slow, refuse, or forget half."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

from tests.workers.answering import Answering


class FakePacs:
    """What it holds, and how it misbehaves.

    instances  datasets by SOPInstanceUID
    statuses   answered first, one after the other, before anything else is done
    forgets    how many stored instances are acknowledged and dropped
    slow_s     how long each of the first `slow` answers takes
    obeys      whether a search leaves out what does not match it
    terse      whether it tells UIDs only, and other elements of instances alone
    most       series in one answer, whatever limit is asked for
    """

    def __init__(self) -> None:
        self.instances: dict[str, pydicom.Dataset] = {}
        self.statuses: deque[int] = deque()
        self.forgets = self.slow = 0
        self.slow_s = 0.0
        self.obeys, self.terse, self.most = True, False, 1000
        self.authorization: str | None = None
        self.asked: list[str] = []
        self.url = ""

    def add(self, *files: pydicom.Dataset) -> None:
        for file in files:
            self.instances[file.SOPInstanceUID] = file

    def of(self, modality: str) -> list[pydicom.Dataset]:
        return [each for each in self.instances.values() if each.Modality == modality]


MATCHED = {
    "00080060": "Modality",
    "00080020": "StudyDate",
    "00081030": "StudyDescription",
    "0008103E": "SeriesDescription",
    "00180015": "BodyPartExamined",
}


def fits(each: pydicom.Dataset, query: dict[str, str]) -> bool:
    """Whether an instance matches a search: a range from a day on, or a text with `*` and `?`."""
    told = {name: str(each.get(name, "")) for name in MATCHED.values()}
    since = query.get("StudyDate", "").removesuffix("-")
    return told["StudyDate"] >= since and all(
        fnmatchcase(told[name], query[name]) for name in told if name in query and name != "StudyDate"
    )


class Handler(Answering, BaseHTTPRequestHandler):
    """Answers for the PACS of its class."""

    pacs: FakePacs

    def do_GET(self) -> None:
        if self.refused():
            return
        address = urlsplit(self.path)
        parts = address.path.strip("/").split("/")[1:]
        uids = dict(zip(parts[::2], parts[1::2], strict=False))
        found = [
            each
            for each in self.pacs.instances.values()
            if each.StudyInstanceUID == uids.get("studies", each.StudyInstanceUID)
            and each.SeriesInstanceUID == uids.get("series", each.SeriesInstanceUID)
        ]
        if parts[-1] == "series":
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            by_series = {each.SeriesInstanceUID: each for each in found if not self.pacs.obeys or fits(each, query)}
            start = int(query.get("offset", 0))
            some = list(by_series.values())[start : start + min(int(query.get("limit", 1000)), self.pacs.most)]
            self.tell_json([self.said(each) | self.counted(each, found) for each in some])
        elif parts[-1] == "instances":
            wanted = parse_qs(address.query).get("SOPInstanceUID")
            self.tell_json([self.said(each) for each in found if not wanted or each.SOPInstanceUID in wanted])
        elif not found:
            self.tell(404, b"", "text/plain")
        else:
            body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file(each) + b"\r\n" for each in found)
            self.tell(200, body + b"--b--\r\n", 'multipart/related; type="application/dicom"; boundary=b')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refused():
            return
        content = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        sent = pydicom.dcmread(io.BytesIO(content))
        if self.pacs.forgets:
            self.pacs.forgets -= 1
        else:
            self.pacs.instances[sent.SOPInstanceUID] = sent
        self.tell_json({"00081199": {"vr": "SQ", "Value": []}})

    def refused(self) -> bool:
        self.pacs.asked.append(f"{self.command} {self.path}")
        if self.pacs.slow:
            self.pacs.slow -= 1
            time.sleep(self.pacs.slow_s)
        status = self.pacs.statuses.popleft() if self.pacs.statuses else 200
        if self.pacs.authorization is not None and self.headers.get("Authorization") != self.pacs.authorization:
            status = 401
        if status == 302:
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif status != 200:
            self.tell(status, b"a page of the PACS", "text/html")
        return status != 200

    def said(self, each: pydicom.Dataset) -> dict[str, Any]:
        tags = {"0020000E": "SeriesInstanceUID", "00080060": "Modality", "00080018": "SOPInstanceUID"}
        if not self.pacs.terse or "/instances" in self.path:
            tags |= MATCHED
        tags |= {"0020000D": "StudyInstanceUID"}
        return {tag: {"vr": "UI", "Value": [str(each[name].value)]} for tag, name in tags.items() if name in each}

    def counted(self, each: pydicom.Dataset, found: list[pydicom.Dataset]) -> dict[str, Any]:
        number = sum(other.SeriesInstanceUID == each.SeriesInstanceUID for other in found)
        return {} if self.pacs.terse else {"00201209": {"vr": "IS", "Value": [number]}}

    def tell_json(self, said: Any) -> None:
        self.tell(200, json.dumps(said).encode(), "application/dicom+json")


@contextmanager
def fake_pacs() -> Iterator[FakePacs]:
    """A PACS on a free port."""
    pacs = FakePacs()

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"pacs": pacs}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    pacs.url = f"http://127.0.0.1:{server.server_port}/dicom-web"
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def file(each: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, each, enforce_file_format=True)
    return buffer.getvalue()
