"""Sets up logs: one line per event, as JSON or as coloured text.

Events are snake_case and their facts are named: `log.warning("lease_expired", job_id=..., worker=...)`. A line never
holds a key, a query string, a file name or a body. `request_id` and `job_id` are bound once
(`structlog.contextvars.bind_contextvars`) and stand in every line that follows.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor

from app.settings import Settings

KEY = re.compile(r"ts_[A-Za-z0-9]{4,8}_?[A-Za-z0-9]*")


def set_up(settings: Settings) -> None:
    """Send our events, and the lines of every library that uses `logging`, to standard error in one format."""
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _hide_keys,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    last = (
        structlog.processors.JSONRenderer(default=str)
        if settings.log_json
        else structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    )
    handler = _ForgivingHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *before],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for chatty in ("uvicorn.access", "alembic", "httpx", "numba", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _ForgivingHandler(logging.StreamHandler[Any]):
    """A handler that loses the line, not the service, when nobody reads standard error any more or its disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 the name that logging calls
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            with contextlib.suppress(OSError, ValueError):
                super().handleError(record)


def _hide_keys(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {name: KEY.sub(_shortened, value) if isinstance(value, str) else value for name, value in event.items()}


def _shortened(match: re.Match[str]) -> str:
    return match.group()[:7] + "..."
