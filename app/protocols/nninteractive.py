"""nnInteractive's wire (client 2.6): a network's mask, edited click by click in a viewer.

The viewer is given `URL/nninteractive/MODEL`. Its first interaction draws the network's mask; a positive click then
means "connect here" and a negative one "cut here" (`app.serving.drawing`). All foreground classes count as one.
Sessions live in the memory of one process: they end after a time without use, or when the viewer is silent; their
number and their memory are limited. Boxes and lassos are not offered. What was not done, and the Betti numbers, stand
in `X-Meta`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import numpy as np
from anyio.to_thread import run_sync
from fastapi import Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from app.errors import Busy, InvalidRequest, NotFound, SessionEnded, TooLarge
from app.http.callers import Caller, require
from app.http.disconnects import while_connected
from app.http.endpoints import noun_router
from app.http.resources import ServicesDep
from app.http.uploads import received
from app.imaging.packed import DTYPES, pack
from app.protocols.loose_json import body_of, checked, params_of
from app.roles import Principal
from app.schemas.base import ModelRef
from app.services import Services
from app.serving import prediction
from app.serving.drawing import BYTES_PER_VOXEL, Drawing, Step, Told, Wish, stroke
from app.serving.pipeline import Stop
from app.serving.prediction import Question
from app.settings import Settings
from app.upload import Upload

router = noun_router("nnInteractive", prefix="/nninteractive", include_in_schema=False)
ROUTERS = (router,)

VERSION = "2.6.0"
"""Of the client whose wire this is."""
Ref = Annotated[ModelRef, Path(description="`name` or `name@alias`.")]
Whole = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Crop = Annotated[list[Annotated[list[Whole], Field(min_length=2, max_length=2)]], Field(min_length=3, max_length=3)]


# Sessions ------------------------------------------------------------------------------------------------------------


@dataclass
class Lease:
    """One viewer's session."""

    project_id: UUID
    ref: str
    used: float
    """When somebody last did something in it, by the monotonic clock."""
    alive: float
    """When the viewer was last heard of."""
    drawing: Drawing | None = None
    dtype: str = "uint8"
    """Of the viewer's buffer."""


class Leases:
    """The sessions of this process."""

    def __init__(self, settings: Settings):
        self._settings, self._lock = settings, threading.Lock()
        self._leases: dict[str, Lease] = {}
        self.watched = False

    def claim(self, project_id: UUID, ref: str) -> str:
        """A new session's token; Busy when there are too many."""
        self.end_old()
        with self._lock:
            if len(self._leases) >= self._settings.interactive_sessions:
                raise Busy(
                    f"{len(self._leases)} viewers draw already, which is the most here. Close one of them, or try again"
                    " later.",
                    retry_after_s=30,
                )
            token, now = secrets.token_hex(16), time.monotonic()
            self._leases[token] = Lease(project_id, ref, now, now)
        return token

    def get(self, project_id: UUID, ref: str, token: str, *, used: bool = True) -> Lease:
        """The session of a token; SessionEnded. `used` lets it last for its whole time again."""
        self.end_old()
        with self._lock:
            lease = self._leases.get(token)
            if lease is None or (lease.project_id, lease.ref) != (project_id, ref):
                raise SessionEnded
            lease.alive = time.monotonic()
            lease.used = lease.alive if used else lease.used
        return lease

    def release(self, project_id: UUID, token: str) -> None:
        """End a session; nothing happens when it has ended."""
        with self._lock:
            if token in self._leases and self._leases[token].project_id == project_id:
                del self._leases[token]

    def remaining_s(self, lease: Lease) -> float:
        """Until it ends unless somebody uses it."""
        return max(0.0, self._settings.interactive_idle_s - (time.monotonic() - lease.used))

    def reserve(self, lease: Lease, voxels: int) -> None:
        """Let go of what a session has drawn, and make sure that there is memory for a new image; TooLarge."""
        with self._lock:
            lease.drawing = None
            held = sum(each.drawing.bytes for each in self._leases.values() if each.drawing is not None)
            most = self._settings.interactive_memory_bytes
            if held + voxels * BYTES_PER_VOXEL > most:
                raise TooLarge(
                    f"The image needs {voxels * BYTES_PER_VOXEL} bytes to be drawn on; {max(0, most - held)} of {most}"
                    " are free. Crop it, or close another viewer."
                )

    def end_old(self) -> bool:
        """End what nobody uses and who is silent; whether any session is left."""
        now = time.monotonic()
        with self._lock:
            for token, lease in list(self._leases.items()):
                idle, silent = now - lease.used, now - lease.alive
                if idle > self._settings.interactive_idle_s or silent > self._settings.interactive_alive_s:
                    del self._leases[token]
            return bool(self._leases)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """End old sessions again and again until there are none, also when nobody calls any more."""
        if self.watched and not self.end_old():
            self.watched = False
            return
        self.watched = True
        loop.call_later(
            min(self._settings.interactive_idle_s, self._settings.interactive_alive_s) / 2, self.watch, loop
        )


