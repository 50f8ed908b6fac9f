"""Lists are read page by page, newest first or as wanted, by a signed cursor.

A cursor names the last row that was seen, not a position, so rows that come or go in between are neither shown twice
nor skipped. It is valid for one list of one project with one set of filters and one order only.
"""

from __future__ import annotations

import base64
import hmac
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response
from pydantic import ConfigDict, Field
from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from app.errors import InvalidCursor
from app.http.callers import Caller
from app.http.finding import Wanted
from app.http.resources import ServicesDep
from app.http.sessions import mac
from app.schemas.base import Schema

Item = TypeVar("Item")
MOST = 200


@dataclass(frozen=True)
class Last:
    """The last row that was seen: its id, and what the list is sorted by before it."""

    id: uuid.UUID
    key: Any = None

    def text(self) -> str:
        """As it stands in a cursor."""
        key = "" if self.key is None else base64.urlsafe_b64encode(json.dumps(self.key).encode()).decode().rstrip("=")
        return f"{self.id.hex}~{key}" if key else self.id.hex

    @classmethod
    def of(cls, text: str) -> Last:
        """What `text` wrote; ValueError where it did not."""
        hexadecimal, _, key = text.partition("~")
        return cls(uuid.UUID(hex=hexadecimal), json.loads(base64.urlsafe_b64decode(key + "==")) if key else None)


class Listing(Schema, Generic[Item]):
    """One page of a list, newest first; the address of the next one is also in the Link header."""

    # Not by its docstring: for each `Listing[...]` pydantic would look through the source of every module for it.
    model_config = ConfigDict(use_attribute_docstrings=False)

    items: list[Item]
    next_cursor: Annotated[
        str | None, Field(description="Send it as `cursor` to get the next page; null on the last page.")
    ] = None


@dataclass(frozen=True)
class Together(Generic[Item]):
    """How the rows of a page are drawn all at once: what they refer to is then read by a few queries for the page
    instead of a few for each row.
    """

    show: Callable[[Sequence[Any]], list[Item]]


@dataclass(frozen=True)
class PageOf:
    """What part of a list is asked for."""

    request: Request
    response: Response
    secret: bytes
    project_id: uuid.UUID
    limit: int
    after: Last | None

    def listing(
        self, session: Session, query: Select[Any], id_column: Any, show: Callable[[Any], Item] | Together[Item]
    ) -> Listing[Item]:
        """The rows of this page as `show` draws each; `query` selects one entity, `id_column` is its UUIDv7 id."""
        if self.after is not None:
            query = query.where(id_column < self.after.id)
        rows = session.scalars(query.order_by(id_column.desc()).limit(self.limit + 1)).all()
        return self._listed(rows, [Last(getattr(row, id_column.key)) for row in rows], show)

    def found(
        self, session: Session, query: Select[Any], wanted: Wanted, show: Callable[[Any], Item] | Together[Item]
    ) -> Listing[Item]:
        """The rows of this page that fit what is wanted, in its order; of equal ones the newest first."""
        query, id_column, key = wanted.narrowed(query), wanted.finder.id, wanted.key
        if key is None and wanted.descending:
            return self.listing(session, query, id_column, show)
        if key is None:
            if self.after is not None:
                query = query.where(id_column > self.after.id)
            rows = session.scalars(query.order_by(id_column).limit(self.limit + 1)).all()
            return self._listed(rows, [Last(getattr(row, id_column.key)) for row in rows], show)
        if self.after is not None:
            beyond = key < self.after.key if wanted.descending else key > self.after.key
            query = query.where(or_(beyond, and_(key == self.after.key, id_column < self.after.id)))
        query = query.order_by(key.desc() if wanted.descending else key, id_column.desc())
        pairs = session.execute(query.add_columns(key).limit(self.limit + 1)).all()
        places = [Last(getattr(row, id_column.key), value) for row, value in pairs]
        return self._listed([row for row, _ in pairs], places, show)

    def _listed(
        self, rows: Sequence[Any], places: Sequence[Last], show: Callable[[Any], Item] | Together[Item]
    ) -> Listing[Item]:
        """The rows of a page, of which one more than fits was read where there are more."""
        shown, more = rows[: self.limit], len(rows) > self.limit
        cursor = self._sign(places[self.limit - 1]) if more else None
        if cursor is not None:
            self.response.headers["Link"] = f'<{self._address(cursor)}>; rel="next"'
        items = show.show(shown) if isinstance(show, Together) else [show(row) for row in shown]
        return Listing(items=items, next_cursor=cursor)

    def _sign(self, last: Last) -> str:
        text = last.text()
        return text + "." + mac(self.secret, "cursor", f"{_place(self.request, self.project_id)}?{text}")

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
    cursor: Annotated[str | None, Query(max_length=2048, description="`next_cursor` of the page before.")] = None,
) -> PageOf:
    after = _read_cursor(services.secret, _place(request, caller.project_id), cursor) if cursor is not None else None
    return PageOf(request, response, services.secret, caller.project_id, limit or services.settings.page_size, after)


def _read_cursor(secret: bytes, place: str, cursor: str) -> Last:
    last, _, signature = cursor.partition(".")
    if not hmac.compare_digest(
        mac(secret, "cursor", f"{place}?{last}").encode(), signature.encode("utf-8", "surrogatepass")
    ):
        raise InvalidCursor
    return Last.of(last)


Page = Annotated[PageOf, Depends(_page)]
"""`def list_images(caller: Caller, session: Read, page: Page)`: limit, cursor and the Link header."""
