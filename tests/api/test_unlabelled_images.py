"""Images without masks, from upload to training and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.settings import Settings
from tests.api.test_datasets import upload
from tests.conftest import QUICK
from tests.gateway import Gateway, started
from tests.images import archive, pairs, png
from workers.worker import Worker


def half_labelled(count: int = 4) -> dict[str, bytes]:
    """Files of an archive whose last two images have no mask."""
    entries = pairs(count)
    for number in (count - 2, count - 1):
        del entries[f"masks/{number:02d}.png"]
        entries[f"unlabelled/{number:02d}.png"] = entries.pop(f"images/{number:02d}.png")
    return entries


def test_images_without_a_mask_are_kept_counted_and_shown(gateway: Gateway) -> None:
    version = upload(gateway, archive(half_labelled())).json()
    assert (version["pairs"], version["statistics"]["unlabelled"], version["statistics"]["shapes"]) == (
        2,
        2,
        {"64 x 48": 4},
    )
    assert version["classes"] == ["background", "foreground"] and version["statistics"]["splits"] == {"undecided": 2}
    items = gateway.ask("GET", version["links"]["items"]).json()["items"]
    assert [(item["name"], item["mask_sha256"] is None, item["statistics"] == {}) for item in items] == [
        ("00", False, False),
        ("01", False, False),
        ("unlabelled/02", True, True),
        ("unlabelled/03", True, True),
    ]
    assert upload(gateway, archive(half_labelled())).status_code == 200  # the same content is the same version
    thumbnail = gateway.ask("GET", "/datasets/bars/versions/1/items/2.webp", "viewer")
    assert thumbnail.status_code == 200 and thumbnail.headers["content-type"] == "image/webp"
    assert (
        "2 images without a mask"
        in gateway.ask("GET", "/datasets/bars/versions/1", "viewer", headers={"Accept": "text/html"}).text
    )


def test_stored_images_may_be_named_without_a_mask(gateway: Gateway) -> None:
    ids = {
        name: gateway.ask("POST", "/v1/images", content=content, headers={"Content-Type": "image/png"}).json()["id"]
        for name, content in pairs(2).items()
    }
    wanted = [
        {"image": ids["images/00.png"], "mask": ids["masks/00.png"]},
        {"image": ids["images/01.png"], "mask": None},
    ]
    answer = gateway.ask("POST", "/v1/datasets", json={"name": "named", "pairs": wanted})
    assert (answer.status_code, answer.json()["pairs"], answer.json()["statistics"]["unlabelled"]) == (201, 1, 1)
    forgotten = gateway.ask(
        "POST", "/v1/datasets", json={"name": "other", "pairs": [{"image": ids["images/00.png"]}]}
    ).json()
    assert forgotten["status"] == 422 and "/pairs/0/mask" in [error["pointer"] for error in forgotten["errors"]]


def test_dataset_needs_at_least_one_mask(gateway: Gateway) -> None:
    alone = {f"unlabelled/{name}": content for name, content in (("a.png", png(np.eye(16, dtype=bool))),)}
    refused = upload(gateway, archive(alone))
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_dataset")
    image = gateway.ask(
        "POST", "/v1/images", content=alone["unlabelled/a.png"], headers={"Content-Type": "image/png"}
    ).json()["id"]
    refused = gateway.ask("POST", "/v1/datasets", json={"name": "named", "pairs": [{"image": image, "mask": None}]})
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_dataset")
    bad = half_labelled() | {
        "unlabelled/03.png": png(np.ones((9, 9, 3), np.uint8) * np.arange(9, dtype=np.uint8)[:, None, None])
    }
    assert "must be alike" in upload(gateway, archive(bad)).json()["detail"]


def test_training_uses_unlabelled_images_and_evaluation_skips_them(tmp_path: Path) -> None:
    """The whole way with the real trainer: zip, job, model, evaluation."""
    with started(Settings(_env_file=None, **{**QUICK, "data_dir": tmp_path})) as gateway:
        upload(gateway, archive(half_labelled(5)))
        terms = [{"name": "cross_entropy"}, {"name": "betti_prior", "priors": [{"classes": [1], "betti": [1, 0]}]}]
        spec = {
            "kind": "train",
            "dataset": "bars@1",
            "model": "bars",
            "network": {"channels": [4]},
            "loss": {"terms": terms},
            "patch": [32, 32],
            "batch": 3,
            "steps": 3,
            "best_metric": "dice",
        }
        worker = Worker(gateway.settings)
        try:
            trained = gateway.ask("POST", "/v1/jobs", json=spec).json()["links"]["self"]
            worker.drain("train")
            job = gateway.ask("GET", trained).json()
            assert job["state"] == "succeeded", job["error"]
            assert (
                " on 2 images and 2 without a mask (1 for validation) on cpu"
                in gateway.ask("GET", f"{trained}/log").text
            )
            measured = gateway.ask(
                "POST", "/v1/jobs", json={"kind": "evaluate", "model": "bars:1", "dataset": "bars@1"}
            ).json()["links"]["self"]
            worker.drain("quick")
            assert gateway.ask("GET", measured).json()["result"]["items"] == 3
        finally:
            worker.stop()
            worker.installation.database.dispose()
