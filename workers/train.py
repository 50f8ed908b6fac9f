"""The train job: trains and exports in child processes, then registers a model version."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.errors import Gone
from app.imaging import LabelMap, Picture
from app.imaging.grids import orientation_of, turned_to
from app.store import versions
from app.store.tables import Checkpoint, DatasetVersion, Job, JobEvent, ModelVersion, now
from workers import checkpoints
from workers.items import ItemRows, dataset_version, pairs_of, read_pair
from workers.recipe import Choice, chosen
from workers.supervise import Event, require_success, supervise
from workers.trial import keep_figures
from workers.work import Crashed, Failed, Work

OURS = {"dataset_version_id", "start_from_version_id", "start_from_job_id", "trial", "stage"}
"""What admission added to the spec; a training knows nothing of rows."""
SHIFTED = "shifted"
"""The split that the models' command line measures on and does not learn from."""
TRAINS_FROM, TRAINS_TO = 0.02, 0.95
"""The part of the whole job that the optimizer steps are shown as."""
USUAL_EXPORT_S = 30.0
"""What an export is expected to take on a worker that has not exported such a network yet."""
_exported_s: dict[str, float] = {}
"""Network as in the spec -> seconds that its last export took on this worker."""


def train(work: Work) -> None:
    """Train by the spec of the job, from its last good checkpoint when there is one, and register a model version.

    A training of a comparison is measured instead.
    """
    data, out, exported = (work.folder / name for name in ("data", "out", "export"))
    work.heartbeat.progress(phase="prepare", fraction=0.0)
    choice = chosen(work)
    write_data(work, data)
    network, is_trial = json.dumps(work.claim.spec.get("network"), sort_keys=True), "trial" in work.claim.spec
    export_s = _exported_s.get(network, USUAL_EXPORT_S)
    work.heartbeat.after_steps_s = 0.0 if is_trial else export_s
    done = _train(work, data, out, choice)
    if is_trial:
        keep_figures(work, done)
        return
    work.heartbeat.progress(phase="export", fraction=TRAINS_TO, eta_s=export_s)
    began = time.monotonic()
    weights = out / done["weights"]
    command = [
        *work.installation.models,
        "export",
        "--weights",
        str(weights),
        "--data",
        str(data),
        "--out",
        str(exported),
    ]
    require_success(supervise(command, work, lambda event: _log(work, event)), "The export")
    _exported_s[network] = time.monotonic() - began
    _register(work, done, weights, exported, choice)


def write_data(work: Work, folder: Path) -> None:
    """The folder that the models' command line reads: dataset.json, images/*.npy (C, ...), labels/*.npy.

    Test items stay out.
    """
    with work.database.read() as session:
        version = dataset_version(session, work.claim.spec["dataset_version_id"])
        pairs = [pair for pair in pairs_of(session, version) if pair.item.split != "test"]
        shifted = _shifted(session, work, {pair.image.id for pair in pairs})
    if all(pair.item.mask_sha256 is None for pair in pairs):
        raise Failed(
            "input_invalid",
            f"{work.claim.spec['dataset']} has no pair to train on. Put some pairs into the train split, or leave the"
            " split out.",
        )
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    items: list[dict[str, Any]] = []
    orientation: str | None = None  # of the first volume; the others are turned to it
    placed = True
    whose = [(pair, version, None) for pair in pairs] + [(pair, other, SHIFTED) for other, pair in shifted]
    for number, (pair, owner, part) in enumerate(whose):
        work.heartbeat.check()
        picture, labels = read_pair(work, pair, owner)
        if picture.is_volume:
            placed = placed and picture.place is not None
            orientation = orientation or (orientation_of(picture.place) if picture.place is not None else None)
            picture, labels = _turned(picture, labels, orientation)
        np.save(folder / f"images/{number}.npy", picture.pixels)
        if labels is not None:
            np.save(folder / f"labels/{number}.npy", labels)
        items.append(_described(number, pair, picture) | ({"split": part} if part else {}))
        work.heartbeat.progress(fraction=TRAINS_FROM * (number + 1) / len(whose))
    ignore = LabelMap.parse(version.label_map).ignore_index
    facts = {
        "classes": version.classes,
        "ignore": ignore,
        "channels": version.channels,
        "dimensions": version.dimensions,
        "orientation": orientation if placed else None,
        "items": items,
    }
    (folder / "dataset.json").write_text(json.dumps(facts))


