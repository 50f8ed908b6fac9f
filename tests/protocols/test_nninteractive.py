"""nnInteractive's wire: its own client, unmodified, and what that client never sends."""

from __future__ import annotations

import json
import struct
import time

import numpy as np
import pytest

from app.imaging.packed import pack
from tests.protocols import viewers
from tests.services import wait_for
from tests.serving import networks
from topology.components import betti_numbers

META = "X-Meta"


@pytest.fixture
def plain(serve, make_settings):
    """A gateway for one viewer at a time, with little memory."""
    gateway = serve(make_settings(interactive_sessions=1, interactive_memory_bytes=8 * 20_000))
    gateway.register("plain", networks.through(), scaling=networks.PLAIN)
    gateway.register("space", networks.blur_3d(), dimensions=3)
    return gateway


def test_nninteractive_client_runs_unmodified(plain):
    """Claim, image, points, scribbles, undo, predict: see nninteractive_client.py."""
    said = viewers.told_by("nninteractive_client.py", f"{plain.url}/nninteractive/plain", plain.keys["clinician"])
    assert said["wrong key"][0] == 401 and said["ping"] is True
    assert 500 < said["heartbeat"] <= 600 == said["lease"]["idle_timeout_seconds"]
    assert said["full"][0] == "ServerAtCapacityError" and "1 viewers draw" in said["full"][1]
    assert said["interactions"]["points"] and said["interactions"]["scribble"] and not said["interactions"]["lasso"]
    assert said["no image"][0] == 400 and said["shape"] == [1, 1, 32, 40]
    the_masks_are_what_was_meant({name: np.array(each["mask"]) for name, each in said["masks"].items()})
    boxes = {name: each["box"] for name, each in said["masks"].items()}
    assert boxes["connected"] == [[0, 1], [8, 9], [18, 20]] and boxes["nothing to do"] is None
    assert boxes["waited"] is None and boxes["undone"] == boxes["filled"]
    assert said["undone"] is True
    for case, status, words in (
        ("bbox", 400, "not offered"),
        ("outside", 422, "outside the image"),
        ("wrong crop", 400, "its box"),
        ("empty scribble", 422, "empty"),
        ("wrong buffer", 400, "shape"),
        ("infinite", 422, "infinity"),
        ("too large", 413, "320000 bytes"),
    ):
        assert said[case][0] == status and words in said[case][1], (case, said[case])
    assert said["ended"][0] == "SessionExpiredError"


def the_masks_are_what_was_meant(masks):
    network = masks["network"]
    assert betti_numbers(network) == (3, 1) and not masks["all undone"].any()
    assert betti_numbers(masks["connected"]) == (2, 1)
    assert betti_numbers(masks["cut"]) == (3, 1) and not masks["cut"][23, 11:16].all()
    np.testing.assert_array_equal(masks["nothing to do"], masks["cut"])
    assert betti_numbers(masks["filled"]) == (3, 0)
    np.testing.assert_array_equal(masks["undone"], masks["cut"])
    assert betti_numbers(masks["scribbled"]) == (2, 1), "what the stroke joins is one again"
    assert betti_numbers(masks["scribbled across"]) == (3, 1), "the bar is cut where the stroke crosses it"
    np.testing.assert_array_equal(masks["waited"], masks["scribbled across"])
    assert (masks["predicted"] != masks["waited"]).any()
    own = np.zeros((32, 40), np.uint8)
    own[2:5, 2:5] = own[2:5, 7:10] = 1
    assert betti_numbers(masks["own"]) == (1, 0) and (masks["own"] >= own).all()
    np.testing.assert_array_equal(masks["reset"], network)


class Viewer:
    """A client that sends what the real one never does."""

    def __init__(self, gateway, model="plain", who="clinician"):
        self.gateway, self.model, self.who = gateway, model, who
        claimed = self.ask("claim")
        self.token = claimed.json().get("lease_token", "") if claimed.status_code == 200 else ""
        self.claimed = claimed

    def ask(self, path, *, content=b"", meta=None, who=None, **options):
        headers = {"X-Lease-Token": getattr(self, "token", "")} | ({META: json.dumps(meta)} if meta is not None else {})
        method = "GET" if path in ("lease_status", "capabilities", "healthz") else "POST"
        sent = {} if method == "GET" else {"json": options["json"]} if "json" in options else {"content": content}
        return self.gateway.ask(method, f"/nninteractive/{self.model}/{path}", who or self.who, headers=headers, **sent)


def array(*, magic=b"NNIA", version=1, codec=1, name=b"uint8", shape=(1, 1, 4, 4), chunks=None):
    head = struct.pack("<4sBBBB", magic, version, codec, len(shape), len(name)) + name
    good = pack(np.zeros((1, 1, 4, 4), np.uint8))
    body = good[8 + 5 + 32 :] if chunks is None else chunks
    return head + struct.pack(f"<{len(shape)}q", *shape) + body


