"""The form of the answer (Accept, RFC 9110) and when it comes (Prefer, RFC 7240)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import Header

from app.errors import NotAcceptable

RANGE = re.compile(r"\s*([a-z0-9!#$&^_.+*-]+/[a-z0-9!#$&^_.+*-]+)\s*((?:;[^,]*)?)\s*")
QUALITY = re.compile(r";\s*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)")

Prefer = Annotated[
    list[str] | None,
    Header(
        description=(
            "`respond-async`: do not wait; the answer is 202 with the Location of a job. Other preferences are left"
            " aside."
        ),
        examples=[["respond-async"]],
    ),
]
RESPOND_ASYNC = re.compile(r"(?:^|,)\s*respond-async\s*(?:$|[,;])", re.IGNORECASE)
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def negotiate(accept: str | None, offers: Sequence[str]) -> str:
    """The offer that `Accept` prefers, the first of equals; NotAcceptable names all offers."""
    if not accept:
        return offers[0]
    ranges = [_parsed(part) for part in accept.lower().split(",")]
    best = max(offers, key=lambda offer: _quality(offer, ranges))  # max keeps the first of equals
    if _quality(best, ranges) > 0:
        return best
    raise NotAcceptable(f"This can be answered as {', '.join(offers)}. Name one of them in Accept.")


def _parsed(part: str) -> tuple[str, float]:
    match = RANGE.fullmatch(part)
    if match is None:
        return "", 0.0
    quality = QUALITY.search(match.group(2))
    return match.group(1), float(quality.group(1)) if quality else 1.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that covers the offer."""
    for covering in (offer, offer.partition("/")[0] + "/*", "*/*"):
        qualities = [quality for media, quality in ranges if media == covering]
        if qualities:
            return max(qualities)
    return 0.0


def takes_gzip(accept_encoding: str) -> bool:
    """Whether a caller names gzip as a coding of the answer (RFC 9110, 12.5.3), and not with quality 0."""
    for part in accept_encoding.lower().split(","):
        coding, _, quality = part.replace(" ", "").partition(";q=")
        if coding == "gzip":
            return quality.rstrip("0").rstrip(".") not in ("0", "") if quality else True
    return False


def respond_async(prefer: list[str] | None) -> bool:
    """Whether one of the Prefer headers says respond-async; what a preference quotes is not one."""
    return any(RESPOND_ASYNC.search(QUOTED.sub("", each)) for each in prefer or ())
