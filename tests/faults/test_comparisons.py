"""A comparison survives a killed worker in both deployments, and two workers share its trainings."""

from __future__ import annotations

from sqlalchemy import func, select

from app.store.tables import Job, Measurement
from tests.comparison.jobs import submit_comparison, trainings
from tests.deployments import Deployment
from tests.records import add_dataset, states, story, wait_until_ended
from tests.services import wait_for


def test_comparison_survives_kill_9_of_one_of_two_workers(deployment: Deployment) -> None:
    add_dataset(deployment.database, deployment.blobs, deployment.project_id, count=6)
    slow = {"step_s": 0.05}
    job = submit_comparison(
        deployment.database,
        deployment.settings,
        deployment.project_id,
        {"plain": slow, "scnp": slow | {"figures": {"beta0_error": 0}}},
        training={"steps": 30},
    )
    workers = [deployment.start_worker(wait=False) for _ in range(2)]

    def running() -> list[Job]:
        return [each for each in trainings(deployment.database, job) if each.state == "running" and each.step]

    two = wait_for(lambda: rows if len(rows := running()) == 2 else [], seconds=60, what="two trainings at once")
    deployment.holder(two[0]).kill()
    (row,) = wait_until_ended(deployment.database, job, seconds=120)
    assert (row.state, row.result["failed"], row.result["images"]) == ("succeeded", 0, 6), row.error
    assert states(deployment.database, job) == ["waiting", "queued", "running", "succeeded"]
    children = trainings(deployment.database, job)
    assert [child.state for child in children] == ["succeeded"] * 4 and max(child.attempt for child in children) > 1
    ran = {data["worker"] for each in children for _, data in story(deployment.database, each) if "worker" in data}
    assert len(ran) == len(workers)
    with deployment.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Measurement)) == 12, "each image once for each loss"