CHUNK = pack(np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8))[8 + 5 + 32 + 4 + 16 :]
SMOOTH = pack(np.arange(4096, dtype=np.uint16).view(np.uint8)[:4096].reshape(1, 1, 64, 64))[8 + 5 + 32 + 4 + 16 :]
TORN = SMOOTH[:40] + b"\xff" * (len(SMOOTH) - 40)


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 422, "too early"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 422, "does not begin"),
        (array(version=9), 422, "does not begin"),
        (array(codec=7), 422, "does not begin"),
        (array(name=b"object"), 422, "object"),
        (array(name=b"complex64"), 422, "complex64"),
        (array(shape=(4, 4)), 422, "2 axes"),
        (array(shape=(1, 1, 0, 4)), 422, "at least 1"),
        (array(shape=(1, 1, -4, -4)), 422, "at least 1"),
        (array(shape=(1, 2**20, 2**20, 2**20)), 413, "voxels"),
        (array(shape=(1, 1, 4, 8)), 422, "32 bytes"),
        (array(chunks=struct.pack("<IQQ", 1, 2**60, 40) + bytes(40)), 422, "longer"),
        (array(chunks=struct.pack("<IQQ", 1, 16, 2**60)), 422, "cannot be"),
        (array(chunks=struct.pack("<IQQ", 1, 16, 40) + bytes(40)), 422, "as long as"),
        (array(chunks=struct.pack("<I", 0)), 422, "arrived"),
        (array(shape=(1, 1, 8, 8), chunks=struct.pack("<IQQ", 1, 64, len(CHUNK)) + CHUNK[:-1]), 422, "too early"),
        (array(shape=(1, 1, 64, 64), chunks=struct.pack("<IQQ", 1, 4096, len(TORN)) + TORN), 422, "damaged"),
    ],
)
def test_bad_bytes_are_refused(shared_viewer, content, status, words):
    answer = shared_viewer.ask("set_image", content=content, meta={})
    assert answer.status_code == status and set(answer.json()) == {"detail"}, answer.text
    assert words in answer.json()["detail"]


@pytest.fixture(scope="module")
def shared_viewer(shared_gateway):
    shared_gateway.register("plain", networks.through(), scaling=networks.PLAIN)
    return Viewer(shared_gateway)


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("add_point_interaction", {"json": {"coordinates": [1, 2]}}, 422),
        ("add_point_interaction", {"json": {"coordinates": ["a", 0, 0]}}, 422),
        ("add_point_interaction", {"content": b"[1"}, 400),
        ("add_point_interaction", {"content": b"[]"}, 400),
        ("set_target_buffer", {"json": {"shape": [1, 4, 4], "dtype": "float32"}}, 400),
        ("set_target_buffer", {"json": {"shape": [1, 4, 4, 4]}}, 422),
        ("set_image", {"content": array(), "meta": {"image_properties": {"spacing": [0, 1, 1]}}}, 422),
        ("add_lasso_interaction", {"content": b""}, 400),
    ],
)
def test_bad_values_are_refused(shared_viewer, path, sent, status):
    answer = shared_viewer.ask(path, **sent)
    assert answer.status_code == status and set(answer.json()) == {"detail"}, answer.text


def test_session_belongs_to_its_project_and_model(plain):
    viewer = Viewer(plain)
    assert viewer.ask("lease_status").status_code == 200
    assert viewer.ask("lease_status", who="stranger").status_code == 410
    viewer.model = "space"
    assert viewer.ask("lease_status").status_code == 410
    assert viewer.ask("release", who="stranger").status_code == 200
    viewer.model = "plain"
    assert viewer.ask("lease_status").status_code == 200, "a stranger cannot end it"
    assert viewer.ask("release").json() == {"released": True} == viewer.ask("release").json()
    assert Viewer(plain, "nothing").claimed.status_code == 404
    assert viewer.ask("claim", who="operator").status_code == 403


def test_session_ends_when_it_is_not_used_or_the_viewer_is_silent(serve, make_settings):
    gateway = serve(make_settings(interactive_sessions=2, interactive_idle_s=1.5, interactive_alive_s=1.0))
    gateway.register("plain", networks.through(), scaling=networks.PLAIN)
    silent, lively = Viewer(gateway), Viewer(gateway)
    leases = gateway.app.state.leases
    until = time.monotonic() + 20
    while time.monotonic() < until and lively.ask("heartbeat").status_code == 200:
        time.sleep(0.1)
    assert lively.ask("heartbeat").status_code == 410, "heartbeats do not keep an unused session"
    assert silent.ask("lease_status").status_code == 410
    Viewer(gateway)
    wait_for(lambda: not leases._leases, what="the end of a session that nobody asks about")


def test_volume_is_drawn_plane_by_plane_or_whole(plain):
    image = np.zeros((1, 4, 12, 12), np.uint8)
    image[0, :, 3:6, 2:10] = 240
    for model in ("plain", "space"):
        viewer = Viewer(plain, model)
        assert viewer.ask("set_image", content=pack(image), meta={}).json() == {"original_image_shape": [1, 4, 12, 12]}
        drawn = viewer.ask("predict", json={"force_full_refine": False})
        told = json.loads(drawn.headers[META])
        assert told["ran_prediction"] and told["topology"]["beta0"] == 1 and "beta2" in told["topology"], model
        clicked = viewer.ask(
            "add_point_interaction",
            json={"coordinates": [1, 4, 6], "include_interaction": True, "run_prediction": True},
        )
        assert "already" in json.loads(clicked.headers[META])["said"] and clicked.content == b""
        viewer.ask("release")
