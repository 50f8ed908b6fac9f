"""What is remembered: every table, on one screen each. Rows only; no queries, no rules.

Every row belongs to a project. Times are UTC. Ids are UUIDv7, so that they sort by age and tell nothing else.
Constraints have names, because SQLite and Postgres both run the migrations.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils.compat import uuid7

from app.job_kinds import KINDS

STATES = ("waiting", "queued", "running", "cancelling", "cancelled", "succeeded", "failed", "interrupted")
FINISHED = ("cancelled", "succeeded", "failed", "interrupted")
MEMBER_KINDS = ("subject", "email", "group")
"""What a member is found by in a token."""
SERIES_STATES = ("growing", "ready", "submitted", "left_out")
"""Of a series that a rule has found: instances may still arrive; a job is to be made; was made; it does not match."""
SCHEMA_VERSION = 2
"""Version of the job spec this code can run; a newer row is left for a newer worker.

2: a training may belong to a comparison, for which it is measured and not exported.
"""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime on both databases; SQLite keeps no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("Expected an aware datetime, got a naive one; use datetime.now(UTC).")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


def _where(condition: str) -> dict[str, Any]:
    """The options of an index on the rows that fit a condition, on both databases."""
    return dict.fromkeys(("postgresql_where", "sqlite_where"), text(condition))


Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Sha256 = String(64)
Name = String(64)


class Base(DeclarativeBase):
    """What every table shares: the names of constraints and the types of columns."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: Json, list[Any]: Json, uuid.UUID: Uuid()}


class Row:
    """The id and the age that every row has."""

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid7)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Owned(Row):
    """A row of one project."""

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)


class Project(Row, Base):
    """The unit of ownership: every other row belongs to one."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(Name, unique=True)
    retention: Mapped[dict[str, Any] | None] = mapped_column()  # noun -> days; null or absent: kept for ever


class ApiKey(Owned, Base):
    """A key: `ts_<prefix>_<secret>`; only the SHA-256 of the secret is kept."""

    __tablename__ = "api_keys"

    prefix: Mapped[str] = mapped_column(String(8), unique=True)
    digest: Mapped[str] = mapped_column(Sha256)
    name: Mapped[str] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(16))
    scopes: Mapped[list[Any]] = mapped_column()
    expires_at: Mapped[datetime | None] = mapped_column()
    revoked_at: Mapped[datetime | None] = mapped_column()
    last_used_at: Mapped[datetime | None] = mapped_column()


class Member(Owned, Base):
    """Somebody of the OpenID provider who may do what a role may in a project, or a group of them."""

    __tablename__ = "members"
    __table_args__ = (
        UniqueConstraint("project_id", "kind", "value"),
        Index("ix_members_kind_value", "kind", "value"),
        CheckConstraint(f"kind in {MEMBER_KINDS}", name="kind"),
    )

    kind: Mapped[str] = mapped_column(String(16))
    value: Mapped[str] = mapped_column(String(255))  # an email address is in lower case
    role: Mapped[str] = mapped_column(String(16))


class Image(Owned, Base):
    """An uploaded image; the same bytes in one project are one row."""

    __tablename__ = "images"
    __table_args__ = (UniqueConstraint("project_id", "sha256"), Index("ix_images_listed", "project_id", "id"))

    sha256: Mapped[str] = mapped_column(Sha256)
    bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(16))
    dimensions: Mapped[int] = mapped_column(Integer)
    channels: Mapped[int] = mapped_column(Integer)
    shape: Mapped[list[Any]] = mapped_column()  # [rows, columns] or [planes, rows, columns]
    dtype: Mapped[str] = mapped_column(String(16))
    spacing_mm: Mapped[list[Any] | None] = mapped_column()


class ImageLabel(Owned, Base):
    """A mask that somebody drew on an image in a viewer, under a tag such as `final`; a later one replaces it."""

    __tablename__ = "image_labels"
    __table_args__ = (UniqueConstraint("image_id", "tag"),)

    image_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("images.id", ondelete="CASCADE"))
    tag: Mapped[str] = mapped_column(Name)
    sha256: Mapped[str] = mapped_column(Sha256)
    bytes: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str] = mapped_column(String(16))
    # Not JSONB: the order of its names is that of the classes. Class name -> value in the mask.
    label_map: Mapped[dict[str, Any]] = mapped_column(JSON(none_as_null=True))
    drawn_by: Mapped[str | None] = mapped_column(String(64))


class ImageSession(Owned, Base):
    """An image that a viewer sent to have it segmented and then forgotten."""

    __tablename__ = "image_sessions"

    sha256: Mapped[str] = mapped_column(Sha256)
    bytes: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(255))
    format: Mapped[str] = mapped_column(String(16))
    expiry_s: Mapped[int] = mapped_column(Integer)
    used_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Dataset(Owned, Base):
    """A name; the data is in its versions."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    name: Mapped[str] = mapped_column(Name)
    last_version: Mapped[int] = mapped_column(Integer, default=0)  # counter: MAX+1 would race


