"""Label Studio's wire: recorded requests of its server, and masks read by its own converter."""

from __future__ import annotations

import base64
import json
import subprocess

import numpy as np
import pytest

from app import imaging
from app.protocols.label_studio import run_lengths
from tests.images import noise
from tests.protocols import viewers
from tests.serving import networks

CONFIG = """<View><Image name="img" value="$picture" zoom="true"/>
<BrushLabels name="tag" toName="img"><Label value="vessel" background="red"/><Label value="other"/></BrushLabels>
</View>"""
DECODE = """
import importlib.util, json, sys
from importlib.metadata import files
path = next(each for each in files("label-studio-sdk") if str(each) == "label_studio_sdk/converter/brush.py").locate()
spec = importlib.util.spec_from_file_location("brush", path)
brush = importlib.util.module_from_spec(spec)
spec.loader.exec_module(brush)
print(json.dumps([brush.decode_rle(rle).tolist() for rle in json.load(sys.stdin)]))
"""


def decoded(*packed: list[int]) -> list[np.ndarray]:
    """What Label Studio's own converter reads."""
    command = [str(viewers.python()), "-c", DECODE]
    done = subprocess.run(command, input=json.dumps(packed), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [np.array(each, np.uint8) for each in json.loads(done.stdout)]


@pytest.fixture
def ask(gateway):
    """As Label Studio's server asks: Basic authentication, extra members."""
    gateway.register("blur", networks.blur())

    def asked(name, body=None, *, who="clinician", model="blur"):
        basic = base64.b64encode(f"label-studio:{gateway.keys.get(who, 'wrong')}".encode()).decode()
        method = "GET" if body is None else "POST"
        sent = {} if body is None else {"json": body}
        headers = {"Authorization": f"Basic {basic}"}
        return gateway.http.request(method, f"/label-studio/{model}/{name}", headers=headers, **sent)

    return asked


def tasks(*addresses):
    listed = [{"id": number, "data": {"picture": each}, "annotations": []} for number, each in enumerate(addresses)]
    return {"tasks": listed, "label_config": CONFIG, "project": "1.1700000000", "params": {"context": None}}


def test_masks_are_read_by_label_studios_converter():
    masks = [noise(1, 1, 23, 31)[0] > 128, np.zeros((5, 7), bool), np.ones((200, 150), bool), np.eye(9, dtype=bool)]
    for mask, found in zip(masks, decoded(*map(run_lengths, masks)), strict=True):
        np.testing.assert_array_equal(found.reshape(*mask.shape, 4), np.repeat(mask[..., None] * np.uint8(255), 4, -1))


def test_tasks_are_answered_as_brush_labels(gateway, ask):
    png = imaging.encode_png(noise(1, 1, 40, 56)[0])
    image = gateway.upload(png).json()["id"]
    assert ask("health").json() == {"status": "UP", "model_class": "toposerve"}
    setup = ask("setup", {"project": "1", "schema": CONFIG, "extra_params": None})
    assert setup.json() == {"model_version": "blur:1"}
    inline = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    answer = ask("predict", tasks(image, f"{gateway.url}/v1/images/{image}/content", inline, "http://elsewhere/x.png"))
    assert answer.status_code == 200, answer.text
    *good, bad = answer.json()["results"]
    assert bad["result"] == [] and "not fetched" in bad["error"], "one bad task does not spoil the others"
    ours = gateway.services.decoders.decode_mask(gateway.predict("blur", png).content) > 0
    for each in good:
        (region,) = each["result"]
        assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "img", "brushlabels")
        assert (region["original_width"], region["original_height"]) == (56, 40)
        assert region["value"]["format"] == "rle" and region["value"]["brushlabels"] == ["vessel"]
        assert (
            0.5 < each["score"] <= 1 and each["model_version"] == "blur:1" and each["topology"]["vessel"]["beta0"] > 0
        )
    (mask,) = decoded(good[0]["result"][0]["value"]["rle"])
    np.testing.assert_array_equal(mask.reshape(40, 56, 4)[..., 3] > 0, ours)
    assert ask("webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 1}}).status_code == 201


def test_bad_requests_are_refused(gateway, ask):
    assert ask("health", who="nobody").status_code == 401
    assert ask("predict", tasks(), who="viewer").status_code == 403
    assert ask("health", model="nothing").status_code == 404
    image = gateway.upload(imaging.encode_png(noise(1, 1, 8, 8)[0])).json()["id"]
    for config, status in (("", 400), ("<View/>", 400), ("<View><!DOCTYPE x></View>", 400), ("x" * 70_000, 422)):
        answer = ask("predict", tasks(image) | {"label_config": config})
        assert answer.status_code == status and set(answer.json()) == {"detail"}, answer.text
    assert ask("predict", {"tasks": [{}] * 65, "label_config": CONFIG}).status_code == 422
    assert "no image" in ask("predict", {"tasks": [{}], "label_config": CONFIG}).json()["results"][0]["error"]
    stranger = ask("predict", tasks(image), who="stranger", model="blur")
    assert stranger.status_code == 404
