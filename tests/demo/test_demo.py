"""The `toposerve` command line and the whole demo over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from app.demo.folder import hold_out, labelled_pairs
from app.demo.story import MEASURES, best, verdicts
from tests.images import tubes
from tests.services import ROOT, Process, wait_for
from toposerve_client import Client

SHARED = Path(os.environ.get("TOPOSERVE_DATA_SHARED", ROOT.parent / "shared" / "data"))


def toposerve(*words: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with no TOPOSERVE_ setting but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOPOSERVE_")}
    command = [str(Path(sys.executable).parent / "toposerve"), *map(str, words)]
    return subprocess.run(
        command,
        env=kept | {"COLUMNS": "160"} | environment,
        capture_output=True,
        text=True,
        timeout=400,
        input=stdin,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Labelled images whose foreground is drawn as 0."""
    for kind in ("images", "masks"):
        (tmp_path / "tubes" / kind).mkdir(parents=True)
    for index in range(6):
        image, mask = tubes(index, 64)
        Image.fromarray(image).save(tmp_path / "tubes" / "images" / f"{index}.png")
        Image.fromarray(255 - mask).save(tmp_path / "tubes" / "masks" / f"{index}.png")
    return tmp_path / "tubes"


def test_demo_on_a_folder_completes_and_keeps_serving(folder, tmp_path):
    figures_file, data_dir = tmp_path / "figures.json", tmp_path / "service"
    told = toposerve(
        "demo",
        "--data",
        folder,
        "--foreground",
        0,
        "--steps",
        8,
        "--json",
        figures_file,
        "--data-dir",
        data_dir,
        "--keep",
    )
    assert told.returncode == 0, told.stdout + told.stderr
    service = json.loads((data_dir / "service.json").read_text())
    try:
        figures = json.loads(figures_file.read_text())
        assert [model["name"] for model in figures["models"]] == ["tubes:2", "tubes:3", "tubes:4"]
        assert [set(model["differences"]) for model in figures["models"]] == [set(), set(MEASURES), set(MEASURES)]
        assert {"name", "loss", "dice", "cldice", "beta0_error", "beta1_error", "seconds"} <= set(figures["models"][0])
        assert figures["photograph"]["rows"] == figures["photograph"]["columns"] == 1411
        for words in ("Betti-0", "@champion", "fundus photograph", "ETA", "100%", *verdicts(figures["models"])):
            assert words in told.stdout
        with Client(service["url"]) as client:
            assert client.aliases.get("tubes", "champion")["version"] == int(figures["champion"][-1])
            pages = re.findall(rf"{re.escape(service['url'])}(/\S+)", told.stdout)
            assert len(pages) >= 3
            for page in pages:
                assert client.request("GET", page, headers={"Accept": "text/html"}).status_code == 200, page
        segmented = toposerve(
            "predict",
            "tubes@champion",
            *sorted((folder / "images").iterdir())[:2],
            "--out",
            tmp_path / "out",
            TOPOSERVE_URL=service["url"],
        )
        assert segmented.returncode == 0 and "Euler characteristic" in segmented.stdout, segmented.stderr
        assert np.asarray(Image.open(tmp_path / "out" / "1.mask.png")).shape == (64, 64)
        spec = {
            "dataset": "tubes",
            "model": "tubes",
            "steps": 3,
            "patch": [32, 32],
            "batch": 2,
            "network": {"channels": [4, 8]},
        }
        (tmp_path / "job.json").write_text(json.dumps(spec))
        trained = toposerve("train", tmp_path / "job.json", TOPOSERVE_URL=service["url"])
        assert trained.returncode == 0 and "tubes:5" in trained.stdout, trained.stdout + trained.stderr
        assert "beta0_error" in trained.stdout.splitlines()[-2]
        refused = toposerve("train", "-", TOPOSERVE_URL=service["url"], stdin=json.dumps(spec | {"stepz": 1}))
        assert refused.returncode == 1 and "/stepz" in refused.stderr
    finally:
        os.kill(service["pid"], signal.SIGTERM)
        wait_for(
            lambda: (
                not Path(f"/proc/{service['pid']}").exists()
                or "Z" in Path(f"/proc/{service['pid']}/stat").read_text().split()[2]
            ),
            what="the service to stop",
        )


