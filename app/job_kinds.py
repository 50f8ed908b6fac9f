"""The table of job kinds: spec, lane, title, result, and what stopping one leaves.

A new kind is a spec in `app/schemas/jobs.py`, a row here, a function in `app/admission/jobs.py` that accepts it, a
module `workers/<kind>.py` with a function of that name, and a migration that lets the table `jobs` hold it. The API's
union of specs, the lanes, the constraint of the table, titles on pages and docs/reference/jobs.md follow from the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from app.schemas.base import Schema
from app.schemas.comparisons import CompareSpec
from app.schemas.jobs import AnalyseSpec, DicomwebSpec, EvaluateSpec, PredictSpec, ProbeSpec, TrainSpec


@dataclass(frozen=True)
class JobKind:
    """One kind of job.

    lane          the queue that it waits in: a short job never waits behind a training
    spec          what is asked, as it crosses the wire; its `kind` is this name
    title         of a job, with fields of its spec in braces; {data} is its dataset or how many images it has
    makes         what a job of this kind adds to the project
    result        what `result` of a succeeded job holds
    cancelled     what becomes of the work when it is cancelled
    resumes_from  where a job that was stopped or failed goes on
    """

    name: str
    lane: Literal["train", "quick"]
    spec: type[Schema]
    title: str
    makes: Literal["model", "measurements", "predictions", "comparison", "segmentations"]
    result: str
    cancelled: str
    resumes_from: str

    @property
    def can_be_kept(self) -> bool:
        """Stopping it with `keep` writes a checkpoint first; the other kinds lose one image at most anyway."""
        return CHECKPOINT in self.resumes_from

    def title_of(self, spec: Mapping[str, Any]) -> str:
        """The title of a job with this spec, in words; a training of a comparison is called by its candidate."""
        if (trial := spec.get("trial")) is not None:
            named = {"model": trial["candidate"] or "the shared start"}
            spec = {**spec, **named, "dataset": f"{spec['dataset']}, fold {spec['fold']}, seed {spec['seed']}"}
        return self.title.format_map(_Fields({**spec, "data": spec.get("dataset") or _count(spec.get("images"))}))


CHECKPOINT = "its last checkpoint"

KINDS = {
    kind.name: kind
    for kind in (
        JobKind(
            "train",
            lane="train",
            spec=TrainSpec,
            title="Train {model} on {dataset}",
            makes="model",
            result="{model, version, metrics}, with recipe auto also {recipe}",
            cancelled="No model version was made; its last checkpoint stays.",
            resumes_from=CHECKPOINT,
        ),
        JobKind(
            "evaluate",
            lane="quick",
            spec=EvaluateSpec,
            title="Evaluate {model} on {dataset}",
            makes="measurements",
            result="{means, items}",
            cancelled="What it had measured stays.",
            resumes_from="the first image that it has not measured",
        ),
        JobKind(
            "predict",
            lane="quick",
            spec=PredictSpec,
            title="Predict with {model} on {data}",
            makes="predictions",
            result="{items, failed}, of a single image also {prediction}",
            cancelled="The predictions it had made stay; the table lists them.",
            resumes_from="the first image without a prediction",
        ),
        JobKind(
            "analyse",
            lane="quick",
            spec=AnalyseSpec,
            title="Analyse {data}",
            makes="measurements",
            result="{items, failed, reports}",
            cancelled="Its reports were dropped.",
            resumes_from="its beginning",
        ),
        JobKind(
            "compare",
            lane="quick",
            spec=CompareSpec,
            title="Compare losses on {dataset}",
            makes="comparison",
            result="{verdict, baseline, winner, helps, trainings, failed, images}",
            cancelled="Its trainings were cancelled, too; what they had measured stays.",
            resumes_from=f"the trainings that have not succeeded, each from {CHECKPOINT}",
        ),
        JobKind(
            "dicomweb",
            lane="quick",
            spec=DicomwebSpec,
            title="Segment series of the PACS {pacs} with {model}",
            makes="segmentations",
            result="{items, stored, failed}: the UIDs of segmentations in the PACS, by series",
            cancelled="The segmentations it had stored stay in the PACS.",
            resumes_from="the first series whose segmentation the PACS does not hold",
        ),
        JobKind(
            "probe",
            lane="train",
            spec=ProbeSpec,
            title="Probe loss terms on {dataset}",
            makes="measurements",
            result="{batches, pixel_norm, terms}",
            cancelled="Its figures were dropped.",
            resumes_from="its beginning",
        ),
    )
}

LANES = tuple(dict.fromkeys(kind.lane for kind in KINDS.values()))

if TYPE_CHECKING:  # a type checker cannot follow types that a table makes
    Kind = str
    JobSpec = Any
else:
    Kind = Literal[tuple(KINDS)]
    JobSpec = Annotated[reduce(or_, (kind.spec for kind in KINDS.values())), Field(discriminator="kind")]


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return f"a {name}"


def _count(images: list[Any] | None) -> str:
    count = len(images or [])
    return "1 image" if count == 1 else f"{count} images"
