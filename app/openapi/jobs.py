"""What the OpenAPI document says about jobs: specs to send, streams, logs and tables."""

from __future__ import annotations

from app.errors import (
    Conflict,
    IdempotencyConflict,
    IdempotencyInProgress,
    NotAcceptable,
    NotFound,
    Problem,
    may_answer,
)
from app.job_kinds import KINDS
from app.openapi.bodies import TEXT, Content, Responses, example_of, files
from app.openapi.examples import COMPARISON as COMPARED, JOB, shown
from app.schemas.comparison_answers import Comparison


def _told(said: str, content: Content, *problems: type[Problem]) -> Responses:
    return {200: {"description": said, "content": content}} | may_answer(NotFound, *problems)


SPECS = {kind.name: {"value": example_of(kind.spec)} for kind in KINDS.values()}
SUBMITTED = shown(202, JOB) | may_answer(IdempotencyConflict, IdempotencyInProgress)
STREAM = _told(
    "Server-sent events; `id` is the number of the event.",
    {
        "text/event-stream": {
            "example": (
                'retry: 2000\n\nid: 1\nevent: state\ndata: {"state":"queued"}\n\nid: 2\nevent: progress\ndata:'
                ' {"step":120,"steps":4000,"eta_s":310.5}\n\n'
            )
        }
    },
)
_LINES = "2026-01-05T10:00:00Z [state] queued\n2026-01-05T10:00:01Z [state] running (worker gpu-1)\n"
LOG = _told("One line for each event.", {"text/plain": {"example": _LINES}})
CSV, ZIP = "text/csv", "application/zip"
_ROWS = {"schema": TEXT, "example": "image,name,prediction,model,threshold,class,beta0,...\r\n"}
TABLE = _told("A row for each image and class.", {CSV: _ROWS}, Conflict)
COMPARISON: Responses = {
    200: {
        "model": Comparison,
        "description": "A row for each candidate.",
        "content": {
            "application/json": {"example": COMPARED},
            CSV: {"schema": TEXT, "example": "candidate,baseline,trainings,measured,...\r\n"},
        },
    },
    **may_answer(NotFound, NotAcceptable),
}
ARCHIVE = _told("`results.csv` and every mask it names, as `masks/<image>.png` or `.nii.gz`.", files(ZIP), Conflict)
