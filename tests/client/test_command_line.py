"""The commands that ask a running service, and the options of all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app import imaging
from app.cli import app
from app.cli.remote import mask_names
from app.version import VERSION
from tests.images import noise, pairs, png
from tests.records import submit, train_spec
from tests.serving import networks

JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@pytest.fixture
def ask(project):
    """Run a command as somebody: `ask("jobs", who="engineer")`."""

    def run(*words, who="admin", **options):
        environment = {"TOPOSERVE_URL": project.url, "TOPOSERVE_KEY": project.keys[who], "COLUMNS": "200"}
        return CliRunner().invoke(app, [*map(str, words)], env=environment, **options)

    return run


@pytest.fixture
def bars(tmp_path):
    """A folder of labelled images."""
    for name, content in pairs().items():
        path = tmp_path / "bars" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "bars"


def test_images_of_one_name_get_a_mask_each(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [Path("a/x.png"), Path("b/x.png"), Path("x.tif")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(24, 32, seed=seed)).save(path)
    done = ask("predict", "plain", *paths, "--out", "masks")
    assert done.exit_code == 0, done.output
    masks = {path.relative_to("masks").as_posix(): path for path in Path("masks").rglob("*.png")}
    assert set(masks) == {"a/x.mask.png", "b/x.mask.png", "x.mask.png"}
    for path, name in zip(paths, ("a/x.mask.png", "b/x.mask.png", "x.mask.png"), strict=True):
        expected = np.where(np.asarray(Image.open(path)) > 127, 255, 0)
        np.testing.assert_array_equal(np.asarray(Image.open(masks[name])), expected)
        assert str(path) in done.output and f"masks/{name}" in done.output


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["a.png"], ["a"]),
        (["scan.nii.gz", "b.tif"], ["scan", "b"]),
        (["d/a.png", "e/b.png"], ["a", "b"]),
        (["d/a.png", "e/a.png"], ["d/a", "e/a"]),
        (["d/a.png", "d/a.tif"], ["a.png", "a.tif"]),
        (["d/a.png", "e/a.png", "e/a.tif"], ["d/a.png", "e/a.png", "e/a.tif"]),
        (["d/e/a.png", "d/a.png"], ["e/a", "a"]),
    ],
)
def test_masks_are_named_after_what_tells_their_images_apart(images, names, tmp_path):
    assert list(mask_names([tmp_path / image for image in images]).values()) == names


def test_image_given_twice_is_one(tmp_path):
    twice = [tmp_path / "a.png", tmp_path / "b" / ".." / "a.png"]
    (tmp_path / "b").mkdir()
    assert mask_names(twice) == {tmp_path / "a.png": "a"}


def test_image_that_is_refused_stops_no_other_and_fails_the_command(ask, tmp_path):
    (tmp_path / "good.png").write_bytes(png(noise(20, 20)))
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = ask("predict", "plain", tmp_path / "bad.png", tmp_path / "good.png", "--out", tmp_path)
    assert done.exit_code == 1 and "bad.png" in done.output and (tmp_path / "good.mask.png").exists()


def test_volume_gets_a_nifti_on_its_own_grid(ask, tmp_path, project):
    affine = np.diag([0.5, 0.7, 2.5, 1.0])
    (tmp_path / "scan.nii.gz").write_bytes(imaging.encode_nifti_gz(noise(6, 20, 24), affine))
    done = ask("predict", "cube", tmp_path / "scan.nii.gz", "--out", tmp_path)
    mask = imaging.decode((tmp_path / "scan.mask.nii.gz").read_bytes(), project.settings)
    assert done.exit_code == 0 and mask.shape == (6, 20, 24)
    np.testing.assert_allclose(mask.affine, affine)


def test_dataset_is_uploaded_trained_on_listed_and_promoted(ask, bars, tmp_path):
    uploaded = ask("upload", "bars", bars, "--label-map", '{"bar": 255}')
    assert (
        uploaded.exit_code == 0
        and "bars@1" in uploaded.output
        and "4 pairs, classes background, bar" in uploaded.output
    )
    assert ask("upload", "bars", bars, "--label-map", '{"other": 255}').exit_code == 1
    assert "bars@2" in ask("upload", "bars", bars, "--label-map", '{"other": 255}', "--new-version").output
    spec = {"dataset": "bars@1", "model": "bars", "network": {"channels": [4, 8]}, "patch": [32, 32], "steps": 4}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    trained = ask("train", tmp_path / "job.json")
    assert trained.exit_code == 0, trained.output
    head, figures = trained.output.splitlines()[-2:]
    assert head.split() == ["model", "dice"] and figures.split() == ["bars:1", "0.9"]
    listed = ask("jobs", "--kind", "train")
    assert "train bars on bars@1" in listed.output and "succeeded" in listed.output and "100%" in listed.output
    job = JOB_ID.search(trained.output)[0]
    assert job in listed.output and job in ask("jobs", job).output
    assert "bars:1" in ask("jobs", job, "--follow").output
    assert "bars@champion is bars:1" in ask("promote", "bars:1").output
    refused = ask("promote", "bars:1", "best", "--gate", "min_dice=0.95")
    assert refused.exit_code == 1 and "Refused" in refused.output
    assert "bars@best is bars:1" in ask("promote", "bars:1", "best", "--gate", "min_dice=0.85").output


def test_job_is_cancelled(ask, project):
    from tests.records import add_dataset

    version = add_dataset(project.database, project.blobs, project.project_id)
    job = submit(project.database, project.project_id, train_spec(version, behaviour={"step_s": 0.5}))
    assert re.search(rf"job {job.id} is (cancelling|cancelled)", ask("cancel", job.id).output)
    again = ask("cancel", "01936f5e-7c00-7000-8000-00000000dead")
    assert again.exit_code == 1 and "not_found" in again.output


def test_image_without_a_foreground_is_still_listed(ask, tmp_path, project):
    project.register("dark", networks.constant(0.1))
    (tmp_path / "a.png").write_bytes(png(noise(20, 20)))
    assert re.search(r"a\.png +vessel +0 +0 +0 ", ask("predict", "dark", tmp_path / "a.png", "--out", tmp_path).output)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("promote", "bars"), "Write name:3"),
        (("promote", "bars:1", "--gate", "dice"), "--gate min_dice=0.8"),
        (("promote", "bars:1", "--gate", "min_dice=high"), "is not JSON"),
        (("upload", "bars", ".", "--label-map", "{vessel}"), "--label-map is not JSON"),
        (("jobs", "--url", "ftp://clinic"), "no address of a service"),
        (("train", "nowhere.json"), "Cannot read nowhere.json"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(words, said, ask):
    refused = ask(*words)
    assert refused.exit_code == 2 and said in refused.output.replace("\n", " "), refused.output


def test_address_may_be_a_host_and_a_port(ask, project):
    assert ask("jobs", "--url", project.url.removeprefix("http://")).exit_code == 0


def test_version_is_printed(ask):
    assert ask("--version").output.strip() == VERSION


def test_help_answers_without_the_client_and_the_database():
    code = (
        "import sys; from app.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit: pass\n"
        "print(*{name.split('.')[0] for name in sys.modules} & {'httpx', 'numpy', 'sqlalchemy', 'fastapi'})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "promote" in said and said.splitlines()[-1] == ""
