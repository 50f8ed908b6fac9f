"""A question to a model, and what becomes of it when the caller does not wait for the answer: `Prefer: respond-async`
(RFC 7240).

The image is stored and a predict job of this one image is queued; the finished job links the stored prediction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Response

from app import queue
from app.admission.jobs import admit
from app.errors import Invalid
from app.http.idempotency import Attempt
from app.http.uploads import Upload
from app.roles import Principal
from app.routes import images
from app.routes.jobs import describe
from app.schemas import examples
from app.schemas.jobs import PredictSpec
from app.schemas.predictions import PredictOptions
from app.services import Services
from app.serving import expectations
from app.serving.pipeline import fit
from app.serving.registry import read_manifest
from app.store import audit, images as stored_images

Prefer = Annotated[
    list[str] | None,
    Header(
        description=(
            "`respond-async`: do not wait; the answer is 202 with the Location of a job. Other preferences are left"
            " aside."
        ),
        examples=[["respond-async"]],
    ),
]
RESPOND_ASYNC = re.compile(r"(?:^|,)\s*respond-async\s*(?:$|[,;])", re.IGNORECASE)
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_HERE = f"/v1/jobs/{examples.ID}"
JOB: dict[str, Any] = examples.JOB | {
    "kind": "predict",
    "state": "queued",
    "started_at": None,
    "attempt": 0,
    "progress": {
        "phase": None,
        "fraction": 0.0,
        "step": None,
        "steps": None,
        "epoch": None,
        "seconds_per_step": None,
        "eta_s": 4.2,
        "queue_position": 1,
    },
    "spec": PredictSpec(kind="predict", model="vessels:3", images=[examples.ID]).model_dump(mode="json"),
    "links": {
        "self": _HERE,
        "events": f"{_HERE}/events",
        "log": f"{_HERE}/log",
        "predictions": f"/v1/predictions?job={examples.ID}",
        "table": f"{_HERE}/results.csv",
        "masks": f"{_HERE}/results.zip",
        "model": "/v1/models/vessels/versions/3",
    },
}


@dataclass(frozen=True)
class Question:
    """One request to predict, once its bytes are here."""

    services: Services
    caller: Principal
    ref: str
    options: PredictOptions
    accept: str | None
    upload: Upload
    attempt: Attempt


def is_wanted(prefer: list[str] | None) -> bool:
    """Whether one of the Prefer headers says respond-async; what a preference quotes is not one."""
    return any(RESPOND_ASYNC.search(QUOTED.sub("", each)) for each in prefer or ())


def fits_together(options: PredictOptions, *, later: bool = False) -> None:
    """Refuse options that would change nothing, or two that contradict each other."""
    everything = (
        "What is predicted later is stored with every artifact and read from there, so {} decides nothing. Leave it"
        " out."
    )
    refusals = (
        (
            "variant",
            options.variant is not None and (options.store or later),
            (
                "A stored prediction names the version that made it, and that means the full network. Leave variant or"
                " store out."
            ),
        ),
        (
            "strict",
            options.strict and not options.expect,
            "strict insists on what `expect` says. Send `expect`, or leave strict out.",
        ),
        (
            "repair_margin",
            options.repair_margin is not None and not options.repair,
            "repair_margin says how `repair` decides. Send repair=true, or leave repair_margin out.",
        ),
        (
            "repair_margin",
            options.repair_margin is not None and bool(options.expect),
            (
                "With `expect` the mask is repaired until it is as expected, and repair_margin decides nothing. Leave"
                " one of them out."
            ),
        ),
        (
            "skeleton",
            options.skeleton and options.artifact not in (None, "skeleton"),
            f"skeleton=true asks for another picture than artifact={options.artifact}. Leave one of them out.",
        ),
        ("artifact", later and options.artifact is not None, everything.format("artifact")),
        ("skeleton", later and options.skeleton, everything.format("skeleton")),
    )
    for name, wrong, sentence in refusals:
        if wrong:
            raise Invalid(sentence, errors=[{"pointer": f"/query/{name}", "detail": sentence}])


def put(question: Question, request_id: str | None) -> Response:
    """Store the image, queue its job, and say where to watch it. What can be refused now is refused now."""
    services, caller, options, upload = question.services, question.caller, question.options, question.upload
    model, version = services.names.resolve(caller.project_id, question.ref)
    with services.database.read() as session:
        question.attempt.look(session, upload.sha256)
    manifest = read_manifest(version)
    fits_together(options, later=True)
    if options.expect:
        expectations.read(options.expect, manifest.classes, manifest.dimensions)
    picture = images.decoded(upload, services)
    fit(picture.pixels, manifest)
    upload.file.seek(0)
    services.blobs.put(caller.project_id, iter(lambda: upload.file.read(1 << 20), b""))
    with services.database.write() as session:
        question.attempt.claim(session, upload.sha256)
        image, _ = stored_images.add(
            session, caller.project_id, upload.sha256, **images.facts_of(picture, upload, upload.name)
        )
        spec = PredictSpec(
            kind="predict",
            model=f"{model.name}:{version.number}",
            images=[image.id],
            threshold=options.threshold,
            topology=options.topology is not False,
            margins=options.margins,
            expect=options.expect,
            strict=options.strict,
            repair=options.repair,
            repair_margin=options.repair_margin,
        )
        kept = admit(session, caller.project_id, spec, services.settings)
        job = queue.put(
            session,
            project_id=caller.project_id,
            kind="predict",
            spec=kept,
            submitted_by=caller.who,
            request_id=request_id,
        )
        audit.note(session, project_id=caller.project_id, who=caller.who, what="job.submit", object=job.id)
        headers = {
            "Location": f"/v1/jobs/{job.id}",
            "Retry-After": "1",
            "Preference-Applied": "respond-async",
            "Vary": "Prefer",
        }
        response = Response(describe(session, job).model_dump_json(), 202, headers, "application/json")
        question.attempt.remember(response)
    return response
