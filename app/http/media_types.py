"""The media type of a request's body: from its first bytes, compared with its Content-Type."""

from __future__ import annotations

from app.errors import UnsupportedImage
from app.imaging.formats import FORMATS, sniff

JSON, FORM, ZIP = "application/json", "multipart/form-data", "application/zip"
WARNING = "Toposerve-Warning"
"""Response header: the declared type is not what the bytes are."""
SAYS_NOTHING = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Declared types that are no claim; the last one is what curl writes when nobody named a type."""
SAME = {
    **{other: each.media_type for each in FORMATS.values() for other in each.media_types[1:]},
    "application/x-zip-compressed": ZIP,
    "application/zip-compressed": ZIP,
}
"""Other names of the same types, once a leading `x-` is left out."""


def kind_of(head: bytes) -> str | None:
    """The media type of a file that begins with these bytes; None when it is none that this service reads."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZIP
    try:
        return sniff(head).media_type
    except UnsupportedImage:
        return None


def is_json(declared: str, head: bytes) -> bool:
    """Whether a body is JSON: an object or a list, or declared as JSON and no file.

    No file that is read here begins with a bracket.
    """
    return head.lstrip()[:1] in (b"{", b"[") or (declared == JSON and kind_of(head) is None)


def is_form(declared: str, head: bytes) -> bool:
    """Whether a body is a form of several parts: declared as one, because only its Content-Type names its boundary."""
    return declared == FORM and kind_of(head) is None


def contradiction(declared: str, found: str | None) -> str | None:
    """A sentence when a body is not what its declared type says; None when it is, or when either says nothing."""
    if found is None or declared in SAYS_NOTHING:
        return None
    plain = declared.replace("/x-", "/", 1)
    if found in (declared, plain, SAME.get(declared), SAME.get(plain)):
        return None
    written = "".join(letter if "!" <= letter <= "~" else "?" for letter in declared[:64])
    return f"The body was declared as {written} and is {found}; it was read as what it is."
