"""Rows of figures, which become a pandas table where pandas is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

TEXTS = {
    "candidate",
    "metric",
    "image",
    "name",
    "prediction",
    "model",
    "class",
    "length_unit",
    "expectation",
    "mask",
    "problem",
    "detail",
}
"""Columns of tables that are texts, also where they look like a number: an image may be called 0042."""


class Table(list[dict[str, Any]]):
    """A list of rows, each a dict of its cells by column; None where a figure does not apply."""

    @property
    def columns(self) -> list[str]:
        """Every column that a row has, in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self for name in row))

    def to_pandas(self) -> pd.DataFrame:
        """The same as a DataFrame; ImportError where pandas is not installed."""
        import pandas as pd

        return pd.DataFrame(list(self), columns=self.columns)

    def __str__(self) -> str:
        """The rows as text, columns aligned."""
        shown = [[_shown(row.get(name)) for name in self.columns] for row in self]
        lines = [self.columns, *shown]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(row.get(name)))}</td>" for name in self.columns) + "</tr>"
            for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def from_csv(text: str) -> Table:
    """A table of a CSV whose first line names the columns; figures are numbers, empty cells None."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return Table(
        {name: value or None if name in TEXTS else _cell(value) for name, value in row.items()} for row in rows
    )


def from_measurements(rows: Iterable[dict[str, Any]]) -> Table:
    """Rows without what only says how they were measured, which is the same in all."""
    return Table({name: value for name, value in row.items() if name != "metric_spec"} for row in rows)


def _cell(text: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
