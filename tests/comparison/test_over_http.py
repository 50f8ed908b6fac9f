"""Comparisons over HTTP: what is accepted and refused, the table as JSON and CSV, the client and the command line."""

from __future__ import annotations

import csv
import io
import json

import pytest
from sqlalchemy import select

from app.store.tables import Job
from tests.comparison.jobs import LOSSES, TRAINING, compare_spec
from tests.gateway import told
from tests.records import add_dataset
from tests.workers.conftest import QUICK_MODELS
from toposerve_client import Client
from workers.worker import Worker

sqlite_only = pytest.mark.parametrize("module_settings", ["sqlite"], indirect=True)


@pytest.fixture
def rings(gateway):
    return add_dataset(gateway.database, gateway.blobs, gateway.project_id, count=8)


@pytest.fixture
def run(gateway):
    """Run everything that is queued, the trainings with the stand-in."""
    worker = Worker(gateway.settings, models=QUICK_MODELS)

    def drain(behaviours):
        with gateway.database.write() as session:
            for child in session.scalars(select(Job).where(Job.parent_id.is_not(None), Job.state == "queued")):
                behaviour = behaviours.get(child.spec["trial"]["candidate"], {})
                child.spec = child.spec | {"behaviour": {"step_s": 0.0, **behaviour}}
        worker.drain("train")
        worker.drain("quick")

    yield drain
    worker.stop()
    worker.installation.database.dispose()


