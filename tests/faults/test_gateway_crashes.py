"""Acknowledged uploads survive kill -9 of the gateway; unfinished ones leave nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from app.store import keys
from app.store.blobs import Blobs
from app.store.session import Database
from tests.gateway import GatewayProcess
from tests.images import noise_png
from tests.services import wait_for

ROUNDS = 3
CLIENTS = 4


class Uploader(threading.Thread):
    """Sends one image after another and remembers what was acknowledged, until the connection breaks."""

    def __init__(self, url: str, token: str, seeds: list[int]):
        super().__init__(daemon=True)
        self.url, self.token, self.seeds = url, token, seeds
        self.acknowledged: dict[str, str] = {}

    def run(self) -> None:
        with httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "image/png"},
            timeout=20,
        ) as client:
            for seed in self.seeds:
                # Every third image is too large to wait in memory.
                content = noise_png(*((1100, 1100) if seed % 3 == 0 else (40, 40)), seed=seed)
                try:
                    answer = client.post("/v1/images", content=content)
                except httpx.TransportError:
                    return
                assert answer.status_code == 201, answer.text
                self.acknowledged[answer.json()["id"]] = hashlib.sha256(content).hexdigest()


def stored(url: str, token: str) -> dict[str, str]:
    """Id and digest of every image that can be seen, after reading the bytes of each."""
    found: dict[str, str] = {}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
        address: str | None = "/v1/images?limit=200"
        while address:
            page = client.get(address)
            for image in page.json()["items"]:
                content = client.get(image["links"]["content"])
                assert content.status_code == 200, content.text
                assert hashlib.sha256(content.content).hexdigest() == image["sha256"]
                found[image["id"]] = image["sha256"]
            address = page.links.get("next", {}).get("url")
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_acknowledged_uploads_survive_kill_9_of_the_gateway(
    kind: str, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings, dice = make_settings(kind), random.Random(11)
    database = Database(settings)
    with database.write() as session:
        token = keys.create(session, project="clinic", name="uploader", role="clinician")
    acknowledged: dict[str, str] = {}
    gateway = GatewayProcess(settings, tmp_path / "gateway.log")
    gateway.start()
    try:
        for round_number in range(ROUNDS):
            uploaders = [
                Uploader(gateway.url, token, [round_number * 10_000 + client * 1000 + number for number in range(1000)])
                for client in range(CLIENTS)
            ]
            for uploader in uploaders:
                uploader.start()
            enough = dice.randint(8, 30)
            wait_for(
                lambda uploaders=uploaders, enough=enough: (
                    sum(len(uploader.acknowledged) for uploader in uploaders) >= enough
                ),
                seconds=60,
                what="uploads",
                every=0.001,
            )
            gateway.process.kill()
            for uploader in uploaders:
                uploader.join(30)
                acknowledged |= uploader.acknowledged
            gateway.start()
            seen = stored(gateway.url, token)
            assert acknowledged.items() <= seen.items()
            # Committed in the moment of the kill, but its answer was cut: at most one for each client, and whole.
            assert len(seen) - len(acknowledged) <= CLIENTS * (round_number + 1)
    finally:
        gateway.close()
        database.dispose()
    assert list(settings.scratch.glob("*")) == [] if settings.scratch.exists() else True
    Blobs(settings).sweep_incoming(0)
    assert list((settings.data_dir / "blobs" / ".incoming").iterdir()) == []


def test_disconnect_during_upload_leaves_nothing(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    database = Database(settings)
    with database.write() as session:
        token = keys.create(session, project="clinic", name="uploader", role="clinician")
    gateway = GatewayProcess(settings, tmp_path / "gateway.log")
    gateway.start()
    try:
        for sent in (10, 500_000, 3_000_000):
            with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
                head = (
                    f"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type:"
                    " image/png\r\nContent-Length: 5000000\r\n\r\n"
                )
                connection.sendall(head.encode() + b"\x89PNG\r\n\x1a\n" + b"x" * sent)
        wait_for(
            lambda: "toposerve_requests_in_flight 1.0" in metrics(gateway.url, database),
            seconds=10,
            what="the uploads to be given up",
        )
        assert stored(gateway.url, token) == {}
        assert not settings.scratch.exists() or list(settings.scratch.iterdir()) == []
        assert (
            list((settings.data_dir / "blobs").rglob("*.part")) == []
            and list((settings.data_dir / "blobs" / ".incoming").iterdir()) == []
        )
        assert open_files(gateway.process.pid, settings.scratch) == []
    finally:
        gateway.close()
        database.dispose()


def metrics(url: str, database: Database) -> str:
    """The figures, read with a key made for it."""
    with database.write() as session:
        token = keys.create(session, project="clinic", name="figures", role="operator")
    return httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=20).text


def open_files(pid: int, folder: Path) -> list[str]:
    """Files of a folder, listed or not, that a process still holds."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(str(folder))]


def test_sigterm_lets_requests_in_progress_finish(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    settings = make_settings()
    database = Database(settings)
    with database.write() as session:
        token = keys.create(session, project="clinic", name="uploader", role="clinician")
    database.dispose()
    gateway = GatewayProcess(settings, tmp_path / "gateway.log")
    gateway.start()
    content, begun, go_on = noise_png(300, 300), threading.Event(), threading.Event()

    def slowly():  # type: ignore[no-untyped-def]
        yield content[:100]
        begun.set()
        assert go_on.wait(20)
        yield content[100:]

    answers: list[httpx.Response] = []
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}
    upload = threading.Thread(
        target=lambda: answers.append(
            httpx.post(f"{gateway.url}/v1/images", content=slowly(), headers=headers, timeout=30)
        )
    )
    upload.start()
    try:
        assert begun.wait(10)
        gateway.process.popen.terminate()
        wait_for(lambda: refused(gateway.url), seconds=10, what="the gateway to take no new connection")
        go_on.set()
        upload.join(20)
        assert answers[0].status_code == 201
        assert gateway.process.popen.wait(20) in (0, -15)
    finally:
        go_on.set()
        gateway.close()


def refused(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", timeout=2).status_code != 200
    except httpx.TransportError:
        return True
