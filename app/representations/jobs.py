"""Jobs as the API and the pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.orm import Session

from app import queue
from app.job_kinds import KINDS
from app.schemas.job_status import Job, JobError, Progress
from app.store import children, rows, tables

RESOLVED = (
    "dataset_version_id",
    "model_version_id",
    "start_from_version_id",
    "shifted_version_id",
    "second_observer_version_id",
    "start_from_job_id",
    "stage",
    "trial",
)
"""What admission adds to a spec; shown as links, so that a spec that is shown can be sent again."""


def describe(session: Session, job: tables.Job) -> Job:
    """The job as the API and the pages show it."""
    return _described(session, job, queue.position(session, job))


def describe_all(session: Session, jobs: Sequence[tables.Job]) -> list[Job]:
    """The jobs of a page; their places in the queue and their datasets are read once for all of them."""
    places = queue.positions(session, jobs)
    ids = [UUID(job.spec["dataset_version_id"]) for job in jobs if job.spec.get("dataset_version_id")]
    with (
        rows.held(session, (tables.DatasetVersion, ids)) as (versions,),
        rows.held(session, (tables.Dataset, [each.dataset_id for each in versions])),
    ):
        return [_described(session, job, places.get(job.id)) for job in jobs]


def _described(session: Session, job: tables.Job, place: int | None) -> Job:
    progress = {"eta_s": queue.eta_s(session, job, place), "queue_position": place}
    if job.state == "waiting" and job.after_id is None:
        progress |= children.progress(session, job)
    return Job.of(
        job,
        title=KINDS[job.kind].title_of(job.spec),
        parent=job.parent_id,
        progress=Progress.of(job, **progress),
        error=JobError(**job.error) if job.error else None,
        spec={name: value for name, value in job.spec.items() if name not in RESOLVED},
        links=_links(session, job),
    )


def _links(session: Session, job: tables.Job) -> dict[str, str]:
    links = {"self": f"/v1/jobs/{job.id}"}
    links |= {name: f"/v1/jobs/{job.id}/{name}" for name in ("events", "log")}
    if job.parent_id is not None:
        links["parent"] = f"/v1/jobs/{job.parent_id}"
    if KINDS[job.kind].makes == "comparison":
        links |= {"jobs": f"/v1/jobs?parent={job.id}"} | dict.fromkeys(
            ("comparison", "table"), f"/v1/jobs/{job.id}/comparison"
        )
    if job.spec.get("dataset"):
        ref = _dataset_now(session, job) or job.spec["dataset"]
        name, _, number = ref.partition("@")
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
        if KINDS[job.kind].makes == "model" and job.result and "version" in job.result
        else job.spec.get("model", "")
    )
    name, colon, number = made_or_used.partition(":")
    if colon:
        links["model"] = f"/v1/models/{name}/versions/{number}"
    return links


def _dataset_now(session: Session, job: tables.Job) -> str | None:
    """What the dataset version of a job is called now; None when it was deleted or its id was not written."""
    version_id = job.spec.get("dataset_version_id")
    version = session.get(tables.DatasetVersion, UUID(version_id)) if version_id else None
    return f"{session.get_one(tables.Dataset, version.dataset_id).name}@{version.number}" if version else None
