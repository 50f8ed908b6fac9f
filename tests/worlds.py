"""Small things to work on, put straight into the store: a dataset of rings and lines, jobs on it, and a look at how
they ended.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import numpy as np
from sqlalchemy import func, select

from app import imaging, queue
from app.schemas.jobs import TrainSpec
from app.store import datasets, versions
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import FINISHED, DatasetVersion, Job, ModelVersion
from tests.services import wait_for


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
    draft = datasets.Draft(digest, ["background", "line"], {"background": 0, "line": 255}, 1, 2, {}, [], items)
    with database.write() as session:
        return datasets.add_version(session, project_id, name, draft, must_be_new=False)[1]


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
    facts = {
        "manifest": manifest,
        "spec": {},
        "metrics": {},
        "onnx": onnx,
        "weights": None,
        "dataset_version_id": None,
        "training_s": None,
    }
    with database.write() as session:
        return versions.register(session, project_id=project_id, job_id=None, model=name, **facts)


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