def test_comparison_is_asked_for_watched_and_read(gateway, rings, run):
    sent = gateway.ask("POST", "/v1/jobs", json=compare_spec())
    assert sent.status_code == 202, sent.text
    job = sent.json()
    here = f"/v1/jobs/{job['id']}"
    assert (job["state"], job["parent"], job["spec"]["dataset"]) == ("waiting", None, "rings@1")
    assert job["links"]["comparison"] == f"{here}/comparison" and job["links"]["jobs"] == f"/v1/jobs?parent={job['id']}"
    assert [each["id"] for each in gateway.ask("GET", "/v1/jobs").json()["items"]] == [job["id"]]
    listed = gateway.ask("GET", f"/v1/jobs?parent={job['id']}").json()["items"]
    assert len(listed) == 4 and {each["parent"] for each in listed} == {job["id"]}
    assert "trial" not in listed[0]["spec"] and listed[0]["links"]["parent"] == here
    before = gateway.ask("GET", f"{here}/comparison").json()
    assert (before["complete"], before["verdict"]) == (False, "The baseline has not been measured yet.")
    run({"scnp": {"figures": {"beta0_error": 1}}})
    said = gateway.ask("GET", f"{here}/comparison").json()
    assert (said["state"], said["complete"], said["helps"], said["images"]) == ("succeeded", True, ["scnp"], 8)
    assert {each["state"] for each in said["trainings"]} == {"succeeded"}
    assert said["equal_dice"][0]["betti_error"][1] < said["equal_dice"][0]["betti_error"][0]
    table = gateway.ask("GET", f"{here}/comparison", headers={"Accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    (row,) = (each for each in rows if each["candidate"] == "scnp" and each["metric"] == "betti_error")
    assert (float(row["difference"]), row["images"], float(row["p"])) == (-3.0, "8", 2 / 2**8)
    again = gateway.ask("POST", "/v1/jobs", json=gateway.ask("GET", here).json()["spec"])
    assert again.status_code == 202, "a spec that is shown can be sent again"
    assert told(gateway.ask("GET", f"{here}/comparison", "stranger")) == (404, "not_found")
    assert told(gateway.ask("GET", f"/v1/jobs/{listed[0]['id']}/comparison")) == (404, "not_found")
    assert told(gateway.ask("GET", f"{here}/comparison", headers={"Accept": "image/png"})) == (406, "not_acceptable")


@sqlite_only
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"losses": LOSSES[:1]}, "nothing to compare it with"),
        ({"losses": [LOSSES[0], LOSSES[0]]}, "losses name plain more than once"),
        ({"training": {"loss": {"terms": [{"name": "focal"}]}}}, "training.loss is not for a comparison"),
        ({"training": {"seed": 3}}, "put it into `seeds`"),
        ({"training": {"early_stopping": {"patience": 3}}}, "must not decide when a training ends"),
        ({"folds": [2]}, "training.folds is 2, so they are 0 to 1"),
        ({"seeds": list(range(20)), "training": {"folds": 20}}, "this is 800 trainings (2 candidates x 20 folds x 20"),
        ({"training": {"folds": 9}}, "has 8 pairs to train and validate on; 9 are needed"),
        ({"training": {"patch": [64, 64]}}, "patch is 64 x 64 and the images of rings@1 have up to 48 x 48"),
        ({"dataset": "nothing"}, "No dataset is named nothing"),
        (
            {"networks": [{"name": "deep", "network": {"channels": [4] * 7}}]},
            "plain / deep cannot be trained: Value error",
        ),
        ({"pretraining": {"steps": 9_000_000}}, "pretraining.steps is 9000000; at most"),
        ({"pretraining": {"steps": 5}, "training": {"start_from": "m:1"}}, "both say where to begin"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(gateway, rings, changes, said):
    answer = gateway.ask("POST", "/v1/jobs", json=compare_spec(**changes))
    assert told(answer)[0] == 422 and said in answer.text
    assert gateway.ask("GET", "/v1/jobs").json()["items"] == [], "nothing was queued"


@sqlite_only
def test_comparison_by_client_and_command_line(gateway, rings, run, tmp_path, capsys, monkeypatch):
    from typer.testing import CliRunner

    from app.cli import app as cli

    with Client(gateway.url, gateway.keys["engineer"]) as client:
        spec = tmp_path / "compare.json"
        spec.write_text(json.dumps(compare_spec()))
        runner = CliRunner(
            env={"TOPOSERVE_URL": gateway.url, "TOPOSERVE_KEY": gateway.keys["engineer"], "COLUMNS": "200"}
        )
        sent = runner.invoke(cli, ["compare", str(spec), "--no-follow"])
        assert sent.exit_code == 0, sent.output
        (job,) = client.jobs.list(kind="compare")
        assert len(list(client.jobs.list(parent=job))) == 4
        run({"scnp": {"figures": {"beta0_error": 1}}})
        assert client.jobs.comparison(job)["helps"] == ["scnp"]
        rows = client.jobs.table(job)
        assert {row["candidate"] for row in rows} == {"plain", "scnp"}
        from app.cli.remote import _print_comparison

        _print_comparison(client.jobs.comparison(job))
        printed = capsys.readouterr().out
        assert "scnp lowers the Betti error of plain" in printed and "4 of 4" not in printed and "2 of 2" in printed
        spec.write_text("[]")
        assert runner.invoke(cli, ["compare", str(spec)]).exit_code == 2


@sqlite_only
def test_page_of_a_comparison_shows_table_verdict_and_reasons(gateway, rings, run):
    job = gateway.ask("POST", "/v1/jobs", json=compare_spec()).json()["id"]
    before = gateway.ask("GET", f"/jobs/{job}", headers={"Accept": "text/html"}).text
    assert "The baseline has not been measured yet." in before and "Stop and keep" in before
    run(
        {
            "plain": {"figures": {"beta1_error": 3}},
            "scnp": {"error_at": 2, "error": {"code": "diverged", "message": "The loss became nan."}},
        }
    )
    page = gateway.ask("GET", f"/jobs/{job}", headers={"Accept": "text/html"}).text
    assert "Resume" in page and "The loss became nan." in page and "2 of 2 measured" in page
    assert "No candidate has been measured" in page
    said = gateway.ask("GET", f"/v1/jobs/{job}/comparison").json()
    child = gateway.ask("GET", f"/jobs/{said['trainings'][0]['job']}", headers={"Accept": "text/html"}).text
    assert "Train plain on rings@1, fold 0, seed 0" in child and f'href="/jobs/{job}"' in child
    with gateway.database.write() as session:
        for row in session.scalars(select(Job).where(Job.state == "failed")):
            row.spec = row.spec | {"behaviour": {"step_s": 0.0}}
    assert gateway.ask("POST", f"/v1/jobs/{job}/resume").status_code == 202
    run({})
    page = gateway.ask("GET", f"/jobs/{job}", headers={"Accept": "text/html"}).text
    assert "scnp lowers the Betti error of plain" in page and "Equal Dice, another topology" in page
    assert "Betti error of every image" in page and page.count('class="strip-dot"') == 16, "8 images, two losses"
    assert gateway.ask("GET", "/jobs", headers={"Accept": "text/html"}).text.count("/jobs/01") == 1, "one row, not five"


@sqlite_only
def test_page_of_a_training_that_chooses_shows_what_it_waits_for(gateway, rings):
    training = {name: value for name, value in TRAINING.items() if name != "folds"}
    spec = {"kind": "train", "dataset": "rings", "model": "rings", "recipe": "auto", **training, "steps": 20}
    sent = gateway.ask("POST", "/v1/jobs", json=spec)
    assert sent.status_code == 202, sent.text
    job = sent.json()
    assert (job["state"], job["progress"]["steps"]) == ("waiting", 2), "a comparison and its own first stage"
    assert not {"stage", "start_from_job_id"} & set(job["spec"])
    page = gateway.ask("GET", f"/jobs/{job['id']}", headers={"Accept": "text/html"}).text
    assert "Losses on images that they did not see" in page and "+ Betti matching 0.5" in page
    first = [
        each for each in gateway.ask("GET", f"/v1/jobs?parent={job['id']}").json()["items"] if each["kind"] == "train"
    ]
    assert first[0]["title"] == "Train the shared start on rings@1, fold 0, seed 0"
    again = gateway.ask("POST", "/v1/jobs", json=job["spec"])
    assert again.status_code == 202, "a spec that is shown can be sent again"
