"""Executes every shell command of README, documentation and home page as it is written.

Each page is one script, in its order, in a folder that holds the files it names, against a project that holds the
models and datasets it names; only `URL`, `KEY` and their like for the command line are set. curl fails where it is
answered with an error. Some programs are stood in for, because the real ones take minutes, never end, or are not here:
`make` prints what it would run; `toposerve demo` reads its options and tells no story (tests/demo does); `toposerve up`
is stopped once it serves; `pip` looks whether there is a project (tests/install installs it); `docker` only has to be a
command (tests/compose runs each of its services).
"""

from __future__ import annotations

import html
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import imaging
from app.settings import Settings
from app.store.tables import ModelVersion
from tests.conftest import QUICK
from tests.docs.conftest import working
from tests.images import archive, noise, pairs, png
from tests.imaging.dicom_files import dataset, written
from tests.records import set_alias
from tests.services import ROOT
from tests.serving import networks
from tests.serving.test_registry import with_variants
from toposerve_client import Client

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = {
    str(page.relative_to(ROOT)): "\n".join(found) for page in PAGES if (found := BLOCK.findall(page.read_text()))
}
SHIMS = {
    "make": 'exec /usr/bin/make --dry-run -C "$ROOT" "$@"',
    "docker": 'test "$1" = compose',
    "python3": """
if [ "$*" = "-m pip install ./client" ]; then test -f client/pyproject.toml; else exec "$PYTHON" "$@"; fi""",
    "toposerve": """
case "$1" in
demo) exec "$PYTHON" -c 'import app.cli, app.demo.story as story
story.run = lambda *_, **options: print(options)
app.cli.main()' "$@" ;;
up)
  "$PYTHON" -m app.cli "$@" --port 0 --workers 0 > served.txt & served=$!
  for _ in $(seq 600); do grep -q "toposerve at" served.txt && break; sleep 0.1; done
  grep "toposerve at" served.txt; kill $served; wait $served || true ;;
*) exec "$PYTHON" -m app.cli "$@" ;;
esac""",
}


def drawn(*, gap: int) -> np.ndarray:
    """(200, 200) uint8, a map in 255ths: a line along row 88, faint around column 120, and a ring around (40, 41)."""
    rows, columns = np.mgrid[:200, :200]
    picture = np.where((abs(rows - 88) < 2) & (abs(columns - 100) < 80), 230, 10)
    picture[86:91, 118:123] = np.where(picture[86:91, 118:123] > 100, gap, 10)
    picture[abs(np.hypot(rows - 40, columns - 41) - 12) < 2] = 230
    return picture.astype(np.uint8)