class DatasetVersion(Owned, Base):
    """An immutable list of image and mask pairs, with the meaning of the mask's values."""

    __tablename__ = "dataset_versions"
    __table_args__ = (UniqueConstraint("dataset_id", "number"),)

    dataset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(Sha256)  # of the pairs and the label map, in order
    classes: Mapped[list[Any]] = mapped_column()  # ["background", "vessel"]
    label_map: Mapped[dict[str, Any]] = mapped_column(
        JSON(none_as_null=True)
    )  # not JSONB: the order of its names is that of the classes
    channels: Mapped[int] = mapped_column(Integer)
    dimensions: Mapped[int] = mapped_column(Integer)
    statistics: Mapped[dict[str, Any]] = mapped_column()
    warnings: Mapped[list[Any]] = mapped_column()
    spacing_mm: Mapped[list[Any] | None] = mapped_column()  # stated for all images; null: as each image's row says


class DatasetItem(Owned, Base):
    """One image of a dataset version with its mask, if it has one."""

    __tablename__ = "dataset_items"
    __table_args__ = (UniqueConstraint("version_id", "position"), UniqueConstraint("version_id", "name"))

    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("dataset_versions.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(String(255))
    image_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("images.id"))
    mask_sha256: Mapped[str | None] = mapped_column(Sha256)  # null: an image without a mask
    split: Mapped[str | None] = mapped_column(String(16))  # train, val, test or undecided
    group: Mapped[str | None] = mapped_column(String(255))  # items of one group never straddle a split
    statistics: Mapped[dict[str, Any]] = mapped_column()


