"""`toposerve doctor` names what is wrong, and `backup` and `restore` work as commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.cli.doctor import examine
from app.settings import Settings
from app.store.session import Database
from tests.gateway import Gateway
from tests.records import set_alias
from tests.serving import networks


def findings(settings: Settings) -> dict[str, tuple[bool | None, str]]:
    return {finding.name: (finding.well, finding.said) for finding in examine(settings)}


@pytest.fixture
def served(make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> Gateway:
    gateway = serve(make_settings())
    set_alias(gateway.database, gateway.register("blur", networks.blur()), "champion")
    return gateway


def test_sound_installation_is_well(served: Gateway) -> None:
    found = findings(served.settings)
    assert [name for name, (well, _) in found.items() if well is False] == []
    assert {"folder", "disk", "database", "bytes", "broker", "workers", "blur@champion", "runtime", "keys"} <= set(
        found
    )
    assert found["workers"][0] is None and "toposerve worker" in found["workers"][1]
    assert "version 1 is whole and opens" in found["blur@champion"][1]
    before = served.count_everything()
    findings(served.settings)
    assert served.count_everything() == before


def test_each_fault_is_named(served: Gateway, tmp_path: Path) -> None:
    settings = served.settings
    (blob,) = [path for path in (settings.data_dir / "blobs").rglob("*") if path.is_file()]
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    found = findings(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0", "min_free_bytes": 2**60}))
    assert {name for name, (well, _) in found.items() if well is False} == {
        "blur@champion",
        "broker",
        "bytes",
        "disk",
    }
    assert "no longer match" in found["blur@champion"][1] and "answered 507" in found["disk"][1]
    nowhere = findings(settings.model_copy(update={"data_dir": tmp_path / "nowhere"}))
    assert nowhere["folder"][0] is nowhere["database"][0] is False and "toposerve up" in nowhere["database"][1]
    (tmp_path / "toposerve.db").write_bytes(b"no database" * 100)
    damaged = findings(settings.model_copy(update={"data_dir": tmp_path}))
    assert damaged["database"][0] is False and "Traceback" not in damaged["database"][1]


def test_database_of_an_older_schema_is_named(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    from app.store.migrate import upgrade

    settings = Settings(_env_file=None, data_dir=tmp_path)
    database = Database(settings)
    upgrade(database, "0001")
    database.dispose()
    well, said = findings(settings)["database"]
    assert well is False and "toposerve db upgrade" in said


def test_audit_log_is_printed_a_json_object_a_line(served: Gateway) -> None:
    assert served.ask("POST", "/v1/keys", "admin", json={"name": "n", "role": "viewer"}).status_code == 201

    def lines(*options: str) -> list[dict[str, str]]:
        command = ["audit", "--data-dir", str(served.settings.data_dir), *options]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    (made,) = [line for line in lines() if line["what"].startswith("key")]
    assert made["project"] == "clinic" and made["who"].startswith("ts_") and made["request_id"]
    assert lines("--project", "clinic", "--days", "1") == lines() and lines("--project", "elsewhere") == []


def test_backup_restore_and_doctor_as_commands(
    served: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, new = tmp_path / "backup.tar", tmp_path / "new"
    for name in ("TOPOSERVE_DATA_DIR", "TOPOSERVE_DATABASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def run(*command: str, folder: Path) -> str:
        done = CliRunner().invoke(app, [*command, "--data-dir", str(folder)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "1 files" in run("backup", str(file), folder=served.settings.data_dir) and file.exists()
    assert "are restored" in run("restore", str(file), folder=new)
    said = run("doctor", folder=new)
    assert "blur@champion: version 1 is whole" in said and "wrong" not in said
