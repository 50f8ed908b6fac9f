"""Rules for new series of a PACS in the browser: shown with how their polls go, disabled and enabled."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.settings import Settings
from app.store.tables import DicomwebRule, now
from tests.gateway import Gateway, started
from tests.pages.test_http import Page
from tests.serving import networks


@contextmanager
def signed_in(gateway: Gateway, who: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers={"Accept": "text/html"}, timeout=30) as client:
        assert client.post("/login", data={"key": gateway.keys[who]}).status_code == 303
        yield client


def test_rules_are_shown_below_the_form_of_their_jobs_and_have_a_button(tmp_path: Path) -> None:
    pacs = {"main": {"url": "http://pacs/dicom"}}
    with started(Settings(_env_file=None, data_dir=tmp_path, min_free_bytes=0, pacs=pacs)) as gateway:
        gateway.register("smooth", networks.blur_3d(), dimensions=3)
        match = {"modality": "CT", "study_description": "*<chest>*"}
        new = {"name": "chest", "pacs": "main", "match": match, "model": "smooth"}
        made = gateway.ask("POST", "/v1/dicomweb/rules", json=new).json()
        with gateway.database.write() as session:
            row = session.get_one(DicomwebRule, uuid.UUID(made["id"]))
            row.last_polled_at, row.last_error = now(), {"code": "pacs_denied", "detail": "The PACS main answers 401."}
        form = "/jobs/new?kind=dicomweb"
        with signed_in(gateway, "engineer") as browser:
            text = browser.get(form).text
            page = Page(text)
            assert page.problems == [] and "*&lt;chest&gt;*" in text and "The PACS main answers 401." in text
            assert 'aria-labelledby="rules"' not in browser.get("/jobs/new?kind=predict").text
            facts = browser.get("/jobs/new.json?kind=dicomweb", headers={"Accept": "application/json"}).json()
            assert facts["rules"] == [gateway.ask("GET", made["links"]["self"]).json()]
            for button, enabled in (("Disable chest", False), ("Enable chest", True)):
                text = browser.get(form).text
                assert f'aria-label="{button}"' in text
                token = re.findall(r'name="csrf_token" value="([^"]+)"', text)[-1]
                sent = {"csrf_token": token, "enabled": str(enabled).lower()}
                answer = browser.post(f"/jobs/rules/{made['id']}", data=sent)
                assert (answer.status_code, answer.headers["Location"]) == (303, form)
                assert gateway.ask("GET", made["links"]["self"]).json()["enabled"] is enabled
            assert browser.post(f"/jobs/rules/{made['id']}", data=sent | {"enabled": "maybe"}).status_code == 422
        assert gateway.ask("GET", made["links"]["self"]).json()["last_error"] is None, "enabling asks the PACS at once"
        with signed_in(gateway, "viewer") as browser:
            assert browser.get(form).status_code == 403
