"""The pages of jobs: the list, and one job as it happens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Form, Request
from fastapi.responses import Response
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app import queue
from app.admission import jobs as admission
from app.comparison.table import compared
from app.http.callers import Caller, require
from app.http.finding import Wanted, finding
from app.http.paging import Page, Together
from app.http.resources import Read, Write
from app.job_kinds import KINDS, JobKind
from app.metric_table import METRICS
from app.pages import charts, predictions, strips
from app.pages.rendering import Facts, new_router, next_page, page, see, uuid_of
from app.pages.words import TOPOLOGY, loss_sentence, network_sentence
from app.representations.jobs import describe, describe_all
from app.representations.models import describe_version
from app.schemas.comparison_answers import Comparison
from app.store import children, measurements, tables
from app.store.finding import JOBS
from app.store.tables import FINISHED, Checkpoint, JobEvent, ModelVersion

router = new_router()

MOST_PROGRESS = 600
"""Progress events that a curve is drawn from; of a longer story every n-th is read."""
LOG_LINES = 60
LAST_WORDS = 5
"""Lines of the log that a failed job shows beside its reason."""
OVERLAP = ("dice", "iou", "cldice")


@page(router, "/jobs", "jobs.html", "jobs:read")
def jobs(
    request: Request, caller: Caller, session: Read, listed: Page, wanted: Annotated[Wanted, finding(JOBS, form=True)]
) -> Facts:
    """The jobs of the project, newest first or as wanted."""
    mine = children.listed(caller.project_id, wanted.values.get("parent"))
    listing = listed.found(session, mine, wanted, Together(lambda rows: describe_all(session, rows)))
    return {
        "jobs": listing.items,
        "found": wanted.form(),
        "page": {"next": next_page(request, listing.next_cursor)},
    }


def _dressed(facts: Facts) -> Facts:
    """The charts of a job: loss with its terms, overlap, topology errors."""
    curves, job = facts["curves"], facts["job"]
    if KINDS[job["kind"]].makes != "model":
        return {"charts": []}
    end = job["progress"]["steps"]
    best = {"best": facts["best_step"]} if facts["best_step"] is not None else {}
    named = {METRICS[name].label: points for name, points in curves["metrics"].items() if name in OVERLAP}
    wrong = {METRICS[name].label: points for name, points in curves["metrics"].items() if name in TOPOLOGY}
    drawn = [
        charts.draw("Training loss", "", curves["loss"], end=end),
        charts.draw("Pull of each term", "norm of its gradient", curves["norm"], end=end, log=True),
        charts.draw("Direction of each term", "cosine with the pull of the others, -1 to 1", curves["cosine"], end=end),
        charts.draw("Validation: overlap", "0 to 1", named, end=end, marks=best),
        charts.draw("Validation: topology errors", "per image", wrong, end=end, marks=best),
    ]
    # While it runs an empty chart says what will come; afterwards it says nothing.
    return {"charts": [chart for chart in drawn if chart.lines or not facts["finished"]]}


@page(router, "/jobs/{job_id}", "job.html", "jobs:read", dressed=_dressed)
def job(job_id: str, caller: Caller, session: Read) -> Facts:
    """One job: progress, curves, log, what it made and what may be done with it."""
    row = queue.get(session, caller.project_id, uuid_of(job_id))
    shown, kind = describe(session, row), KINDS[row.kind]
    validations, log = validations_of(session, row), _log(session, row)
    made = session.scalar(select(ModelVersion).where(ModelVersion.job_id == row.id))
    checkpoint = session.scalar(
        select(Checkpoint).where(Checkpoint.job_id == row.id).order_by(Checkpoint.step.desc()).limit(1)
    )
    return {
        "job": shown,
        "finished": row.state in FINISHED,
        "last_event": row.events,
        "stopped": {"cancelled": kind.cancelled, "resumes_from": _resumes_from(kind, checkpoint)},
        "may": _may(row),
        "curves": {
            "loss": loss_curves(session, row),
            "metrics": metric_curves(validations),
            **_pull_curves(session, row),
        },
        "validations": validations[::-1],
        "validation_metrics": [name for name in METRICS if any(name in each["metrics"] for each in validations)],
        "best_metric": row.spec.get("best_metric"),
        "best_step": next((each["step"] for each in reversed(validations) if each["best"]), None),
        "log": log,
        "last_words": log[-LAST_WORDS:] if row.state == "failed" else [],
        "checkpoint": (
            {"step": checkpoint.step, "bytes": checkpoint.bytes, "created_at": checkpoint.created_at}
            if checkpoint
            else None
        ),
        "model": describe_version(session, made) if made else None,
        **_measured(session, row),
        "table": (table := _comparison(session, row)),
        "strips": None if table is None else strips.draw({each.name: each.by_image for each in table.candidates}),
        "predictions": predictions.cards(session, caller.project_id, tables.Prediction.job_id == row.id, limit=12),
        "spec_facts": _spec_facts(row),
    }


@router.post("/jobs/{job_id}/cancel", dependencies=[require("jobs:write")])
def cancel(job_id: str, caller: Caller, session: Write, keep: Annotated[str, Form()] = "") -> Response:
    """The cancel and the stop-and-keep button."""
    admission.cancel(session, caller, uuid_of(job_id), keep=keep == "yes")
    return see(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/resume", dependencies=[require("jobs:write")])
def resume(job_id: str, caller: Caller, session: Write) -> Response:
    """The resume button."""
    admission.resume(session, caller, uuid_of(job_id))
    return see(f"/jobs/{job_id}")


def _resumes_from(kind: JobKind, checkpoint: Checkpoint | None) -> str:
    if not kind.can_be_kept:
        return kind.resumes_from
    return f"step {checkpoint.step}" if checkpoint else "its beginning, because there was no checkpoint yet"


def _may(job: tables.Job) -> dict[str, bool]:
    stoppable = job.state in ("waiting", "queued", "running")
    rows_missing = KINDS[job.kind].makes == "comparison" and bool((job.result or {}).get("failed"))
    return {
        "stop": stoppable,
        "keep": stoppable and KINDS[job.kind].can_be_kept,
        "resume": job.state in ("cancelled", "interrupted", "failed") or rows_missing,
    }


def _progress(session: Session, job: tables.Job) -> Select[Any]:
    """What the progress events of a job say, of a long story every n-th."""
    of_job = (JobEvent.job_id == job.id, JobEvent.event == "progress")
    count = session.scalar(select(func.count()).select_from(JobEvent).where(*of_job)) or 0
    nth = max(1, math.ceil(count / MOST_PROGRESS))
    return (
        select(JobEvent.data)
        .where(*of_job, (JobEvent.number % nth == 0) | (JobEvent.number > job.events - nth))
        .order_by(JobEvent.number)
    )


def loss_curves(session: Session, job: tables.Job) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of the loss and of each term, at most a few hundred points each."""
    if KINDS[job.kind].makes != "model":
        return {}
    by_step: dict[str, dict[float, float]] = {"loss": {}}
    for data in session.scalars(_progress(session, job)):
        for name, value in [("loss", data.get("loss")), *(data.get("terms") or {}).items()]:
            if isinstance(value, (int, float)) and data.get("step") is not None:
                # A resumed job repeats steps; the later word counts.
                by_step.setdefault(name, {})[data["step"]] = value
    curves = {name: charts.thin(sorted(points.items())) for name, points in by_step.items() if points}
    return {"loss": curves["loss"]} if len(curves) == 2 else curves


