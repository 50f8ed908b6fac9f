"""Rules about how long a project keeps what it stores."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.store import retention
from app.store.tables import AuditLine, DatasetVersion, Image, Job, Prediction, now
from tests.gateway import Gateway
from tests.images import noise_png
from tests.records import add_dataset_row, add_evaluation, add_model_row
from tests.serving import networks


def age(gateway: Gateway, table: type[Any], days: int) -> None:
    """Make every row of this project look as old as that."""
    with gateway.database.write() as session:
        for row in session.scalars(select(table).where(table.project_id == gateway.project_id)):
            row.created_at = now() - timedelta(days=days)


def set_rules(gateway: Gateway, **rules: int | None) -> None:
    address = f"/v1/projects/{gateway.project_id}/retention"
    answer = gateway.ask("PUT", address, "admin", json=rules)
    assert answer.status_code == 200, answer.text
    assert gateway.ask("GET", address).json().items() >= rules.items()


def left(gateway: Gateway) -> dict[str, int]:
    return {name: count for name, count in gateway.count_project().items() if name in ("images", "predictions", "jobs")}


@pytest.fixture
def predicted(gateway: Gateway, registered: Any, predict: Any) -> None:
    """One stored prediction, and one image that nothing was made from."""
    registered("plain", networks.through(), scaling=networks.PLAIN)
    predict("plain", noise_png(seed=1), accept="application/json", store="true")
    gateway.upload(noise_png(seed=2))


def test_nothing_goes_without_rules_or_before_its_time(gateway: Gateway, predicted: None) -> None:
    age(gateway, Image, 400)
    age(gateway, Prediction, 400)
    assert retention.apply(gateway.database) == 0
    set_rules(gateway, predictions_days=401, images_days=401)
    assert retention.apply(gateway.database) == 0 and left(gateway)["images"] == 2


def test_old_predictions_go_and_free_their_images(gateway: Gateway, predicted: None) -> None:
    age(gateway, Image, 31)
    set_rules(gateway, images_days=30)
    assert retention.apply(gateway.database) == 1, "the image that was predicted is still needed"
    age(gateway, Prediction, 31)
    set_rules(gateway, images_days=30, predictions_days=30)
    assert retention.apply(gateway.database) == 2
    assert {"images", "predictions"}.isdisjoint(left(gateway)) or set(left(gateway).values()) == {0}
    with gateway.database.read() as session:
        mine = select(AuditLine.what).where(AuditLine.project_id == gateway.project_id, AuditLine.who == retention.WHO)
        assert sorted(session.scalars(mine)) == ["image.delete", "image.delete", "prediction.delete"]


def test_images_of_datasets_and_jobs_that_made_models_stay(gateway: Gateway) -> None:
    version: DatasetVersion = add_dataset_row(gateway)
    model = add_model_row(gateway, dataset_version_id=version.id)
    evaluation = add_evaluation(gateway, model, version.id, [{"dice": 0.9}])
    with gateway.database.write() as session:
        made = Job(project_id=gateway.project_id, kind="train", lane="train", state="succeeded", spec={"kind": "train"})
        session.add(made)
        session.flush()
        session.get_one(type(model), model.id).job_id = made.id
    for table in (Image, Job):
        age(gateway, table, 100)
    set_rules(gateway, images_days=1, predictions_days=1, jobs_days=1)
    assert retention.apply(gateway.database) == 1
    assert gateway.ask("GET", f"/v1/jobs/{evaluation.id}").status_code == 404
    assert gateway.ask("GET", f"/v1/jobs/{made.id}").status_code == 200 and left(gateway)["images"] == 4


def test_retention_of_another_project_cannot_be_set(gateway: Gateway) -> None:
    address = f"/v1/projects/{gateway.project_id}/retention"
    assert gateway.ask("PUT", address, "stranger", json={"images_days": 1}).status_code == 404
    assert gateway.ask("PUT", address, "engineer", json={"images_days": 1}).status_code == 403
    assert gateway.ask("PUT", address, "admin", json={"images_days": 0}).status_code == 422
