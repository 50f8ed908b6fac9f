"""Workers that poll a PACS for rules are killed; every series still becomes one job."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import select, update

from app.settings import Settings
from app.store import dicomweb_rules as store
from app.store.tables import DicomwebRule, Job, now
from tests.deployments import Deployment
from tests.imaging.dicom_files import slices, uid
from tests.records import add_model
from tests.services import wait_for
from tests.workers.pacs import FakePacs, fake_pacs

SERIES = [f"series {number}" for number in range(5)]


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with fake_pacs() as pacs:
        for name in SERIES:
            pacs.add(*slices(np.zeros((1, 8, 8), np.int16), series=name, StudyDate=f"{now():%Y%m%d}"))
        yield pacs


def test_workers_killed_during_a_poll_leave_one_job_for_each_series(deployment: Deployment, pacs: FakePacs) -> None:
    known = deployment.settings.model_dump() | {"pacs": {"main": {"url": pacs.url}}, "pacs_timeout_s": 2}
    deployment.settings = Settings(_env_file=None, **known)
    add_model(deployment.database, deployment.blobs, deployment.project_id, name="bright")
    with deployment.database.write() as session:
        match = {"modality": "CT", "newer_than": now().date().isoformat(), "late_days": 7}
        options = {"segmentation": "binary", "report": True, "threshold": None}
        facts = {"name": "all", "pacs": "main", "model": "bright", "poll_s": 30, "enabled": True}
        rule = store.add(session, project_id=deployment.project_id, match=match, options=options, **facts)

    def told() -> DicomwebRule:
        with deployment.database.read() as session:
            return session.get_one(DicomwebRule, rule.id)

    def found(state: str, number: int) -> bool:
        with deployment.database.read() as session:
            return store.counted(session, [rule.id])[rule.id][state] == number

    def begun() -> bool:
        """Whether the PACS is being asked; it is slow, so that the worker is killed while it waits."""
        return pacs.slow == 0

    for state, number in (("growing", 5), ("submitted", 5)):
        pacs.slow, pacs.slow_s = 1, 1.5
        first = deployment.start_worker(lanes="train")
        wait_for(begun, what=first.output)
        first.kill()
        held, polls = told().next_poll_at, told().polls
        assert not found(state, number)
        second, third = (deployment.start_worker(lanes="train") for _ in range(2))
        wait_for(lambda state=state, number=number: found(state, number), what=second.output, seconds=40)
        assert told().polls == polls + 1, "one of the two polled, once the rule was free"
        assert told().last_listed_at.timestamp() >= held - 1, "it was left to the first as long as it held it"
        for worker in (second, third):
            worker.kill()
        with deployment.database.write() as session:
            session.execute(update(DicomwebRule).values(next_poll_at=0.0))
    with deployment.database.read() as session:
        jobs = session.scalars(select(Job)).all()
    assert sorted(job.spec["series"] for job in jobs) == sorted(uid(name) for name in SERIES)
