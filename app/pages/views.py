"""All pages, put into the application in the order of the story."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from app.pages import (
    comparison,
    curves,
    datasets,
    deletion,
    dicomweb_rules,
    forms,
    home,
    images,
    job_forms,
    jobs,
    labelling,
    models,
    openid,
    persistence,
    predictions,
    project,
    sessions,
)
from app.pages.rendering import problem_page, static_file

ROUTERS: tuple[APIRouter, ...] = (
    openid.router,
    sessions.router,
    home.router,
    # before images: /images/queue is not the id of an image
    labelling.router,
    images.router,
    datasets.router,
    curves.router,  # before jobs: /jobs/curves is not the id of a job
    job_forms.router,  # before jobs: /jobs/new is not the id of a job
    jobs.router,
    dicomweb_rules.router,
    models.router,
    predictions.router,
    persistence.router,
    comparison.router,
    forms.router,
    deletion.router,
    project.router,
)


def install(app: FastAPI) -> None:
    """Serve the pages, and show problems to browsers as pages."""
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/static/{name}", static_file, methods=["GET"], include_in_schema=False, response_model=None)
    app.state.problem_page = problem_page
