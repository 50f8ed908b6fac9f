"""Assembles the gateway: its services, middleware, routes and pages."""

from __future__ import annotations

import gc

gc.disable()  # until all is imported: what comes stays, and looking for garbage in it is a fifth of the time to ready

import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute

from app import logs
from app.http import idempotency, problems
from app.http.compression import Compression
from app.http.key_cache import KeyCache
from app.http.limits import RequestLimits
from app.http.root_path import RootPath
from app.http.telemetry import Telemetry
from app.http.wrong_keys import WrongKeys
from app.imaging.decoders import Decoders
from app.pages import views
from app.protocols import open_inference
from app.protocols.late import Late
from app.routes import (
    analyses,
    datasets,
    deletions,
    dicomweb_rules,
    edits,
    images,
    jobs,
    keys,
    members,
    models,
    predictions,
    projects,
    reference,
    service,
)
from app.services import Services
from app.serving.names import Names
from app.serving.registry import Registry
from app.settings import Settings, get_settings
from app.store import projects as store
from app.store.blobs import Blobs
from app.store.migrate import upgrade
from app.store.session import Database
from app.version import VERSION

if TYPE_CHECKING:
    from app.oidc.provider import Provider

gc.enable()

ROUTERS = (
    images.router,
    datasets.router,
    jobs.router,
    dicomweb_rules.router,
    models.router,
    # These two before the files of a prediction, whose address has any last part.
    edits.router,
    deletions.router,
    predictions.router,
    analyses.router,
    projects.router,
    members.router,
    keys.router,
    service.router,
    reference.router,
    open_inference.router,
)


def _viewers(name: str) -> Sequence[BaseRoute]:
    """The routes of a wire of viewers, by the module of app.protocols that has them."""
    module = import_module(f"app.protocols.{name}")
    return [route for router in module.ROUTERS for route in router.routes]


LATE = {"/monai/": "monai", "/nninteractive/": "nninteractive", "/label-studio/": "label_studio"}
"""Wires that are loaded by their first request: path, and module of app.protocols."""


def create() -> FastAPI:
    """The gateway with the settings of this process: `uvicorn --factory app.main:create`."""
    settings = get_settings()
    logs.set_up(settings)
    return build(settings)


def build(settings: Settings) -> FastAPI:
    """The gateway; nothing is opened before its lifespan starts."""
    app = FastAPI(
        title="toposerve",
        version=VERSION,
        summary="Segmentation that keeps its topology.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(settings),
    )
    problems.install(app)
    idempotency.install(app)
    for router in ROUTERS:
        # Not include_router: it would make every route a second time, and each costs as much as its import.
        app.router.routes.extend(router.routes)
    app.router.routes.extend(Late(prefix, partial(_viewers, name)) for prefix, name in LATE.items())
    views.install(app)
    # Added last is asked first.
    app.add_middleware(RequestLimits, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(Telemetry)
    if settings.root_path:
        app.add_middleware(RootPath, root_path=settings.root_path)
    app.add_middleware(Compression)
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services = await run_in_threadpool(_open, settings)
        with _draining_on_sigterm(services):
            yield
        if services.provider is not None:
            await services.provider.close()
        await run_in_threadpool(_close, services)

    return lifespan


def _open(settings: Settings) -> Services:
    database = Database(settings)
    upgrade(database)
    blobs = Blobs(settings)
    with database.write() as session:
        secret = store.secret(session, "signing")
    registry = Registry(database, blobs, settings)
    if settings.warm_models:
        registry.warm()
    return Services(
        settings,
        database,
        blobs,
        secret,
        KeyCache(settings.key_cache_s),
        registry,
        Names(database, settings.name_cache_s),
        WrongKeys(settings.wrong_keys_a_minute),
        Decoders(settings),
        _provider(settings),
    )


def _provider(settings: Settings) -> Provider | None:
    """The OpenID provider of the settings; its libraries are loaded only where there is one."""
    if settings.oidc_issuer is None:
        return None
    from app.oidc.provider import Provider

    return Provider(settings)


def _close(services: Services) -> None:
    services.registry.close()
    services.decoders.close()
    services.database.dispose()


@contextmanager
def _draining_on_sigterm(services: Services) -> Iterator[None]:
    """Say so at the first sign of the end; the server's own handler then lets the last answers finish."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a test's server: signals belong to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(number: int, frame: FrameType | None) -> None:
        services.draining.set()
        previous = before[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
