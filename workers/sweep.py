"""Repairs and cleans up: expired leases, lost messages, unreferenced blobs and folders.

Every worker sweeps. Every step is safe when several do it at once: rows are locked one by one and read again, and
what another sweeper holds is skipped.
"""

from __future__ import annotations

import shutil
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import String, delete, func, or_, select

from app import queue
from app.errors import Problem
from app.job_kinds import LANES
from app.queue import Broker, broker_of
from app.settings import Settings
from app.store import retention
from app.store.blobs import Blobs
from app.store.named_blobs import all_named, digest_columns
from app.store.session import Database, clock
from app.store.tables import IdempotentRequest, ImageSession, Job, ModelVersion, Prediction, Worker, now
from workers.work import Installation

log = structlog.get_logger()

ANSWERS_KEPT = timedelta(hours=24)
BATCH = 100


class Sweeper:
    """The sweeps of one worker; the slow ones run less often."""

    def __init__(self, installation: Installation):
        self._installation = installation
        self._slow_s = max(installation.settings.sweep_s, installation.settings.orphan_grace_s / 4)
        self._slow_at = 0.0

    def sweep(self) -> None:
        """Everything that is due."""
        database, settings = self._installation.database, self._installation.settings
        requeue_expired(database, settings)
        if (broker := broker_of(settings.redis_url)) is not None:
            wake_again(database, settings, broker)
        if time.monotonic() >= self._slow_at:
            self._slow_at = time.monotonic() + self._slow_s
            delete_old_rows(database, settings)
            retention.apply(database)
            remove_scratch(database, settings)
            collect_blobs(database, self._installation.blobs, settings)


def requeue_expired(database: Database, settings: Settings) -> int:
    """Jobs whose lease ran out go back to the queue, or end where they were to be stopped or have crashed too often;
    how many.
    """
    lost = select(Job).where(Job.state.in_(queue.HELD), Job.heartbeat_at < clock() - settings.lease_s)
    with database.write() as session:
        jobs = session.scalars(lost.order_by(Job.id).limit(BATCH).with_for_update(skip_locked=True)).all()
        for job in jobs:
            log.warning("lease_expired", job_id=str(job.id), worker=job.worker)
            reason = f"its worker was silent for more than {settings.lease_s:g} s"
            queue.requeue(session, job, reason, crash_limit=settings.max_attempts)
    return len(jobs)


def wake_again(database: Database, settings: Settings, broker: Broker) -> int:
    """Send messages for the oldest queued jobs, one for each idle worker without a waiting message; how many.

    A busy worker polls the rows by itself when it is done, so more messages would only fill the broker.
    """
    sent = 0
    for lane in LANES:
        messages = broker.waiting(lane)
        if messages is None:
            break
        with database.write() as session:
            alive = clock() - 2 * (settings.lease_s + settings.sweep_s)
            free = select(func.count()).where(Worker.lane == lane, Worker.job_id.is_(None), Worker.seen_at > alive)
            idle = session.scalars(free).one()
            overdue = select(Job).where(
                Job.state == "queued",
                Job.lane == lane,
                or_(Job.notified_at.is_(None), Job.notified_at < clock() - settings.sweep_s),
            )
            jobs = session.scalars(
                overdue.order_by(Job.id).limit(max(0, idle - messages)).with_for_update(skip_locked=True)
            ).all()
            for job in jobs:
                job.notified_at = clock()
        sent += sum(broker.notify(lane, job.id) for job in jobs)
    return sent


def delete_old_rows(database: Database, settings: Settings) -> None:
    """Answers kept for Idempotency-Keys past their time, images whose sessions have ended, and workers that were not
    seen for long.
    """
    with database.write() as session:
        session.execute(delete(ImageSession).where(ImageSession.expires_at < now()))
        session.execute(delete(IdempotentRequest).where(IdempotentRequest.created_at < now() - ANSWERS_KEPT))
        session.execute(delete(Worker).where(Worker.seen_at < clock() - 10 * settings.lease_s))


def remove_scratch(database: Database, settings: Settings) -> int:
    """Scratch folders of attempts that no longer run; how many."""
    folders = {folder: parsed for folder in _folders(settings.scratch) if (parsed := _attempt_of(folder))}
    with database.read() as session:
        running = {
            (row.id, row.attempt)
            for row in session.execute(select(Job.id, Job.attempt).where(Job.state.in_(queue.HELD)))
        }
    dead = [folder for folder, attempt in folders.items() if attempt not in running]
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    return len(dead)


def collect_blobs(database: Database, blobs: Blobs, settings: Settings) -> int:
    """Bytes that no row has named for a while, and what interrupted writers left; how many blobs."""
    collected = 0
    try:
        blobs.sweep_incoming(settings.orphan_grace_s)
        with database.read() as session:
            named = all_named(session)
        for project_id, sha256 in blobs.older_than(settings.orphan_grace_s):
            if (project_id, sha256) not in named and not _is_named(database, project_id, sha256):
                # Bytes that were written again meanwhile are young: a row is about to name them.
                collected += blobs.delete_if_older(project_id, sha256, settings.orphan_grace_s)
    except Problem as problem:
        log.warning("blob_collection_failed", code=problem.code)
    return collected


def _is_named(database: Database, project_id: uuid.UUID, sha256: str) -> bool:
    """The same for one blob, now."""
    with database.read() as session:
        if any(
            session.scalar(select(column).where(column.table.c.project_id == project_id, column == sha256).limit(1))
            for column in digest_columns()
        ):
            return True
        within: list[tuple[type[Prediction | ModelVersion], Any]] = [
            (Prediction, Prediction.artifacts),
            (ModelVersion, ModelVersion.manifest),
        ]
        return any(
            session.scalar(
                select(table.id).where(table.project_id == project_id, column.cast(String).contains(sha256)).limit(1)
            )
            for table, column in within
        )


def _folders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if folder.is_dir()] if path.exists() else []


def _attempt_of(folder: Path) -> tuple[uuid.UUID, int] | None:
    job_id, _, attempt = folder.name.rpartition("-")
    try:
        return uuid.UUID(job_id), int(attempt)
    except ValueError:
        return None
