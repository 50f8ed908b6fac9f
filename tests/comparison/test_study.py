"""The study: every set once, resumed where it was, and its table."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from app import imaging
from app.settings import Settings
from benchmarks import study
from tests.conftest import QUICK
from tests.docs.conftest import working
from tests.records import ring_and_line
from tests.services import ROOT
from toposerve_client import Client


@pytest.fixture
def service(tmp_path, sqlite_template, serve):
    """An open gateway, and workers with the stand-in trainer whose steps take no time."""
    shutil.copy(sqlite_template, tmp_path / "toposerve.db")
    settings = Settings(_env_file=None, **QUICK, data_dir=tmp_path, open=True)
    gateway = serve(settings)
    with working(settings, models=(sys.executable, str(ROOT / "tests/docs/stand_in_models.py"))):
        yield gateway


def test_study_asks_once_and_goes_on_where_it_was(service, tmp_path, monkeypatch, capsys):
    for kind in ("images", "masks"):
        (tmp_path / "data/isbi12" / kind).mkdir(parents=True)
    for number in range(4):
        picture, mask = ring_and_line(number, side=128)
        (tmp_path / f"data/isbi12/images/{number}.png").write_bytes(imaging.encode_png(picture))
        (tmp_path / f"data/isbi12/masks/{number}.png").write_bytes(imaging.encode_png(255 - mask))
    monkeypatch.setattr(study, "SHORTLIST", study.SHORTLIST[:2])
    monkeypatch.setenv("TOPOSERVE_URL", service.url)
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "study.json"), "--sets", "isbi12"]
    options += ["--steps", "4", "--first", "4", "--folds", "2", "--seeds", "1"]
    study.main(options)
    printed = capsys.readouterr().out
    assert "**isbi12**, 4 images." in printed and "| CE + Dice | 2 of 2 |" in printed
    kept = json.loads((tmp_path / "study.json").read_text())
    del kept["isbi12"]["answer"]
    (tmp_path / "study.json").write_text(json.dumps(kept))
    study.main(options)
    assert "| CE + Dice | 2 of 2 |" in capsys.readouterr().out, "it was stopped before it had read the answer"
    study.main([*options, "--table"])
    assert "**isbi12**, 4 images." in capsys.readouterr().out
    with Client(service.url) as client:
        assert len(list(client.jobs.list())) == 1, "it asked once"
