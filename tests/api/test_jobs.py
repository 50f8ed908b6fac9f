"""Jobs over HTTP: submission, validation, listing, cancelling, logs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from app import queue
from app.store.tables import Job
from tests.gateway import Gateway
from tests.records import add_dataset_row, add_model_row

TRAIN: dict[str, Any] = {"kind": "train", "dataset": "bars@1", "model": "bars", "patch": [32, 32], "steps": 10}


def submit(gateway: Gateway, **changes: Any) -> Any:
    return gateway.ask("POST", "/v1/jobs", json=TRAIN | changes)


def test_job_submission_needs_the_jobs_write_scope(gateway: Gateway, bars: Any) -> None:
    answers = {
        role: gateway.ask("POST", "/v1/jobs", role, json=TRAIN).status_code
        for role in (None, "viewer", "clinician", "operator", "engineer")
    }
    assert answers == {None: 401, "viewer": 403, "clinician": 403, "operator": 403, "engineer": 202}
    assert gateway.count_project()["jobs"] == 1


def test_accepted_job_has_its_links_and_all_defaults(gateway: Gateway, bars: Any) -> None:
    answer = submit(gateway)
    job = answer.json()
    assert (answer.status_code, answer.headers["location"], answer.headers["retry-after"]) == (
        202,
        f"/v1/jobs/{job['id']}",
        "1",
    )
    assert (job["state"], job["progress"]["queue_position"], job["attempt"]) == ("queued", 1, 0)
    assert (job["spec"]["batch"], job["spec"]["loss"]["terms"][1]) == (
        4,
        {
            "weight": 1.0,
            "balance": None,
            "from_step": 0,
            "to_step": None,
            "every": 1,
            "ramp": 0,
            "name": "dice",
            "smooth": 1e-5,
        },
    )
    assert job["links"] == {
        "self": f"/v1/jobs/{job['id']}",
        "events": f"/v1/jobs/{job['id']}/events",
        "log": f"/v1/jobs/{job['id']}/log",
        "dataset": "/v1/datasets/bars/versions/1",
    }
    assert gateway.ask("GET", answer.headers["location"]).json() == job


def test_model_and_dataset_names_are_resolved_at_submission(gateway: Gateway, bars: Any) -> None:
    parent = add_model_row(gateway, spec={"network": submit(gateway).json()["spec"]["network"]})
    job = submit(gateway, dataset="bars", start_from="bars").json()
    add_dataset_row(gateway, count=5)
    assert (job["spec"]["dataset"], job["spec"]["start_from"]) == ("bars@1", "bars:1")
    with gateway.database.read() as session:
        spec = session.get_one(Job, uuid.UUID(job["id"])).spec
    assert (spec["dataset_version_id"], spec["start_from_version_id"]) == (str(bars.id), str(parent.id))
    assert "model_version_id" not in spec


def test_shown_spec_can_be_resubmitted(gateway: Gateway, bars: Any) -> None:
    first = submit(gateway).json()
    again = gateway.ask("POST", "/v1/jobs", json=first["spec"]).json()
    assert again["spec"] == first["spec"] and again["id"] != first["id"]


def test_job_sent_twice_with_one_idempotency_key_is_one_job(gateway: Gateway, bars: Any) -> None:
    once = {"Idempotency-Key": "monday"}
    first, second = (gateway.ask("POST", "/v1/jobs", json=TRAIN, headers=once) for _ in range(2))
    other = gateway.ask("POST", "/v1/jobs", json=TRAIN | {"steps": 11}, headers=once)
    assert (first.status_code, second.status_code, other.status_code) == (202, 202, 422)
    assert first.json() == second.json() and other.json()["code"] == "idempotency_key_reused"
    assert gateway.count_project()["jobs"] == 1


WRONG = {
    "a misspelt field": ({"stepz": 10}, "/stepz", ""),
    "an unknown loss": ({"loss": {"terms": [{"name": "dise"}]}}, "/loss/terms/0", "'cross_entropy'"),
    "a misspelt field of a loss": ({"loss": {"terms": [{"name": "dice", "smoth": 1}]}}, "/loss/terms/0/smoth", ""),
    "negative steps": ({"steps": -5}, "/steps", "greater than or equal to 1"),
    "more steps than are accepted": ({"steps": 1_000_000}, "/steps", "at most 200000"),
    "steps as text": ({"steps": "10"}, "/steps", "integer"),
    "steps as true": ({"steps": True}, "/steps", "integer"),
    "a batch of a billion": ({"batch": 10**9}, "/batch", "256"),
    "a learning rate of zero": ({"optimizer": {"lr": 0}}, "/optimizer/lr", "greater than 0"),
    "an odd patch": ({"patch": [33, 32]}, "", "multiples of 4"),
    "a patch larger than the image": (
        {"patch": [64, 64]},
        "/patch",
        "patch is 64 x 64 and the images of bars@1 have up to 64 x 48. At most 64 x 48 has a use",
    ),
    "more folds than pairs": ({"folds": 5}, "/folds", "4 pairs"),
    "a dataset that is not there": ({"dataset": "bras@1"}, "/dataset", "Datasets: bars."),
    "a version that is not there": ({"dataset": "bars@7"}, "/dataset", "Versions: 1."),
    "a parent that is not there": ({"start_from": "bars@champion"}, "/start_from", "Models: there are none yet."),
    "an address instead of a dataset": ({"dataset": "http://169.254.169.254/"}, "/dataset", "pattern"),
    "one term twice": ({"loss": {"terms": [{"name": "dice"}, {"name": "dice"}]}}, "/loss", "more than once"),
}


def test_invalid_spec_is_refused_naming_the_field_and_stores_nothing(gateway: Gateway, bars: Any) -> None:
    before, wrong = gateway.count_project(), {}
    for case, (change, pointer, words) in WRONG.items():
        answer = submit(gateway, **change)
        problem = answer.json()
        told = (
            answer.status_code,
            problem["code"],
            answer.headers["content-type"],
            [error["pointer"] for error in problem["errors"]],
        )
        if (
            told != (422, "invalid", "application/problem+json", [pointer])
            or words not in problem["errors"][0]["detail"]
        ):
            wrong[case] = problem
    assert not wrong and gateway.count_project() == before


def test_job_body_that_is_not_json_is_refused(gateway: Gateway) -> None:
    bodies = (
        b'{"kind":"train","steps":NaN}',
        b'{"kind":"train","steps":1e999}',
        b"{",
        b'{"a":1,"a":2}',
        b"[" * 100_000,
        b"\xff",
        b"",
    )
    answers = [
        gateway.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"}) for body in bodies
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(400, "invalid_json")] * 6 + [
        (422, "invalid")
    ]
    too_large = gateway.ask(
        "POST", "/v1/jobs", content=b" " * (1 << 20) + b"{}", headers={"Content-Type": "application/json"}
    )
    assert (too_large.status_code, too_large.json()["code"]) == (413, "too_large")


def test_all_errors_of_a_spec_are_reported_together(gateway: Gateway, bars: Any) -> None:
    problem = submit(gateway, steps=1_000_000, patch=[128, 128], start_from="nobody").json()
    assert [error["pointer"] for error in problem["errors"]] == ["/steps", "/patch", "/start_from"]


def test_job_cannot_name_resources_of_another_project(gateway: Gateway, bars: Any) -> None:
    answer = gateway.ask("POST", "/v1/jobs", "stranger", json=TRAIN)
    assert answer.status_code == 422 and "Datasets: there are none yet." in answer.json()["detail"]


def test_dataset_with_too_few_images_is_refused(gateway: Gateway) -> None:
    add_dataset_row(gateway, count=1)
    assert "1 pairs to train and validate on; 2 are needed" in submit(gateway).json()["detail"]


def test_initial_weights_need_the_same_network_and_classes(gateway: Gateway, bars: Any) -> None:
    add_model_row(
        gateway,
        spec={"network": {"name": "unet", "dimensions": 2, "channels": [8]}},
        manifest={"channels": 3, "dimensions": 2, "classes": ["background", "cell"]},
    )
    errors = submit(gateway, start_from="bars:1").json()["errors"]
    assert [error["pointer"] for error in errors] == ["/start_from"] * 3
    assert all(
        words in error["detail"] for words, error in zip(("same network", "channels", "cell"), errors, strict=True)
    )


def test_evaluation_needs_matching_channels_and_classes(gateway: Gateway, bars: Any) -> None:
    add_model_row(gateway)
    add_dataset_row(gateway, "colour", channels=3, classes=("background", "cell"))
    ask = {"kind": "evaluate", "model": "bars"}
    fitting = gateway.ask("POST", "/v1/jobs", json=ask | {"dataset": "bars"})
    wrong = gateway.ask("POST", "/v1/jobs", json=ask | {"dataset": "colour"}).json()
    absent = gateway.ask("POST", "/v1/jobs", json=ask | {"dataset": "bars", "split": "test"}).json()
    assert (fitting.status_code, fitting.json()["spec"]["model"], fitting.json()["links"]["model"]) == (
        202,
        "bars:1",
        "/v1/models/bars/versions/1",
    )
    assert len(wrong["errors"]) == 2 and "bars:1 reads images with 1 channels and colour@1 has 3" in wrong["detail"]
    assert absent["errors"][0]["pointer"] == "/split"
    rules = [{"rule": "inside", "subject": 1, "others": [2]}]
    strange = gateway.ask("POST", "/v1/jobs", json=ask | {"dataset": "bars", "rules": rules}).json()
    assert strange["errors"][0]["pointer"] == "/rules" and "names the class 2; bars@1 has 0 to 1" in strange["detail"]
    rules = [{"rule": "must_not_touch", "subject": 1, "others": [0]}]
    kept = gateway.ask("POST", "/v1/jobs", json=ask | {"dataset": "bars", "rules": rules})
    assert kept.json()["spec"]["rules"] == [rules[0] | {"contact": "sides", "border": "unknown"}]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"subject": "axon", "others": ["myelin"]}, None),
        ({"subject": "axon", "others": ["background", 1]}, None),
        ({"subject": "nerve", "others": [1]}, "names the class nerve; axons@1 has 0 to 2: background, myelin, axon"),
        ({"subject": "axon", "others": [1, 2]}, "The class axon is among its own others"),
    ],
)
def test_rules_name_classes_as_the_dataset_does(gateway: Gateway, rule: dict[str, Any], words: str | None) -> None:
    add_dataset_row(gateway, "axons", classes=("background", "myelin", "axon"))
    add_model_row(
        gateway, manifest={"channels": 1, "dimensions": 2, "classes": ["background", "myelin", "axon"]}, spec={}
    )
    ask = {"kind": "evaluate", "model": "bars", "dataset": "axons", "rules": [rule | {"rule": "inside"}]}
    evaluated = gateway.ask("POST", "/v1/jobs", json=ask)
    terms = [{"name": "cross_entropy"}, {"name": "inside", "pairs": [rule]}]
    trained = submit(gateway, dataset="axons", loss={"terms": terms})
    if words is None:
        assert (evaluated.status_code, trained.status_code) == (202, 202), evaluated.text + trained.text
        assert trained.json()["spec"]["loss"]["terms"][1]["pairs"] == [rule]
    else:
        assert words in evaluated.json()["detail"] and words in trained.json()["detail"]


def test_job_on_missing_images_is_refused_naming_them(gateway: Gateway, bars: Any) -> None:
    add_model_row(gateway)
    unknown = str(uuid.uuid4())
    for spec, pointer in (({"kind": "predict", "model": "bars"}, "/images/0"), ({"kind": "analyse"}, "/images/0")):
        problem = gateway.ask("POST", "/v1/jobs", json=spec | {"images": [unknown]}).json()
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, pointer) and unknown in problem["detail"]


def test_unknown_and_foreign_jobs_are_not_found(gateway: Gateway, bars: Any) -> None:
    mine = submit(gateway).json()["id"]
    for method, tail in (("GET", ""), ("GET", "/events"), ("GET", "/log"), ("POST", "/cancel"), ("POST", "/resume")):
        for role, job_id in (("stranger", mine), ("admin", uuid.uuid4())):
            answer = gateway.ask(method, f"/v1/jobs/{job_id}{tail}", role)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, tail, role)
        assert gateway.ask(method, f"/v1/jobs/{mine}{tail}", None).status_code == 401
        assert gateway.ask(method, f"/v1/jobs/seven{tail}").status_code == 422


def test_cancelling_a_queued_job_is_immediate_and_idempotent(gateway: Gateway, bars: Any) -> None:
    job_id = submit(gateway).json()["id"]
    answers = [gateway.ask("POST", f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(202, "cancelled")] * 2
    assert gateway.ask("POST", f"/v1/jobs/{job_id}/cancel", "viewer").status_code == 403


def test_cancelling_a_running_job_can_keep_its_work(gateway: Gateway, bars: Any) -> None:
    job_id = submit(gateway).json()["id"]
    claim = queue.claim(gateway.database, worker="w", lane="train", job_id=uuid.UUID(job_id))
    answer = gateway.ask("POST", f"/v1/jobs/{job_id}/cancel", json={"keep": True}).json()
    assert (answer["state"], queue.heartbeat(gateway.database, claim)) == ("cancelling", "stop_and_keep")
    assert (
        gateway.ask("POST", f"/v1/jobs/{job_id}/cancel", json={"keeep": True}).json()["errors"][0]["pointer"]
        == "/keeep"
    )
    assert gateway.ask("POST", f"/v1/jobs/{job_id}/resume").status_code == 409
    queue.cancelled(gateway.database, claim)
    again = gateway.ask("POST", f"/v1/jobs/{job_id}/resume").json()
    assert (again["state"], again["progress"]["queue_position"]) == ("queued", 1)


def test_a_finished_job_can_neither_be_cancelled_nor_resumed(gateway: Gateway, bars: Any) -> None:
    job_id = submit(gateway).json()["id"]
    finish(gateway, job_id, {"model": "bars", "version": 1, "metrics": {}})
    for verb in ("cancel", "resume"):
        answer = gateway.ask("POST", f"/v1/jobs/{job_id}/{verb}")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict") and "succeeded" in answer.json()[
            "detail"
        ]
    assert gateway.ask("GET", f"/v1/jobs/{job_id}").json()["links"]["model"] == "/v1/models/bars/versions/1"


def finish(gateway: Gateway, job_id: str, result: dict[str, Any]) -> None:
    claim = queue.claim(gateway.database, worker="w", lane="train", job_id=uuid.UUID(job_id))
    assert claim is not None
    with gateway.database.write() as session:
        queue.finish(session, claim, result)


def test_job_list_is_filtered_and_paged(gateway: Gateway, bars: Any) -> None:
    ids = [submit(gateway).json()["id"] for _ in range(3)]
    gateway.ask("POST", f"/v1/jobs/{ids[0]}/cancel")
    page = gateway.ask("GET", "/v1/jobs?limit=2").json()
    rest = gateway.ask("GET", f"/v1/jobs?limit=2&cursor={page['next_cursor']}").json()
    assert [job["id"] for job in page["items"] + rest["items"]] == ids[::-1] and rest["next_cursor"] is None
    assert [job["id"] for job in gateway.ask("GET", "/v1/jobs?state=cancelled&kind=train").json()["items"]] == ids[:1]
    assert gateway.ask("GET", "/v1/jobs?kind=predict").json()["items"] == []
    assert gateway.ask("GET", "/v1/jobs", "stranger").json()["items"] == []
    assert gateway.ask("GET", "/v1/jobs?state=lost").status_code == 422
    assert gateway.ask("GET", "/v1/jobs?cursor=forged").json()["code"] == "invalid_cursor"


def test_progress_and_the_time_left_are_shown(gateway: Gateway, bars: Any) -> None:
    first, second = submit(gateway).json()["id"], submit(gateway).json()["id"]
    claim = queue.claim(gateway.database, worker="w", lane="train", job_id=uuid.UUID(first))
    queue.heartbeat(
        gateway.database, claim, phase="train", fraction=0.5, step=5, steps=10, seconds_per_step=2.0, eta_s=10.0
    )
    running, waiting = (gateway.ask("GET", f"/v1/jobs/{job_id}").json()["progress"] for job_id in (first, second))
    assert (running["phase"], running["step"], running["eta_s"], running["queue_position"]) == ("train", 5, 10.0, None)
    assert (waiting["queue_position"], waiting["eta_s"]) == (1, 10.0)


def test_log_has_every_event_except_progress_one_per_line(gateway: Gateway, bars: Any) -> None:
    job_id = submit(gateway).json()["id"]
    claim = queue.claim(gateway.database, worker="w1", lane="train", job_id=uuid.UUID(job_id))
    events = [
        ("progress", {"step": 1}),
        ("log", {"level": "info", "message": "two\nlines"}),
        ("metric", {"step": 5, "metrics": {"dice": 0.5}}),
    ]
    queue.heartbeat(gateway.database, claim, events=events)
    answer = gateway.ask("GET", f"/v1/jobs/{job_id}/log")
    lines = [line.split(" ", 1)[1] for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert lines == [
        "[state] queued",
        '[state] running worker="w1"',
        '[log] two lines level="info"',
        '[metric] step=5 metrics={"dice": 0.5}',
    ]
