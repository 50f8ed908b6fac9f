"""Rules that make jobs of new series, as the API and the pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.schemas.dicomweb_rules import DicomwebRule, FoundSeries, PollError, SeriesMatch
from app.store import dicomweb_rules as store, tables


def describe(session: Session, row: tables.DicomwebRule) -> DicomwebRule:
    """One rule."""
    return describe_all(session, [row])[0]


def describe_all(session: Session, rules: Sequence[tables.DicomwebRule]) -> list[DicomwebRule]:
    """The rules of a page; their series are counted once for all of them."""
    counts = store.counted(session, [row.id for row in rules])
    return [
        DicomwebRule.of(
            row,
            **row.options,
            match=SeriesMatch(**row.match),
            last_error=PollError(**row.last_error) if row.last_error else None,
            next_poll_at=datetime.fromtimestamp(row.next_poll_at, UTC) if row.enabled and row.next_poll_at else None,
            series=FoundSeries(**counts[row.id]),
            links={
                "self": f"/v1/dicomweb/rules/{row.id}",
                "series": f"/v1/dicomweb/rules/{row.id}/series",
            },
        )
        for row in rules
    ]
