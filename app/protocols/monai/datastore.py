"""Images and labels as MONAI Label's clients store, list and fetch them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Form, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select

from app import imaging
from app.admission import deletion
from app.admission.images import add, columns
from app.errors import Invalid, InvalidRequest, NotFound
from app.http.callers import Caller, require
from app.http.downloads import disposition, download
from app.http.endpoints import downloads
from app.http.limits import body_up_to
from app.http.resources import BlobsDep, Read, ServicesDep, Write
from app.http.uploads import received_form
from app.imaging import FORMATS
from app.imaging.archive import Outbox
from app.imaging.labels import LabelMap, to_index, value_counts
from app.protocols.loose_json import checked, params_of
from app.protocols.monai import service
from app.protocols.monai.wire import image_of, new_router
from app.roles import Principal
from app.services import Services
from app.store import audit, images, labels, tables
from app.upload import Upload, label

router = new_router()

MOST_LISTED = 10_000
"""Images in one answer: this wire has no pages. The newest are told."""
Named = Annotated[str, Query(max_length=255)]
Tag = Annotated[str, Query(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


# Lists ---------------------------------------------------------------------------------------------------------------


@router.get("/datastore/", dependencies=[require("images:read")], response_model=None)
def listed(caller: Caller, session: Read, output: str = "stats") -> dict[str, Any] | list[dict[str, str]]:
    """Figures (`stats`), pairs to train on (`train`), or every image with its labels (`all`)."""
    if output == "stats":
        return service.datastore(session, caller)
    if output not in ("train", "all"):
        raise InvalidRequest(f"output is {output[:16]!r}; it can be stats, train or all.")
    found: dict[Any, list[tables.ImageLabel]] = {}
    for row in session.scalars(labels.of_images(session, caller.project_id)):
        found.setdefault(row.image_id, []).append(row)
    if output == "train":
        done = [row for rows in found.values() for row in rows if row.tag == labels.FINAL]
        return [{"image": str(row.image_id), "label": str(row.image_id)} for row in done]
    newest = images.owned(caller.project_id).order_by(tables.Image.id.desc()).limit(MOST_LISTED)
    objects = {
        str(image.id): {
            "image": {"ext": FORMATS[image.format].suffixes[0], "info": _info(image)},
            "labels": {row.tag: _label_info(row) for row in found.get(image.id, ())},
        }
        for image in session.scalars(newest)
    }
    return {
        "name": "toposerve",
        "description": "Images of this project",
        "images_dir": "",
        "labels_dir": "",
        "objects": objects,
    }


def _info(image: tables.Image) -> dict[str, Any]:
    return {"name": image.name, "shape": image.shape, "checksum": f"SHA256:{image.sha256}"}


def _label_info(row: tables.ImageLabel) -> dict[str, Any]:
    info = {"label_info": [{"name": name, "idx": value} for name, value in row.label_map.items()]}
    return {"ext": FORMATS[row.format].suffixes[0], "info": info | {"client_id": row.drawn_by}}


# Images --------------------------------------------------------------------------------------------------------------


@router.put("/datastore/", dependencies=[require("images:write"), body_up_to("max_upload_bytes")])
@router.put("/datastore/image", dependencies=[require("images:write"), body_up_to("max_upload_bytes")])
async def put_image(request: Request, caller: Caller, services: ServicesDep, image: Named = "") -> dict[str, str]:
    """Store an image under a name, which its later calls may use; the same bytes are stored once."""
    async with received_form(request, services, files=("file",), fields=("params",)) as form:
        upload = _file(form.files, "file")
        picture = await run_sync(services.decoders.decode, upload.file, limiter=services.decode_slots)
        facts = columns(picture, upload, _name(image, picture.format))
        return {"image": await run_sync(_keep_image, services, caller, upload, facts, bool(image))}


def _name(given: str, format: str) -> str | None:
    """What an image is called that a viewer names: with the ending of its format, so that the viewer can open it."""
    wanted, suffixes = label(given), FORMATS[format].suffixes
    return wanted if wanted is None or wanted.lower().endswith(suffixes) else f"{wanted[:240]}{suffixes[0]}"


def _file(files: dict[str, Upload], name: str) -> Upload:
    if name not in files:
        raise Invalid(f"The form has no file. Send it as the part `{name}` with a file name.")
    return files[name]


def _keep_image(services: Services, caller: Principal, upload: Upload, facts: dict[str, Any], named: bool) -> str:
    services.blobs.put_file(caller.project_id, upload.file)
    with services.database.write() as session:
        row, new = add(session, caller, upload.sha256, facts)
        if named and not new and row.name != facts["name"]:
            row.name = facts["name"]
            audit.note(session, caller, "image.rename", row.id)
        return str(row.id)


@router.api_route("/datastore/image", methods=["GET", "HEAD"], **downloads("images:read", answers={}))
def get_image(
    request: Request, caller: Caller, session: Read, blobs: BlobsDep, image: Named, check_sum: Named = ""
) -> Response:
    """The bytes of an image; with `check_sum`, NotFound where they are others."""
    row = labels.image_named(session, caller.project_id, image)
    if check_sum and check_sum.rpartition(":")[2].lower() != row.sha256:
        raise NotFound(f"Image {image[:64]} has another checksum: SHA256:{row.sha256}.")
    media_type = FORMATS[row.format].media_type
    return download(request, blobs, caller.project_id, row.sha256, row.bytes, media_type=media_type, name=row.name)


@router.delete("/datastore/image", dependencies=[require("images:write")])
def delete_image(caller: Caller, session: Write, id: Named) -> dict[str, str]:
    """Delete an image. Conflict where something was made from it: delete that first."""
    row = labels.image_named(session, caller.project_id, id)
    deletion.delete(session, caller, deletion.image(session, caller, row.id))
    return {}


@router.get("/datastore/image/info", dependencies=[require("images:read")])
def get_image_info(caller: Caller, session: Read, image: Named) -> dict[str, Any]:
    """What is known about an image."""
    return _info(labels.image_named(session, caller.project_id, image))


@router.put("/datastore/image/info", dependencies=[require("images:write")])
def put_image_info(
    caller: Caller, session: Write, image: Named, info: Annotated[str, Form(max_length=8192)] = "{}"
) -> dict[str, str]:
    """Rename an image: `name` in the JSON of `info`. Nothing else is kept."""
    row = labels.image_named(session, caller.project_id, image)
    new = label(str(params_of(info).get("name") or ""))
    if new is not None:
        row.name = new
        audit.note(session, caller, "image.rename", row.id)
    return {}


# Labels --------------------------------------------------------------------------------------------------------------


class Value(BaseModel):
    """What one value of a label means."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    idx: Annotated[int, Field(ge=1, le=65535)]


