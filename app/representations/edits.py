"""Edits by hand as the API and the pages show them."""

from __future__ import annotations

from collections.abc import Sequence

from app.schemas.edits import HandEdit
from app.serving import edits
from app.store import tables

LISTED = 100_000
"""Runs in an answer."""


def describe(row: tables.PredictionEdit, shape: Sequence[int]) -> HandEdit:
    """An edit of a stored prediction of this shape."""
    here = f"/v1/predictions/{row.prediction_id}"
    return HandEdit.of(
        row,
        adds=row.kind in edits.ADDING,
        runs=edits.in_lines(row.runs, shape, LISTED),
        links={"self": f"{here}/edits/{row.id}", "prediction": here, "mask": f"{here}/edits/mask"},
    )
