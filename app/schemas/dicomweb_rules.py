"""Rules for new series of a PACS, as the API takes and shows them."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Field

from app.schemas.base import Address, Flag, Label, ModelRef, Name, Real, Schema, Whole, example
from app.schemas.jobs import SegmentationKind

NO_IMAGES = (
    *("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "FID"),
    *("DOC", "ECG", "AU", "SMR"),
)
"""Modalities that hold no images, the service's own results among them."""
LEAST_POLL_S, MOST_POLL_S = 30, 86_400


def _of_images(modality: str) -> str:
    if modality in NO_IMAGES:
        raise ValueError(f"series of {modality} hold no images; name a modality such as CT or MR.")
    return modality


def _day(sent: object) -> object:
    if isinstance(sent, str) and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", sent):
        raise ValueError("must be a day such as 2026-03-01")
    if isinstance(sent, int | float):
        raise ValueError("must be a day such as 2026-03-01, as a text")
    return sent


Text = Annotated[Label, Field(max_length=64, pattern=r"^[^\\\x00-\x1f\x7f]+$", examples=["*chest*"])]
"""Text of an element of DICOM; `*` stands for any characters, `?` for one. Upper and lower case differ where the PACS
tells them apart.
"""

MATCH: dict[str, Any] = {
    "modality": "CT",
    "study_description": "*chest*",
    "series_description": None,
    "body_part": None,
    "newer_than": "2026-02-28",
    "late_days": 7,
}
RULE: dict[str, Any] = {
    "name": "chest-ct",
    "pacs": "main",
    "match": MATCH,
    "model": "vessels@champion",
    "segmentation": "binary",
    "report": True,
    "threshold": None,
    "poll_s": 300,
    "enabled": True,
}


ID = "01936f5e-7c00-7000-8000-000000000001"
SHOWN_RULE: dict[str, Any] = {
    "id": ID,
    **RULE,
    "created_at": "2026-03-01T08:00:00Z",
    "last_polled_at": "2026-03-01T09:05:00Z",
    "last_listed_at": "2026-03-01T09:05:00Z",
    "last_error": None,
    "failures": 0,
    "next_poll_at": "2026-03-01T09:10:00Z",
    "series": {"growing": 1, "ready": 0, "submitted": 12, "left_out": 3},
    "links": {"self": f"/v1/dicomweb/rules/{ID}", "series": f"/v1/dicomweb/rules/{ID}/series"},
}
SHOWN_SERIES: dict[str, Any] = {
    "id": ID,
    "created_at": "2026-03-01T09:00:00Z",
    "study": "1.2.826.0.1.3680043.8.498.1",
    "series": "1.2.826.0.1.3680043.8.498.2",
    "instances": 240,
    "state": "submitted",
    "job_id": ID,
}


class SeriesMatch(Schema):
    """Which series of the PACS; all that is stated must hold."""

    modality: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,15}$"), AfterValidator(_of_images)]
    """Modality of the series, which must be one of images."""
    study_description: Text | None = None
    series_description: Text | None = None
    body_part: Annotated[str, Field(pattern=r"^[A-Z0-9 _*?]{1,16}$", examples=["CHEST"])] | None = None
    """BodyPartExamined, also with `*` and `?`."""
    newer_than: Annotated[date, BeforeValidator(_day)] | None = None
    """First StudyDate; default is the day before the one (UTC) on which the rule is made."""
    late_days: Annotated[Whole, Field(ge=1, le=365)] = 7
    """How many days after its StudyDate a series may reach the PACS and still be found."""

    model_config = {**Schema.model_config, **example(MATCH)}


class NewDicomwebRule(Schema):
    """A rule: series of a PACS that match become one `dicomweb` job each."""

    name: Name
    pacs: Name
    """One of the PACS that the operator configured (`TOPOSERVE_PACS`)."""
    match: SeriesMatch
    model: ModelRef
    """An alias, or a name alone, means at each job what it points to then."""
    segmentation: SegmentationKind = "binary"
    """Kind of the segmentation, as of a single prediction."""
    report: Flag = True
    """Whether what was counted is stored as well, as a structured report (TID 1500) beside the segmentation."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Probability above which a voxel is foreground; default is the model's own."""
    poll_s: Annotated[Whole, Field(ge=LEAST_POLL_S, le=MOST_POLL_S)] = 300
    """Seconds between two questions to the PACS."""
    enabled: Flag = True

    model_config = {**Schema.model_config, **example(RULE)}


class DicomwebRuleChange(Schema):
    """What shall be otherwise from now on; what is left out stays."""

    enabled: Flag | None = None
    poll_s: Annotated[Whole, Field(ge=LEAST_POLL_S, le=MOST_POLL_S)] | None = None
    model: ModelRef | None = None

    model_config = {**Schema.model_config, **example({"enabled": False})}


class PollError(Schema):
    """Why the last poll failed."""

    code: str
    detail: str


class FoundSeries(Schema):
    """How many series a rule has found, by what became of them."""

    growing: int
    """Found once, or with more instances than before: waits for the next poll."""
    ready: int
    """Complete, and waiting until its job can be queued."""
    submitted: int
    """Have a job."""
    left_out: int
    """Were answered by the PACS and do not match."""


class DicomwebRule(Schema):
    """A rule, and how its polls go."""

    id: UUID
    name: str
    pacs: str
    match: SeriesMatch
    model: str
    segmentation: str
    report: bool
    threshold: float | None
    poll_s: int
    enabled: bool
    created_at: datetime
    last_polled_at: datetime | None
    last_listed_at: datetime | None
    """When the last poll began that the PACS answered."""
    last_error: PollError | None
    """Why the last poll failed; null when it did not."""
    failures: int
    """Polls that failed since the last one that did not; each doubles the time to the next, up to an hour."""
    next_poll_at: datetime | None
    """Null while the rule is disabled."""
    series: FoundSeries
    links: dict[str, Address]

    model_config = {**Schema.model_config, **example(SHOWN_RULE)}


class RuleSeries(Schema):
    """A series that a rule has found."""

    id: UUID
    created_at: datetime
    """When it was found."""
    study: str
    series: str
    instances: int
    state: Literal["growing", "ready", "submitted", "left_out"]
    job_id: UUID | None
    """Null when there is none yet, or when it was deleted."""

    model_config = {**Schema.model_config, **example(SHOWN_SERIES)}
