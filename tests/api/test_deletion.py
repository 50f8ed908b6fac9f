"""Deleting and renaming over HTTP: what goes along, what stands in the way, and that nothing else changes."""

from __future__ import annotations

import json
import uuid
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from app import imaging
from app.store.tables import AuditLine, DatasetVersion, Job, PredictionEdit
from tests.gateway import Gateway
from tests.images import noise_png
from tests.records import add_dataset_row, add_evaluation, add_model_row, set_alias
from tests.serving import networks

PAGES = ("/", "/models", "/datasets", "/images", "/jobs", "/predictions")
SQUARE = np.zeros((24, 24), np.uint8)
SQUARE[6:14, 8:18] = 250


def plan(gateway: Gateway, address: str) -> dict[str, Any]:
    answer = gateway.ask("GET", f"{address}/deletion")
    assert answer.status_code == 200, answer.text
    return answer.json()


def delete(gateway: Gateway, address: str, who: str = "admin", **params: str) -> tuple[int, str]:
    answer = gateway.ask("DELETE", address, who, params=params)
    return answer.status_code, answer.json()["detail"] if answer.content else ""


def audited(gateway: Gateway, what: str) -> list[str]:
    with gateway.database.read() as session:
        lines = select(AuditLine.object).where(AuditLine.project_id == gateway.project_id, AuditLine.what == what)
        return list(session.scalars(lines.order_by(AuditLine.id)))


def queued(gateway: Gateway, **spec: Any) -> Job:
    with gateway.database.write() as session:
        job = Job(project_id=gateway.project_id, kind=spec["kind"], lane="quick", spec=spec)
        session.add(job)
    return job