@pytest.mark.parametrize("name", ["isbi12", "chase_db1", "topomortar"])
def test_folder_images_are_paired_and_the_last_fifth_held_out(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"real images are not at {SHARED / name}; set TOPOSERVE_DATA_SHARED")
    pairs = labelled_pairs(SHARED / name)
    train, held = hold_out(pairs)
    assert len(held) == len(pairs) // 5 and not {pair.image for pair in train} & {pair.image for pair in held}
    if name == "chase_db1":  # both eyes of one person stay together
        assert not {pair.image.stem[:-1] for pair in train} & {pair.image.stem[:-1] for pair in held}


def test_the_better_model_has_the_smaller_betti_error_among_those_of_equal_dice():
    poor = {"name": "poor", "dice": 0.70, "cldice": 0.9, "beta0_error": 0, "beta1_error": 0}
    broken = {"name": "broken", "dice": 0.82, "cldice": 0.8, "beta0_error": 9, "beta1_error": 3}
    whole = {"name": "whole", "dice": 0.81, "cldice": 0.9, "beta0_error": 2, "beta1_error": 3}
    assert best([broken, whole, poor])["name"] == "whole"


def test_only_differences_beyond_chance_are_told():
    def model(loss, **told):
        differences = {
            name: {"images": 8, "difference": mean, "low": low, "high": high}
            for name, (mean, low, high) in told.items()
        }
        return {"loss": loss, "differences": differences}

    better = model("A", dice=(-0.01, -0.02, 0.001), beta0_error=(-10.0, -14.0, -6.0), beta1_error=(1.25, 0.5, 2.0))
    beyond = "beside the control, beyond the chance of 8 images"
    unsure, alone = model("B", dice=(0.01, -0.01, 0.03)), model("C", dice=(0.01, None, None))
    assert verdicts([model("control"), better, unsure, alone]) == [
        f"A {beyond}: Betti-0 error -10 (-14 to -6), Betti-1 error +1.25 (+0.5 to +2).",
        f"B {beyond}: nothing.",
        f"C {beyond}: nothing.",
    ]


def test_a_folder_that_is_not_an_old_demo_is_never_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refused = toposerve("demo", "--data-dir", tmp_path)
    assert refused.returncode == 1 and "not the folder of an earlier demo" in refused.stderr
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_gateway_and_worker_end_with_their_service(number, tmp_path):
    command = [sys.executable, "-m", "app.cli", "up", "--open", "--port", "0", "--data-dir", str(tmp_path)]
    service = Process(
        command,
        log=tmp_path / "service.log",
        env={name: value for name, value in os.environ.items() if not name.startswith("TOPOSERVE_")},
    )
    try:
        worker = int(wait_for(lambda: re.search(r'"worker": "[^"]*-(\d+)-', service.output()), what=service.output)[1])
        wait_for(lambda: "startup complete" in service.output(), what=service.output)
        children = psutil.Process(service.pid).children()
        assert worker in {child.pid for child in children} and len(children) == 2
        os.kill(service.pid, number)
        service.popen.wait(20)
        wait_for(lambda: not any(Path(f"/proc/{child.pid}").exists() for child in children), what=f"{children} to end")
    finally:
        service.kill()


def test_keys_are_made_listed_and_revoked_on_the_host(tmp_path):
    home = {"TOPOSERVE_DATA_DIR": str(tmp_path)}
    made = toposerve("keys", "create", "--name", "slicer", "--role", "clinician", "--days", 7, **home)
    token = made.stdout.strip()
    assert made.returncode == 0 and re.fullmatch(r"ts_\w{8}_\w{43}", token)
    listed = toposerve("keys", "list", **home).stdout
    assert token[:11] in listed and "slicer" in listed and token[12:] not in listed
    assert toposerve("keys", "revoke", token[:11], **home).returncode == 0
    assert toposerve("keys", "revoke", "ts_unknown1", **home).returncode == 1


def test_members_are_added_listed_and_removed_on_the_host(tmp_path):
    home = {"TOPOSERVE_DATA_DIR": str(tmp_path)}
    made = toposerve("members", "add", "Ana@hospital.example", "--role", "admin", **home)
    assert made.returncode == 0 and uuid.UUID(made.stdout.strip())
    assert toposerve("members", "add", "[red]", "--by", "group", "--project", "lab", **home).returncode == 0
    again = toposerve("members", "add", "ana@hospital.example", **home)
    assert again.returncode == 1 and "already, as admin" in " ".join(again.stderr.split())
    assert toposerve("members", "add", "ana", **home).returncode == 1
    assert toposerve("members", "add", "ana", "--by", "name", **home).returncode == 1
    listed = toposerve("members", "list", **home).stdout
    assert "ana@hospital.example" in listed and "[red]" in listed and "lab" in listed
    for status in (0, 1):
        assert toposerve("members", "remove", made.stdout.strip(), **home).returncode == status
    assert "ana@hospital.example" not in toposerve("members", "list", **home).stdout


