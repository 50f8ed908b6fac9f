"""The pages of predictions: the list, one prediction, and its layers as PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.admission import edits
from app.errors import NotFound, TooManyPixels
from app.http.callers import Caller, require
from app.http.finding import Wanted, finding
from app.http.paging import Page
from app.http.resources import Read, ServicesDep
from app.imaging import IGNORE
from app.pages import layers, pictures, space
from app.pages.labelling import datasets_for
from app.pages.rendering import Facts, new_router, next_page, page, uuid_of
from app.pages.reports import expectation_table, places_table, topology_table
from app.representations import images, models, predictions as shapes
from app.schemas.base import by
from app.services import Services
from app.serving.analysis import MOST_PIXELS
from app.serving.answers import positions
from app.store import edits as edit_rows, predictions as store
from app.store.finding import PREDICTIONS
from app.store.tables import Image, Model, ModelVersion, Prediction

router = new_router()
Found = tuple[Prediction, Image, list[str]]
LAYERS = {
    "mask": ("Mask", "What the network says is foreground."),
    "skeleton": ("Skeleton", "A one-pixel-wide set with the same topology as the mask."),
    "reference": ("Reference", "The mask that the prediction is measured against."),
    "difference": ("Difference", "Where prediction and reference differ."),
    "edited": ("Edited", "The mask with the edits by hand."),
}
MARKS = [
    ["mark-lost", "break or missing component"],
    ["mark-made", "merge or spurious component"],
    ["mark-hole", "hole too many"],
]


@dataclass(frozen=True)
class Look:
    """How a layer is to be drawn."""

    axis: int = 0
    plane: int | None = None
    style: str = "fill"
    colour: int | None = None


@page(router, "/predictions", "predictions.html", "images:read")
def predictions(
    request: Request,
    caller: Caller,
    session: Read,
    listed: Page,
    wanted: Annotated[Wanted, finding(PREDICTIONS, form=True)],
) -> Facts:
    """The stored predictions of the project, newest first or as wanted."""
    listing = pictures.few(listed).found(session, store.owned(caller.project_id), wanted, lambda row: row.id)
    shown = cards(session, caller.project_id, Prediction.id.in_(listing.items), limit=len(listing.items))
    return {
        "predictions": sorted(shown, key=lambda card: listing.items.index(card["id"])),
        "found": wanted.form(),
        "page": {"next": next_page(request, listing.next_cursor)},
    }


@page(router, "/predictions/{prediction_id}", "prediction.html", "images:read")
def prediction(
    prediction_id: str, caller: Caller, session: Read, axis: pictures.Axis = 0, plane: pictures.Plane = None
) -> Facts:
    """One prediction: its layers, its topology, what it scored and how long it took."""
    row = require_prediction(session, caller.project_id, prediction_id)
    others = cards(session, caller.project_id, Prediction.image_id == row.image_id, Prediction.id != row.id, limit=6)
    shown = described(session, row, axis, plane)
    version = session.get_one(ModelVersion, row.model_version_id)
    shown |= {"label_datasets": datasets_for(session, version.manifest, caller.project_id)}
    image = session.get_one(Image, row.image_id)
    return shown | {
        "space": space.offered(image, _mask_address(session, row), version.manifest["classes"]),
        "others": others,
        "places": places_table(row.report),
        "editing": editing(session, row),
        "has_map": {"mask", "probability"} <= set(row.artifacts),
    }


@router.get("/predictions/{prediction_id}/layers/{name}.png", dependencies=[require("images:read")])
async def layer(
    prediction_id: str,
    name: str,
    caller: Caller,
    services: ServicesDep,
    axis: pictures.Axis = 0,
    plane: pictures.Plane = None,
    style: Annotated[Literal["fill", "outline"], Query()] = "fill",
    colour: Annotated[int | None, Query(ge=1, le=len(layers.CLASSES))] = None,
) -> Response:
    """One layer as a picture with transparent ground: mask, mask as edited by hand, skeleton, reference or
    difference.
    """
    look = Look(axis, plane, style, colour)

    def find(session: Session) -> Found:
        row = require_prediction(session, caller.project_id, prediction_id)
        if name != "edited" and name not in present(row):
            raise NotFound(f"This prediction has no layer {name[:32]!r}. It has: {', '.join(present(row))}.")
        return row, session.get_one(Image, row.image_id), store.classes_of(session, row)

    return await pictures.drawn(services, find, lambda found: _drawn(services, caller, name, look, *found))


@router.get("/predictions/{prediction_id}/layers/{name}.nii.gz", dependencies=[require("images:read")])
async def layer_volume(
    prediction_id: str, name: Literal["mask", "edited"], caller: Caller, services: ServicesDep
) -> Response:
    """The mask of a volume, or the mask as edited by hand, as NIfTI of class positions."""

    def find(session: Session) -> Found:
        row = require_prediction(session, caller.project_id, prediction_id)
        image = session.get_one(Image, row.image_id)
        space.require_fit(image)
        if "mask" not in row.artifacts:
            raise NotFound("This prediction was stored without its mask. It has: " + ", ".join(present(row)) + ".")
        return row, image, store.classes_of(session, row)

    def draw(found: Found) -> bytes:
        row, image, classes = found
        if name == "edited":
            labels = edits.read(services, caller, row.id).mask.labels
        else:
            labels = _mask(services, row, image, classes, "mask")
        return space.mask_file(services, image, labels)

    return await pictures.drawn(services, find, draw, space.MEDIA_TYPE)


@router.get("/predictions/{prediction_id}/thumbnail.webp", dependencies=[require("images:read")])
async def thumbnail(prediction_id: str, caller: Caller, services: ServicesDep) -> Response:
    """The mask laid over the image, as a list shows it; of a volume the middle plane."""

    def find(session: Session) -> Found:
        row = require_prediction(session, caller.project_id, prediction_id)
        return row, session.get_one(Image, row.image_id), store.classes_of(session, row)

    def draw(found: Found) -> bytes:
        shown = pictures.shown(services, found[1], pictures.THUMBNAIL)
        return layers.blend(shown, mask_of(services, *found))

    return await pictures.listed(services, find, draw)


@router.get("/predictions/{prediction_id}/layers/located.svg", dependencies=[require("images:read")])
async def located_layer(
    prediction_id: str,
    caller: Caller,
    services: ServicesDep,
    axis: pictures.Axis = 0,
    plane: pictures.Plane = None,
) -> Response:
    """Where the topology is wrong, drawn over the image; of a volume, what reaches the plane that is shown."""

    def draw(found: Found) -> bytes:
        errors, cut = _located(services, *found), pictures.cut_of(found[1], axis, plane)
        if cut is not None:
            errors = [error for error in errors if error["box"][0][cut.axis] <= cut.index < error["box"][1][cut.axis]]
            errors = [error | {"position": np.delete(error["position"], cut.axis).tolist()} for error in errors]
        return layers.located_layer(errors, *pictures.sides_of(found[1], cut))

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


def _drawn(
    services: Services, caller: Caller, name: str, look: Look, row: Prediction, image: Image, classes: list[str]
) -> bytes:
    cut = pictures.cut_of(image, look.axis, look.plane)
    trace = layers.outlined if look.style == "outline" else (lambda mask: mask)
    if name == "edited":
        labels = edits.read(services, caller, row.id).mask.labels
        return layers.mask_layer(trace(pictures.plane(labels, cut)), look.colour)
    if name == "skeleton":
        return layers.skeleton_layer(mask_of(services, row, image, classes, "skeleton", cut))
    if name == "mask":
        return layers.mask_layer(trace(mask_of(services, row, image, classes, "mask", cut)), look.colour)
    reference = pictures.plane(_kept(services, row, str(row.reference_sha256), image), cut)
    if name == "reference":
        labelled = trace(np.where(reference == IGNORE, 0, reference))
        return layers.reference_layer(labelled) if len(classes) == 2 else layers.mask_layer(labelled)
    return layers.difference_layer(mask_of(services, row, image, classes, "mask", cut), reference, IGNORE)


def mask_of(
    services: Services,
    row: Prediction,
    image: Image,
    classes: Sequence[str],
    name: str = "mask",
    cut: pictures.Cut | None = None,
) -> np.ndarray:
    """The mask (or skeleton) of a prediction as (H, W) class positions; of a volume, of the plane that is shown."""
    plane = pictures.plane(_kept(services, row, row.artifacts[name]["sha256"], image), cut)
    return positions(plane, classes)


def _kept(services: Services, row: Prediction, sha256: str, image: Image) -> np.ndarray:
    """A stored mask; of a volume it is kept a while, because its next plane will be asked for."""
    if image.dimensions == 2:
        return pictures.labels(services, row.project_id, sha256, image)
    return pictures.KEPT.get((row.project_id, sha256), lambda: pictures.labels(services, row.project_id, sha256, image))


def _mask(services: Services, row: Prediction, image: Image, classes: Sequence[str], name: str) -> np.ndarray:
    """(...) class positions, in the shape of the image."""
    return positions(pictures.labels(services, row.project_id, row.artifacts[name]["sha256"], image), classes)


def require_prediction(session: Session, project_id: UUID, prediction_id: str) -> Prediction:
    """The prediction of that id in this project."""
    return store.get(session, project_id, uuid_of(prediction_id))


def described(session: Session, row: Prediction, axis: int = 0, plane: int | None = None) -> Facts:
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
        "viewer": viewer(
            row, image, version, pictures.cut_of(image, axis, plane), edited=edit_rows.count(session, row) > 0
        ),
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
        if name != "edited"
        and (name in row.artifacts if name in ("mask", "skeleton") else row.reference_sha256 is not None)
    ]


def viewer(
    row: Prediction, image: Image, version: ModelVersion, cut: pictures.Cut | None = None, *, edited: bool = False
) -> Facts:
    """What the viewer shows: the picture and its layers. Edits by hand are shown first, else with a reference the
    errors, else the mask.
    """
    there = [*present(row), *(["edited"] if edited else [])]
    first_shown = "edited" if edited else "difference" if "difference" in there else "mask"
    query = f"?axis={cut.axis}&plane={cut.index}" if cut else ""
    rows, columns = pictures.displayed(image, cut) if cut else image.shape
    over = [
        {
            "name": name,
            "label": LAYERS[name][0],
            "src": f"/predictions/{row.id}/layers/{name}.png{query}",
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
                "src": f"/predictions/{row.id}/layers/located.svg{query}",
                "alt": "Places where topology is wrong.",
                "shown": True,
            }
        )
    return {
        "id": f"v{row.id.hex[-8:]}",
        "group": "",
        "title": image.name,
        "rows": rows,
        "columns": columns,
        "grid": pictures.sides_of(image, cut),
        "image": f"/images/{image.id}/picture.png{query}",
        "layers": [{"name": "image", "label": "Image", "src": None, "alt": "", "shown": True}, *over],
        "has_difference": "difference" in there,
        "caption": pictures.caption(cut, image),
        "slices": pictures.slices(image, cut, f"/predictions/{row.id}"),
        "places": f"/predictions/{row.id}/layers/located.json" if row.reference_sha256 and _locatable(image) else "",
        "one_class": len(version.manifest["classes"]) == 2,
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


def _mask_address(session: Session, row: Prediction) -> str | None:
    """Where the mask of a volume is, with the edits by hand if there are any."""
    if "mask" not in row.artifacts:
        return None
    return f"/predictions/{row.id}/layers/{'edited' if edit_rows.count(session, row) else 'mask'}.nii.gz"


def editing(session: Session, row: Prediction) -> Facts:
    """The edits by hand of a prediction, and whether more can be made."""
    rows = edit_rows.in_order(session, row)
    return {
        "possible": "mask" in row.artifacts and "probability" in row.artifacts,
        "edits": [
            {
                "id": each.id,
                "number": each.number,
                "kind": each.kind,
                "class_name": each.class_name,
                "at": each.at,
                "pixels": each.pixels,
                "before": each.before.get(each.class_name, {}),
                "after": each.after.get(each.class_name, {}),
            }
            for each in reversed(rows)
        ],
    }
