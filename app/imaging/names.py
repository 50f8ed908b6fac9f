"""Makes a file name fit to store and show as a label.

It is never used as a path.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 255  # bytes of UTF-8, as in every file system
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def plain_name(sent: str | None, default: str = "image") -> str:
    """The last part of a file name without control characters, text direction marks, leading dots or Windows' device
    names.

    `../../etc/passwd` becomes `passwd`; nothing left becomes `default`; markup is kept, because whoever shows a label
    escapes it.
    """
    name = unicodedata.normalize("NFC", _INVISIBLE.sub("", sent or ""))
    name = re.split(r"[/\\]", name)[-1].strip().lstrip(".").strip()
    if _RESERVED.match(name):
        name = "_" + name
    return _cut(name) or default


def _cut(name: str) -> str:
    """At most `LONGEST` bytes, keeping the extension."""
    if len(name.encode()) <= LONGEST:
        return name
    stem, dot, extension = name.rpartition(".")
    kept = dot + extension if stem and len(extension.encode()) <= 16 else ""
    return name.encode()[: LONGEST - len(kept.encode())].decode(errors="ignore") + kept
