"""Idempotency keys: repeated requests are executed once."""

from __future__ import annotations

import threading
from datetime import timedelta

from sqlalchemy import select, update

from app.store.tables import IdempotentRequest, now
from tests.gateway import Gateway, told
from tests.images import noise_png

RETRY = {"Idempotency-Key": "a-1"}


def project(gateway: Gateway, name: str, headers: dict[str, str] = RETRY, who: str = "operator"):
    return gateway.ask("POST", "/v1/projects", who, json={"name": name}, headers=headers)


def test_repeated_request_is_replayed_and_a_different_one_refused(empty_gateway: Gateway) -> None:
    first, again = project(empty_gateway, "retina"), project(empty_gateway, "retina")
    assert (first.status_code, again.status_code) == (201, 201) and first.content == again.content
    assert again.headers["idempotency-replayed"] == "true" and again.headers["location"] == first.headers["location"]
    assert (
        "idempotency-replayed" not in first.headers and first.headers["x-request-id"] != again.headers["x-request-id"]
    )
    assert told(project(empty_gateway, "other")) == (422, "idempotency_key_reused")
    assert told(empty_gateway.ask("POST", "/v1/projects?x=1", "operator", json={"name": "retina"}, headers=RETRY)) == (
        422,
        "idempotency_key_reused",
    )
    assert told(project(empty_gateway, "retina", {"Idempotency-Key": "a-2"})) == (409, "conflict")


def test_ten_concurrent_requests_with_one_key_execute_once(empty_gateway: Gateway) -> None:
    answers: list[tuple[int, str]] = []

    def send() -> None:
        answer = project(empty_gateway, "retina")
        answers.append((answer.status_code, answer.json().get("id", answer.json().get("code"))))

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = {body for status, body in answers if status == 201}
    assert len(answers) == 10 and len(made) == 1, answers
    assert {answer for answer in answers if answer[0] != 201} <= {(409, "idempotency_in_progress")}


def test_failed_request_can_be_retried_with_its_key(empty_gateway: Gateway) -> None:
    assert told(empty_gateway.ask("POST", "/v1/projects", "operator", json={"name": "a b"}, headers=RETRY)) == (
        422,
        "invalid",
    )
    project(empty_gateway, "taken", {})
    assert told(project(empty_gateway, "taken")) == (409, "conflict")
    assert project(empty_gateway, "free").status_code == 201


def test_idempotency_keys_are_per_project(gateway: Gateway) -> None:
    mine = gateway.upload(noise_png(), headers=RETRY)
    theirs = gateway.upload(noise_png(seed=1), who="stranger", headers=RETRY)
    assert (mine.status_code, theirs.status_code) == (201, 201)


def test_uploads_are_distinguished_by_their_bytes(gateway: Gateway) -> None:
    first, again = gateway.upload(noise_png(), headers=RETRY), gateway.upload(noise_png(), headers=RETRY)
    assert (first.status_code, again.status_code) == (201, 201) and first.content == again.content
    left = gateway.count_project()
    assert told(gateway.upload(noise_png(seed=1), headers=RETRY)) == (422, "idempotency_key_reused")
    assert gateway.count_project() == left


def test_secret_of_a_new_api_key_is_not_stored_for_replay(gateway: Gateway) -> None:
    made = gateway.ask("POST", "/v1/keys", "admin", json={"name": "x", "role": "viewer"}, headers=RETRY)
    assert made.status_code == 201
    assert told(gateway.ask("POST", "/v1/keys", "admin", json={"name": "x", "role": "viewer"}, headers=RETRY)) == (
        409,
        "conflict",
    )
    with gateway.database.read() as session:
        bodies = select(IdempotentRequest.body).where(IdempotentRequest.project_id == gateway.project_id)
        assert session.scalars(bodies).all() == [None]
    assert gateway.ask("GET", "/v1/keys", "admin").text.count(made.json()["prefix"]) == 1


def test_replayed_answer_expires_after_a_day(empty_gateway: Gateway) -> None:
    first = project(empty_gateway, "retina")
    with empty_gateway.database.write() as session:
        session.execute(update(IdempotentRequest).values(created_at=now() - timedelta(hours=23)))
    assert project(empty_gateway, "retina").content == first.content
    with empty_gateway.database.write() as session:
        session.execute(update(IdempotentRequest).values(created_at=now() - timedelta(hours=25)))
    assert project(empty_gateway, "another").status_code == 201


def test_idempotency_key_must_be_short_printable_text(sqlite_gateway: Gateway) -> None:
    for bad in ("x" * 256, "a b", ""):
        assert told(project(sqlite_gateway, "retina", {"Idempotency-Key": bad})) == (422, "invalid")


def test_idempotency_key_does_not_bypass_authorisation(gateway: Gateway) -> None:
    assert told(project(gateway, "retina", who="viewer")) == (403, "forbidden")
    assert sum(gateway.count_project().values()) == 0
