"""Runs the commands of docker-compose.yml as local processes, without containers.

Images that we do not build (Postgres, Redis, the S3 store) are stood in for by the same programs from pip; our own
services run the very command and environment of the file, with host names and ports changed to local ones.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.images import tiny_dataset
from tests.services import ROOT, Process, Redis, free_port, s3_store, wait_for
from toposerve_client import Client

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = [name for name, service in SERVICES.items() if "build" in service]
TRAIN = {
    "kind": "train",
    "dataset": "tubes",
    "model": "tubes",
    "network": {"channels": [4, 8]},
    "patch": [32, 32],
    "batch": 2,
    "steps": 4,
    "loss": {"terms": [{"name": "cross_entropy"}, {"name": "skeleton_hard_pixels", "weight": 0.5}]},
}


def substituted(text: str) -> str:
    """`${NAME:-default}` as compose fills it in when NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def in_order_of_dependence() -> list[str]:
    """Our services, each after those it depends on."""
    order: list[str] = []

    def visit(name: str) -> None:
        for other in SERVICES[name].get("depends_on", {}):
            visit(other)
        if name not in order:
            order.append(name)

    for name in SERVICES:
        visit(name)
    return [name for name in order if name in OURS]


def healthcheck(port: int) -> list[str]:
    """The gateway image's own health check, as a command."""
    command = json.loads(re.search(r"HEALTHCHECK.* CMD (\[.*\])", DOCKERFILE)[1])
    return [sys.executable if part == "python" else part.replace(":8000", f":{port}") for part in command]


@pytest.fixture
def environment_of(tmp_path, postgres):
    """The environment that a service of the file gets, with the names of the other containers made local."""
    redis_folder = tmp_path / "redis"
    redis_folder.mkdir()
    redis = Redis(redis_folder, *shlex.split(SERVICES["redis"]["command"])[1:])
    database = postgres.create()
    with s3_store(tmp_path, bucket=None) as store:  # as the image of the store starts: the migrations make the bucket
        local = {
            "TOPOSERVE_DATABASE_URL": database,
            "TOPOSERVE_REDIS_URL": redis.url,
            "TOPOSERVE_BLOB_ENDPOINT_URL": store,
            "TOPOSERVE_HOST": "127.0.0.1",
        }

        def make(name: str) -> dict[str, str]:
            named = {key: substituted(value) for key, value in SERVICES[name]["environment"].items()}
            assert set(named) >= {"TOPOSERVE_DATABASE_URL", "TOPOSERVE_REDIS_URL", "TOPOSERVE_BLOB_URL"}
            kept = {key: value for key, value in os.environ.items() if not key.startswith(("TOPOSERVE_", "AWS_"))}
            changed = {key: local.get(key, value) for key, value in named.items()}
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            return (
                kept
                | changed
                | {
                    "TOPOSERVE_DATA_DIR": str(folder),
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "OMP_NUM_THREADS": "1",
                }
            )

        yield make
    redis.kill()
    postgres.drop(database)


@pytest.fixture
def start(environment_of, tmp_path):
    """Start a service of the file by name; all are stopped in the end."""
    started: list[Process] = []

    def run(name: str, port: int) -> Process:
        command = [str(port) if part == "8000" else part for part in shlex.split(SERVICES[name]["command"])]
        started.append(Process(command, log=tmp_path / f"{name}.log", env=environment_of(name)))
        return started[-1]

    yield run
    for process in reversed(started):
        process.terminate()


def test_demo_runs_through_every_compose_service(start, environment_of, tmp_path):
    port = free_port()
    for name in in_order_of_dependence():
        service = start(name, port)
        if name == "migrations":
            assert service.popen.wait(60) == 0, service.output()
        if name == "gateway":
            gateway = service
            wait_for(
                lambda: subprocess.run(healthcheck(port), capture_output=True, check=False).returncode == 0,
                seconds=30,
                what=gateway.output,
            )
        if name == "worker":
            worker = service
    created = subprocess.run(
        ["toposerve", "keys", "create"], env=environment_of("gateway"), capture_output=True, text=True, check=True
    )
    with Client(f"http://127.0.0.1:{port}", created.stdout.strip()) as client:
        wait_for(
            lambda: client.request("GET", "/readyz").json()["checks"]["workers"]["status"] == "ok",
            seconds=30,
            what=worker.output,
        )
        client.datasets.upload("tubes", tiny_dataset(tmp_path / "tubes.zip"))
        ended = client.jobs.wait(client.jobs.submit(TRAIN), check=False)
        assert ended["state"] == "succeeded", (ended["error"], worker.output()[-3000:])
        image = tmp_path / "image.png"
        tiny_dataset(tmp_path / "again.zip", first_image=image)
        _, answer = client.predict("tubes:1", image, store=True)
        assert {"beta0", "beta1", "euler"} <= set(answer["topology"][0])
    assert not list((tmp_path / "gateway").rglob("??/*" + "?" * 60)), (
        "bytes belong in the S3 store, not on the gateway's disk"
    )


def test_the_dockerfile_builds_what_the_compose_file_names():
    targets = set(re.findall(r"^FROM \S+ AS (\w+)", DOCKERFILE, re.MULTILINE))
    assert {SERVICES[name]["build"]["target"] for name in OURS} <= targets
    for stage, line in re.findall(r"^COPY (?:--from=(\w+) )?(.+)$", DOCKERFILE, re.MULTILINE):
        if stage:
            assert stage in targets
            continue
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    installed = re.findall(r"pip install .*?(\S+ '\.\[[\w,]+\]')", DOCKERFILE)
    assert len(installed) == 2 and all(each.startswith("./client ") for each in installed), "the client comes along"
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(",".join(re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE)).split(",")) <= extras


def test_no_port_of_the_compose_file_is_open_to_other_machines():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published and all(str(port).startswith("127.0.0.1:") for port in published)


def test_worker_stop_period_exceeds_checkpoint_time():
    from app.settings import Settings

    assert int(SERVICES["worker"]["stop_grace_period"].rstrip("s")) > Settings.model_fields["stop_grace_s"].default + 5
