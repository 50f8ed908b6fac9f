"""What alembic needs to know: the connection, the tables, and how our own types are written in a revision."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, Connection

from app.store.tables import Base, UtcDateTime


def render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Types as plain SQLAlchemy, so that a revision means the same for ever, whatever tables.py becomes."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, JSON):
        autogen_context.imports.add("from sqlalchemy.dialects.postgresql import JSONB")
        return "sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), 'postgresql')"
    return False


def run(connection: Connection) -> None:
    """Everything in the transaction that the caller began, so that a kill half-way leaves nothing behind."""
    # SQLite changes a column by copying the table, which alembic calls a batch.
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=render_item,
        render_as_batch=True,
        transactional_ddl=False,
    )
    context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    from app.settings import get_settings
    from app.store.migrate import changing
    from app.store.session import Database

    with changing(Database(get_settings())) as own:
        run(own)
