"""Login, buttons and forms without script."""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

from app.store.tables import Job
from tests.pages.conftest import Site, Window
from tests.pages.gallery import vessels


def test_anonymous_visitor_is_redirected_to_login_and_back(site: Site) -> None:
    with site.visitor(None) as browser:
        away = browser.get("/jobs?state=running")
        assert (away.status_code, away.headers["location"]) == (303, "/login?next=%2Fjobs%3Fstate%3Drunning")
        form = browser.get(away.headers["location"])
        assert 'value="/jobs?state=running"' in form.text
        back = browser.post("/login", data={"key": site.gallery.key, "next": "/jobs?state=running"})
        assert (back.status_code, back.headers["location"]) == (303, "/jobs?state=running")
        assert re.search(r"HttpOnly.*SameSite=strict", back.headers["set-cookie"])
        assert browser.get("/jobs?state=running").status_code == 200
    assert httpx.get(site.url + "/jobs").status_code == 401, "a program is told, not sent away"


@pytest.mark.parametrize("key", ["", "wrong", "ts_ab12cd34_" + "x" * 43])
def test_invalid_key_does_not_sign_in(site: Site, key: str) -> None:
    with site.visitor(None) as browser:
        answer = browser.post("/login", data={"key": key})
        assert answer.status_code == 401 and "not valid" in answer.text and "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "next_",
    ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "javascript:alert(1)", "/\tx"],
)
def test_login_never_redirects_to_another_site(site: Site, next_: str) -> None:
    with site.visitor(None) as browser:
        assert browser.post("/login", data={"key": site.gallery.key, "next": next_}).headers["location"] == "/"


def test_another_site_cannot_sign_a_visitor_in(site: Site) -> None:
    with site.visitor(None) as browser:
        answer = browser.post("/login", data={"key": site.gallery.key}, headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_signing_out_ends_the_session(site: Site) -> None:
    with site.visitor() as browser:
        token = csrf(browser.get("/").text)
        assert browser.post("/logout", data={"csrf_token": token}).headers["location"] == "/login"
        assert browser.get("/").status_code == 303


def csrf(page: str) -> str:
    return re.search(r'name="csrf_token" value="([^"]+)"', page).group(1)  # type: ignore[union-attr]


def state(site: Site, name: str) -> str:
    with site.services.database.read() as session:
        return session.get_one(Job, site.gallery.jobs[name]).state


@pytest.mark.parametrize("token", ["", "forged"])
def test_form_without_csrf_token_changes_nothing(site: Site, token: str) -> None:
    before = state(site, "running")
    with site.visitor() as browser:
        for path in (
            f"/jobs/{site.gallery.jobs['running']}/cancel",
            f"/jobs/{site.gallery.jobs['failed']}/resume",
            "/models/vessels/versions/1/alias",
            "/logout",
        ):
            answer = browser.post(path, data={"csrf_token": token, "alias": "stolen"})
            assert (answer.status_code, "Session expired" in answer.text) == (403, True), path
        for path in ("/images", "/models/vessels/versions/1/try"):
            assert (
                browser.post(path, data={"csrf_token": token}, files={"file": ("x.png", picture(1))}).status_code == 403
            ), path
        assert browser.get("/").status_code == 200, "still signed in"
    assert state(site, "running") == before and state(site, "failed") == "failed"


def test_viewer_role_has_no_buttons_and_cannot_post(site: Site) -> None:
    with site.visitor(site.gallery.viewer_key) as browser:
        page = browser.get(f"/jobs/{site.gallery.jobs['running']}")
        assert page.status_code == 200 and "/cancel" not in page.text
        assert "/alias" not in browser.get("/models/vessels/versions/1").text
        token = csrf(page.text)
        assert (
            browser.post(f"/jobs/{site.gallery.jobs['running']}/cancel", data={"csrf_token": token}).status_code == 403
        )
        assert (
            browser.post("/models/vessels/versions/1/alias", data={"csrf_token": token, "alias": "x"}).status_code
            == 403
        )


def test_stopped_job_can_be_resumed_or_cancelled_by_button(site: Site) -> None:
    job = site.gallery.jobs["interrupted"]
    with site.visitor() as browser:
        page = browser.get(f"/jobs/{job}").text
        assert "Resume goes on from step 500" in page and f"/jobs/{job}/cancel" not in page
        answer = browser.post(f"/jobs/{job}/resume", data={"csrf_token": csrf(page)})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job}")
        assert state(site, "interrupted") == "queued"
        page = browser.get(f"/jobs/{job}").text
        assert f"/jobs/{job}/cancel" in page and f"/jobs/{job}/resume" not in page
        browser.post(f"/jobs/{job}/cancel", data={"csrf_token": csrf(page), "keep": "yes"})
        assert state(site, "interrupted") == "interrupted"
        browser.post(f"/jobs/{job}/resume", data={"csrf_token": csrf(page)})
        browser.post(f"/jobs/{job}/cancel", data={"csrf_token": csrf(page)})
        assert state(site, "interrupted") == "cancelled"


def test_cancelling_what_has_succeeded_is_refused_with_a_sentence(site: Site) -> None:
    job = site.gallery.jobs["trained-1"]
    with site.visitor() as browser:
        answer = browser.post(f"/jobs/{job}/cancel", data={"csrf_token": csrf(browser.get("/").text)})
    assert answer.status_code == 409 and "has already succeeded" in answer.text


