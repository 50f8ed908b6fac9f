"""Datasets, models and jobs written straight into the store, and how the jobs ended."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import func, select

from app import imaging, queue
from app.schemas.jobs import TrainSpec
from app.store import datasets, versions
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import FINISHED, Alias, DatasetVersion, Job, Measurement, Model, ModelVersion, now
from tests.services import wait_for
from tests.serving import networks

if TYPE_CHECKING:
    from tests.gateway import Gateway


def ring_and_line(seed: int, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """(picture, mask), (side, side) uint8: a ring and a line, bright on a noisy ground; mask values 0 and 255."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    radius = np.hypot(rows - rng.integers(10, side - 10), columns - rng.integers(10, side - 10))
    mask = ((radius > 4) & (radius < 7)) | (abs(rows - side // 2) < 2)
    picture = (60 + 120 * mask + 15 * rng.standard_normal(mask.shape)).clip(0, 255)
    return picture.astype(np.uint8), mask.astype(np.uint8) * 255


def add_dataset(
    database: Database,
    blobs: Blobs,
    project_id: uuid.UUID,
    *,
    name: str = "rings",
    count: int = 4,
    side: int = 48,
    split: str | None = None,
) -> DatasetVersion:
    """A version of `count` pairs."""
    items = []
    for number in range(count):
        picture, mask = (imaging.encode_png(pixels) for pixels in ring_and_line(number, side))
        sha256, size = blobs.put(project_id, picture)
        columns = {
            "sha256": sha256,
            "bytes": size,
            "name": f"{number}.png",
            "format": "png",
            "dimensions": 2,
            "channels": 1,
            "shape": [side, side],
            "dtype": "uint8",
            "spacing_mm": None,
        }
        items.append(datasets.DraftItem(f"item-{number}", columns, blobs.put(project_id, mask)[0], split, None, {}))
    digest = hashlib.sha256(f"{name} {count} {side} {split}".encode()).hexdigest()
    columns = dataset_columns(["background", "line"], {"background": 0, "line": 255})
    draft = datasets.Draft(digest, columns, items)
    with database.write() as session:
        return datasets.add_version(session, project_id, name, draft, must_be_new=False)[1]


def dataset_columns(classes: list[str], label_map: dict[str, Any], **columns: Any) -> dict[str, Any]:
    """The columns of a version of flat grey images that say nothing of themselves."""
    usual = {"channels": 1, "dimensions": 2, "statistics": {}, "warnings": []}
    return usual | {"classes": classes, "label_map": label_map} | columns


def train_spec(
    version: DatasetVersion, *, model: str = "rings", behaviour: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A training spec as admission keeps it; `behaviour` is read by the quick child of these tests only."""
    small = {
        "network": {"channels": [4, 8]},
        "patch": [32, 32],
        "batch": 2,
        "steps": 20,
        "checkpoint_every": 5,
        "validate_every": 10,
        "devices": "cpu",
    }
    spec = TrainSpec.model_validate(
        {"kind": "train", "dataset": "rings@1", "model": model, **small, **changes}
    ).model_dump(mode="json")
    return spec | {"dataset_version_id": str(version.id)} | ({"behaviour": behaviour} if behaviour else {})


def submit(database: Database, project_id: uuid.UUID, spec: dict[str, Any]) -> Job:
    """A queued job."""
    with database.write() as session:
        return queue.put(session, project_id=project_id, kind=spec["kind"], spec=spec)


def job_now(database: Database, job: Job) -> Job:
    """The row as it is now."""
    with database.read() as session:
        return session.get_one(Job, job.id)


def story(database: Database, job: Job) -> list[tuple[str, dict[str, Any]]]:
    """(event, data) of everything that happened to the job."""
    with database.read() as session:
        return [(event.event, event.data) for event in queue.events_after(session, job.id, limit=100_000)]


def states(database: Database, job: Job) -> list[str]:
    """The states that the job went through."""
    return [data["state"] for event, data in story(database, job) if event == "state"]


def wait_until_ended(database: Database, *jobs: Job, seconds: float = 40.0) -> list[Job]:
    """The rows once all are finished."""

    def all_ended() -> list[Job]:
        rows = [job_now(database, job) for job in jobs]
        return rows if all(row.state in FINISHED for row in rows) else []

    return wait_for(
        all_ended,
        seconds=seconds,
        what=lambda: str([(job_now(database, job).state, story(database, job)[-5:]) for job in jobs]),
    )


def wait_until_step(database: Database, job: Job, step: int, seconds: float = 30.0) -> Job:
    """The row once the job runs and has reached that step."""

    def there() -> Job | None:
        row = job_now(database, job)
        return row if row.state == "running" and (row.step or 0) >= step else None

    return wait_for(there, seconds=seconds, what=lambda: str(story(database, job)[-5:]))


def versions_made(database: Database, project_id: uuid.UUID) -> int:
    """How many model versions there are."""
    with database.read() as session:
        return (
            session.scalar(select(func.count()).select_from(ModelVersion).where(ModelVersion.project_id == project_id))
            or 0
        )


def add_model(
    database: Database,
    blobs: Blobs,
    project_id: uuid.UUID,
    *,
    name: str = "bright",
    classes: tuple[str, ...] = ("background", "line"),
) -> ModelVersion:
    """A version of a network that calls every pixel foreground which is brighter than the mean of its image."""
    content = _brightness_network()
    onnx = blobs.put(project_id, content)
    manifest = {
        "format": "toposerve-manifest/1",
        "task": "segmentation",
        "dimensions": 2,
        "channels": 1,
        "classes": list(classes),
        "activation": "sigmoid",
        "threshold": 0.5,
        "scaling": {"kind": "image"},
        "multiple": 8,
        "padding": "edge",
        "tile": [64, 64],
        "overlap": 0.25,
        "receptive_field": 1,
        "opset": 18,
        "input": "image",
        "output": "probability",
        "onnx_sha256": onnx[0],
        "weights_sha256": None,
        "step": 1,
        "metrics": {},
        "spec": {},
        "verification": {"items": 0, "max_difference": 0.0, "tolerance": 1e-4, "mask_disagreements": 0},
        "software": {},
    }
    columns = {"manifest": manifest, "spec": {}, "metrics": {}}
    with database.write() as session:
        return versions.register(session, project_id=project_id, model=name, onnx=onnx, **columns)


def _brightness_network() -> bytes:
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, "h", "w"]) for name in ("image", "probability")
    ]
    four = helper.make_tensor("four", TensorProto.FLOAT, [1], [4.0])
    nodes = [
        helper.make_node("Mul", ["image", "four"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["probability"]),
    ]
    graph = helper.make_graph(nodes, "brightness", ends[:1], ends[1:], [four])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def add_dataset_row(
    gateway: Gateway,
    name: str = "bars",
    *,
    count: int = 4,
    size: tuple[int, int] = (64, 48),
    classes: tuple[str, ...] = ("background", "bar"),
    channels: int = 1,
) -> Any:
    """A dataset version written straight into the rows."""

    def item(number: int) -> datasets.DraftItem:
        sha256 = uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{number}").hex * 2
        columns = {
            "sha256": sha256,
            "bytes": 100,
            "name": f"{number:02d}.png",
            "format": "png",
            "dimensions": 2,
            "channels": channels,
            "shape": list(size),
            "dtype": "uint8",
            "spacing_mm": None,
        }
        return datasets.DraftItem(f"{number:02d}", columns, sha256, None, None, {})

    columns = dataset_columns(list(classes), {classes[-1]: [255]}, channels=channels, statistics={"pairs": count})
    draft = datasets.Draft(uuid.uuid4().hex * 2, columns, [item(number) for number in range(count)])
    with gateway.database.write() as session:
        return datasets.add_version(session, gateway.project_id, name, draft, must_be_new=False)[1]


def add_model_row(
    gateway: Gateway, name: str = "bars", *, number: int = 1, metrics: dict[str, float] | None = None, **columns: Any
) -> ModelVersion:
    """A model version whose files are a few bytes."""
    onnx, size = gateway.blobs.put(gateway.project_id, f"onnx of {name}:{number}".encode())
    weights, weights_size = gateway.blobs.put(gateway.project_id, f"weights of {name}:{number}".encode())
    manifest = {"channels": 1, "dimensions": 2, "classes": ["background", "bar"], "software": {"torch": "2.13.0"}}
    with gateway.database.write() as session:
        row = session.scalar(select(Model).where(Model.project_id == gateway.project_id, Model.name == name)) or Model(
            project_id=gateway.project_id, name=name
        )
        session.add(row)
        row.last_version = number
        session.flush()
        facts = {
            "spec": {"network": {"name": "unet"}},
            "metrics": metrics or {"dice": 0.9, "cldice": 0.8},
            "manifest": manifest,
        } | columns
        files = {"onnx_sha256": onnx, "onnx_bytes": size, "weights_sha256": weights, "weights_bytes": weights_size}
        version = ModelVersion(project_id=gateway.project_id, model_id=row.id, number=number, **(files | facts))
        session.add(version)
    return version


def add_evaluation(gateway: Gateway, version: ModelVersion, data_id: uuid.UUID, figures: list[dict[str, float]]) -> Job:
    """A finished evaluation of a model version on a dataset version, with one row of figures for each image."""
    spec = {"kind": "evaluate", "model_version_id": str(version.id), "dataset_version_id": str(data_id)}
    with gateway.database.write() as session:
        job = Job(
            project_id=gateway.project_id,
            kind="evaluate",
            lane="quick",
            state="succeeded",
            spec=spec,
            finished_at=now(),
        )
        session.add(job)
        session.flush()
        for row in figures:
            session.add(
                Measurement(
                    project_id=gateway.project_id,
                    job_id=job.id,
                    model_version_id=version.id,
                    class_name="bar",
                    metric_spec={},
                    metric_digest="0" * 16,
                    **row,
                )
            )
    return job


def register(database: Any, blobs: Any, project_id: uuid.UUID, name: str, content: bytes, **facts: Any) -> ModelVersion:
    """A new version of a model, as the worker writes it after an export."""
    sha256, size = blobs.put(project_id, content)
    manifest = networks.manifest(content, **facts)
    with database.write() as session:
        model = session.query(Model).filter_by(project_id=project_id, name=name).one_or_none() or Model(
            project_id=project_id, name=name, last_version=0
        )
        session.add(model)
        session.flush()
        model.last_version += 1
        version = ModelVersion(
            project_id=project_id,
            model_id=model.id,
            number=model.last_version,
            spec={},
            manifest=manifest,
            metrics={},
            onnx_sha256=sha256,
            onnx_bytes=size,
        )
        session.add(version)
        session.flush()
        return version


def set_alias(database: Any, version: ModelVersion, alias: str) -> None:
    """Point an alias to a version."""
    with database.write() as session:
        row = session.query(Alias).filter_by(model_id=version.model_id, alias=alias).one_or_none()
        row = row or Alias(project_id=version.project_id, model_id=version.model_id, alias=alias)
        row.number = version.number
        session.add(row)