HOST_COMMANDS = (("keys", "create"), ("keys", "list"), ("keys", "revoke", "ts_unknown1"), ("db", "upgrade"))


def test_every_command_of_the_host_takes_the_data_dir_and_says_which_database_it_uses(tmp_path):
    database = tmp_path / "here" / "toposerve.db"
    for number, words in enumerate(HOST_COMMANDS):
        ran = toposerve(*words, "--data-dir", database.parent, TOPOSERVE_DATA_DIR=str(tmp_path / "elsewhere"))
        assert f"Database: {database}" in ran.stderr, ran.stderr
        assert ("(new)" in ran.stderr) == (number == 0)
    assert not (tmp_path / "elsewhere").exists()


def test_key_made_with_the_data_dir_of_a_service_opens_it(tmp_path):
    token = toposerve("keys", "create", "--data-dir", tmp_path).stdout.strip()
    command = [sys.executable, "-m", "app.cli", "up", "--workers", "0", "--port", "0", "--data-dir", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TOPOSERVE_")}
    service = Process(command, log=tmp_path / "service.log", env=environment)
    try:
        wait_for(lambda: "startup complete" in service.output(), what=service.output)
        assert f"Database: {tmp_path / 'toposerve.db'}\n" in service.output()
        with Client(json.loads((tmp_path / "service.json").read_text())["url"], token) as client:
            assert client.request("GET", "/v1/keys").json()["items"]
    finally:
        service.terminate(30)


def test_keys_of_a_folder_without_a_database_are_refused_and_none_is_made(tmp_path):
    for words in (("list",), ("revoke", "ts_unknown1")):
        refused = toposerve("keys", *words, "--data-dir", tmp_path / "typo")
        assert refused.returncode == 1 and "There is no database" in refused.stderr, refused.stderr
    assert not (tmp_path / "typo").exists()


def test_password_of_the_database_is_not_shown():
    refused = toposerve("keys", "list", TOPOSERVE_DATABASE_URL="postgresql://me:secret@127.0.0.1:9/none")
    assert "Database: postgresql+psycopg://me:***@127.0.0.1:9/none" in refused.stderr and "secret" not in refused.stderr


def processes_below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def is_training(process: psutil.Process) -> bool:
    try:
        return {"models", "train"} <= set(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("number", "keep"),
    [(signal.SIGTERM, ["--keep"]), (signal.SIGINT, ["--keep"]), (signal.SIGHUP, []), (signal.SIGKILL, [])],
    ids=["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"],
)
def test_signal_to_the_demo_ends_its_service_worker_and_training(folder, tmp_path, number, keep):
    command = [sys.executable, "-m", "app.cli", "demo", "--data", str(folder), "--data-dir", str(tmp_path / "service")]
    demo = Process([*command, *keep], log=tmp_path / "demo.log")
    below: list[psutil.Process] = []
    try:
        wait_for(lambda: any(map(is_training, processes_below(demo.pid))), seconds=90, what="the training", every=0.2)
        below = processes_below(demo.pid)
        assert len(below) >= 4, "the service, its gateway, its worker and the training"
        os.kill(demo.pid, number)
        assert demo.popen.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        _, alive = psutil.wait_procs(below, timeout=30)
        assert not alive
    finally:
        demo.kill()
        for process in below:
            if process.is_running():
                process.kill()


def test_open_service_on_a_public_address_is_refused_with_a_message(tmp_path):
    refused = toposerve("up", "--open", "--host", "0.0.0.0", "--data-dir", tmp_path)
    assert refused.returncode == 2 and "Set host to 127.0.0.1" in refused.stderr and "Traceback" not in refused.stderr


def test_client_without_a_service_gets_a_start_hint(tmp_path):
    (tmp_path / "job.json").write_text("{}")
    refused = toposerve("train", tmp_path / "job.json", "--url", "http://127.0.0.1:9")
    assert refused.returncode == 1 and "toposerve up" in refused.stderr


def test_upgrading_the_database_twice_is_safe(tmp_path):
    for _ in range(2):
        assert "up to date" in toposerve("db", "upgrade", TOPOSERVE_DATA_DIR=str(tmp_path)).stdout


def test_the_shell_completes_a_command():
    completed = toposerve(_TOPOSERVE_COMPLETE="complete_bash", COMP_WORDS="toposerve tr", COMP_CWORD="1")
    assert completed.stdout.split() == ["train"]