def _shifted(session: Session, work: Work, known: set[uuid.UUID]) -> list[tuple[DatasetVersion, ItemRows]]:
    """The labelled images of the shifted set of a comparison, without those that the training may have seen."""
    version_id = (work.claim.spec.get("trial") or {}).get("shifted")
    if version_id is None:
        return []
    other = dataset_version(session, version_id)
    pairs = pairs_of(session, other)
    return [(other, pair) for pair in pairs if pair.item.mask_sha256 is not None and pair.image.id not in known]


def _turned(picture: Picture, labels: np.ndarray | None, orientation: str | None) -> tuple[Picture, np.ndarray | None]:
    """A volume and its labels in an orientation; as they are where their place is unknown."""
    if orientation is None or picture.place is None or orientation_of(picture.place) == orientation:
        return picture, labels
    turned = turned_to(picture, orientation)
    return turned, None if labels is None else turned_to(replace(picture, pixels=labels[None]), orientation).pixels[0]


def _described(number: int, pair: ItemRows, picture: Picture) -> dict[str, Any]:
    item = pair.item
    return {
        "id": item.name,
        "image": f"images/{number}.npy",
        "label": item.mask_sha256 and f"labels/{number}.npy",
        "spacing_mm": picture.spacing_mm,
        "group": item.group,
        "split": item.split,
    }


