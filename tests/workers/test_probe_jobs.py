"""Probe jobs over HTTP, with the real child process."""

from __future__ import annotations

import pytest

from app.job_kinds import KINDS
from tests.gateway import told
from tests.records import add_dataset
from workers.worker import Worker

pytestmark = pytest.mark.parametrize("module_settings", ["sqlite"], indirect=True)
SPEC = {
    "kind": "probe",
    "dataset": "rings",
    "network": {"channels": [4, 8]},
    "patch": [32, 32],
    "batch": 2,
    "batches": 2,
    "devices": "cpu",
    "loss": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}, {"name": "soft_cldice", "weight": 0.5}]},
}


def test_a_probe_answers_with_a_line_for_each_term(gateway):
    add_dataset(gateway.database, gateway.blobs, gateway.project_id)
    sent = gateway.ask("POST", "/v1/jobs", json=SPEC)
    assert sent.status_code == 202, sent.text
    here = f"/v1/jobs/{sent.json()['id']}"
    assert sent.json()["title"] == "Probe loss terms on rings@1" and KINDS["probe"].lane == "train"
    worker = Worker(gateway.settings)
    worker.drain("train")
    worker.stop()
    worker.installation.database.dispose()
    row = gateway.ask("GET", here).json()
    assert row["state"] == "succeeded", row
    assert row["result"]["batches"] == 2 and row["result"]["pixel_norm"] > 0
    assert [each["name"] for each in row["result"]["terms"]] == ["cross_entropy", "dice", "soft_cldice"]
    assert row["result"]["terms"][2]["equal_weight"] > 0
    assert gateway.ask("GET", "/v1/models").json()["items"] == []
    page = gateway.ask("GET", f"/jobs/{sent.json()['id']}", headers={"Accept": "text/html"}).text
    assert "How hard each term pulls" in page and page.count("soft_cldice") > 1


@pytest.mark.parametrize(
    ("change", "said"),
    [({"recipe": "auto"}, "one loss"), ({"dataset": "none"}, "No dataset is named none"), ({"batches": 0}, "batches")],
)
def test_what_cannot_be_probed_is_refused(gateway, change, said):
    add_dataset(gateway.database, gateway.blobs, gateway.project_id)
    spec = {**SPEC, **change}
    if "recipe" in change:
        del spec["loss"]
    answer = gateway.ask("POST", "/v1/jobs", json=spec)
    assert told(answer)[0] == 422 and said in answer.text