@dataclass(frozen=True)
class Asked:
    """One call: who sent it to which model."""

    request: Request
    services: Services
    caller: Principal
    ref: str
    leases: Leases

    @property
    def token(self) -> str:
        """Of the session; empty where none was sent."""
        return self.request.headers.get("x-lease-token", "")

    @property
    def meta(self) -> dict[str, Any]:
        """What is said of an array in a header beside it."""
        return params_of(self.request.headers.get("x-meta"))


Call = Callable[[Asked, Lease], Awaitable[Response]]
CALLS: dict[str, Call] = {}
"""What a session can be asked, by the last part of the address."""
READS = ("capabilities", "lease_status")
"""Those that are GET."""
SILENT = (*READS, "heartbeat")
"""Those that do not make a session last longer."""
ARRAYS = ("set_image", "add_scribble_interaction", "add_lasso_interaction", "add_initial_seg_interaction")
"""Those whose body is a packed array."""


def call(name: str) -> Callable[[Call], Call]:
    """Register what answers a call."""

    def register(answers: Call) -> Call:
        CALLS[name] = answers
        return answers

    return register


async def _asked(ref: Ref, request: Request, caller: Caller, services: ServicesDep) -> Asked:
    found: Leases | None = getattr(request.app.state, "leases", None)
    if found is None:
        found = request.app.state.leases = Leases(services.settings)
    return Asked(request, services, caller, ref, found)


AskedDep = Annotated[Asked, Depends(_asked)]


@router.get("/{ref}/healthz")
async def healthz(ref: Ref) -> dict[str, bool]:
    """The process answers."""
    return {"ok": True}


@router.get("/{ref}/{name}", dependencies=[require("predict")])
async def read(name: str, asked: AskedDep) -> Response:
    """What a session can do, and how long it lasts."""
    return await _answered(asked, name if name in READS else "")


@router.post("/{ref}/{name}", dependencies=[require("predict")])
async def act(name: str, asked: AskedDep) -> Response:
    """Everything else."""
    if name in ARRAYS:
        asked.request.scope["toposerve.body"].limit = asked.services.settings.max_upload_bytes
    if name == "claim":
        return await _claim(asked)
    if name == "release":
        asked.leases.release(asked.caller.project_id, asked.token)
        return JSONResponse({"released": True})
    return await _answered(asked, name if name not in READS else "")


async def _answered(asked: Asked, name: str) -> Response:
    if name not in CALLS:
        raise NotFound(f"nnInteractive's clients do not ask this. They ask {', '.join(CALLS)}.")
    lease = asked.leases.get(asked.caller.project_id, asked.ref, asked.token, used=name not in SILENT)
    return await CALLS[name](asked, lease)


async def _claim(asked: Asked) -> Response:
    """Open a session on a model. NotFound for an unknown one, Busy when too many viewers draw."""
    settings, services, project_id = asked.services.settings, asked.services, asked.caller.project_id
    await run_sync(services.names.resolve, project_id, asked.ref, limiter=services.readers)
    token = asked.leases.claim(project_id, asked.ref)
    if not asked.leases.watched:
        asked.leases.watch(asyncio.get_running_loop())
    return JSONResponse(
        {
            "lease_token": token,
            "idle_timeout_seconds": settings.interactive_idle_s,
            "liveness_timeout_seconds": settings.interactive_alive_s,
            "max_sessions": settings.interactive_sessions,
        }
    )


@call("heartbeat")
async def heartbeat(asked: Asked, lease: Lease) -> Response:
    """The viewer lives. This does not make the session last longer."""
    return JSONResponse({"remaining_seconds": asked.leases.remaining_s(lease)})


@call("lease_status")
async def lease_status(asked: Asked, lease: Lease) -> Response:
    """How long the session lasts if nobody uses it."""
    idle_s = asked.services.settings.interactive_idle_s
    return JSONResponse({"remaining_seconds": asked.leases.remaining_s(lease), "idle_timeout_seconds": idle_s})


@call("capabilities")
async def capabilities(asked: Asked, lease: Lease) -> Response:
    """Points and scribbles; no boxes, no lassos."""
    return JSONResponse(CAPABILITIES)


