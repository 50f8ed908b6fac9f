"""Counts wrong keys by address, so that guessing is slow and costs little.

A key is always looked up, so a valid one is never refused for what others at its address did. From an address with many
wrong ones they are looked up one after the other, and each refusal comes after a pause.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field

from app.errors import InvalidToken, TooManyWrongKeys, Unauthenticated

ADDRESSES = 4096
"""Addresses that are remembered; the one whose last wrong key is oldest leaves first."""
MINUTE_S = 60
PAUSE_S = 0.5
"""How long a refusal is held back from an address that has sent too many."""


def network_of(client: tuple[str, int] | None) -> str:
    """What a client's address is counted as: whoever has one address of IPv6 has the 2^64 around it as well."""
    host = client[0] if client else "unknown"
    return host if ":" not in host else str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))


@dataclass
class _Address:
    since: float
    wrong: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class WrongKeys:
    """Wrong keys of the last minute by address; used on the event loop only."""

    def __init__(self, a_minute: int):
        self.a_minute = a_minute
        self._seen: OrderedDict[str, _Address] = OrderedDict()

    @asynccontextmanager
    async def watched(self, address: str) -> AsyncIterator[None]:
        """A look-up of a key or token from there; the refusal becomes TooManyWrongKeys when there were many."""
        known = self._seen.get(address)
        many = known is not None and self._is_over(known)
        try:
            async with known.turn if known is not None and many else nullcontext():
                yield
        except (Unauthenticated, InvalidToken):
            known = self._note(address)
            if known.wrong <= self.a_minute:
                raise
            await asyncio.sleep(PAUSE_S)
            left_s = max(1, int(known.since + MINUTE_S - time.monotonic() + 1))
            raise TooManyWrongKeys(retry_after_s=left_s) from None

    def __len__(self) -> int:
        return len(self._seen)

    def _is_over(self, known: _Address) -> bool:
        return known.wrong > self.a_minute and time.monotonic() - known.since < MINUTE_S

    def _note(self, address: str) -> _Address:
        known, now = self._seen.pop(address, None), time.monotonic()
        if known is None or now - known.since >= MINUTE_S:
            known = _Address(now)
        known.wrong += 1
        self._seen[address] = known
        if len(self._seen) > ADDRESSES:
            self._seen.popitem(last=False)
        return known
