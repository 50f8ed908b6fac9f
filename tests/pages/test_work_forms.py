"""What a person without a terminal can do: predict, measure, upload a dataset, submit jobs, make keys, delete."""

from __future__ import annotations

import io
import json
import re
import zipfile

import httpx
import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from app.store.tables import Job
from tests.pages.conftest import Site
from tests.pages.gallery import vessels
from tests.pages.test_forms import csrf, picture


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def post(browser: httpx.Client, page: str, address: str, **sent: object) -> httpx.Response:
    """Send a form of a page as it is shown there: the page must hold a form with this address."""
    text = browser.get(page).text
    assert f'action="{address}"' in text or page == address, f"{page} has no form for {address}"
    files = sent.pop("files", None)
    return browser.post(address, data={"csrf_token": csrf(text), **sent}, files=files)


def uploaded(browser: httpx.Client, seed: int, side: int = 96) -> str:
    return post(browser, "/images", "/images", files={"file": ("eye.png", picture(seed, side))}).headers["location"]


def test_stored_image_is_predicted_from_its_page_and_measured_against_a_reference(site: Site) -> None:
    with site.visitor() as browser:
        image = uploaded(browser, 21)
        assert "vessels:1" in browser.get(image).text
        made = post(
            browser, image, f"{image}/predict", model="vessels:1", threshold="0.4", expect="beta0:1", repair="yes"
        )
        assert made.status_code == 303, made.text
        shown = browser.get(made.headers["location"] + ".json").json()["prediction"]
        assert shown["threshold"] == 0.4 and shown["topology"][0]["beta0"] == 1 and shown["repair"]["edit_count"] >= 0
        address = made.headers["location"]
        truth = png(vessels(21, 96)[1])
        measured = post(browser, address, f"{address}/reference", files={"file": ("truth.png", truth)})
        assert measured.status_code == 303, measured.text
        page = browser.get(address).text
        assert "Against the reference" in page and "Another reference" in page
        wrong = post(
            browser, address, f"{address}/reference", files={"file": ("t.png", png(np.zeros((9, 9), np.uint8)))}
        )
        assert wrong.status_code == 422 and "same size" in re.sub(r"\s+", " ", wrong.text)


def test_image_page_offers_only_models_for_such_images(site: Site) -> None:
    with site.visitor() as browser:
        volume = nibabel.Nifti1Image(np.zeros((8, 9, 10), np.float32), np.eye(4)).to_bytes()
        image = post(browser, "/images", "/images", files={"file": ("v.nii", volume)}).headers["location"]
        page = browser.get(image).text
        assert "No model takes images of 3 dimensions" in page and f"{image}/predict" not in page


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "vessels:1", "threshold": "7"}, 422, "between 0 and 1"),
        ({"model": "nobody:1"}, 404, "No model is named nobody"),
        ({"model": "vessels:1", "expect": "beta0"}, 422, "beta0"),
    ],
)
def test_wrong_question_about_a_stored_image_is_refused_with_a_sentence(
    site: Site, fields: dict[str, str], status: int, says: str
) -> None:
    with site.visitor() as browser:
        image = uploaded(browser, 22)
        answer = browser.post(f"{image}/predict", data={"csrf_token": csrf(browser.get(image).text), **fields})
    assert (answer.status_code, says in answer.text) == (status, True), answer.text


def archive(count: int = 3) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for number in range(count):
            pixels, mask = vessels(30 + number, 96)
            file.writestr(f"images/{number}.png", png(pixels))
            file.writestr(f"masks/{number}.png", png(mask * 255))
    return buffer.getvalue()


def test_dataset_is_uploaded_and_a_training_on_it_queued(site: Site) -> None:
    with site.visitor() as browser:
        sent = {"name": "trees", "label_map": '{"vessel": 255}', "files": {"file": ("trees.zip", archive())}}
        made = post(browser, "/datasets", "/datasets", **sent)
        assert (made.status_code, made.headers.get("location")) == (303, "/datasets/trees/versions/1"), made.text
        page = browser.get("/datasets/trees/versions/1").text
        assert "3 pairs" in page
        form = re.search(r'href="(/jobs/new\?kind=train[^"]+)"', page)
        assert form is not None
        address = form.group(1).replace("&amp;", "&")
        text = browser.get(address).text
        assert 'value="trees@1"' in text and 'value="trees"' in text
        loss = {"terms": [{"name": "cross_entropy"}, {"name": "soft_cldice", "weight": 0.3}]}
        queued = browser.post(
            "/jobs/new",
            data={
                "csrf_token": csrf(text),
                "kind": "train",
                "dataset": "trees@1",
                "model": "trees",
                "steps": "20",
                "patch": "[32, 32]",
                "augment": "false",
                "loss": json.dumps(loss),
                "best_metric": "dice",
            },
        )
        assert queued.status_code == 303, queued.text
    job_id = queued.headers["location"].rsplit("/", 1)[1]
    with site.services.database.read() as session:
        job = session.query(Job).filter_by(kind="train").order_by(Job.id.desc()).first()
    assert job is not None and str(job.id) == job_id
    assert (job.spec["dataset"], job.spec["steps"], job.spec["augment"]) == ("trees@1", 20, False)
    assert job.spec["loss"]["terms"][1]["weight"] == 0.3 and job.spec["best_metric"] == "dice"


