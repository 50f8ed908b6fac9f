"""How the service says that it is well."""

from __future__ import annotations

from typing import Literal

from app.schemas.base import Schema, example


class Alive(Schema):
    """The process answers."""

    status: Literal["ok"] = "ok"

    model_config = {**Schema.model_config, **example({"status": "ok"})}


class Check(Schema):
    """One part of the service."""

    status: Literal["ok", "degraded", "failed"]
    """degraded: requests are answered, but something will have to wait."""
    detail: str
    """What was found."""


class Ready(Schema):
    """Whether requests should be sent here."""

    status: Literal["ok", "degraded", "failed", "draining"]
    checks: dict[str, Check]

    model_config = {
        **Schema.model_config,
        **example(
            {
                "status": "ok",
                "checks": {
                    "database": {"status": "ok", "detail": "sqlite answers"},
                    "workers": {"status": "ok", "detail": "2 seen"},
                },
            }
        ),
    }
