"""A worker: claims jobs of its lanes, runs them and records how each ended.

It runs one job of each lane at a time. However a job ends, its submitter gets a state and a sentence.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from importlib import import_module

import structlog

from app import queue
from app.errors import Problem, StorageFull, Unavailable
from app.job_kinds import LANES
from app.queue import Claim
from app.settings import Settings
from app.store import migrate
from workers.heartbeat import DATABASE_ERRORS, Heartbeat, WorkerStops, retry
from workers.registration import Registration
from workers.sweep import Sweeper
from workers.work import MODELS, Crashed, Failed, Installation, Work

log = structlog.get_logger()

CODES = {"blob_missing": "input_corrupt", "blob_corrupt": "input_corrupt"}
"""Problems of a request that have another name when a job meets them."""


class Worker:
    """Serves lanes until it is stopped.

    models  the command line that trains and exports
    """

    def __init__(self, settings: Settings, lanes: Sequence[str] = LANES, *, models: tuple[str, ...] = MODELS):
        self.settings, self.lanes = settings, tuple(lanes)
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.installation = Installation(settings, models=models)
        self.stopping = self.installation.stopping
        self._registration = Registration(self.installation.database, self.id, self.lanes)
        self._busy = {lane: threading.Lock() for lane in self.lanes}
        self._woken = {lane: threading.Event() for lane in self.lanes}
        self._maintenance = threading.Thread(target=self._maintain, name="maintenance", daemon=True)
        # Of its own: a PACS that is slow must not keep a worker from telling that it lives.
        self._polls = threading.Thread(target=self._poll_rules, name="rules", daemon=True)

    def start(self) -> None:
        """Wait until the database can be used, however late it comes, then begin to sweep."""
        pause = 0.1
        while not self.stopping.is_set():
            try:
                migrate.check(self.installation.database)
                break
            except (*DATABASE_ERRORS, Unavailable) as error:
                log.warning("waiting_for_database", reason=str(error.__cause__ or error))
                self.stopping.wait(pause)
                pause = min(pause * 2, 5.0)
        self._maintenance.start()
        if self.settings.pacs:
            self._polls.start()
        log.info("worker_started", worker=self.id, lanes=self.lanes)

    def stop(self) -> None:
        """Take no more jobs and give back those that run; returns at once."""
        self.stopping.set()

    def close(self) -> None:
        """After the last job: remove this worker from the table of workers."""
        self.stop()
        if self._maintenance.is_alive():
            self._maintenance.join()
        if self._polls.is_alive():
            self._polls.join(self.settings.stop_grace_s)  # what it began, another worker does again
        try:
            self._registration.remove()
        except DATABASE_ERRORS:
            log.warning("worker_deregister_failed")
        self.installation.database.dispose()
        log.info("worker_stopped", worker=self.id)

    def serve(self, lane: str) -> None:
        """Poll the queued jobs of a lane until stopped, as a worker without a broker does."""
        while not self.stopping.is_set():
            try:
                self.drain(lane)
            except Exception:
                log.exception("lane_failed")  # and polled again: the next job is not to blame
            self.stopping.wait(self.settings.poll_s)

    def drain(self, lane: str) -> None:
        """Run the queued jobs of a lane, oldest first, until there is none.

        Returns at once when another thread of this worker drains the lane: that one polls once more before it ends.
        """
        woken, busy = self._woken[lane], self._busy[lane]
        woken.set()
        while woken.is_set() and busy.acquire(blocking=False):
            try:
                woken.clear()
                while not self.stopping.is_set() and self._run_one(lane):
                    pass
            finally:
                busy.release()

    def _run_one(self, lane: str) -> bool:
        try:
            claim = queue.claim(self.installation.database, worker=self.id, lane=lane)
        except DATABASE_ERRORS as error:
            log.warning("claim_failed", lane=lane, reason=str(error.__cause__ or error))
            return False
        if claim is None:
            return False
        self._registration.set_job(lane, claim.id)
        with structlog.contextvars.bound_contextvars(
            job_id=str(claim.id), request_id=claim.request_id, attempt=claim.attempt
        ):
            self.run(claim)
        self._registration.set_job(lane, None)
        return True

    def run(self, claim: Claim) -> None:
        """Run a claimed job and write down how it ended."""
        started = time.monotonic()
        log.info("job_started", kind=claim.kind)
        heartbeat = Heartbeat(self.installation.database, claim, self.settings, self.stopping)
        work = Work(claim, heartbeat, self.installation)
        try:
            with heartbeat:
                end = self._attempt(work)
            self._write_end(end)
        except queue.LeaseLost as lost:
            log.warning("lease_lost", reason=str(lost))
        except DATABASE_ERRORS:
            log.exception("job_abandoned")  # its lease runs out, and a sweep queues it again
        finally:
            work.remove_folder()
        log.info("job_ended", kind=claim.kind, seconds=round(time.monotonic() - started, 3))

    def _attempt(self, work: Work) -> Callable[[], None] | None:
        """Do the work; the transition that is left to write, or None when it has been written."""
        database, claim = self.installation.database, work.claim
        try:
            function = getattr(import_module(f"workers.{claim.kind}"), claim.kind)
            function(work)
            return None
        except (queue.LeaseLost, *DATABASE_ERRORS):
            raise
        except queue.CancelRequested:
            return lambda: queue.cancelled(database, claim)
        except WorkerStops:
            return lambda: queue.give_back(database, claim, "its worker was stopped")
        except Unavailable as away:
            # The blob store is down, for which the job is not to blame: wait, and count no crash.
            self.stopping.wait(self.settings.lease_s / 3)
            reason = away.detail
            return lambda: queue.give_back(database, claim, reason)
        except Crashed as crash:
            log.warning("job_crashed", reason=str(crash))
            reason = str(crash)
            return lambda: queue.give_back(database, claim, reason, crash_limit=self.settings.max_attempts)
        except Exception as error:
            failure = _failure(error, claim)
            log.warning("job_failed", **failure, exc_info=failure["code"] == "internal")
            return lambda: queue.fail(database, claim, failure)

    def _write_end(self, end: Callable[[], None] | None) -> None:
        if end is not None:
            # A stopping worker has seconds; any other keeps trying, because the result of the job hangs on it.
            retry(end, patience_s=self.settings.stall_s, give_up=self.stopping)

    def _maintain(self) -> None:
        sweeper = Sweeper(self.installation)
        while not self.stopping.is_set():
            try:
                self._registration.update()
                sweeper.sweep()
            except DATABASE_ERRORS as error:
                log.warning("sweep_failed", reason=str(error.__cause__ or error))
            except Exception:
                log.exception("sweep_failed")  # and tried again: without sweeps lost jobs stay lost
            self.stopping.wait(self.settings.sweep_s)

    def _poll_rules(self) -> None:
        from workers.dicomweb_rules import Rules

        rules = Rules(self.installation)
        while not self.stopping.is_set():
            try:
                rules.poll()
            except DATABASE_ERRORS as error:
                log.warning("polls_failed", reason=str(error.__cause__ or error))
            except Exception:
                log.exception("polls_failed")  # and tried again: the next rule is not to blame
            self.stopping.wait(self.settings.sweep_s)


def _failure(error: Exception, claim: Claim) -> dict[str, str]:
    """The error of the job: a code and a sentence for its submitter."""
    if isinstance(error, Failed):
        return {"code": error.code, "detail": error.detail}
    if isinstance(error, StorageFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        detail = "There is no room for the files of this job. Make room and resume it: what it had stored is kept."
        return {"code": "storage_full", "detail": detail}
    if isinstance(error, Problem):
        return {"code": CODES.get(error.code, error.code), "detail": error.detail}
    if isinstance(error, MemoryError):
        return {
            "code": "resource_exhausted",
            "detail": "The job needed more memory than there is. Send smaller images, or run it on a larger machine.",
        }
    return {
        "code": "internal",
        "detail": f"Something went wrong on our side. The worker's log has the details under job {claim.id}.",
    }