def _pull_curves(session: Session, job: tables.Job) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """(step, value) of the norm of each term's gradient, and of its cosine; nothing where a loss has one term."""
    pulls: dict[str, dict[str, dict[float, float]]] = {"norm": {}, "cosine": {}}
    if KINDS[job.kind].makes == "model":
        for data in session.scalars(_progress(session, job)):
            terms = data.get("gradients") or {}
            for name, facts in terms.items() if len(terms) > 1 and data.get("step") is not None else ():
                for what, by_term in pulls.items():
                    if isinstance(facts.get(what), (int, float)):
                        by_term.setdefault(name, {})[data["step"]] = facts[what]
    return {
        what: {name: charts.thin(sorted(points.items())) for name, points in by_term.items()}
        for what, by_term in pulls.items()
    }


def validations_of(session: Session, job: tables.Job) -> list[dict[str, Any]]:
    """The validations of a training in the order of their steps."""
    query = select(JobEvent.data).where(JobEvent.job_id == job.id, JobEvent.event == "metric").order_by(JobEvent.number)
    by_step = {
        data["step"]: data for data in session.scalars(query) if data.get("step") is not None and data.get("metrics")
    }
    return [
        {"step": step, "metrics": data["metrics"], "best": bool(data.get("best"))}
        for step, data in sorted(by_step.items())
    ]


