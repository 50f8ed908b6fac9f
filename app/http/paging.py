"""Lists are read page by page, newest first, by a signed cursor.

A cursor names the last row that was seen, not a position, so rows that come or go in between are neither shown twice
nor skipped. It is valid for one list of one project with one set of filters only.
"""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response
from sqlalchemy import Select
from sqlalchemy.orm import Session

from app.errors import InvalidCursor
from app.http.callers import Caller
from app.http.resources import ServicesDep
from app.http.sessions import mac
from app.schemas.base import Schema

Item = TypeVar("Item")
MOST = 200


class Listing(Schema, Generic[Item]):
    """One page of a list, newest first; the address of the next one is also in the Link header."""

    items: list[Item]
    next_cursor: str | None = None
    """Send it as `cursor` to get the next page; null on the last page."""


@dataclass(frozen=True)
class PageOf:
    """What part of a list is asked for."""

    request: Request
    response: Response
    secret: bytes
    project_id: uuid.UUID
    limit: int
    after: uuid.UUID | None

    def listing(
        self, session: Session, query: Select[Any], id_column: Any, show: Callable[[Any], Item]
    ) -> Listing[Item]:
        """The rows of this page as `show` draws each; `query` selects one entity, `id_column` is its UUIDv7 id."""
        if self.after is not None:
            query = query.where(id_column < self.after)
        rows = session.scalars(query.order_by(id_column.desc()).limit(self.limit + 1)).all()
        shown, more = rows[: self.limit], len(rows) > self.limit
        cursor = self._sign(getattr(shown[-1], id_column.key)) if more else None
        if cursor is not None:
            self.response.headers["Link"] = f'<{self._address(cursor)}>; rel="next"'
        return Listing(items=[show(row) for row in shown], next_cursor=cursor)

    def _sign(self, last: uuid.UUID) -> str:
        return last.hex + "." + mac(self.secret, "cursor", f"{_place(self.request, self.project_id)}?{last.hex}")

    def _address(self, cursor: str) -> str:
        query = [(name, value) for name, value in self.request.query_params.multi_items() if name != "cursor"]
        return f"{self.request.url.path}?{urlencode([*query, ('cursor', cursor)])}"


def _place(request: Request, project_id: uuid.UUID) -> str:
    filters = sorted(
        (name, value) for name, value in request.query_params.multi_items() if name not in ("cursor", "limit")
    )
    return f"{project_id} {request.url.path} {filters}"


async def _page(
    request: Request,
    response: Response,
    caller: Caller,
    services: ServicesDep,
    limit: Annotated[int | None, Query(ge=1, le=MOST, description="Items in one page.")] = None,
    cursor: Annotated[str | None, Query(max_length=128, description="`next_cursor` of the page before.")] = None,
) -> PageOf:
    after = _read_cursor(services.secret, _place(request, caller.project_id), cursor) if cursor is not None else None
    return PageOf(request, response, services.secret, caller.project_id, limit or services.settings.page_size, after)


def _read_cursor(secret: bytes, place: str, cursor: str) -> uuid.UUID:
    last, _, signature = cursor.partition(".")
    if not hmac.compare_digest(
        mac(secret, "cursor", f"{place}?{last}").encode(), signature.encode("utf-8", "surrogatepass")
    ):
        raise InvalidCursor
    return uuid.UUID(hex=last)


Page = Annotated[PageOf, Depends(_page)]
"""`def list_images(caller: Caller, session: Read, page: Page)`: limit, cursor and the Link header."""