def _train(work: Work, data: Path, out: Path, choice: Choice | None) -> Event:
    """The child's `done` event."""
    spec = {name: value for name, value in work.claim.spec.items() if name not in OURS} | {
        "threads": work.settings.train_threads,
        "controls": (work.claim.spec.get("trial") or {}).get("controls", []),
    }
    if choice is not None:
        spec |= work.claim.spec["stage"] | {"loss": choice.loss}
        work.heartbeat.record(
            "log", level="info", message=f"Trained on with {choice.facts['chosen']}. {choice.facts['verdict']}"
        )
    (work.folder / "spec.json").write_text(json.dumps(spec))
    command = [
        *work.installation.models,
        "train",
        "--spec",
        str(work.folder / "spec.json"),
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    if (good := checkpoints.last_good(work)) is not None:
        command += ["--resume", str(_linked(work, good[1], "resume"))]
    elif (start := start_of(work)) is not None:
        command += ["--start-from", str(start)]
    work.heartbeat.progress(phase="train", fraction=TRAINS_FROM)
    listener = Listener(work, out)
    done = require_success(supervise(command, work, listener), "The training")
    if not (out / done["weights"]).is_file():
        raise Crashed(f"the training named {done['weights']} as its weights and did not write them")
    return done | {"peak_bytes": listener.peak_bytes}


class Listener:
    """Turns the events of a training into progress, events of the job and stored checkpoints."""

    def __init__(self, work: Work, out: Path):
        self._work, self._out = work, out
        self.peak_bytes: int | None = None
        """Most memory that the training has had at once."""

    def __call__(self, event: Event) -> None:
        match event["event"]:
            case "start":
                self._start(event)
            case "step":
                self._step(event)
            case "validation":
                self._work.heartbeat.record("metric", **_facts(event))
            case "checkpoint":
                checkpoints.keep(self._work, event["step"], self._out / event["path"], event["sha256"])
            case "memory":
                self.peak_bytes = event["peak_bytes"]
            case _:
                _log(self._work, event)

    def _start(self, event: Event) -> None:
        step = event.get("resumed_from") or 0
        resumed = f", resumed from step {step}" if step else ""
        more = f" and {event['unlabelled_items']} without a mask" if event.get("unlabelled_items") else ""
        message = (
            f"Training {event['parameters']} parameters on {event['train_items']} images{more} ({event['val_items']}"
            f" for validation) on {event['device']}{resumed}."
        )
        self._work.heartbeat.record("log", level="info", message=message, **_facts(event))
        self._work.heartbeat.progress(
            step=step, steps=event["steps"], fraction=TRAINS_FROM + (TRAINS_TO - TRAINS_FROM) * step / event["steps"]
        )

    def _step(self, event: Event) -> None:
        step, steps = event["step"], event["steps"]
        self._work.heartbeat.progress(
            step=step,
            steps=steps,
            epoch=event.get("epoch"),
            seconds_per_step=event.get("seconds_per_step"),
            fraction=TRAINS_FROM + (TRAINS_TO - TRAINS_FROM) * step / steps,
            also=_facts(event),
        )


def _register(work: Work, done: Event, weights: Path, exported: Path, choice: Choice | None) -> None:
    """Bytes first, then the version and the end of the job in one transaction."""
    project_id, spec = work.claim.project_id, work.claim.spec
    try:
        manifest = json.loads((exported / "manifest.json").read_text())
    except (OSError, ValueError):
        raise Crashed("the export did not write a whole manifest.json") from None
    onnx = _stored(work, exported / "model.onnx", manifest["onnx_sha256"])
    kept = _stored(work, weights, done["sha256"])
    for name, variant in (manifest.get("variants") or {}).items():
        if variant["refused"] is None:
            _stored(work, exported / f"model.{name}.onnx", variant["onnx_sha256"])

    told = {} if choice is None else {"loss": choice.loss, "chosen": choice.facts}

    def rows(session: Session) -> dict[str, Any]:
        version = versions.register(
            session,
            project_id=project_id,
            job_id=work.claim.id,
            model=spec["model"],
            manifest=manifest,
            spec=spec | told | done.get("resolved", {}),
            metrics=done["metrics"] or {},
            onnx=onnx,
            weights=kept,
            dataset_version_id=uuid.UUID(spec["dataset_version_id"]),
            training_s=seconds_running(session, work.claim.id),
        )
        first = select(Job.id).where(Job.parent_id == work.claim.id)
        session.execute(delete(Checkpoint).where(Checkpoint.job_id.in_(first)))  # nothing starts from them any more
        said = {} if choice is None else {"recipe": choice.facts}
        return {"model": spec["model"], "version": version.number, "metrics": done["metrics"] or {}} | said

    work.finish(rows)


def _stored(work: Work, path: Path, sha256: str) -> tuple[str, int]:
    """Digest and bytes of a child's file, now a blob; Crashed when it is missing or not what the child named."""
    try:
        stored = work.blobs.put(work.claim.project_id, path)
    except Gone:
        raise Crashed(f"{path.name} was not written") from None
    if stored[0] != sha256:
        raise Crashed(f"{path.name} is not the file that was checked: it was cut short or changed")
    return stored


def seconds_running(session: Session, job_id: uuid.UUID) -> float:
    """How long workers were busy with the job, all attempts together, in seconds."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.event == "state").order_by(JobEvent.number)
    changes = [(event.data["state"], event.created_at) for event in session.scalars(query)] + [("now", now())]
    return sum(
        (end - start).total_seconds()
        for (state, start), (_, end) in pairwise(changes)
        if state in ("running", "cancelling")
    )


def start_of(work: Work) -> Path | None:
    """The weights that the training begins with, under a name that ends as safetensors do."""
    return None if (start := _start(work)) is None else _linked(work, start, "start")


def _start(work: Work) -> Path | None:
    """Of a model version, or of a job of the same comparison."""
    spec = work.claim.spec
    if (before := spec.get("start_from_job_id")) is not None:
        if (kept := checkpoints.last_good(work, uuid.UUID(before))) is None:
            raise Failed("start_failed", f"The checkpoint of job {before}, which it starts from, is gone. Resume that.")
        return kept[1]
    return None if spec.get("start_from_version_id") is None else _weights_of(work, spec["start_from_version_id"])


def _weights_of(work: Work, version_id: str) -> Path:
    with work.database.read() as session:
        version = session.get_one(ModelVersion, uuid.UUID(version_id))
    if version.weights_sha256 is None:
        raise Failed(
            "input_invalid", f"{work.claim.spec['start_from']} has no weights to start from; it was not trained here."
        )
    return work.blobs.local_path(work.claim.project_id, version.weights_sha256)


def _linked(work: Work, path: Path, name: str) -> Path:
    """A name that ends as safetensors do, for a blob."""
    link = work.folder / f"{name}.safetensors"
    link.symlink_to(path.absolute())
    return link


def _log(work: Work, event: Event) -> None:
    if event["event"] == "log":
        work.heartbeat.record("log", **_facts(event))


def _facts(event: Event) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "event"}
