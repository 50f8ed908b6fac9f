"""Rules that make jobs of new series of a PACS: made, shown, changed and deleted over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.schemas.dicomweb_rules import NO_IMAGES
from app.settings import Settings
from app.store import dicomweb_rules as store
from app.store.tables import AuditLine, DicomwebRule, DicomwebSeries, now
from tests.gateway import UNKNOWN, Gateway, started, told
from tests.serving import networks

NEW: dict[str, Any] = {"name": "chest", "pacs": "main", "match": {"modality": "CT"}, "model": "smooth"}


@pytest.fixture(scope="module")
def one_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("rules")
    pacs = {"main": {"url": "http://pacs/dicom"}}
    with started(Settings(_env_file=None, data_dir=folder, min_free_bytes=0, pacs=pacs)) as gateway:
        yield gateway


@pytest.fixture
def gateway(one_gateway: Gateway) -> Gateway:
    """A new project with a model, in a gateway that knows one PACS."""
    gateway = one_gateway.new_project()
    gateway.register("smooth", networks.blur_3d(), dimensions=3)
    return gateway


def make(gateway: Gateway, **changes: Any) -> dict[str, Any]:
    answer = gateway.ask("POST", "/v1/dicomweb/rules", json=NEW | changes)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == made["links"]["self"] == f"/v1/dicomweb/rules/{made['id']}"
    return made


def audited(gateway: Gateway) -> list[tuple[str, str, str]]:
    with gateway.database.read() as session:
        lines = session.scalars(select(AuditLine).where(AuditLine.project_id == gateway.project_id))
        return [(line.who, line.what, line.object) for line in lines]


def row_of(gateway: Gateway, rule: dict[str, Any]) -> DicomwebRule:
    with gateway.database.read() as session:
        return session.get_one(DicomwebRule, uuid.UUID(rule["id"]))


def test_a_rule_has_defaults_and_begins_with_the_studies_of_yesterday(gateway: Gateway) -> None:
    made = make(gateway)
    yesterday = (now() - timedelta(days=1)).date().isoformat()
    assert made["match"] == {
        "modality": "CT",
        "study_description": None,
        "series_description": None,
        "body_part": None,
        "newer_than": yesterday,
        "late_days": 7,
    }
    assert (made["segmentation"], made["report"], made["threshold"], made["poll_s"]) == ("binary", True, None, 300)
    assert (made["enabled"], made["last_polled_at"], made["last_error"], made["failures"]) == (True, None, None, 0)
    assert made["series"] == {"growing": 0, "ready": 0, "submitted": 0, "left_out": 0}
    assert gateway.ask("GET", made["links"]["self"], "viewer").json() == made
    second = make(gateway, name="head", match={"modality": "MR", "newer_than": "2026-01-31"})
    assert second["match"]["newer_than"] == "2026-01-31"
    assert gateway.ask("GET", "/v1/dicomweb/rules", "viewer").json()["items"] == [second, made]


def test_a_rule_shows_how_its_polls_go_and_what_it_found(gateway: Gateway) -> None:
    made = make(gateway)
    error = {"code": "pacs_denied", "detail": "The PACS main answers 401."}
    with gateway.database.write() as session:
        row = session.get_one(DicomwebRule, uuid.UUID(made["id"]))
        row.last_polled_at, row.failures, row.last_error, row.next_poll_at = now(), 2, error, 1_800_000_000.0
        facts = {"project_id": row.project_id, "rule_id": row.id, "study": "1.2", "listed_from": "20260101"}
        for number, state in enumerate(("growing", "submitted", "submitted")):
            session.add(DicomwebSeries(series=f"1.2.{number}", instances=number, state=state, **facts))
    shown = gateway.ask("GET", made["links"]["self"]).json()
    assert (shown["last_error"], shown["failures"]) == (error, 2)
    assert shown["next_poll_at"] == "2027-01-15T08:00:00Z"
    assert shown["series"] == {"growing": 1, "ready": 0, "submitted": 2, "left_out": 0}
    first = gateway.ask("GET", shown["links"]["series"], params={"limit": 2}).json()
    rest = gateway.ask("GET", shown["links"]["series"], params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [each["series"] for each in first["items"] + rest["items"]] == ["1.2.2", "1.2.1", "1.2.0"]
    assert rest["items"][0]["state"] == "growing" and rest["next_cursor"] is None


def test_a_rule_is_changed_disabled_and_deleted_and_the_audit_says_so(gateway: Gateway) -> None:
    made = make(gateway)
    with gateway.database.write() as session:
        row = session.get_one(DicomwebRule, uuid.UUID(made["id"]))
        row.failures, row.next_poll_at, row.last_error = 3, 4e9, {"code": "a", "detail": "b"}
    address = made["links"]["self"]
    changed = gateway.ask("PATCH", address, json={"poll_s": 60}).json()
    assert changed == made | {"poll_s": 60}, "it is polled at once, as if no poll had failed"
    assert row_of(gateway, made).next_poll_at == 0 and row_of(gateway, made).polls == 1
    disabled = gateway.ask("PATCH", address, json={"enabled": False}).json()
    assert (disabled["enabled"], disabled["next_poll_at"]) == (False, None)
    assert store.begin(gateway.database, pacs=["main"], hold_s=1) is None or row_of(gateway, made).polls == 2
    assert gateway.ask("PATCH", address, json={}).json() == disabled
    gateway.register("other", networks.blur_3d(), dimensions=3)
    assert gateway.ask("PATCH", address, json={"enabled": True, "model": "other:1"}).json()["model"] == "other:1"
    for status in (204, 404):
        assert gateway.ask("DELETE", address).status_code == status
    key = f"ts_{gateway.keys['engineer'][3:11]}"
    named = f"{made['id']} chest"
    assert audited(gateway) == [
        (key, "dicomweb_rule.create", named),
        (key, "dicomweb_rule.change", f'{named} {{"poll_s":60}}'),
        (key, "dicomweb_rule.change", f'{named} {{"enabled":false}}'),
        (key, "dicomweb_rule.change", f'{named} {{"enabled":true,"model":"other:1"}}'),
        (key, "dicomweb_rule.delete", named),
    ]


def test_rules_of_another_project_get_404(gateway: Gateway) -> None:
    made = make(gateway)
    for method, end, body in (("GET", "", None), ("GET", "/series", None), ("PATCH", "", {}), ("DELETE", "", None)):
        for rule in (made["id"], UNKNOWN):
            answer = gateway.ask(method, f"/v1/dicomweb/rules/{rule}{end}", "stranger", json=body)
            assert told(answer) == (404, "not_found")
    assert gateway.ask("GET", "/v1/dicomweb/rules", "stranger").json()["items"] == []


def test_a_name_is_taken_once_and_a_project_has_so_many_rules(gateway: Gateway, monkeypatch) -> None:
    make(gateway)
    answer = gateway.ask("POST", "/v1/dicomweb/rules", json=NEW)
    assert told(answer) == (409, "conflict") and "named chest" in answer.json()["detail"]
    monkeypatch.setattr(store, "MOST", 1)
    answer = gateway.ask("POST", "/v1/dicomweb/rules", json=NEW | {"name": "head"})
    assert told(answer) == (409, "conflict") and "1 rules" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"pacs": "other"}, "/pacs"),
        ({"pacs": "http://169.254.169.254"}, "/pacs"),
        ({"model": "unknown@champion"}, "/model"),
        ({"poll_s": 29}, "/poll_s"),
        ({"poll_s": 86_401}, "/poll_s"),
        ({"enabled": "yes"}, "/enabled"),
        ({"threshold": 1}, "/threshold"),
        ({"segmentation": "surface"}, "/segmentation"),
        ({"match": {}}, "/match/modality"),
        ({"match": {"modality": "ct"}}, "/match/modality"),
        *(({"match": {"modality": modality}}, "/match/modality") for modality in NO_IMAGES),
        ({"match": {"modality": "CT", "patient": "Doe"}}, "/match/patient"),
        ({"match": {"modality": "CT", "study_description": "a\\b"}}, "/match/study_description"),
        ({"match": {"modality": "CT", "series_description": ""}}, "/match/series_description"),
        ({"match": {"modality": "CT", "body_part": "chest"}}, "/match/body_part"),
        ({"match": {"modality": "CT", "newer_than": "yesterday"}}, "/match/newer_than"),
        ({"match": {"modality": "CT", "newer_than": 86400}}, "/match/newer_than"),
        ({"match": {"modality": "CT", "newer_than": "2026-02-30"}}, "/match/newer_than"),
        ({"match": {"modality": "CT", "late_days": 0}}, "/match/late_days"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_field(gateway: Gateway, wrong: dict[str, Any], pointer: str) -> None:
    answer = gateway.ask("POST", "/v1/dicomweb/rules", json=NEW | wrong)
    assert told(answer) == (422, "invalid")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer], answer.text


def test_a_change_is_checked_as_a_new_rule_is(gateway: Gateway) -> None:
    address = make(gateway)["links"]["self"]
    for wrong in ({"model": "unknown"}, {"poll_s": 1}, {"name": "other"}):
        assert told(gateway.ask("PATCH", address, json=wrong)) == (422, "invalid")
    assert len(audited(gateway)) == 1
