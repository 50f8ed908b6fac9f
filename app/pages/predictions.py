"""The pages of predictions: the list, one prediction, and its layers as PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any
from uuid import UUID

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.errors import NotFound, TooManyPixels
from app.http.callers import Caller, require
from app.http.finding import Wanted, finding
from app.http.paging import Page
from app.http.resources import Read, ServicesDep
from app.imaging import IGNORE
from app.pages import layers, pictures
from app.pages.rendering import Facts, new_router, next_page, page, uuid_of
from app.pages.words import REPORT
from app.representations import images, models, predictions as shapes
from app.schemas.base import by
from app.services import Services
from app.serving.analysis import MOST_PIXELS
from app.serving.answers import positions
from app.store import predictions as store
from app.store.finding import PREDICTIONS
from app.store.tables import Image, Model, ModelVersion, Prediction

router = new_router()
Found = tuple[Prediction, Image, list[str]]
LAYERS = {
    "mask": ("Mask", "What the network says is foreground."),
    "skeleton": ("Skeleton", "A one-pixel-wide set with the same topology as the mask."),
    "reference": ("Reference", "The mask that the prediction is measured against."),
    "difference": ("Difference", "Where prediction and reference differ."),
}
MARKS = [
    ["mark-lost", "break or missing component"],
    ["mark-made", "merge or spurious component"],
    ["mark-hole", "hole too many"],
]


@page(router, "/predictions", "predictions.html", "images:read")
def predictions(
    request: Request,
    caller: Caller,
    session: Read,
    listed: Page,
    wanted: Annotated[Wanted, finding(PREDICTIONS, form=True)],
) -> Facts:
    """The stored predictions of the project, newest first or as wanted."""
    listing = listed.found(session, store.owned(caller.project_id), wanted, lambda row: row.id)
    shown = cards(session, caller.project_id, Prediction.id.in_(listing.items), limit=len(listing.items))
    return {
        "predictions": sorted(shown, key=lambda card: listing.items.index(card["id"])),
        "found": wanted.form(),
        "page": {"next": next_page(request, listing.next_cursor)},
    }


@page(router, "/predictions/{prediction_id}", "prediction.html", "images:read")
def prediction(prediction_id: str, caller: Caller, session: Read) -> Facts:
    """One prediction: its layers, its topology, what it scored and how long it took."""
    row = require_prediction(session, caller.project_id, prediction_id)
    others = cards(session, caller.project_id, Prediction.image_id == row.image_id, Prediction.id != row.id, limit=6)
    return described(session, row) | {"others": others}


@router.get("/predictions/{prediction_id}/layers/{name}.png", dependencies=[require("images:read")])
async def layer(prediction_id: str, name: str, caller: Caller, services: ServicesDep) -> Response:
    """One layer as a picture with transparent ground: mask, skeleton, reference or difference; or a thumbnail of image
    and mask.
    """

    def find(session: Session) -> Found:
        row = require_prediction(session, caller.project_id, prediction_id)
        if name != "thumbnail" and name not in present(row):
            raise NotFound(f"This prediction has no layer {name[:32]!r}. It has: {', '.join(present(row))}.")
        return row, session.get_one(Image, row.image_id), store.classes_of(session, row)

    return await pictures.drawn(services, find, lambda found: _drawn(services, name, *found))


@router.get("/predictions/{prediction_id}/layers/located.svg", dependencies=[require("images:read")])
async def located_layer(prediction_id: str, caller: Caller, services: ServicesDep) -> Response:
    """Where the topology is wrong, drawn over the image; of a volume, what reaches the plane that is shown."""

    def draw(found: Found) -> bytes:
        shape, errors = found[1].shape, _located(services, *found)
        if len(shape) == 3:
            errors = [error for error in errors if error["box"][0][0] <= shape[0] // 2 < error["box"][1][0]]
        return layers.located_layer(errors, *shape[-2:])

    return await pictures.drawn(
        services, lambda session: _with_reference(session, caller, prediction_id), draw, "image/svg+xml"
    )


@router.get("/predictions/{prediction_id}/layers/located.json", dependencies=[require("images:read")])
async def located(prediction_id: str, caller: Caller, services: ServicesDep) -> Response:
    """Where the topology is wrong, the most severe first:
    kind, dimension, position, box and size of each place, by class.
    """
    errors = await pictures.made(
        services,
        lambda session: _with_reference(session, caller, prediction_id),
        lambda found: _located(services, *found),
    )
    return JSONResponse({"errors": errors})


def _with_reference(session: Session, caller: Caller, prediction_id: str) -> Found:
    row = require_prediction(session, caller.project_id, prediction_id)
    if row.reference_sha256 is None:
        raise NotFound(
            "This prediction has no reference to be measured against. Give it one: PUT /v1/predictions/{id}/reference."
        )
    image = session.get_one(Image, row.image_id)
    if not _locatable(image):
        raise TooManyPixels(
            f"The volume is {by(image.shape)}; places are looked for in volumes of at most"
            f" {MOST_PIXELS} voxels. An evaluation counts its errors."
        )
    return row, image, store.classes_of(session, row)


def _locatable(image: Image) -> bool:
    return image.dimensions == 2 or prod(image.shape) <= MOST_PIXELS


def _located(services: Services, row: Prediction, image: Image, classes: list[str]) -> list[Facts]:
    from topology.metrics import locate_errors  # compiled code, which the gateway loads when somebody first looks

    mask, reference = (
        _mask(services, row, image, classes, "mask"),
        pictures.labels(services, row.project_id, str(row.reference_sha256), image),
    )
    found = [
        {"class": name} | error
        for position, name in enumerate(classes)
        if position
        for error in locate_errors(mask == position, reference == position, ignore=reference == IGNORE)
    ]
    return sorted(found, key=lambda error: -error["size"])


def _drawn(services: Services, name: str, row: Prediction, image: Image, classes: list[str]) -> bytes:
    if name == "thumbnail":
        return layers.blend(pictures.shown(services, image, pictures.THUMBNAIL), mask_of(services, row, image, classes))
    if name == "skeleton":
        return layers.skeleton_layer(mask_of(services, row, image, classes, "skeleton"))
    if name == "mask":
        return layers.mask_layer(mask_of(services, row, image, classes))
    reference = pictures.plane(pictures.labels(services, row.project_id, str(row.reference_sha256), image))
    if name == "reference":
        labelled = np.where(reference == IGNORE, 0, reference)
        return layers.reference_layer(labelled) if len(classes) == 2 else layers.mask_layer(labelled)
    return layers.difference_layer(mask_of(services, row, image, classes), reference, IGNORE)


def mask_of(
    services: Services, row: Prediction, image: Image, classes: Sequence[str], name: str = "mask"
) -> np.ndarray:
    """The mask (or skeleton) of a prediction as (H, W) class positions; of a volume, of the plane that is shown."""
    return pictures.plane(_mask(services, row, image, classes, name))


def _mask(services: Services, row: Prediction, image: Image, classes: Sequence[str], name: str) -> np.ndarray:
    """(...) class positions, in the shape of the image."""
    return positions(pictures.labels(services, row.project_id, row.artifacts[name]["sha256"], image), classes)


def require_prediction(session: Session, project_id: UUID, prediction_id: str) -> Prediction:
    """The prediction of that id in this project."""
    return store.get(session, project_id, uuid_of(prediction_id))


def described(session: Session, row: Prediction) -> Facts:
    """What a page shows of one prediction."""
    image, version = session.get_one(Image, row.image_id), session.get_one(ModelVersion, row.model_version_id)
    return {
        "prediction": shapes.describe(session, row).model_dump(mode="json"),
        "image": images.describe(image),
        "model": models.describe_version(session, version).model_dump(include={"ref", "model", "version", "aliases"}),
        "topology": topology_table(row.report),
        "expected": expectation_table(row.report),
        "distance_unit": "mm" if image.spacing_mm else "px",
        "located": f"/predictions/{row.id}/layers/located.json" if row.reference_sha256 and _locatable(image) else None,
        "viewer": viewer(row, image, version),
    }


def cards(session: Session, project_id: UUID, *conditions: ColumnElement[bool], limit: int) -> list[Facts]:
    """The newest predictions that fit, as a list shows them; one query."""
    query = (
        select(
            Prediction.id,
            Prediction.created_at,
            Prediction.report,
            Prediction.violated,
            Prediction.image_id,
            Image.name,
            Model.name,
            ModelVersion.number,
        )
        .join(Image, Image.id == Prediction.image_id)
        .join(ModelVersion, ModelVersion.id == Prediction.model_version_id)
        .join(Model, Model.id == ModelVersion.model_id)
        .where(Prediction.project_id == project_id, *conditions)
        .order_by(Prediction.id.desc())
        .limit(limit)
    )
    return [
        {
            "id": id_,
            "created_at": at,
            "betti": _betti(report),
            "violated": violated,
            "image": image_id,
            "image_name": image_name,
            "model": f"{model}:{number}",
        }
        for id_, at, report, violated, image_id, image_name, model, number in session.execute(query)
    ]


def _betti(report: Mapping[str, Any] | None) -> dict[str, list[int]]:
    """The Betti numbers of every class."""
    return {
        name: [facts[key] for key in ("beta0", "beta1", "beta2") if facts.get(key) is not None]
        for name, facts in (report or {}).items()
    }


def present(row: Prediction) -> list[str]:
    """The layers that this prediction has."""
    return [
        name
        for name in LAYERS
        if (name in row.artifacts if name in ("mask", "skeleton") else row.reference_sha256 is not None)
    ]


def viewer(row: Prediction, image: Image, version: ModelVersion) -> Facts:
    """What the viewer shows: the picture and its layers. With a reference the errors are shown first, else the mask."""
    there = present(row)
    first_shown = "difference" if "difference" in there else "mask"
    over = [
        {
            "name": name,
            "label": LAYERS[name][0],
            "src": f"/predictions/{row.id}/layers/{name}.png",
            "alt": LAYERS[name][1],
            "shown": name == first_shown,
        }
        for name in there
    ]
    if "difference" in there and _locatable(image):
        over.append(
            {
                "name": "located",
                "label": "Wrong places",
                "src": f"/predictions/{row.id}/layers/located.svg",
                "alt": "Places where topology is wrong.",
                "shown": True,
            }
        )
    return {
        "id": f"v{row.id.hex[-8:]}",
        "group": "",
        "title": image.name,
        "rows": image.shape[-2],
        "columns": image.shape[-1],
        "image": f"/images/{image.id}/picture.png",
        "layers": [{"name": "image", "label": "Image", "src": None, "alt": "", "shown": True}, *over],
        "has_difference": "difference" in there,
        "caption": pictures.caption(image),
        "key": _key(version.manifest["classes"], there),
    }


def _key(classes: Sequence[str], there: Sequence[str]) -> list[list[str]]:
    """Colour and meaning of everything that may be drawn."""
    key = [[f"class-{(index - 1) % len(layers.CLASSES) + 1}", name] for index, name in enumerate(classes) if index]
    key += [["skeleton", "skeleton"]] if "skeleton" in there else []
    key += [["reference", "reference"]] if "reference" in there and len(classes) == 2 else []
    return key + (
        [
            ["false-positive", "predicted, not in the reference"],
            ["false-negative", "in the reference, not predicted"],
            *MARKS,
        ]
        if "difference" in there
        else []
    )


def expectation_table(report: Mapping[str, Any] | None) -> list[Facts]:
    """One row for each number that was expected, with the one that was found."""
    return [
        {"class_name": class_name, "label": REPORT[name][0], "expected": number, "found": facts[name]}
        for class_name, facts in (report or {}).items()
        for name, number in facts.get("expected", {}).items()
    ]


def topology_table(report: Mapping[str, Any] | None) -> Facts | None:
    """The report as rows of figures, one column per class, each with its unit."""
    if not report:
        return None
    first = next(iter(report.values()))
    pixels = "voxels" if first.get("beta2") is not None else "px"
    units = {"length": first.get("length_unit", "px"), "pixels": pixels, "share": "0 to 1"}
    rows = [
        {
            "name": name,
            "label": label,
            "unit": units.get(kind, ""),
            "digits": 2 if kind == "share" else 1,
            "values": [each.get(name) for each in report.values()],
        }
        for name, (label, kind) in REPORT.items()
        if any(each.get(name) is not None for each in report.values())
    ]
    return {"classes": list(report), "rows": rows}