def picture(seed: int, side: int = 96) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(vessels(seed, side)[0]).save(buffer, "png")
    return buffer.getvalue()


def test_an_uploaded_picture_is_predicted_stored_and_shown(site: Site) -> None:
    with site.visitor() as browser:
        token = csrf(browser.get("/models/vessels/versions/1").text)
        answer = browser.post(
            "/models/vessels/versions/1/try",
            data={"csrf_token": token, "threshold": "0.4"},
            files={"file": ("mine.png", picture(7))},
        )
        assert answer.status_code == 303, answer.text
        page = browser.get(answer.headers["location"])
        assert page.status_code == 200 and "mine.png" in page.text and "Components (Betti-0)" in page.text
        prediction = browser.get(answer.headers["location"] + ".json").json()["prediction"]
        assert prediction["threshold"] == 0.4 and prediction["topology"][0]["beta0"] > 0
        mask = Pillow.open(io.BytesIO(browser.get(answer.headers["location"] + "/layers/mask.png").content))
        assert mask.size == (96, 96) and 0 < np.asarray(mask.convert("RGBA"))[..., 3].mean() < 255


@pytest.mark.parametrize(
    ("file", "threshold", "status", "says"),
    [
        (b"", "0.5", 422, "no file"),
        (b"RIFF", "0.5", 415, "none of PNG"),
        (None, "0.5", 422, "no file"),
        (b"png", "1.5", 422, "between 0 and 1"),
        (b"png", "nan", 422, "between 0 and 1"),
    ],
)
def test_invalid_form_is_answered_with_a_suggestion(
    site: Site, file: bytes | None, threshold: str, status: int, says: str
) -> None:
    content = picture(8) if file == b"png" else file
    with site.visitor() as browser:
        token = csrf(browser.get("/models/vessels/versions/1").text)
        files = {"file": ("x.png", content)} if content is not None else {"other": ("", b"")}
        answer = browser.post(
            "/models/vessels/versions/1/try", data={"csrf_token": token, "threshold": threshold}, files=files
        )
    assert answer.status_code == status and says in answer.text


def test_image_form_submitted_twice_uploads_once(site: Site) -> None:
    with site.visitor() as browser:
        token = csrf(browser.get("/images").text)
        answers = [
            browser.post("/images", data={"csrf_token": token}, files={"file": (r"C:\scans\..\eye.png", picture(9))})
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [303, 303]
        assert answers[0].headers["location"] == answers[1].headers["location"]
        assert "<h1>eye.png" in browser.get(answers[0].headers["location"]).text


def test_a_file_over_the_limit_is_refused_before_it_is_read(site: Site) -> None:
    with site.visitor() as browser:
        head = [
            "POST /images HTTP/1.1",
            f"Host: {site.url.removeprefix('http://')}",
            "Accept: text/html",
            "Content-Type: multipart/form-data; boundary=x",
            f"Content-Length: {site.services.settings.max_upload_bytes * 2}",
            f"Cookie: toposerve_session={browser.cookies['toposerve_session']}",
        ]
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def test_several_images_are_stored_at_once_and_a_refused_one_is_named(site: Site) -> None:
    with site.visitor() as browser:
        token = csrf(browser.get("/images").text)
        sent = [("file", (f"many-{seed}.png", picture(seed))) for seed in (61, 62)]
        many = browser.post("/images", data={"csrf_token": token}, files=sent)
        assert many.headers["location"] == "/images"
        assert [each["name"] for each in browser.get("/images.json?limit=2").json()["images"]] == [
            "many-62.png",
            "many-61.png",
        ]
        bad = [("file", ("many-63.png", picture(63))), ("file", ("note.txt", b"no image"))]
        refused = browser.post("/images", data={"csrf_token": token}, files=bad)
        assert refused.status_code == 415 and "Image 2 of 2, note.txt" in refused.text
        assert browser.get("/images.json?limit=1").json()["images"][0]["name"] == "many-63.png"


DROP = """([name, files]) => {
  const transfer = new DataTransfer();
  for (const [called, bytes] of files) {
    transfer.items.add(new File([Uint8Array.from(bytes)], called, { type: "image/png" }));
  }
  const init = { bubbles: true, cancelable: true };
  const event = name === "paste"
    ? new ClipboardEvent("paste", { ...init, clipboardData: transfer })
    : new DragEvent(name, { ...init, dataTransfer: transfer });
  document.body.dispatchEvent(event);
}"""


@pytest.mark.browser
def test_images_are_dropped_and_pasted(site: Site, window: Callable[..., Window]) -> None:
    view = window()
    view.go("/images")
    page = view.page
    page.evaluate(DROP, ["dragover", [["dropped-1.png", []]]])
    assert page.locator("body.dropping").count() == 1
    dropped = [[f"dropped-{seed}.png", list(picture(seed))] for seed in (71, 72)]
    with page.expect_navigation():
        page.evaluate(DROP, ["drop", dropped])
    assert page.locator(".gallery .name").all_inner_texts()[:2] == ["dropped-72.png", "dropped-71.png"]
    with page.expect_navigation(url="**/images/*-*"):
        page.evaluate(DROP, ["paste", [["pasted.png", list(picture(73))]]])
    assert page.locator("h1").inner_text() == "pasted.png"