CAPABILITIES = {
    "supported_interactions": {"points": True, "bbox2d": False, "bbox3d": False, "scribble": True, "lasso": False},
    "channel_mapping": {"initial_seg": 0, "points": [1, 2], "scribble": [3, 4]},
    "num_interaction_channels": 5,
    "supports_initial_label": True,
    "supports_zero_shot_label_refinement": True,
    "preferred_scribble_thickness": [1, 1, 1],
    "interaction_decay": None,
    "inference_session_version": VERSION,
    "license": None,
    "supports_undo": True,
    "do_autozoom": False,
    "patch_size": None,
}


# The image and the buffer --------------------------------------------------------------------------------------------


class ImageProperties(BaseModel):
    """What a viewer says of its image."""

    spacing: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None, Field(min_length=3, max_length=3)
    ] = None


class ImageMeta(BaseModel):
    """What comes along with an image."""

    image_properties: ImageProperties = ImageProperties()


@call("set_image")
async def set_image(asked: Asked, lease: Lease) -> Response:
    """Take an image and let the network see it; what was drawn before is forgotten."""
    given = checked(ImageMeta, asked.meta)
    async with received(asked.request, asked.services) as upload:
        work = partial(_set_image, asked, lease, upload, given)
        return await while_connected(asked.request, asked.services, work)


def _set_image(asked: Asked, lease: Lease, upload: Upload, given: ImageMeta, stop: Stop) -> Response:
    services, caller = asked.services, asked.caller
    picture = services.decoders.unpack(upload.file, axes=4)
    spacing = given.image_properties.spacing
    shape = [picture.channels, *picture.shape]
    asked.leases.reserve(lease, int(np.prod(picture.shape)))
    _, version = services.names.resolve(caller.project_id, lease.ref)
    predictor = services.registry.get(caller.project_id, version)
    picture = replace(picture, spacing_mm=tuple(spacing) if spacing else None)
    if predictor.manifest.dimensions == 2 and 1 in picture.shape[1:]:  # an image along another axis
        thin = 1 + picture.shape.index(1)
        picture = replace(picture, pixels=np.moveaxis(picture.pixels, thin, 1), spacing_mm=None)
    with services.registry.statistics.request(version.id, stop.waited_ms) as counted:
        answer = prediction.ask(predictor, picture, Question(probability=True, by_plane=True), stop=stop)
        counted.timings_ms = answer.timings_ms
    found = answer.segmentation
    assert found.probability is not None
    values = found.probability[0] if found.threshold is not None else 1 - found.probability[0]
    drawing = Drawing(values.reshape(shape[1:]), 0.5 if found.threshold is None else found.threshold)
    lease.drawing = drawing
    return JSONResponse({"original_image_shape": shape})


class Buffer(BaseModel):
    """What a viewer keeps the mask in."""

    shape: Annotated[list[Whole], Field(min_length=3, max_length=3)]
    dtype: Annotated[str, Field(max_length=16)] = "uint8"


@call("set_target_buffer")
async def set_target_buffer(asked: Asked, lease: Lease) -> Response:
    """Begin with an empty mask of the size of the image."""
    given = checked(Buffer, await body_of(asked.request))
    if given.dtype not in DTYPES or given.dtype.startswith("float"):
        raise InvalidRequest(f"The buffer is {given.dtype}; it can be bool or a type of whole numbers.")
    drawing = _drawing(lease)
    if tuple(given.shape) != drawing.shape:
        raise InvalidRequest(f"The buffer has the shape {given.shape} and the image {list(drawing.shape)}.")
    await run_sync(_clear, drawing, limiter=asked.services.decode_slots)
    lease.dtype = given.dtype
    return JSONResponse({})


def _clear(drawing: Drawing) -> None:
    with drawing.lock:
        drawing.clear()


@call("reset_interactions")
async def reset_interactions(asked: Asked, lease: Lease) -> Response:
    """Begin again with an empty mask."""
    await run_sync(_clear, _drawing(lease), limiter=asked.services.decode_slots)
    return JSONResponse({})


@call("set_do_autozoom")
async def set_do_autozoom(asked: Asked, lease: Lease) -> Response:
    """Accepted and without effect: the network sees the whole image."""
    await body_of(asked.request)
    return JSONResponse({})


def _drawing(lease: Lease) -> Drawing:
    if lease.drawing is None:
        raise InvalidRequest("There is no image yet. Send one: set_image.")
    return lease.drawing


# Interactions --------------------------------------------------------------------------------------------------------


class Interaction(BaseModel):
    """What every interaction says."""

    include_interaction: bool = True
    run_prediction: bool = True


class Point(Interaction):
    """A click."""

    coordinates: Annotated[list[Whole], Field(min_length=3, max_length=3)]


