"""Keys as the API shows them."""

from __future__ import annotations

from app.schemas.keys import Key
from app.store.tables import ApiKey


def describe(row: ApiKey) -> Key:
    """A key without its secret."""
    return Key.of(row, prefix=f"ts_{row.prefix}")