class LabelParams(BaseModel):
    """What comes along with a label."""

    label_info: Annotated[list[Value], Field(max_length=254)] = []
    client_id: Annotated[str, Field(max_length=64)] | None = None


@router.put("/datastore/label", dependencies=[require("images:write"), body_up_to("max_upload_bytes")])
async def put_label(
    request: Request, caller: Caller, services: ServicesDep, image: Named, tag: Tag = labels.FINAL
) -> dict[str, str]:
    """Store what somebody drew on an image; under the tag `final` the image counts as labelled."""
    async with received_form(request, services, files=("label",), fields=("params",)) as form:
        upload = _file(form.files, "label")
        given = checked(LabelParams, params_of(form.fields.get("params")))
        keep = partial(_keep_label, services, caller, image, tag, upload, given)
        return await run_sync(keep, limiter=services.decode_slots)


def _keep_label(
    services: Services, caller: Principal, image: str, tag: str, upload: Upload, given: LabelParams
) -> dict[str, str]:
    row = image_of(services, caller.project_id, image)
    header = services.decoders.read_header(services.blobs.read(caller.project_id, row.sha256))
    picture = imaging.onto(services.decoders.decode_labels(upload.file), header, what="label")
    meaning = _meaning(picture.pixels[0], given)
    services.blobs.put_file(caller.project_id, upload.file)
    with services.database.write() as session:
        kept = labels.image_named(session, caller.project_id, str(row.id))
        labels.put(
            session,
            kept,
            tag,
            sha256=upload.sha256,
            bytes=upload.bytes,
            format=picture.format,
            label_map=meaning,
            drawn_by=given.client_id,
        )
        audit.note(session, caller, "image.label", f"{row.id} {tag}")
    return {"image": str(row.id), "label": str(row.id)}