class Scribble(Interaction):
    """A stroke, whole or cropped to a box."""

    interaction_bbox: Crop | None = None


@call("add_point_interaction")
async def add_point(asked: Asked, lease: Lease) -> Response:
    """A click: connect or fill where it is positive, cut or remove where it is negative."""
    given = checked(Point, await body_of(asked.request))
    wish = Wish([tuple(given.coordinates)], given.include_interaction)
    return await _drawn(asked, lease, given.run_prediction, lambda drawing: drawing.wait(wish))


@call("add_scribble_interaction")
async def add_scribble(asked: Asked, lease: Lease) -> Response:
    """A stroke: connect what lies at its two ends, or cut between them."""
    given = checked(Scribble, asked.meta)

    async with received(asked.request, asked.services) as upload:

        def add(drawing: Drawing) -> None:
            mask = asked.services.decoders.unpack(upload.file, axes=3).pixels[0]
            corner = _corner(given.interaction_bbox, mask.shape, drawing.shape)
            drawing.wait(Wish(stroke(mask, corner), given.include_interaction))

        return await _drawn(asked, lease, given.run_prediction, add)


@call("add_initial_seg_interaction")
async def add_initial_seg(asked: Asked, lease: Lease) -> Response:
    """Draw on this mask instead of the network's."""
    given = checked(Interaction, {"run_prediction": False} | asked.meta)
    async with received(asked.request, asked.services) as upload:

        def add(drawing: Drawing) -> None:
            mask = asked.services.decoders.unpack(upload.file, axes=3).pixels[0]
            _corner(None, mask.shape, drawing.shape)
            drawing.start_from(mask)

        return await _drawn(asked, lease, given.run_prediction, add)


@call("add_bbox_interaction")
@call("add_lasso_interaction")
async def not_offered(asked: Asked, lease: Lease) -> Response:
    """InvalidRequest: boxes and lassos say nothing about topology."""
    raise InvalidRequest(
        "Boxes and lassos are not offered. Click: positive to connect or fill, negative to cut or remove."
    )


@call("predict")
async def predict(asked: Asked, lease: Lease) -> Response:
    """Do what waits; without anything, draw the network's mask."""
    await body_of(asked.request)
    return await _drawn(asked, lease, True, lambda drawing: None)


@call("undo")
async def undo(asked: Asked, lease: Lease) -> Response:
    """Take the last step back."""
    await body_of(asked.request)
    return await run_sync(_undone, _drawing(lease), lease.dtype, limiter=asked.services.decode_slots)


def _undone(drawing: Drawing, dtype: str) -> Response:
    with drawing.lock:
        step = drawing.undo()
    return _answer(step is not None, step, dtype, Told())


def _corner(box: list[list[int]] | None, shape: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
    """Where a crop begins; InvalidRequest where it does not fit."""
    if box is None:
        if shape != whole:
            raise InvalidRequest(f"The mask has the shape {list(shape)} and the image {list(whole)}.")
        return (0,) * len(whole)
    fits = all(0 <= low < high <= side for (low, high), side in zip(box, whole, strict=True))
    if not fits or tuple(high - low for low, high in box) != shape:
        raise InvalidRequest(
            f"The mask has the shape {list(shape)} and its box is {box}, in an image of {list(whole)}."
        )
    return tuple(low for low, _ in box)


async def _drawn(asked: Asked, lease: Lease, run: bool, add: Callable[[Drawing], None]) -> Response:
    return await while_connected(asked.request, asked.services, partial(_draw, lease, run, add))


def _draw(lease: Lease, run: bool, add: Callable[[Drawing], None], stop: Stop) -> Response:
    drawing = _drawing(lease)
    with drawing.lock:
        add(drawing)
        if not run:
            return _answer(False, None, lease.dtype, Told())
        step, told = drawing.draw(stop.check)
        return _answer(True, step, lease.dtype, told)


def _answer(ran: bool, step: Step | None, dtype: str, told: Told) -> Response:
    meta: dict[str, Any] = {"ran_prediction": ran, "bbox": None, "dtype": dtype, "shape": None}
    content = b""
    if step is not None:
        meta |= {"bbox": step.box, "shape": list(step.mask.shape)}
        content = pack(step.mask.astype(dtype))
    if told.betti is not None:
        meta["topology"] = {f"beta{k}": number for k, number in enumerate(told.betti)}
    if told.kinds:
        meta["edits"] = told.kinds
    if told.said:
        meta["said"] = " ".join(told.said)[:1000].encode("ascii", "replace").decode()
    headers = {"X-Meta": json.dumps(meta, separators=(",", ":"))}
    return Response(content, media_type="application/octet-stream", headers=headers)
