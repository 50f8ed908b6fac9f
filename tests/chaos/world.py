"""A whole service under faults: a gateway, two workers, clients with a history, and what must hold at the end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from app import queue
from app.settings import Settings
from app.store import keys
from app.store.tables import FINISHED, Job, ModelVersion, Project
from tests.deployments import Deployment
from tests.gateway import GatewayProcess
from tests.images import noise_png
from tests.records import add_dataset, train_spec
from tests.services import Process, Redis, environment, wait_for

FAILPOINTS = Path(__file__).with_name("failpoints")
CHECKPOINT_EVERY = 5
STEPS = 30


@dataclass
class Run:
    """What a fault did to the jobs and uploads of one run.

    redone   steps that were done more than once, of all steps
    """

    jobs: int = 0
    uploads: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    redone: int = 0
    steps: int = 0
    recovered_s: float = 0.0

    @property
    def broken(self) -> list[str]:
        """Every promise that was not kept."""
        return [*self.lost, *self.doubled, *self.stuck, *self.wrong]


class Uploader(threading.Thread):
    """A client that uploads until it is told to stop and remembers what was acknowledged."""

    def __init__(self, url: str, token: str, seed: int):
        super().__init__(daemon=True)
        self.url, self.token, self.seed = url, token, seed
        self.acknowledged: dict[str, str] = {}
        self.unexpected: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "image/png"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=15) as client:
            for number in range(100_000):
                if self.enough.wait(0.02):
                    return
                content = noise_png(24, 24, seed=self.seed * 100_000 + number)
                try:
                    answer = client.post("/v1/images", content=content)
                except httpx.TransportError:
                    continue  # nothing was promised
                if answer.status_code in (200, 201):
                    self.acknowledged[answer.json()["id"]] = hashlib.sha256(content).hexdigest()
                elif answer.status_code not in (503, 507):
                    self.unexpected.append(f"upload answered {answer.status_code}: {answer.text[:200]}")


class World:
    """One installation of a shape, its processes, and the dice that decide when a fault strikes."""

    def __init__(self, settings: Settings, folder: Path, redis: Redis | None, seed: int, postgres: Any = None):
        self.folder, self.redis, self.postgres, self.dice = folder, redis, postgres, random.Random(seed)
        self.seed = seed
        self.deployment = Deployment(settings, folder, redis)
        self.database, self.settings = self.deployment.database, settings
        with self.database.write() as session:
            name = session.get_one(Project, self.deployment.project_id).name
            self.token = keys.create(session, project=name, name="chaos", role="admin")
        self.rings = add_dataset(self.database, self.deployment.blobs, self.deployment.project_id)
        self.gateway = GatewayProcess(settings, folder / "gateway.log", self.token)
        self.gateway.http.timeout = httpx.Timeout(10)
        self.gateway.start()
        self.workers: list[Process] = []
        self.heal()

    def heal(self) -> None:
        """Start what does not run."""
        if not self.gateway.process.running:
            self.gateway.start()
        self.workers = [worker for worker in self.workers if worker.running]
        while len(self.workers) < 2:
            self.workers.append(self.deployment.start_worker(wait=False))
        for worker in self.workers:
            wait_for(lambda worker=worker: self.deployment.is_ready(worker), seconds=60, what=worker.output)

    def crashing(self, process: Process, point: str) -> Process:
        """Another process of the same command that ends itself at a failpoint."""
        path = os.pathsep.join([str(FAILPOINTS), os.environ.get("PYTHONPATH", "")])
        variables = environment(self.settings, FAILPOINT=point, PYTHONPATH=path)
        return Process(process.command, log=self.folder / f"failing-{uuid.uuid4().hex[:6]}.log", env=variables)

    def submit(self, count: int, **behaviour: Any) -> list[tuple[Job, Path]]:
        """Acknowledged trainings, each with the file that counts its steps."""
        made = []
        for _ in range(count):
            file = self.folder / f"steps-{uuid.uuid4().hex}"
            file.touch()
            odd = {"step_s": 0.03, "steps_file": str(file)} | behaviour
            spec = train_spec(self.rings, steps=STEPS, checkpoint_every=CHECKPOINT_EVERY, behaviour=odd)
            with self.database.write() as session:
                made.append((queue.put(session, project_id=self.deployment.project_id, kind="train", spec=spec), file))
        return made

    def row(self, job: Job) -> Job:
        """The job now, also while the database comes back."""
        deadline = time.monotonic() + 40
        while True:
            try:
                with self.database.read() as session:
                    return session.get_one(Job, job.id)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def children(self) -> list[Any]:
        """The trainings that run now."""
        return [child for worker in self.workers for child in self.deployment.children(worker)]

    def wait_for_training(self) -> None:
        """Until some job runs and has begun; then a random moment."""
        wait_for(lambda: len(self.children()) > 0, seconds=40, what="a training")
        time.sleep(self.dice.uniform(0.05, 0.8))

    @contextlib.contextmanager
    def watched(self, jobs: int, run: Run, unsupervised: int = 0, **behaviour: Any) -> Iterator[list[Job]]:
        """Clients before and while a fault strikes in the block; afterwards everything is healed and checked.

        unsupervised  steps that a training may do while its worker is stopped
        """
        uploader = Uploader(self.gateway.url, self.token, self.dice.randint(0, 20_000))
        uploader.start()
        made = self.submit(jobs, **behaviour)
        struck = time.monotonic()
        try:
            yield [job for job, _ in made]
            struck = time.monotonic()
            self.heal()
            wait_for(self._serves, seconds=40, what=self.gateway.process.output, every=0.05)
            self._wait_for_progress([job for job, _ in made])
            run.recovered_s = max(run.recovered_s, time.monotonic() - struck)
        finally:
            uploader.enough.set()
            uploader.join(30)
        self.check_jobs(made, run, unsupervised)
        self._check_uploads(uploader, run)

    def _serves(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.gateway.http.get("/v1/jobs?limit=1").status_code == 200
        return False

    def _wait_for_progress(self, jobs: list[Job]) -> None:
        before = [(self.row(job).state, self.row(job).step) for job in jobs]
        if all(state in FINISHED for state, _ in before):
            return
        wait_for(
            lambda: [(self.row(job).state, self.row(job).step) for job in jobs] != before,
            seconds=60,
            what=lambda: f"progress of {before}",
        )

    def check_jobs(self, made: list[tuple[Job, Path]], run: Run, unsupervised: int = 0) -> None:
        """Wait until these jobs have ended, and note what was lost, doubled, stuck or done too often."""
        deadline = time.monotonic() + 90
        for job, file in made:
            row = self.row(job)
            while row.state not in FINISHED and time.monotonic() < deadline:
                time.sleep(0.1)
                row = self.row(job)
            run.jobs += 1
            with self.database.read() as session:
                query = select(func.count()).select_from(ModelVersion).where(ModelVersion.job_id == job.id)
                versions = session.scalar(query) or 0
            done = len(file.read_text().split())
            run.steps, run.redone = run.steps + STEPS, run.redone + max(0, done - STEPS)
            if row.state not in FINISHED:
                run.stuck.append(f"job {job.id} is {row.state} after 90 s, attempt {row.attempt}")
            elif row.state != "succeeded" or versions == 0:
                run.lost.append(f"job {job.id} {row.state} with {versions} versions: {row.error}")
            elif versions > 1:
                run.doubled.append(f"job {job.id} made {versions} versions")
            elif done > STEPS + unsupervised + row.attempt * (CHECKPOINT_EVERY + 2):
                run.wrong.append(f"job {job.id} did {done} of {STEPS} steps in {row.attempt} attempts")

    def _check_uploads(self, uploader: Uploader, run: Run) -> None:
        run.wrong += uploader.unexpected
        for image_id, sha256 in uploader.acknowledged.items():
            run.uploads += 1
            answer = self.gateway.http.get(f"/v1/images/{image_id}/content")
            if answer.status_code != 200:
                run.lost.append(f"image {image_id}: {answer.status_code}")
            elif hashlib.sha256(answer.content).hexdigest() != sha256:
                run.wrong.append(f"image {image_id} has other bytes")

    def close(self) -> None:
        """End every process."""
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
        self.gateway.close()
        self.deployment.close()