def test_job_form_says_what_is_wrong_and_keeps_what_was_written(site: Site) -> None:
    with site.visitor() as browser:
        data = {"dataset": "nothing@9", "model": "m", "steps": "0", "loss": "{not json", "kind": "train"}
        text = browser.get("/jobs/new").text
        answer = browser.post("/jobs/new", data={"csrf_token": csrf(text), **data})
        assert answer.status_code == 422 and "is not JSON" in answer.text and "{not json" in answer.text
        answer = browser.post("/jobs/new", data={"csrf_token": csrf(text), **data, "loss": ""})
        assert answer.status_code == 422 and "steps" in answer.text and 'value="nothing@9"' in answer.text
        answer = browser.post("/jobs/new", data={"csrf_token": csrf(text), **data, "loss": "", "steps": "5"})
        assert answer.status_code == 422 and "No dataset is named nothing" in answer.text
        assert browser.get("/jobs/new?kind=paint").status_code == 404


def test_job_form_is_filled_from_an_earlier_job(site: Site) -> None:
    job = site.gallery.jobs["trained-1"]
    with site.visitor() as browser:
        link = re.search(r'href="(/jobs/new\?like=[^"]+)"', browser.get(f"/jobs/{job}").text)
        assert link is not None
        page = browser.get(link.group(1)).text
    with site.services.database.read() as session:
        spec = session.get_one(Job, job).spec
    assert f'value="{spec["dataset"]}"' in page and f'value="{spec["steps"]}"' in page


def test_key_is_made_shown_once_used_and_revoked(site: Site) -> None:
    with site.visitor() as browser:
        made = post(browser, "/project", "/project/keys", name="PACS of ward 3", role="clinician")
        assert made.status_code == 200 and made.headers["cache-control"] == "no-store"
        secret = re.search(r"ts_[A-Za-z0-9]{8}_[A-Za-z0-9]{43}", made.text)
        assert secret is not None
        with site.program(secret.group()) as program:
            assert program.get("/v1/images").status_code == 200
            page = browser.get("/project").text
            assert secret.group() not in page and "PACS of ward 3" in page and "key.create" in page
            button = re.search(
                r'action="(/project/keys/[^"]+/revoke)"(?:(?!<form).)*Revoke PACS of ward 3', page, re.DOTALL
            )
            assert button is not None
            assert post(browser, "/project", button.group(1)).status_code == 303
            assert program.get("/v1/images").status_code == 401


def test_retention_is_set_and_shown(site: Site) -> None:
    with site.visitor() as browser:
        saved = post(browser, "/project", "/project/retention", predictions_days="90", images_days="", jobs_days="365")
        assert saved.status_code == 303
        assert browser.get("/project.json").json()["rules"]["predictions_days"][1] == 90
        refused = post(browser, "/project", "/project/retention", predictions_days="soon")
        assert refused.status_code == 422
        assert post(browser, "/project", "/project/retention").status_code == 303, "empty is for ever"


def test_image_is_deleted_after_its_list_was_shown(site: Site) -> None:
    with site.visitor() as browser:
        image = uploaded(browser, 23)
        post(browser, image, f"{image}/predict", model="vessels:1")
        page = browser.get(f"{image}/delete").text
        assert "predictions" in page and "Delete what was made from it as well" in page
        refused = browser.post(f"{image}/delete", data={"csrf_token": csrf(page)})
        assert refused.status_code == 409 and browser.get(image).status_code == 200
        done = browser.post(f"{image}/delete", data={"csrf_token": csrf(page), "derived": "yes"})
        assert (done.status_code, done.headers["location"]) == (303, "/images")
        assert browser.get(image).status_code == 404


def test_what_stands_in_the_way_of_a_deletion_is_listed(site: Site) -> None:
    with site.visitor() as browser:
        page = browser.get("/datasets/vessels/versions/1/delete").text
        assert "It cannot be deleted yet" in page and "delete these first" in page
        running = browser.get(f"/jobs/{site.gallery.jobs['running']}/delete").text
        assert "cancel it first" in running


def test_viewer_sees_no_form_and_can_send_none(site: Site) -> None:
    with site.visitor(site.gallery.viewer_key) as browser:
        image = f"/images/{site.gallery.images[0]}"
        text = browser.get(image).text
        assert f"{image}/predict" not in text and "/delete" not in text
        assert "upload" not in browser.get("/datasets").text.lower().split("<main", 1)[1].split("no dataset")[0]
        token = csrf(text)
        for address in (f"{image}/predict", f"{image}/delete", "/datasets", "/jobs/new", "/project/keys"):
            answer = browser.post(address, data={"csrf_token": token, "name": "x", "role": "admin"})
            assert answer.status_code == 403, address
        assert browser.get("/project").status_code == 403 and browser.get("/jobs/new").status_code == 403