class Job(Owned, Base):
    """A job is a row; the row is the queue. See app/queue.py for the state machine."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_queue", "state", "lane", "id"),
        Index("ix_jobs_listed", "project_id", "state", "id"),
        Index("ix_jobs_newest", "project_id", "id"),
        Index("ix_jobs_parent_id", "parent_id"),
        Index("ix_jobs_after_id", "after_id"),
        CheckConstraint(f"state in {STATES}", name="state"),
        CheckConstraint(f"kind in {tuple(KINDS)}", name="kind"),
    )

    kind: Mapped[str] = mapped_column(String(16))
    lane: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default="queued")
    spec: Mapped[dict[str, Any]] = mapped_column()
    schema_version: Mapped[int] = mapped_column(Integer, default=SCHEMA_VERSION)
    submitted_by: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))  # the job it is for
    after_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))  # must succeed first

    attempt: Mapped[int] = mapped_column(Integer, default=0)  # fencing token: a write with an older one is refused
    crashes: Mapped[int] = mapped_column(Integer, default=0)  # since the last checkpoint
    keep: Mapped[bool] = mapped_column(Boolean, default=False)  # cancelling with `keep`: ends as interrupted
    worker: Mapped[str | None] = mapped_column(String(128))
    heartbeat_at: Mapped[float | None] = mapped_column(Float(53))  # database clock, seconds
    notified_at: Mapped[float | None] = mapped_column("rung_at", Float(53))  # database clock, seconds
    started_at: Mapped[datetime | None] = mapped_column()
    finished_at: Mapped[datetime | None] = mapped_column()

    phase: Mapped[str | None] = mapped_column(String(32))
    fraction: Mapped[float] = mapped_column(Float(53), default=0.0)
    step: Mapped[int | None] = mapped_column(Integer)
    steps: Mapped[int | None] = mapped_column(Integer)
    epoch: Mapped[int | None] = mapped_column(Integer)
    seconds_per_step: Mapped[float | None] = mapped_column(Float(53))
    eta_s: Mapped[float | None] = mapped_column(Float(53))
    events: Mapped[int] = mapped_column(Integer, default=0)  # counter: numbers of job_events have no holes
    error: Mapped[dict[str, Any] | None] = mapped_column()
    result: Mapped[dict[str, Any] | None] = mapped_column()


class JobEvent(Base):
    """One line of a job's story; `number` is the SSE id."""

    __tablename__ = "job_events"

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(default=now)
    event: Mapped[str] = mapped_column(String(16))  # state, progress, metric, checkpoint, log
    attempt: Mapped[int] = mapped_column(Integer)
    data: Mapped[dict[str, Any]] = mapped_column()


class Checkpoint(Owned, Base):
    """The saved state of a training at one step, from which it can be resumed."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    job_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(Sha256)
    bytes: Mapped[int] = mapped_column(BigInteger)


class DicomwebRule(Owned, Base):
    """Which new series of a PACS become jobs; a worker asks the PACS for them again and again."""

    __tablename__ = "dicomweb_rules"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index("ix_dicomweb_rules_due", "enabled", "next_poll_at"),
    )

    name: Mapped[str] = mapped_column(Name)
    pacs: Mapped[str] = mapped_column(Name)
    model: Mapped[str] = mapped_column(String(160))  # as it was sent: an alias means what it points to at each job
    match: Mapped[dict[str, Any]] = mapped_column()
    options: Mapped[dict[str, Any]] = mapped_column()  # of the jobs: segmentation, report, threshold
    poll_s: Mapped[int] = mapped_column(Integer)
    enabled: Mapped[bool] = mapped_column(Boolean)
    polls: Mapped[int] = mapped_column(Integer, default=0)  # fencing token: a write of an older poll is refused
    # Database clock, seconds. During a poll: when another worker may begin one, because this one is lost.
    next_poll_at: Mapped[float] = mapped_column(Float(53), default=0.0)
    failures: Mapped[int] = mapped_column(Integer, default=0)  # polls that failed, since the last that did not
    last_polled_at: Mapped[datetime | None] = mapped_column()
    last_listed_at: Mapped[datetime | None] = mapped_column()  # beginning of the last poll that the PACS answered
    last_error: Mapped[dict[str, Any] | None] = mapped_column()


class DicomwebSeries(Owned, Base):
    """A series that a rule has found; it becomes one job, whatever is answered how often to whom."""

    __tablename__ = "dicomweb_series"
    __table_args__ = (
        UniqueConstraint("rule_id", "series"),
        Index("ix_dicomweb_series_state", "rule_id", "state", "id"),
        CheckConstraint(f"state in {SERIES_STATES}", name="state"),
    )

    rule_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("dicomweb_rules.id", ondelete="CASCADE"))
    study: Mapped[str] = mapped_column(String(64))
    series: Mapped[str] = mapped_column(String(64))
    instances: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    listed_from: Mapped[str] = mapped_column(String(8))  # first StudyDate of the poll that found it, as DICOM writes it
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    resumed: Mapped[int] = mapped_column(Integer, default=0)  # how often its job was resumed once the PACS was back


class Model(Owned, Base):
    """A name; the networks are in its versions."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    name: Mapped[str] = mapped_column(Name)
    last_version: Mapped[int] = mapped_column(Integer, default=0)


