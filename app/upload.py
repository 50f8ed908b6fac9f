"""A file that a request has brought, and the label that its name becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Upload:
    """A file that has arrived completely; `file` can seek and stands at its start."""

    file: BinaryIO
    sha256: str
    bytes: int
    name: str | None
    """The client's file name, made harmless: a label, never a path."""
    fields: dict[str, str] = field(default_factory=dict)
    """The other fields of the form that it came in."""


def label(name: str | None) -> str | None:
    """A file name as a label: its last part, without control and direction characters, 255 bytes at most."""
    if name is None:
        return None
    last = PurePosixPath(UNPRINTABLE.sub("", name).replace("\\", "/")).name.lstrip(".").strip()
    return last.encode()[:255].decode("utf-8", "ignore") or None