def files_of_the_pages() -> dict[str, bytes]:
    """Every file that a command sends, by name."""
    labelled = pairs(size=(256, 256))
    scan = imaging.encode_nifti_gz(noise(24, 40, 36), np.diag([1.0, 1.0, 1.0, 1.0]))
    labels = np.zeros((24, 40, 36), np.uint8)
    labels[4:12, 8:20, 8:20], labels[12:20, 8:20, 8:20] = 1, 2
    volumes = {
        f"hippocampus/{kind}/hippocampus_{number:03}.nii.gz": content
        for number in (65, 66, 67, 68)
        for kind, content in (
            ("images", imaging.encode_nifti_gz(noise(24, 40, 36, seed=number))),
            ("masks", imaging.encode_nifti_gz(labels)),
        )
    }
    described, job, volume_job, comparison, anatomy = (
        re.search(rf"^```json\n({start}.*?)^```", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)[1]
        for page, start in (
            ("how-to/import.md", "{"),
            ("first-steps.md", "{"),
            ("how-to/train.md", '{"kind"'),
            ("how-to/compare.md", "{"),
            ("how-to/ventricle.md", "{"),
        )
    )
    mask = png(drawn(gap=230) > 127)
    distance = np.hypot(*(np.mgrid[:160, :160] - 80))
    slices = {
        f"ventricle/{kind}": content
        for number in range(4)
        for kind, content in (
            (f"images/{number}.dcm", written(dataset((100 + 100 * (distance < 20 + number)).astype(np.uint16)))),
            (f"masks/{number}.png", png(np.digitize(-distance, (-30 - number, -20 - number)).astype(np.uint8) * 2 % 3)),
        )
    }
    return (
        volumes
        | slices
        | {
            "image.png": png(drawn(gap=110)),
            "probability.png": png(drawn(gap=230)),
            "photo.png": png(drawn(gap=230)),
            "mask.png": mask,
            "truth.png": mask,
            "scan.nii.gz": scan,
            "model.onnx": networks.through(),
            "manifest.json": described.encode(),
            "job.json": job.encode(),
            "hippocampus.json": volume_job.encode(),
            "compare.json": comparison.encode(),
            "ventricle.json": anatomy.encode(),
            "path/to/folder/images/here": b"",
            **{name: archive(labelled) for name in ("vessels.zip", "membranes.zip", "dataset.zip")},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader of the pages stands."""
    place = tmp_path / "reader"
    for name, content in files_of_the_pages().items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    shutil.copytree(ROOT / "client", place / "client", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    programs = place / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in SHIMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    (place / ".curlrc").write_text("fail\nshow-error\n")
    return place


@pytest.fixture(scope="module")
def open_service(request) -> bool:
    """Whether the service asks for no key."""
    return getattr(request, "param", False)


@pytest.fixture(scope="module")
def service(tmp_path_factory, sqlite_template, serve, open_service):
    """A gateway, and a worker for each lane with the stand-in trainer."""
    data = tmp_path_factory.mktemp("service")
    shutil.copy(sqlite_template, data / "toposerve.db")
    settings = Settings(_env_file=None, **QUICK, data_dir=data, open=open_service)
    gateway = serve(settings)
    trainer = (sys.executable, str(Path(__file__).with_name("stand_in_models.py")))
    with working(settings, models=trainer):
        yield gateway


def run(folder: Path, script: str, url: str, key: str | None) -> str:
    """What the commands print; they must succeed."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    kept = {name: value for name, value in kept.items() if not name.startswith("TOPOSERVE_")}
    here = {
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "CURL_HOME": str(folder),
        "ROOT": str(ROOT),
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
        "URL": url,
        "TOPOSERVE_URL": url,
        "TOPOSERVE_DATA_DIR": str(folder / "toposerve-data"),
    }
    who = {} if key is None else {"KEY": key, "TOPOSERVE_KEY": key}
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        check=False,
        cwd=folder,
        env=kept | here | who,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{script}\n---\n{done.stdout[-3000:]}\n---\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def project(service, folder):
    """A project with the models and the datasets that the pages speak of, and nothing that they make."""
    gateway = service.new_project()
    vessels = gateway.register("vessels", networks.through(), scaling=networks.PLAIN)
    set_alias(gateway.database, vessels, "champion")
    gateway.register("ct-vessels", networks.blur_3d(), dimensions=3)
    membranes = {"classes": ("background", "membrane"), "scaling": networks.PLAIN}
    second = [gateway.register("membranes", networks.through(), **membranes) for _ in range(2)][1]
    with gateway.database.write() as session:
        session.get(ModelVersion, second.id).metrics = {"dice": 0.8, "beta0_error": 2.0}
    with_variants(gateway.database, gateway.blobs, gateway.project_id, name="membranes")
    with Client(gateway.url, gateway.keys["engineer"]) as client:
        for name in ("vessels-held-out", "membranes-held-out"):
            class_name = name.split("s-")[0]
            client.datasets.upload(name, folder / "vessels.zip", label_map={class_name: 255})
    yield gateway
    gateway.cancel_jobs()


@pytest.mark.parametrize("page", COMMANDS)
def test_commands_of_the_page_run_as_written(page, project, folder):
    with Client(project.url, project.keys["engineer"]) as client:
        if page in (
            "README.md",
            "docs/how-to/train.md",
            "docs/how-to/compare.md",
        ):  # these pages train on a dataset that others upload
            client.datasets.upload("vessels", folder / "vessels.zip", label_map={"vessel": 255})
    run(folder, COMMANDS[page], project.url, project.keys["admin"])


def test_every_page_with_commands_is_known():
    named = {"README.md", "docs/first-steps.md", *(f"docs/how-to/{name}.md" for name in ("segment", "train", "repair"))}
    assert named <= set(COMMANDS) and len(COMMANDS) >= 8
    fences = {word for page in PAGES for word in re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE)}
    assert fences <= {"sh", "json", "python", "javascript", "csharp", "text", "mermaid"}, "a new kind needs a test"


def shown_on_the_home_page(url: str, key: str | None) -> list[str]:
    with Client(url, key) as client:
        page = client.request("GET", "/", headers={"Accept": "text/html"}).text
    return [html.unescape(text) for text in re.findall(r'<pre class="shell"[^>]*>(.*?)</pre>', page, re.DOTALL)]


@pytest.mark.parametrize("open_service", [False, True], ids=["with keys", "open"], indirect=True)
def test_commands_of_the_home_page_run_as_written(service, open_service, folder):
    gateway = service if open_service else service.new_project()
    key = None if open_service else gateway.keys["admin"]
    commands = shown_on_the_home_page(gateway.url, key)
    assert len(commands) == 3 and all(("Authorization" in command) != open_service for command in commands)
    for command in commands:
        run(folder, command, gateway.url, key)
        with Client(gateway.url, key) as client:
            for job in client.jobs.list():
                client.jobs.wait(job)


def test_a_command_that_is_refused_fails_the_test(project, folder):
    with pytest.raises(AssertionError, match="returned error: 415"):
        run(
            folder,
            'curl -s "$URL/v1/images" -H "Authorization: Bearer $KEY" --data-binary @job.json',
            project.url,
            project.keys["admin"],
        )
