"""Jobs: submit, watch, stop, resume. The row is the queue; nothing here waits for a worker.

The event stream polls the rows, so it survives a restart of the gateway, of the worker and of the broker: the client
comes back with `Last-Event-ID` and hears what it missed.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated
from uuid import UUID

import anyio
from fastapi import Body, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app import queue
from app.admission.jobs import admit
from app.errors import (
    Conflict,
    IdempotencyConflict,
    IdempotencyInProgress,
    Invalid,
    InvalidCursor,
    NotFound,
    may_answer,
)
from app.http.callers import Caller, require
from app.http.endpoints import noun_router
from app.http.idempotency import once
from app.http.paging import Listing, Page
from app.http.resources import Read, ServicesDep, SettingsDep, Write
from app.job_kinds import KINDS, JobSpec, Kind
from app.schemas.examples import JOB, listed, shown
from app.schemas.job_status import Cancel, Job, JobError, Progress, State
from app.services import Services
from app.store import audit, tables
from app.store.tables import FINISHED, JobEvent

router = noun_router("jobs")

RETRY_MS = 2000
"""Time after which a browser opens a broken stream again."""
RESOLVED = ("dataset_version_id", "model_version_id", "start_from_version_id")
"""What admission adds to a spec; shown as links, so that a spec that is shown can be sent again."""

SPECS = {kind.name: {"value": kind.spec.model_config["json_schema_extra"]["examples"][0]} for kind in KINDS.values()}
STREAM = {
    "description": "Server-sent events; `id` is the number of the event.",
    "content": {
        "text/event-stream": {
            "example": (
                'retry: 2000\n\nid: 1\nevent: state\ndata: {"state":"queued"}\n\nid: 2\nevent: progress\ndata:'
                ' {"step":120,"steps":4000,"eta_s":310.5}\n\n'
            )
        }
    },
}
LOG = {
    "description": "One line for each event.",
    "content": {
        "text/plain": {
            "example": "2026-01-05T10:00:00Z [state] queued\n2026-01-05T10:00:01Z [state] running (worker gpu-1)\n"
        }
    },
}

Number = Annotated[int, Query(ge=0, le=2**31 - 1)]


@router.post(
    "/jobs",
    status_code=202,
    dependencies=[require("jobs:write"), once],
    responses=shown(202, JOB) | may_answer(Invalid, IdempotencyConflict, IdempotencyInProgress),
)
def submit(
    spec: Annotated[JobSpec, Body(openapi_examples=SPECS)],
    request: Request,
    response: Response,
    caller: Caller,
    session: Write,
    settings: SettingsDep,
) -> Job:
    """Queue a training, evaluation, prediction or analysis and say where to watch it."""
    kept = admit(session, caller.project_id, spec, settings)
    job = queue.put(
        session,
        project_id=caller.project_id,
        kind=spec.kind,
        spec=kept,
        submitted_by=caller.who,
        request_id=request.scope.get("request_id"),
    )
    audit.note(session, project_id=caller.project_id, who=caller.who, what="job.submit", object=job.id)
    response.headers.update({"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"})
    return describe(session, job)


@router.get("/jobs", dependencies=[require("jobs:read")], responses=listed(JOB) | may_answer(InvalidCursor, Invalid))
def list_jobs(
    caller: Caller, session: Read, page: Page, state: State | None = None, kind: Kind | None = None
) -> Listing[Job]:
    """The jobs of this project, newest first."""
    query = select(tables.Job).where(tables.Job.project_id == caller.project_id)
    for column, value in ((tables.Job.state, state), (tables.Job.kind, kind)):
        query = query if value is None else query.where(column == value)
    return page.listing(session, query, tables.Job.id, lambda job: describe(session, job))


@router.get("/jobs/{job_id}", dependencies=[require("jobs:read")], responses=shown(200, JOB) | may_answer(NotFound))
def get_job(job_id: UUID, caller: Caller, session: Read, response: Response) -> Job:
    """A job as it stands; while it is not finished, Retry-After says when to look again."""
    job = queue.get(session, caller.project_id, job_id)
    if job.state not in FINISHED:
        response.headers["Retry-After"] = "1"
    return describe(session, job)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    dependencies=[require("jobs:write")],
    responses=shown(202, JOB) | may_answer(NotFound, Conflict, Invalid),
)
def cancel(job_id: UUID, caller: Caller, session: Write, body: Cancel | None = None) -> Job:
    """Stop a job: at once when it waits, within seconds when it runs.

    A finished one answers 409, a stopped one itself.
    """
    job = queue.request_cancel(
        session, queue.get(session, caller.project_id, job_id), keep=body.keep if body else False
    )
    audit.note(session, project_id=caller.project_id, who=caller.who, what="job.cancel", object=job.id)
    return describe(session, job)


@router.post(
    "/jobs/{job_id}/resume",
    status_code=202,
    dependencies=[require("jobs:write")],
    responses=shown(202, JOB) | may_answer(NotFound, Conflict),
)
def resume(job_id: UUID, caller: Caller, session: Write) -> Job:
    """Queue a stopped or failed job again; it goes on from its last checkpoint."""
    job = queue.request_resume(session, queue.get(session, caller.project_id, job_id))
    audit.note(session, project_id=caller.project_id, who=caller.who, what="job.resume", object=job.id)
    return describe(session, job)


@router.get(
    "/jobs/{job_id}/events",
    dependencies=[require("jobs:read")],
    response_class=StreamingResponse,
    responses={200: STREAM} | may_answer(NotFound, Invalid),
)
def events(
    job_id: UUID,
    caller: Caller,
    session: Read,
    services: ServicesDep,
    after: Number = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**31 - 1, description="The last `id` that was seen; goes before `after`.")
    ] = None,
) -> StreamingResponse:
    """The story of a job as it happens: state, progress, metric, checkpoint, log. It ends after the job has."""
    job = queue.get(session, caller.project_id, job_id)
    story = stream(services, job.id, after if last_event_id is None else last_event_id)
    return StreamingResponse(
        story, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


@router.get(
    "/jobs/{job_id}/log",
    dependencies=[require("jobs:read")],
    response_class=StreamingResponse,
    responses={200: LOG} | may_answer(NotFound),
)
def log(job_id: UUID, caller: Caller, session: Read, services: ServicesDep) -> StreamingResponse:
    """What happened, as text: every event but the progress."""
    job = queue.get(session, caller.project_id, job_id)
    return StreamingResponse(
        log_lines(services, job.id), media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-store"}
    )


def describe(session: Session, job: tables.Job) -> Job:
    """The job as the API and the pages show it."""
    progress = Progress(
        phase=job.phase,
        fraction=job.fraction,
        step=job.step,
        steps=job.steps,
        epoch=job.epoch,
        seconds_per_step=job.seconds_per_step,
        eta_s=queue.eta_s(session, job),
        queue_position=queue.position(session, job),
    )
    return Job(
        id=job.id,
        kind=job.kind,
        state=job.state,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
        progress=progress,
        error=JobError(**job.error) if job.error else None,
        result=job.result,
        spec={name: value for name, value in job.spec.items() if name not in RESOLVED},
        links=_links(job),
    )


def _links(job: tables.Job) -> dict[str, str]:
    links = {"self": f"/v1/jobs/{job.id}"}
    links |= {name: f"/v1/jobs/{job.id}/{name}" for name in ("events", "log")}
    if job.spec.get("dataset"):
        name, _, number = job.spec["dataset"].partition("@")
        links["dataset"] = f"/v1/datasets/{name}/versions/{number}"
    if KINDS[job.kind].makes == "predictions":
        links |= {
            "predictions": f"/v1/predictions?job={job.id}",
            "table": f"/v1/jobs/{job.id}/results.csv",
            "masks": f"/v1/jobs/{job.id}/results.zip",
        }
        links |= (
            {"prediction": f"/v1/predictions/{job.result['prediction']}"}
            if job.result and "prediction" in job.result
            else {}
        )
    made_or_used = (
        f"{job.result['model']}:{job.result['version']}"
        if KINDS[job.kind].makes == "model" and job.result
        else job.spec.get("model", "")
    )
    name, colon, number = made_or_used.partition(":")
    if colon:
        links["model"] = f"/v1/models/{name}/versions/{number}"
    return links


async def stream(services: Services, job_id: UUID, after: int) -> AsyncIterator[str]:
    """The events after that number as SSE text, until the job has ended;
    a comment now and then while nothing happens.
    """
    yield f"retry: {RETRY_MS}\n\n"
    said = time.monotonic()
    while True:
        try:
            ended, rows = await run_in_threadpool(_look, services, job_id, after)
        except (OperationalError, PoolTimeout):
            return  # the client comes back with the last id it saw
        for row in rows:
            after, said = row.number, time.monotonic()
            yield _event(row)
        if (ended and not rows) or services.draining.is_set():
            return
        if time.monotonic() - said >= services.settings.events_heartbeat_s:
            said = time.monotonic()
            yield ": still here\n\n"
        if not rows:
            await anyio.sleep(min(services.settings.poll_s, services.settings.events_heartbeat_s))


def _look(services: Services, job_id: UUID, after: int) -> tuple[bool, Sequence[JobEvent]]:
    with services.database.read() as session:
        # The state first: an end that is seen here has its event below.
        state = session.scalar(select(tables.Job.state).where(tables.Job.id == job_id))
        return state is None or state in FINISHED, queue.events_after(session, job_id, after)


def _event(row: JobEvent) -> str:
    data = row.data | {"at": row.created_at.isoformat(), "attempt": row.attempt}
    return f"id: {row.number}\nevent: {row.event}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"


def log_lines(services: Services, job_id: UUID) -> Iterator[str]:
    """The story in lines, a few hundred events in memory at a time."""
    after = 0
    while True:
        with services.database.read() as session:
            rows = queue.events_after(session, job_id, after)
        yield from (_line(row) for row in rows if row.event != "progress")
        if not rows:
            return
        after = rows[-1].number


def _line(row: JobEvent) -> str:
    said = row.data.get("message") or row.data.get("state") or ""
    facts = {name: value for name, value in row.data.items() if name not in ("message", "state")}
    details = " ".join(f"{name}={json.dumps(value)}" for name, value in facts.items())
    # One event is one line, whatever a library printed.
    text = " ".join(f"{said} {details}".split())
    return f"{row.created_at:%Y-%m-%dT%H:%M:%SZ} [{row.event}] {text}\n"