def _meaning(mask: Any, given: LabelParams) -> dict[str, int]:
    """Class name -> value, of all that were named; UnknownLabel where the mask holds another value."""
    named = {each.name: each.idx for each in given.label_info}
    if len(set(named.values())) < len(given.label_info):
        raise Invalid("label_info gives a name or a value twice.")
    if not named:
        values = sorted(value for value in value_counts(mask) if value)
        named = {"foreground" if len(values) == 1 else f"class_{value}": int(value) for value in values}
    to_index(mask, LabelMap.parse({"background": 0} | (named or {"foreground": 1})))
    return named or {"foreground": 1}


@router.api_route("/datastore/label", methods=["GET", "HEAD"], **downloads("images:read", answers={}))
def get_label(
    request: Request,
    caller: Caller,
    session: Read,
    blobs: BlobsDep,
    label: Named = "",
    image: Named = "",
    tag: Tag = labels.FINAL,
) -> Response:
    """The bytes of a label as they came."""
    row = labels.image_named(session, caller.project_id, label or image)
    found = labels.get(session, row, tag)
    form = FORMATS[found.format]
    name = f"{labels.stem(row.name)}{form.suffixes[0]}"
    return download(request, blobs, caller.project_id, found.sha256, found.bytes, media_type=form.media_type, name=name)


@router.delete("/datastore/label", dependencies=[require("images:write")])
def delete_label(caller: Caller, session: Write, id: Named, tag: Tag = labels.FINAL) -> dict[str, str]:
    """Forget a label; the image stays."""
    row = labels.image_named(session, caller.project_id, id)
    session.delete(labels.get(session, row, tag))
    audit.note(session, caller, "image.label.delete", f"{row.id} {tag}")
    return {}


# All of it -----------------------------------------------------------------------------------------------------------


@router.get("/datastore/dataset", **downloads("images:read", answers={}))
def dataset(
    caller: Caller,
    session: Read,
    services: ServicesDep,
    limit_cases: Annotated[int, Query(ge=1, le=MOST_LISTED)] = MOST_LISTED,
) -> Response:
    """Every image with a final label as a zip of `images/` and `masks/`, which `POST /v1/datasets` takes."""
    rows = session.execute(
        select(tables.Image, tables.ImageLabel)
        .join(tables.ImageLabel, tables.ImageLabel.image_id == tables.Image.id)
        .where(tables.Image.project_id == caller.project_id, tables.ImageLabel.tag == labels.FINAL)
        .order_by(tables.Image.id)
        .limit(limit_cases)
    )
    files = [
        (f"{folder}/{image.id}{FORMATS[row.format].suffixes[0]}", row.sha256)
        for image, mask in rows
        for folder, row in (("images", image), ("masks", mask))
    ]
    read = partial(services.blobs.read, caller.project_id)
    headers = {"Content-Disposition": disposition("dataset.zip"), "Cache-Control": "no-store"}
    return StreamingResponse(zipped(files, read), media_type="application/zip", headers=headers)


def zipped(files: list[tuple[str, str]], read: Callable[[str], bytes]) -> Iterator[bytes]:
    """A zip of files, one of them in memory at a time.

    files  names in the archive, and what `read` reads of each
    """
    outbox = Outbox()
    with zipfile.ZipFile(outbox, "w") as archive:
        for name, sha256 in files:
            archive.writestr(name, read(sha256))
            yield outbox.take()
    yield outbox.take()