class ModelVersion(Owned, Base):
    """An exported network. One job makes at most one."""

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("model_id", "number"), UniqueConstraint("job_id"))

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id"))
    dataset_version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("dataset_versions.id"))
    spec: Mapped[dict[str, Any]] = mapped_column()
    manifest: Mapped[dict[str, Any]] = mapped_column()
    metrics: Mapped[dict[str, Any]] = mapped_column()  # of validation, as training reported them
    onnx_sha256: Mapped[str] = mapped_column(Sha256)
    onnx_bytes: Mapped[int] = mapped_column(BigInteger)
    weights_sha256: Mapped[str | None] = mapped_column(Sha256)
    weights_bytes: Mapped[int | None] = mapped_column(BigInteger)
    training_s: Mapped[float | None] = mapped_column(Float(53))


class Alias(Owned, Base):
    """A name that stands for one version of a model and can be moved to another."""

    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("model_id", "alias"),)

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    alias: Mapped[str] = mapped_column(Name)
    number: Mapped[int] = mapped_column(Integer)
    moved_at: Mapped[datetime] = mapped_column(default=now)


class AliasMove(Owned, Base):
    """Append-only: what an alias pointed to, since when, moved by whom, past which gate."""

    __tablename__ = "alias_moves"

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), index=True)
    alias: Mapped[str] = mapped_column(Name)
    from_number: Mapped[int | None] = mapped_column(Integer)
    to_number: Mapped[int | None] = mapped_column(Integer)  # null: the alias was removed
    moved_by: Mapped[str | None] = mapped_column(String(64))
    gate: Mapped[dict[str, Any] | None] = mapped_column()


class Prediction(Owned, Base):
    """What a model version said about one image, with where its files are."""

    __tablename__ = "predictions"
    # One job answers an image once, however often it is redelivered.
    __table_args__ = (
        UniqueConstraint("job_id", "image_id"),
        Index("ix_predictions_listed", "project_id", "id"),
        Index("ix_predictions_of_version", "model_version_id", "id"),
        Index("ix_predictions_judged", "project_id", "violated", "id", **_where("violated is not null")),
    )

    model_version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model_versions.id"))
    image_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("images.id"), index=True)
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    reference_sha256: Mapped[str | None] = mapped_column(Sha256)  # class-index PNG or NIfTI, when there is one
    threshold: Mapped[float] = mapped_column(Float(53))
    report: Mapped[dict[str, Any] | None] = mapped_column()  # topology per class
    violated: Mapped[bool | None] = mapped_column(Boolean)  # null: no topology was expected
    artifacts: Mapped[dict[str, Any]] = mapped_column()  # name -> {sha256, bytes, media_type}
    timings_ms: Mapped[dict[str, Any]] = mapped_column()


