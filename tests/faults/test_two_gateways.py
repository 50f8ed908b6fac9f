"""Two gateways on one database give the same answers during promotions."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from app import imaging
from app.settings import Settings
from app.store import keys, projects
from app.store.blobs import Blobs
from app.store.session import Database
from tests.gateway import GatewayProcess
from tests.images import noise
from tests.records import register, set_alias
from tests.services import wait_for
from tests.serving import networks

MOVES = 50
IMAGE = noise(1, 1, 16, 16)
PNG = imaging.encode_png(IMAGE[0, 0])
TENSOR = {
    "inputs": [{"name": "image", "shape": [1, 1, 16, 16], "datatype": "UINT8", "data": IMAGE.ravel().tolist()}],
    "outputs": [{"name": "mask"}],
}
LIMITS = Settings(_env_file=None)
ANSWER = {"1": 0, "2": 1}
"""What each version says everywhere."""


@pytest.fixture(scope="module")
def gateways(module_settings, tmp_path_factory):
    """Clients of two gateway processes that share a database and a blob store, in which `tones` has two versions and an
    alias.
    """
    settings, folder = module_settings, tmp_path_factory.mktemp("gateways")
    assert settings.name_cache_s == 1.0, "the promise is kept by the default"
    database, blobs = Database(settings), Blobs(settings)
    with database.write() as session:
        key, project_id = (
            keys.create(session, project="clinic", name="all", role="admin"),
            projects.ensure(session, "clinic").id,
        )
    first = register(database, blobs, project_id, "tones", networks.constant(0.2))
    register(database, blobs, project_id, "tones", networks.constant(0.8))
    set_alias(database, first, "champion")
    database.dispose()
    processes = [GatewayProcess(settings, folder / f"gateway-{number}.log", key) for number in range(2)]
    for process in processes:
        process.start(wait=False)
    for process in processes:
        process.wait_until_ready()
    yield [process.http for process in processes]
    for process in processes:
        process.process.terminate()
        process.http.close()


def by_route(client):
    """(version, the one value of its mask, whether it has another)"""
    answer = client.post(
        "/v1/models/tones@champion/predict", content=PNG, headers={"Content-Type": "image/png", "Accept": "image/png"}
    )
    assert answer.status_code == 200, answer.text
    mask = imaging.decode_mask(answer.content, LIMITS) > 0
    return answer.headers["toposerve-model"].removeprefix("tones:"), set(mask.astype(int).ravel().tolist())


def by_protocol(client):
    answer = client.post("/v2/models/tones@champion/infer", json=TENSOR)
    assert answer.status_code == 200, answer.text
    (mask,) = answer.json()["outputs"]
    return answer.json()["model_version"], set(np.array(mask["data"]).tolist())


def move(client, version):
    answer = client.put("/v1/models/tones/aliases/champion", json={"version": version})
    assert answer.status_code in (200, 201), answer.text


def test_fifty_promotions_under_load_neither_mix_nor_fail_answers(gateways):
    wrong, seen, stop = [], Counter(), threading.Event()

    def keep_asking(client, ask):
        while not stop.is_set():
            try:
                version, values = ask(client)
                seen[version] += 1
                if values != {ANSWER[version]}:
                    wrong.append((version, values))
            except Exception as error:
                wrong.append(error)
                return

    threads = [
        threading.Thread(target=keep_asking, args=(client, ask))
        for client in gateways
        for ask in (by_route, by_protocol)
    ]
    for thread in threads:
        thread.start()
    try:
        for number in range(MOVES):
            move(gateways[number % 3 == 0], 2 - number % 2)
            time.sleep(0.02)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not wrong, wrong[:3]
    assert min(seen["1"], seen["2"]) > 0, seen


def test_promotion_reaches_the_other_gateway_within_two_seconds(gateways):
    here, there = gateways
    move(here, 1)
    wait_for(lambda: {by_route(client)[0] for client in gateways} == {"1"}, what="both to start from version 1")
    for version in ("2", "1", "2"):
        assert {by_route(client)[0] for client in gateways} == {"1" if version == "2" else "2"}, (
            "both remember the old one now"
        )
        move(here, int(version))
        assert by_route(here)[0] == by_protocol(here)[0] == version, "who moved it obeys at once"
        wait_for(
            lambda there=there, version=version: by_route(there)[0] == by_protocol(there)[0] == version,
            seconds=2.0,
            what=f"version {version} at the other gateway",
        )
        here, there = there, here
