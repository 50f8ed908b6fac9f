"""A gateway in this process, two projects in it with their keys, and stored things to ask for."""

from __future__ import annotations

import io
import threading
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image as Pillow
from sqlalchemy import func, select, update

from app.http.resources import Services
from app.main import build
from app.roles import ROLES
from app.settings import Settings
from app.store import datasets, keys
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import Base, Job, Measurement, Model, ModelVersion, Project, now
from tests.services import wait_for


@dataclass(frozen=True)
class Gateway:
    """A running gateway and what it has opened."""

    client: httpx.Client
    settings: Settings
    services: Services


@contextmanager
def opened(settings: Settings) -> Iterator[Gateway]:
    """The gateway behind a real server in a thread of this process."""
    app = build(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), what="the gateway", every=0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Gateway(client, settings, app.state.services)
    finally:
        server.should_exit = True
        thread.join(15)
    assert not thread.is_alive(), "the gateway did not stop"


class House:
    """Two new projects of a gateway: one with a key of every role, and one of a stranger."""

    def __init__(self, gateway: Gateway):
        self.client, self.settings, self.services = gateway.client, gateway.settings, gateway.services
        self.database: Database = self.services.database
        self.blobs: Blobs = self.services.blobs
        name = f"clinic-{uuid.uuid4().hex[:8]}"
        with self.database.write() as session:
            self.keys = {role: keys.create(session, project=name, name=role, role=role) for role in ROLES}
            self.stranger = keys.create(session, project=f"not-{name}", name="stranger", role="admin")
        with self.database.read() as session:
            self.project_id = session.scalars(select(Project.id).where(Project.name == name)).one()

    def leave(self) -> None:
        """Take the jobs out of the queue, which all projects share."""
        with self.database.write() as session:
            session.execute(
                update(Job).where(Job.state.in_(("queued", "running", "cancelling"))).values(state="cancelled")
            )

    def headers(self, role: str | None) -> dict[str, str]:
        """Who asks: a role of the clinic, the stranger of another project, or nobody."""
        key = self.stranger if role == "stranger" else self.keys.get(role or "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, method: str, path: str, role: str | None = "engineer", **options: Any) -> httpx.Response:
        """One request as that role."""
        return self.client.request(method, path, headers=self.headers(role) | options.pop("headers", {}), **options)

    def count(self) -> dict[str, int]:
        """What the project has:
        rows of every table that a request may leave something in, and files of the blob store.
        """
        tables = [
            table for table in Base.metadata.sorted_tables if "project_id" in table.columns and table.name != "api_keys"
        ]
        with self.database.read() as session:
            rows = {
                table.name: session.scalar(
                    select(func.count()).select_from(table).where(table.c.project_id == self.project_id)
                )
                for table in tables
            }
        files = sum(project == self.project_id for project, _ in self.blobs.older_than(-60))
        unfinished = len(list((self.settings.data_dir / "blobs" / ".incoming").iterdir()))
        return rows | {"blobs": files, "unfinished": unfinished, "scratch": len(list(self.settings.scratch.glob("*")))}


def picture(text: str) -> np.ndarray:
    """A boolean mask from lines of `#` and `.`."""
    rows = [line.strip() for line in text.strip().splitlines()]
    return np.array([[letter == "#" for letter in row] for row in rows])


def png(array: np.ndarray) -> bytes:
    """A PNG of these numbers; True becomes 255."""
    file = io.BytesIO()
    Pillow.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(file, "png")
    return file.getvalue()


def archive(entries: dict[str, bytes], **options: Any) -> bytes:
    """A zip that holds these files; always the same bytes, so that a request can be repeated."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as target:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, (2026, 1, 5, 10, 0, 0))
            entry.external_attr = 0o600 << 16
            target.writestr(entry, content, compress_type=target.compression)
    return file.getvalue()


def pairs(count: int = 4, size: tuple[int, int] = (64, 48), *, seed: int = 0) -> dict[str, bytes]:
    """Images and masks of bright bars on noise, as files of an archive."""
    entries = {}
    generator = np.random.default_rng(seed)
    for number in range(count):
        mask = np.zeros(size, bool)
        mask[8:-8, 6 + 3 * number : 12 + 3 * number] = True
        image = (generator.integers(0, 80, size) + mask * 120).astype(np.uint8)
        entries[f"images/{number:02d}.png"] = png(image)
        entries[f"masks/{number:02d}.png"] = png(mask)
    return entries


def dataset(
    house: House,
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

    draft = datasets.Draft(
        uuid.uuid4().hex * 2,
        list(classes),
        {classes[-1]: [255]},
        channels,
        2,
        {"pairs": count},
        [],
        [item(number) for number in range(count)],
    )
    with house.database.write() as session:
        return datasets.add_version(session, house.project_id, name, draft, must_be_new=False)[1]


def model(
    house: House, name: str = "bars", *, number: int = 1, metrics: dict[str, float] | None = None, **columns: Any
) -> ModelVersion:
    """A model version whose files are a few bytes."""
    onnx, size = house.blobs.put(house.project_id, f"onnx of {name}:{number}".encode())
    weights, weights_size = house.blobs.put(house.project_id, f"weights of {name}:{number}".encode())
    manifest = {"channels": 1, "dimensions": 2, "classes": ["background", "bar"], "software": {"torch": "2.13.0"}}
    with house.database.write() as session:
        row = session.scalar(select(Model).where(Model.project_id == house.project_id, Model.name == name)) or Model(
            project_id=house.project_id, name=name
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
        version = ModelVersion(project_id=house.project_id, model_id=row.id, number=number, **(files | facts))
        session.add(version)
    return version


def evaluation(house: House, version: ModelVersion, data_id: uuid.UUID, figures: list[dict[str, float]]) -> Job:
    """A finished evaluation of a model version on a dataset version, with one row of figures for each image."""
    spec = {"kind": "evaluate", "model_version_id": str(version.id), "dataset_version_id": str(data_id)}
    with house.database.write() as session:
        job = Job(
            project_id=house.project_id, kind="evaluate", lane="quick", state="succeeded", spec=spec, finished_at=now()
        )
        session.add(job)
        session.flush()
        for row in figures:
            session.add(
                Measurement(
                    project_id=house.project_id,
                    job_id=job.id,
                    model_version_id=version.id,
                    class_name="bar",
                    metric_spec={},
                    metric_digest="0" * 16,
                    **row,
                )
            )
    return job