def metric_curves(validations: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of each metric that was measured."""
    names = {name for each in validations for name in each["metrics"]}
    return {
        name: [(v["step"], v["metrics"][name]) for v in validations if v["metrics"].get(name) is not None]
        for name in METRICS
        if name in names
    }


def _log(session: Session, job: tables.Job) -> list[dict[str, Any]]:
    """The newest lines, oldest of them first."""
    query = (
        select(JobEvent)
        .where(JobEvent.job_id == job.id, JobEvent.event.in_(("log", "state", "checkpoint")))
        .order_by(JobEvent.number.desc())
        .limit(LOG_LINES)
    )
    return [
        {"number": row.number, "at": row.created_at, **_log_line(row)} for row in reversed(session.scalars(query).all())
    ]


def _log_line(row: JobEvent) -> dict[str, str]:
    data = row.data
    if row.event == "state":
        because = data.get("reason") or data.get("detail")
        return {
            "level": "error" if data.get("state") == "failed" else "info",
            "message": str(data.get("state")) + (f": {because}" if because else ""),
        }
    if row.event == "checkpoint":
        return {"level": "info", "message": f"checkpoint at step {data.get('step')}"}
    return {"level": str(data.get("level", "info")), "message": str(data.get("message", ""))}


def _measured(session: Session, job: tables.Job) -> Facts:
    """What an evaluation found."""
    if KINDS[job.kind].makes != "measurements" or job.state != "succeeded":
        return {"means": {}, "measured": 0, "comparison": None}
    model = job.spec.get("model")
    return {
        "means": measurements.means(session, job),
        "measured": measurements.measured_items(session, job),
        "comparison": f"/compare?b={model}" if model else None,
    }


def _comparison(session: Session, job: tables.Job) -> Comparison | None:
    """The table of a comparison, or of the one by which a training chose its loss."""
    if KINDS[job.kind].makes == "comparison":
        return compared(session, job)
    own = (each for each in children.of(session, job) if KINDS[each.kind].makes == "comparison")
    return next((compared(session, each) for each in own), None)


def _spec_facts(job: tables.Job) -> list[tuple[str, dict[str, Any]]]:
    """The fields of the spec in the words of the page, the important first."""
    spec, facts = job.spec, []

    def add(name: str, text: Any, href: str | None = None) -> None:
        if text is not None:
            facts.append((name, {"text": str(text), "href": href}))

    dataset, _, number = str(spec.get("dataset") or "").partition("@")
    add("Dataset", spec.get("dataset"), f"/datasets/{dataset}/versions/{number}" if number else None)
    model, _, version = str(spec.get("model") or "").partition(":")
    add("Model", spec.get("model"), f"/models/{model}/versions/{version}" if version else None)
    if KINDS[job.kind].makes == "model":
        add("Loss", loss_sentence(spec.get("loss")))
        network = spec.get("network") or {}
        add("Network", network_sentence(network))
        add("Patch", f"{' × '.join(map(str, spec.get('patch', [])))} px, {spec.get('batch')} per step")
        optimizer = spec.get("optimizer") or {}
        add("Optimizer", f"{optimizer.get('name')}, rate {optimizer.get('lr')}, {spec.get('schedule')}")
        add("Seed", spec.get("seed"))
        add("Starts from", spec.get("start_from"))
    elif spec.get("images"):
        add("Images", len(spec["images"]))
    if KINDS[job.kind].makes == "comparison":
        add("Losses", ", ".join(each["name"] for each in spec.get("losses", [])))
        add("Seeds", ", ".join(map(str, spec.get("seeds", []))))
    if job.parent_id is not None:
        add("Part of", "a comparison", f"/jobs/{job.parent_id}")
    add("Threshold", spec.get("threshold"))
    add("Submitted by", job.submitted_by)
    return facts
