"""What a job function receives: its claim, heartbeat, settings, database, blobs and scratch folder."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from app import queue
from app.queue import Claim
from app.settings import Settings
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import Job
from workers.heartbeat import Heartbeat, retry

if TYPE_CHECKING:
    from app.serving.registry import Registry

MODELS = (sys.executable, "-m", "models")
"""The command line that trains and exports."""


class Failed(Exception):
    """The job cannot succeed, and running it again would change nothing: a stable code and a sentence for its
    submitter.
    """

    def __init__(self, code: str, detail: str):
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")


class Crashed(Exception):
    """The work ended in a way that may not happen again; the job is tried again, a few times."""


class Installation:
    """What the jobs of one worker share."""

    def __init__(self, settings: Settings, *, models: tuple[str, ...] = MODELS):
        self.settings, self.models = settings, models
        self.database, self.blobs = Database(settings), Blobs(settings)
        self.stopping = threading.Event()

    @cached_property
    def registry(self) -> Registry:
        """The networks that are loaded; ONNX Runtime is imported with the first."""
        from app.serving.registry import Registry

        return Registry(self.database, self.blobs, self.settings)


@dataclass(frozen=True)
class Work:
    """One claimed job."""

    claim: Claim
    heartbeat: Heartbeat
    installation: Installation

    @property
    def settings(self) -> Settings:
        return self.installation.settings

    @property
    def database(self) -> Database:
        return self.installation.database

    @property
    def blobs(self) -> Blobs:
        return self.installation.blobs

    @cached_property
    def folder(self) -> Path:
        """A scratch folder of this attempt; `sweep` removes those whose worker died."""
        folder = scratch_folder(self.settings, self.claim.id, self.claim.attempt)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def write(self, rows: Callable[[Session, Job], None]) -> None:
        """Rows of this job, in a transaction that a worker with a lost lease cannot commit."""

        def transaction() -> None:
            with self.database.write() as session:
                rows(session, queue.held(session, self.claim))

        self.retry(transaction)

    def finish(self, rows: Callable[[Session], dict[str, Any]]) -> None:
        """Succeed with the result that `rows` returns, in one transaction with what it writes."""
        self.heartbeat.close()

        def transaction() -> None:
            with self.database.write() as session:
                queue.held(session, self.claim)
                queue.finish(session, self.claim, rows(session))

        self.retry(transaction)

    def retry(self, action: Callable[[], None]) -> None:
        """Try again while the database is away, as long as a job may be silent."""
        retry(action, patience_s=self.settings.stall_s, give_up=self.installation.stopping)

    def remove_folder(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(scratch_folder(self.settings, self.claim.id, self.claim.attempt), ignore_errors=True)


def scratch_folder(settings: Settings, job_id: object, attempt: int) -> Path:
    """Where an attempt keeps its files while it runs."""
    return settings.scratch / f"{job_id}-{attempt}"
