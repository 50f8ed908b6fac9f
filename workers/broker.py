"""The worker behind Celery, for installations with Redis.

    celery --app workers.broker worker --queues train,quick --pool threads --concurrency 2

A task claims and runs the queued jobs of its lane. Its message says only that there may be some, so one that is lost,
doubled or late changes nothing. Threads are enough because a training is a process of its own, and
SIGTERM reaches the running jobs as an event instead of an exception at any bytecode. One thread for each lane: a
message for a lane that is busy is answered at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import structlog
from celery import Celery, signals

from app import logs, queue
from app.job_kinds import LANES
from app.settings import Settings, get_settings
from workers.work import MODELS
from workers.worker import Worker

log = structlog.get_logger()


def make(settings: Settings, *, models: tuple[str, ...] = MODELS) -> Celery:
    """A Celery application whose worker serves the lanes of the queues that it is given."""
    if settings.redis_url is None:
        raise SystemExit("TOPOSERVE_REDIS_URL is not set. Set it, or run `python -m workers`, which needs no broker.")
    app = queue.celery_app(settings.redis_url)
    # Remote control is off: the table of workers says who works and on what.
    app.conf.update(
        worker_enable_remote_control=False, broker_connection_max_retries=None, worker_concurrency=len(LANES)
    )
    worker = CeleryWorker(settings, models)
    for lane in LANES:
        worker.add_task(app, lane)
    worker.connect_signals()
    return app


class CeleryWorker:
    """The worker of this process, made when Celery starts one and stopped when Celery stops."""

    def __init__(self, settings: Settings, models: tuple[str, ...]):
        self._settings, self._models = settings, models
        self._worker: Worker | None = None

    def add_task(self, app: Celery, lane: str) -> None:
        """Add the task of a lane."""

        @app.task(name=f"toposerve.{lane}", ignore_result=True)
        def drain(job_id: str) -> None:
            if self._worker is not None and lane in self._worker.lanes:
                self._worker.drain(lane)

    def connect_signals(self) -> None:
        """Start and stop with Celery's worker; its signals hold weak references unless asked for more."""
        for signal, handler in (
            (signals.setup_logging, self._set_up_logs),
            (signals.celeryd_init, self._start),
            (signals.worker_shutting_down, self._stop),
            (signals.worker_shutdown, self._close),
        ):
            signal.connect(handler, weak=False)

    def _set_up_logs(self, **_: Any) -> None:
        logs.set_up(self._settings)

    def _start(self, options: dict[str, Any], **_: Any) -> None:
        logs.set_up(self._settings)
        require_no_eviction(self._settings)
        self._worker = Worker(self._settings, lanes_of(options.get("queues")), models=self._models)
        self._worker.start()

    def _stop(self, **_: Any) -> None:
        if self._worker is not None:
            self._worker.stop()

    def _close(self, **_: Any) -> None:
        if self._worker is not None:
            self._worker.close()


def lanes_of(queues: str | Iterable[str] | None) -> tuple[str, ...]:
    """The lanes among the queues that Celery was given; all of them when it was given none."""
    named = queues.split(",") if isinstance(queues, str) else list(queues or LANES)
    unknown = [name for name in named if name not in LANES]
    if unknown:
        raise SystemExit(f"There is no queue {', '.join(unknown)}; the queues are {', '.join(LANES)}.")
    return tuple(named)


def require_no_eviction(settings: Settings) -> None:
    """Wait for Redis, and end this process when it would drop messages silently under memory pressure."""
    import redis

    pause = 0.1
    while True:
        try:
            policy = (
                redis.Redis.from_url(settings.redis_url or "", socket_timeout=5)
                .config_get("maxmemory-policy")
                .get("maxmemory-policy", "noeviction")
            )
            break
        except redis.exceptions.ResponseError as error:
            log.warning("redis_policy_unknown", reason=str(error))  # a managed Redis may hide its configuration
            return
        except redis.exceptions.RedisError as error:
            log.warning("waiting_for_redis", reason=str(error))
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
    if policy != "noeviction":
        raise SystemExit(
            f"Redis has maxmemory-policy {policy}, which drops messages without a word when memory is short. Set it to"
            " noeviction."
        )


def __getattr__(name: str) -> Any:
    # Celery looks for `app`; whoever imports this module for `make` must not start a second one.
    if name == "app":
        return globals().setdefault("app", make(get_settings()))
    raise AttributeError(name)
