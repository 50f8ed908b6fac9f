"""Aliases are moved past gates, and models imported, in the browser."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable

import pytest

from tests.pages.conftest import Site, Window
from tests.pages.test_work_forms import post
from tests.serving.networks import blur, manifest

VERSION = "/models/vessels/versions/1"


def aliases(site: Site) -> dict[str, int]:
    with site.program() as program:
        return {each["alias"]: each["version"] for each in program.get("/v1/models/vessels/aliases").json()}


def test_alias_is_moved_only_past_its_gate(site: Site) -> None:
    with site.visitor() as browser:
        facts = browser.get(f"{VERSION}.json").json()
        dice = facts["version"]["metrics"]["dice"]
        assert facts["promotion"]["datasets"] == ["vessels@1"] and facts["promotion"]["current"] == 2
        sent = {"alias": "@gated", "dataset": "", "max_beta0_error": ""}
        refused = post(browser, VERSION, f"{VERSION}/alias", **sent, min_dice=str(dice + 0.01))
        assert refused.status_code == 409 and "min_dice" in refused.text and "gated" not in aliases(site)
        moved = post(browser, VERSION, f"{VERSION}/alias", **sent, min_dice=str(dice - 0.01))
        assert moved.status_code == 303, moved.text
        assert aliases(site)["gated"] == 1
        assert "min_dice" in browser.get(VERSION).text, "the gate is in the history"
        by_evaluation = {"alias": "gated2", "dataset": "vessels@1", "max_beta0_error": "1000"}
        assert post(browser, VERSION, f"{VERSION}/alias", **by_evaluation).status_code == 303
        for wrong in ({"min_dice": "much"}, {"min_dice": "7"}, {"alias": "no name!"}):
            assert post(browser, VERSION, f"{VERSION}/alias", **({"alias": "x"} | wrong)).status_code == 422, wrong


def archive() -> bytes:
    network, buffer = blur(gain=6.0, offset=-4.0), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("model.onnx", network)
        file.writestr("manifest.json", json.dumps(manifest(network)))
    return buffer.getvalue()


def test_model_is_imported_by_a_form(site: Site) -> None:
    with site.visitor() as browser:
        made = post(browser, "/models", "/models", name="abroad", files={"file": ("abroad.zip", archive())})
        assert (made.status_code, made.headers.get("location")) == (303, "/models/abroad/versions/1"), made.text
        assert "imported, trained elsewhere" in browser.get("/models/abroad/versions/1").text
        broken = post(browser, "/models", "/models", name="abroad", files={"file": ("x.zip", b"no zip")})
        assert broken.status_code == 415
    with site.visitor(site.gallery.viewer_key) as browser:
        assert 'id="import"' not in browser.get("/models").text


@pytest.mark.browser
def test_alias_is_set_only_after_a_confirmation(site: Site, window: Callable[..., Window]) -> None:
    view = window(width=360)
    view.go(VERSION)
    page = view.page
    page.click("summary:has-text('Point an alias')")
    page.fill("#alias", "asked")
    page.fill("[name=max_beta1_error]", "50")
    page.click("button:has-text('Set alias')")
    assert "asked" not in aliases(site), "the box was not ticked"
    page.check("[name=sure]")
    page.click("button:has-text('Set alias')")
    page.wait_for_selector(".tag.alias:has-text('@asked')")
    assert re.search(r"max_beta1_error", page.inner_text("main") + page.content())
