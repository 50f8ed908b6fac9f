"""Endpoints for jobs: submit, watch, cancel, resume.

The row is the queue; nothing here waits for a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Body, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from app import queue
from app.admission import jobs as admission
from app.comparison.table import compared
from app.errors import Conflict, InvalidCursor, NotFound, may_answer
from app.http.accept import negotiate
from app.http.callers import Caller, require
from app.http.downloads import disposition
from app.http.endpoints import Id, downloads, noun_router
from app.http.finding import Wanted, finding
from app.http.idempotency import once
from app.http.paging import Listing, Page, Together
from app.http.resources import Read, ServicesDep, SettingsDep, Write
from app.job_kinds import KINDS, JobSpec
from app.openapi import jobs as texts
from app.openapi.examples import JOB, listed, shown
from app.representations import events as events_of, results
from app.representations.jobs import describe, describe_all
from app.representations.watched_jobs import WatchedJobs
from app.schemas.job_status import Cancel, Job
from app.services import Services
from app.store import children, tables
from app.store.finding import JOBS
from app.store.tables import FINISHED

router = noun_router("jobs")


Number = Annotated[int, Query(ge=0, le=2**31 - 1)]


@router.post("/jobs", status_code=202, dependencies=[require("jobs:write"), once], responses=texts.SUBMITTED)
def submit(
    spec: Annotated[JobSpec, Body(openapi_examples=texts.SPECS)],
    request: Request,
    response: Response,
    caller: Caller,
    session: Write,
    settings: SettingsDep,
) -> Job:
    """Queue a training, evaluation, prediction, analysis or comparison and say where to watch it."""
    job = admission.submit(session, caller, spec, settings, request_id=request.scope.get("request_id"))
    response.headers.update({"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"})
    return describe(session, job)


@router.get("/jobs", dependencies=[require("jobs:read")], responses=listed(JOB) | may_answer(InvalidCursor))
def list_jobs(caller: Caller, session: Read, page: Page, wanted: Annotated[Wanted, finding(JOBS)]) -> Listing[Job]:
    """The jobs of this project, newest first or in another order, all or those that fit; those that belong to another
    job only where `parent` names it.
    """
    jobs = children.listed(caller.project_id, wanted.values.get("parent"))
    return page.found(session, jobs, wanted, Together(lambda rows: describe_all(session, rows)))


@router.get("/jobs/{job_id}", dependencies=[require("jobs:read")], responses=shown(200, JOB) | may_answer(NotFound))
def get_job(job_id: Id, caller: Caller, session: Read, response: Response) -> Job:
    """A job as it stands; while it is not finished, Retry-After says when to look again."""
    job = queue.get(session, caller.project_id, job_id)
    if job.state not in FINISHED:
        response.headers["Retry-After"] = "1"
    return describe(session, job)


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    dependencies=[require("jobs:write")],
    responses=shown(202, JOB) | may_answer(NotFound, Conflict),
)
def cancel(job_id: Id, caller: Caller, session: Write, body: Cancel | None = None) -> Job:
    """Stop a job: at once when it waits, within seconds when it runs.

    A finished one answers 409, a stopped one itself.
    """
    return describe(session, admission.cancel(session, caller, job_id, keep=body.keep if body else False))


@router.post(
    "/jobs/{job_id}/resume",
    status_code=202,
    dependencies=[require("jobs:write")],
    responses=shown(202, JOB) | may_answer(NotFound, Conflict),
)
def resume(job_id: Id, caller: Caller, session: Write) -> Job:
    """Queue a stopped or failed job again; it goes on from its last checkpoint."""
    return describe(session, admission.resume(session, caller, job_id))


@router.get("/jobs/{job_id}/events", **downloads("jobs:read", answers=texts.STREAM))
async def events(
    job_id: Id,
    request: Request,
    caller: Caller,
    services: ServicesDep,
    after: Number = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**31 - 1, description="The last `id` that was seen; goes before `after`.")
    ] = None,
) -> StreamingResponse:
    """The story of a job as it happens: state, progress, metric, checkpoint, log. It ends after the job has."""
    watched: WatchedJobs | None = getattr(request.app.state, "watched_jobs", None)
    if watched is None:
        watched = request.app.state.watched_jobs = WatchedJobs(services)
    if not watched.is_watched(job_id, caller.project_id):
        await run_sync(_require, services, caller.project_id, job_id, limiter=services.readers)
    story = watched.stream(job_id, caller.project_id, after if last_event_id is None else last_event_id)
    return StreamingResponse(
        story, media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )


def _require(services: Services, project_id: UUID, job_id: UUID) -> None:
    with services.database.read() as session:
        queue.get(session, project_id, job_id)


@router.get("/jobs/{job_id}/log", **downloads("jobs:read", answers=texts.LOG))
def log(job_id: Id, caller: Caller, session: Read, services: ServicesDep) -> StreamingResponse:
    """What happened, as text: every event but the progress."""
    job = queue.get(session, caller.project_id, job_id)
    return StreamingResponse(
        events_of.log_lines(services, job.id),
        media_type="text/plain; charset=utf-8",
        headers={"Cache-Control": "no-store"},
    )


@router.get("/jobs/{job_id}/comparison", **downloads("jobs:read", answers=texts.COMPARISON))
def comparison(job_id: Id, caller: Caller, session: Read, accept: Annotated[str | None, Header()] = None) -> Response:
    """What a comparison of losses says, also while it runs: a row for each candidate, with paired differences from the
    baseline, and a verdict in words; as JSON or, without the trainings and cases, as CSV.
    """
    job = queue.get(session, caller.project_id, job_id)
    if KINDS[job.kind].makes != "comparison":
        raise NotFound(f"A {job.kind} job compares nothing. Submit a job of the kind compare.")
    table = compared(session, job)
    if negotiate(accept, ("application/json", texts.CSV)) == texts.CSV:
        return _streamed(results.comparison(table), f"{texts.CSV}; charset=utf-8", f"comparison-{job.id}.csv")
    return Response(table.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/jobs/{job_id}/results.csv", **downloads("jobs:read", "images:read", answers=texts.TABLE))
def table(job_id: Id, caller: Caller, session: Read, services: ServicesDep) -> Response:
    """Every prediction of a finished predict job in one table: Betti numbers, lengths and counts of each class, and
    what could not be predicted and why.
    """
    job = _finished(queue.get(session, caller.project_id, job_id))
    return _streamed(results.table(services, job), f"{texts.CSV}; charset=utf-8", f"results-{job.id}.csv")


@router.get("/jobs/{job_id}/results.zip", **downloads("jobs:read", "images:read", answers=texts.ARCHIVE))
def archive(job_id: Id, caller: Caller, session: Read, services: ServicesDep) -> Response:
    """Every mask of a finished predict job, and the table that names them."""
    job = _finished(queue.get(session, caller.project_id, job_id))
    return _streamed(results.archive(services, job), texts.ZIP, f"results-{job.id}.zip")


def _streamed(content: Iterator[str] | Iterator[bytes], media_type: str, name: str) -> Response:
    headers = {"Content-Disposition": disposition(name), "Cache-Control": "no-store"}
    return StreamingResponse(content, media_type=media_type, headers=headers)


def _finished(job: tables.Job) -> tables.Job:
    if KINDS[job.kind].makes != "predictions":
        raise NotFound(f"A {job.kind} job has no masks and no table of predictions. Its figures are in `result`.")
    if job.state not in FINISHED:
        raise Conflict(
            f"Job {job.id} is {job.state}; a table that is not complete would be taken for one that is. Ask again when"
            " it has finished.",
            retry_after_s=1,
        )
    return job