@pytest.fixture
def prediction(gateway: Gateway, registered: Any, predict: Any) -> dict[str, Any]:
    """A stored prediction of `plain:1` with a reference and one edit."""
    registered("plain", networks.through(), scaling=networks.PLAIN)
    content = imaging.encode_png(SQUARE)
    shown = predict("plain", content, accept="application/json", store="true").json()
    address, octets = shown["links"]["self"], {"Content-Type": "application/octet-stream"}
    truth = imaging.encode_png(SQUARE // 250)
    assert gateway.ask("PUT", f"{address}/reference", content=truth, headers=octets).status_code == 200
    assert gateway.ask("POST", f"{address}/edits", json={"kind": "remove", "at": [8, 10]}).status_code == 201
    return shown


def test_image_goes_with_its_predictions_and_its_pairs_when_asked(gateway: Gateway, prediction: dict[str, Any]) -> None:
    image = f"/v1/images/{prediction['image']}"
    pair = {
        "image": prediction["image"],
        "mask": gateway.upload(imaging.encode_png(SQUARE // 250)).json()["id"],
    }
    version = gateway.ask("POST", "/v1/datasets", json={"name": "shown", "pairs": [pair]})
    assert version.status_code == 201, version.text
    listed = plan(gateway, image)
    assert listed["own"] == {"images": 1} and listed["found_in"] == ["shown@1"] and listed["blocked_by"] == []
    assert listed["derived"] == {"prediction_edits": 1, "measurements": 1, "predictions": 1, "dataset_items": 1}
    status, detail = delete(gateway, image)
    assert status == 409 and "shown@1" in detail and "derived=true" in detail
    assert plan(gateway, image) == listed, "a refusal changes nothing"

    assert delete(gateway, image, derived="true") == (204, "")
    assert [gateway.ask("GET", gone).status_code for gone in (image, prediction["links"]["self"])] == [404, 404]
    warnings = gateway.ask("GET", version.json()["links"]["self"]).json()["warnings"]
    assert [each["code"] for each in warnings if each["item"]][-1:] == ["pair_deleted"]
    with gateway.database.read() as session:
        edits = select(PredictionEdit).where(PredictionEdit.project_id == gateway.project_id)
        assert session.scalars(edits).all() == []
    assert json.loads(audited(gateway, "image.delete")[0].partition(" ")[2]) == listed["derived"] | listed["own"]
    assert [gateway.ask("GET", page, "admin").status_code for page in PAGES] == [200] * len(PAGES)


def test_image_that_an_unfinished_job_needs_stays(gateway: Gateway) -> None:
    image = gateway.upload(noise_png()).json()
    job = queued(gateway, kind="predict", images=[image["id"]])
    status, detail = delete(gateway, image["links"]["self"], derived="true")
    assert status == 409 and f"Job {job.id} is queued" in detail
    assert plan(gateway, image["links"]["self"])["blocked_by"] == [
        f"Job {job.id} is queued and needs it; wait for it or cancel it first."
    ]


def test_image_deletion_names_the_models_that_learnt_from_it(gateway: Gateway, bars: DatasetVersion) -> None:
    add_model_row(gateway, "retina", dataset_version_id=bars.id)
    image = gateway.ask("GET", "/v1/datasets/bars/versions/1/items").json()["items"][0]["image"]
    listed = plan(gateway, f"/v1/images/{image}")
    assert [sentence.partition(" learnt")[0] for sentence in listed["stays"]] == ["Model retina:1"]
    assert delete(gateway, f"/v1/images/{image}", derived="true")[0] == 204
    assert gateway.ask("GET", "/v1/models/retina/versions/1").status_code == 200


def test_prediction_goes_with_its_edits_and_measurements(gateway: Gateway, prediction: dict[str, Any]) -> None:
    address = prediction["links"]["self"]
    assert plan(gateway, address)["own"] == {"prediction_edits": 1, "measurements": 1, "predictions": 1}
    assert delete(gateway, address, "viewer")[0] == 403
    assert delete(gateway, address) == (204, "") and delete(gateway, address)[0] == 404
    assert gateway.ask("GET", f"/v1/images/{prediction['image']}").status_code == 200
    assert audited(gateway, "prediction.delete") == [prediction["id"]]


def test_model_version_goes_unless_an_alias_points_to_it(gateway: Gateway, prediction: dict[str, Any]) -> None:
    version = "/v1/models/plain/versions/1"
    gateway.ask("PUT", "/v1/models/plain/aliases/champion", "admin", json={"version": 1})
    status, detail = delete(gateway, version, derived="true")
    assert status == 409 and "champion" in detail
    gateway.ask("DELETE", "/v1/models/plain/aliases/champion", "admin")
    assert delete(gateway, version)[0] == 409, "it has predictions"
    assert delete(gateway, version, derived="true") == (204, "")
    assert gateway.ask("GET", version).status_code == 404
    body = imaging.encode_png(SQUARE)
    gone = gateway.ask("POST", "/v1/models/plain:1/predict", content=body, headers={"Content-Type": "image/png"})
    assert gone.status_code == 404, "no prediction by a version that was deleted"
    assert [gateway.ask("GET", page, "admin").status_code for page in PAGES] == [200] * len(PAGES)


def test_model_goes_with_its_aliases_and_versions(gateway: Gateway) -> None:
    version = add_model_row(gateway)
    add_model_row(gateway, number=2)
    set_alias(gateway.database, version, "champion")
    job = queued(gateway, kind="train", model="bars", dataset="bars@1")
    assert f"Job {job.id}" in delete(gateway, "/v1/models/bars", derived="true")[1]
    assert gateway.ask("POST", f"/v1/jobs/{job.id}/cancel").status_code == 202
    listed = plan(gateway, "/v1/models/bars")
    assert listed["own"] == {"aliases": 1, "models": 1} and listed["derived"] == {"model_versions": 2}
    assert delete(gateway, "/v1/models/bars")[0] == 409
    assert delete(gateway, "/v1/models/bars", derived="true") == (204, "")
    assert gateway.ask("GET", "/v1/models").json()["items"] == []


def test_job_goes_when_it_has_finished_and_made_no_model(gateway: Gateway, bars: DatasetVersion) -> None:
    version = add_model_row(gateway, dataset_version_id=bars.id)
    evaluation = add_evaluation(gateway, version, bars.id, [{"dice": 0.9}, {"dice": 0.8}])
    address = f"/v1/jobs/{evaluation.id}"
    assert plan(gateway, address)["derived"] == {"measurements": 2}
    assert delete(gateway, address)[0] == 409 and delete(gateway, address, derived="true") == (204, "")
    running = queued(gateway, kind="train", model="bars", dataset="bars@1")
    assert "cancel it first" in delete(gateway, f"/v1/jobs/{running.id}")[1]
    gateway.ask("POST", f"/v1/jobs/{running.id}/cancel")
    with gateway.database.write() as session:
        add = session.get_one(type(version), version.id)
        add.job_id = running.id
    assert "It made bars:1" in delete(gateway, f"/v1/jobs/{running.id}")[1]


def test_dataset_goes_when_nothing_was_made_from_it(gateway: Gateway, bars: DatasetVersion) -> None:
    add_dataset_row(gateway, count=5)
    assert plan(gateway, "/v1/datasets/bars")["own"] == {"dataset_items": 9, "dataset_versions": 2, "datasets": 1}
    version = add_model_row(gateway, dataset_version_id=bars.id)
    status, detail = delete(gateway, "/v1/datasets/bars")
    assert status == 409 and "bars@1 is used by 0 jobs and 1 model versions" in detail
    assert delete(gateway, f"/v1/models/bars/versions/{version.number}") == (204, "")
    assert delete(gateway, "/v1/datasets/bars") == (204, "")
    assert gateway.ask("GET", "/v1/datasets").json()["items"] == []
    assert len(gateway.ask("GET", "/v1/images").json()["items"]) == 5, "images stay"


@pytest.mark.parametrize("noun", ["models", "datasets"])
def test_renamed_object_keeps_its_versions(gateway: Gateway, bars: DatasetVersion, noun: str) -> None:
    add_model_row(gateway)
    renamed = gateway.ask("PATCH", f"/v1/{noun}/bars", "admin", json={"name": "stripes"})
    assert renamed.status_code == 200 and renamed.json()["name"] == "stripes"
    assert gateway.ask("GET", f"/v1/{noun}/bars").status_code == 404
    assert gateway.ask("GET", f"/v1/{noun}/stripes/versions").json()["items"][0]["version"] == 1
    assert audited(gateway, f"{noun[:-1]}.rename") == ["bars -> stripes"]


def test_name_that_is_taken_or_needed_cannot_be_given(gateway: Gateway, bars: DatasetVersion) -> None:
    add_model_row(gateway)
    add_model_row(gateway, "retina")
    taken = gateway.ask("PATCH", "/v1/models/bars", "admin", json={"name": "retina"})
    assert taken.status_code == 409 and "named retina already" in taken.json()["detail"]
    odd = gateway.ask("PATCH", "/v1/models/bars", "admin", json={"name": "../x"})
    assert odd.status_code == 422
    job = queued(gateway, kind="evaluate", model="bars:1", dataset="bars@1")
    assert str(job.id) in gateway.ask("PATCH", "/v1/models/bars", "admin", json={"name": "b"}).json()["detail"]


def test_job_links_to_its_dataset_under_the_new_name(gateway: Gateway, bars: DatasetVersion) -> None:
    job = queued(gateway, kind="train", model="b", dataset="bars@1", dataset_version_id=str(bars.id))
    gateway.ask("PATCH", "/v1/datasets/bars", json={"name": "stripes"})
    assert gateway.ask("GET", f"/v1/jobs/{job.id}").json()["links"]["dataset"] == "/v1/datasets/stripes/versions/1"


def test_image_gets_another_label(gateway: Gateway) -> None:
    image = gateway.upload(noise_png()).json()
    changed = gateway.ask("PATCH", image["links"]["self"], json={"name": "right eye.png"}).json()
    assert changed == image | {"name": "right eye.png"}


def test_what_another_project_owns_cannot_be_deleted(gateway: Gateway, prediction: dict[str, Any]) -> None:
    for address in (prediction["links"]["self"], f"/v1/images/{prediction['image']}", "/v1/models/plain"):
        assert delete(gateway, address, "stranger", derived="true")[0] == 404
        assert gateway.ask("GET", f"{address}/deletion", "stranger").status_code == 404
        assert gateway.ask("GET", address).status_code == 200
    assert gateway.ask("GET", f"/v1/jobs/{uuid.uuid4()}/deletion").status_code == 404