class PredictionEdit(Owned, Base):
    """One edit of the mask of a prediction by hand. The mask of the network stays; edits are applied in their order."""

    __tablename__ = "prediction_edits"
    # Two that were worked out on the same mask have the same number, and only one of them is kept.
    __table_args__ = (UniqueConstraint("prediction_id", "number"),)

    prediction_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("predictions.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)  # from 1
    kind: Mapped[str] = mapped_column(String(16))
    class_name: Mapped[str] = mapped_column(Name)
    at: Mapped[list[Any]] = mapped_column()
    to: Mapped[list[Any] | None] = mapped_column()
    runs: Mapped[list[Any]] = mapped_column()  # [start, stop, class position] in raster order
    pixels: Mapped[int] = mapped_column(BigInteger)
    box: Mapped[list[Any]] = mapped_column()
    cost: Mapped[float] = mapped_column(Float(53))
    before: Mapped[dict[str, Any]] = mapped_column()  # class name -> Betti numbers
    after: Mapped[dict[str, Any]] = mapped_column()


class Measurement(Owned, Base):
    """The metrics of one class of one image against its reference: typed columns, so `beta0_error > 0` is a query."""

    __tablename__ = "measurements"
    __table_args__ = (
        UniqueConstraint("job_id", "image_id", "class_name"),
        Index("ix_measurements_model", "model_version_id", "beta0_error"),
    )

    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    model_version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    prediction_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("predictions.id", ondelete="CASCADE"), index=True
    )
    image_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("images.id"))
    item_name: Mapped[str | None] = mapped_column(String(255))
    class_name: Mapped[str] = mapped_column(Name)
    dice: Mapped[float | None] = mapped_column(Float(53))
    iou: Mapped[float | None] = mapped_column(Float(53))
    cldice: Mapped[float | None] = mapped_column(Float(53))
    voi: Mapped[float | None] = mapped_column(Float(53))  # bits
    adapted_rand_error: Mapped[float | None] = mapped_column(Float(53))
    beta0_error: Mapped[int | None] = mapped_column(Integer)
    beta1_error: Mapped[int | None] = mapped_column(Integer)
    beta2_error: Mapped[int | None] = mapped_column(Integer)
    betti_matching_error: Mapped[int | None] = mapped_column(Integer)
    euler_error: Mapped[int | None] = mapped_column(Integer)
    rule_violations: Mapped[int | None] = mapped_column(Integer)
    hd95: Mapped[float | None] = mapped_column(Float(53))  # mm when spacing is known, else pixels
    broken_rules: Mapped[list[Any] | None] = mapped_column()
    metric_spec: Mapped[dict[str, Any]] = mapped_column()
    metric_digest: Mapped[str] = mapped_column(Sha256)


class IdempotentRequest(Base):
    """The stored answer of a POST that carried an Idempotency-Key, for 24 hours."""

    __tablename__ = "idempotent_requests"

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Sha256)  # of method, path and body
    created_at: Mapped[datetime] = mapped_column(default=now)
    status: Mapped[int | None] = mapped_column(Integer)  # null while the first request runs
    headers: Mapped[dict[str, Any] | None] = mapped_column()
    body: Mapped[bytes | None] = mapped_column(LargeBinary)


class AuditLine(Owned, Base):
    """Who did what to which object; written in the same transaction as the deed."""

    __tablename__ = "audit"

    who: Mapped[str] = mapped_column(String(64))
    what: Mapped[str] = mapped_column(String(64))
    object: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str | None] = mapped_column(String(64))


class Worker(Base):
    """A worker process and when it was last seen; `/readyz` and the home page read it."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    lane: Mapped[str] = mapped_column(String(16), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[float] = mapped_column(Float(53))  # database clock, seconds
    job_id: Mapped[uuid.UUID | None] = mapped_column()
    device: Mapped[str | None] = mapped_column(String(128))


class EndedSession(Base):
    """A browser session that was signed out before its cookie expires; kept until then."""

    __tablename__ = "ended_sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id"))
    until: Mapped[datetime] = mapped_column(UtcDateTime)


class PersonSession(Owned, Base):
    """A browser session of a person whom the OpenID provider vouched for, in the project that they have chosen."""

    __tablename__ = "person_sessions"

    subject: Mapped[str] = mapped_column(String(255))
    email: Mapped[str | None] = mapped_column(String(255))
    groups: Mapped[list[Any]] = mapped_column()  # as the provider listed them at the sign-in
    until: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class UsedState(Base):
    """The `state` of a sign-in that has come back from the OpenID provider; kept until it would be too old anyway."""

    __tablename__ = "used_states"

    state: Mapped[str] = mapped_column(String(64), primary_key=True)
    until: Mapped[datetime] = mapped_column(UtcDateTime)


class Secret(Base):
    """Random bytes that the processes of one installation share, such as the key that signs browser sessions."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Text)
