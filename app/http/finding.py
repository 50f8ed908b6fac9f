"""Query parameters that narrow and sort a list, made from the table of its noun.

`found: Annotated[Wanted, finding(JOBS)]` gives an endpoint the filters of the table, each with its type, and `sort`;
a page shows the same as a form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import BeforeValidator
from sqlalchemy import ColumnElement, Select, func

from app.http.endpoints import validated
from app.schemas.base import Label

if TYPE_CHECKING:
    from app.store.finding import Filter, Finder, Order

INPUTS: dict[Any, str] = {date: "date", int: "number"}
"""The kind of field in a form, by the kind of value."""


def _as_written(text: object) -> object:
    """The text of a date; pydantic would take a number for seconds since 1970 as well."""
    if isinstance(text, str) and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError("must be a date such as 2026-03-31")
    return text


Day = Annotated[date, BeforeValidator(_as_written)]


@dataclass(frozen=True)
class Wanted:
    """What of a list is wanted, in which order.

    finder  the table of the noun
    values  of its filters, without those that were left out
    sort    name of an order, with `-` before it: the largest first
    """

    finder: Finder
    values: Mapping[str, Any]
    sort: str

    @property
    def descending(self) -> bool:
        """Whether the largest comes first."""
        return self.sort.startswith("-")

    @property
    def order(self) -> Order:
        """The order by its name."""
        return self.finder.orders[self.sort.lstrip("-")]

    @property
    def key(self) -> ColumnElement[Any] | None:
        """What rows are sorted by before their age; None: by age alone. A row without a value comes last."""
        order = self.order
        if order.value is None:
            return None
        return func.coalesce(order.value, order.least if self.descending else order.most)

    def narrowed(self, query: Select[Any]) -> Select[Any]:
        """The rows that fit every filter."""
        return query.where(*(self.finder.filters[name].condition(value) for name, value in self.values.items()))

    def form(self) -> dict[str, Any]:
        """The same as fields of a form: what was asked for, and what else could be."""
        fields = [
            {
                "name": name,
                "label": each.label,
                "about": each.about.replace("`", ""),
                "input": "select" if each.choices else INPUTS.get(each.kind, "text"),
                "choices": list(each.choices),
                "value": str(self.values.get(name, "")),
            }
            for name, each in self.finder.filters.items()
        ]
        orders = [
            {"value": mark + name, "label": _order_words(name, each, mark), "chosen": mark + name == self.sort}
            for name, each in self.finder.orders.items()
            for mark in (("-", "") if each.value is None or not isinstance(each.least, str) else ("", "-"))
        ]
        return {"fields": fields, "orders": orders, "sort": self.sort, "narrowed": bool(self.values)}


def asked(finder: Finder, sent: Mapping[str, str]) -> Wanted:
    """What a form asked for, where the finder is made for one page and so is no dependency of its endpoint.

    Raises what a request raises whose query is not as documented.
    """
    values = {
        name: validated(_annotation(each, form=True), sent.get(name, ""), name) for name, each in finder.filters.items()
    }
    orders: Any = Literal[tuple(mark + name for name in finder.orders for mark in ("", "-"))]
    sort = validated(orders, sent["sort"], "sort") if sent.get("sort") else f"-{next(iter(finder.orders))}"
    return Wanted(finder, {name: value for name, value in values.items() if value is not None}, sort)


def finding(finder: Finder, *, form: bool = False) -> Any:
    """The dependency that reads the filters and the order of a noun from a request.

    form  it comes from a form, which sends what was left empty as well
    """

    async def read(**asked: Any) -> Wanted:
        sort = asked.pop("sort") or f"-{next(iter(finder.orders))}"
        return Wanted(finder, {name: value for name, value in asked.items() if value is not None}, sort)

    orders: Any = tuple(mark + name for name in finder.orders for mark in ("", "-"))
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(each, form))
        for name, each in finder.filters.items()
    ]
    sort: Any = Annotated[
        Literal[orders] | None,
        BeforeValidator(_unless_empty if form else _as_it_is),
        Query(description="By what to sort; `-` before it: the largest first. Without it the newest come first."),
    ]
    parameters.append(Parameter("sort", Parameter.KEYWORD_ONLY, default=None, annotation=sort))
    vars(read)["__signature__"] = Signature(parameters, return_annotation=Wanted)  # what FastAPI reads
    return Depends(read)


def _annotation(each: Filter, form: bool) -> Any:
    kind: Any = Literal[each.choices] if each.choices else Label if each.kind is str else each.kind
    kind = Day if kind is date else kind
    return Annotated[kind | None, BeforeValidator(_unless_empty if form else _as_it_is), Query(description=each.about)]


def _unless_empty(value: Any) -> Any:
    return None if value == "" else value


def _as_it_is(value: Any) -> Any:
    return value


def _order_words(name: str, order: Order, mark: str) -> str:
    if order.value is None:
        return order.by_age[0 if mark else 1]
    if isinstance(order.least, str):
        return f"{order.label}, Z first" if mark else f"{order.label}, A first"
    return f"{order.label}, largest first" if mark else f"{order.label}, smallest first"
