"""Connections to Postgres that are given up when the server does not answer.

A server that hangs (stopped, or cut off by a network that drops packets) keeps its connections open, and neither
statement_timeout nor TCP's own timeouts end a query on them. So each wait has an end here: a connection that waited
too long is closed and its query fails as if the server had gone. Then new connections fail at once, but for one that
tries the server now and then, so that requests do not queue up for time-outs.
"""

from __future__ import annotations

import math
import time
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event

CONNECT_S = 2
"""Seconds to connect; libpq knows no shorter time."""
PING_S = 1.5
"""Seconds in which a pooled connection must prove that it lives."""
GRACE_S = 0.4
"""Seconds beyond the time of a statement in which the server itself should have ended it."""
PROBE_S = 3.0
"""Seconds between two tries to reach a server that did not answer."""


class Connection(psycopg.Connection[Any]):
    """A connection that waits for its server `patience_s` at most."""

    patience_s = math.inf

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """As psycopg's; OperationalError on a connection that is closed then, when the server was silent too long."""
        patience_s = self.patience_s if timeout is None else timeout
        ends = time.monotonic() + patience_s
        try:
            return super().wait(gen, interval, patience_s if math.isfinite(patience_s) else None)
        except psycopg.OperationalError:
            if time.monotonic() >= ends:  # whatever it would still answer, nobody listens
                self.pgconn.finish()
            raise


class Silence:
    """Whether the server did not answer lately; shared by the threads of one engine."""

    def __init__(self) -> None:
        self._until = 0.0

    def connect(self, *arguments: Any, **options: Any) -> Connection:
        """A new connection; OperationalError at once while another thread tries a server that did not answer."""
        if time.monotonic() < self._until:
            raise psycopg.OperationalError("The server did not answer a moment ago.")
        if self._until:
            self._until = time.monotonic() + PROBE_S  # this one tries; the others need not wait with it
        try:
            connection = Connection.connect(*arguments, **options)
        except psycopg.errors.ConnectionTimeout:
            self._until = time.monotonic() + PROBE_S
            raise
        self._until = 0.0
        return connection


def make_engine(url: str, timeout_s: float) -> Engine:
    """An engine whose statements end after `timeout_s`, whatever the server does."""
    engine = create_engine(
        url,
        pool_size=10,
        max_overflow=20,
        pool_timeout=3,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_S,
            "options": (
                f"-c statement_timeout={int(timeout_s * 1000)} -c lock_timeout=2000"
                " -c idle_in_transaction_session_timeout=30000 -c timezone=UTC"
            ),
        },
    )
    silence = Silence()

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Connection:
        return silence.connect(*arguments, **options)

    # The pool asks a connection whether it lives before it hands it over.
    @event.listens_for(engine, "checkin")
    def returned(connection: Connection | None, _record: Any) -> None:
        if connection is not None:
            connection.patience_s = PING_S

    @event.listens_for(engine, "checkout")
    def handed_over(connection: Connection, _record: Any, _fairy: Any) -> None:
        connection.patience_s = timeout_s + GRACE_S

    return engine
