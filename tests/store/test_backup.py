"""A restored installation gives the same answers, whatever it was and became."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.errors import BadArchive, Conflict
from app.settings import Settings
from app.store.backup import backup, restore
from app.store.blobs import Blobs
from app.store.session import Database
from app.store.tables import Base
from tests.gateway import Gateway, started
from tests.images import archive, noise_png, pairs
from tests.records import set_alias
from tests.services import s3_store
from tests.serving import networks


@pytest.fixture
def filled(make_settings: Callable[..., Settings], serve: Callable[..., Gateway]) -> Gateway:
    """A gateway with an image, a dataset, a model with an alias, a stored prediction, a job and audit lines."""
    gateway = serve(make_settings())
    set_alias(gateway.database, gateway.register("blur", networks.blur()), "champion")
    image = gateway.upload(noise_png(24, 32)).json()
    assert gateway.predict("blur@champion", noise_png(24, 32), who="engineer", store="true").status_code == 201
    zipped = {"Content-Type": "application/zip"}
    sent = gateway.ask("POST", "/v1/datasets?name=pairs", content=archive(pairs(3)), headers=zipped)
    assert sent.status_code == 201, sent.text
    spec = {"kind": "evaluate", "model": "blur@champion", "dataset": "pairs@1"}
    assert gateway.ask("POST", "/v1/jobs", json=spec).status_code in (202, 422)
    assert gateway.ask("PATCH", image["links"]["self"], json={"name": "first.png"}).status_code == 200
    return gateway


def answers(gateway: Gateway, keys: dict[str, str]) -> dict[str, Any]:
    """What a client sees of everything, and the bytes of a prediction."""
    found: dict[str, Any] = {}
    with_key = {"Authorization": f"Bearer {keys['admin']}"}
    for path in ("images", "datasets", "models", "predictions", "jobs"):
        answer = gateway.http.get(f"/v1/{path}", headers=with_key)
        found[path] = answer.json()["items"] if answer.status_code == 200 else answer.status_code
    for image in found["images"]:
        found[image["id"]] = gateway.http.get(image["links"]["content"], headers=with_key).content
    sent = {"Content-Type": "image/png"} | with_key
    found["mask"] = gateway.http.post(
        "/v1/models/blur@champion/predict", content=noise_png(40, 50), headers=sent
    ).content
    return found


@pytest.fixture(params=["sqlite", "postgres", "s3"])
def elsewhere(
    request: pytest.FixtureRequest, make_settings: Callable[..., Settings], tmp_path: Path
) -> Iterator[Settings]:
    """An empty installation of each kind."""
    if request.param != "s3":
        yield make_settings(request.param)
        return
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_store(tmp_path, bucket=None) as address:
        yield make_settings("sqlite", blob_url="s3://restored", blob_endpoint_url=address)
    patch.undo()


def test_restored_service_gives_the_same_answers(filled: Gateway, elsewhere: Settings, tmp_path: Path) -> None:
    before, file = answers(filled, filled.keys), tmp_path / "backup.tar"
    written = backup(filled.database, filled.blobs, file)
    assert written.blobs >= 6 and written.missing == () and file.stat().st_mode & 0o777 == 0o600
    database = Database(elsewhere)
    read = restore(database, Blobs(elsewhere), file)
    assert (read.rows, read.blobs, read.bytes) == (written.rows, written.blobs, written.bytes)
    database.dispose()
    keys = dict(filled.keys)
    with started(elsewhere) as restored:
        assert answers(restored, keys) == before
        assert restored.upload(noise_png(9, 9)).status_code == 201  # and it goes on


def test_every_row_of_every_table_comes_back(
    filled: Gateway, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    backup(filled.database, filled.blobs, tmp_path / "backup.tar")
    settings = make_settings()
    database = Database(settings)
    restore(database, Blobs(settings), tmp_path / "backup.tar")
    for table in Base.metadata.sorted_tables:
        if table.name == "workers":
            continue
        query = select(table).order_by(*table.primary_key.columns)
        with filled.database.read() as old, database.read() as new:
            assert new.execute(query).all() == old.execute(query).all(), table.name
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Base.metadata.tables["audit"])) > 0
    database.dispose()


def test_restore_refuses_what_is_not_empty_and_what_is_no_backup(
    filled: Gateway, make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    file = tmp_path / "backup.tar"
    backup(filled.database, filled.blobs, file)
    with pytest.raises(Conflict, match="has projects"):
        restore(filled.database, filled.blobs, file)
    with pytest.raises(FileExistsError):
        backup(filled.database, filled.blobs, file)
    settings = make_settings()
    database, blobs = Database(settings), Blobs(settings)
    whole = file.read_bytes()
    bad = {
        "nothing": b"",
        "a text": b"hello" * 1000,
        "cut short": whole[: len(whole) // 2],
        "another schema": packed(json.dumps({"format": "toposerve-backup/1", "revision": "0001"}).encode()),
        "another format": packed(b'{"format": "x"}'),
        "no object": packed(b"[1]"),
        "a wrong bit": flipped(file),
    }
    for name, content in bad.items():
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(BadArchive):
            print(name, restore(database, blobs, tmp_path / "bad.tar"))
    restore(database, blobs, file)  # nothing of all that has left a row
    assert not list(tmp_path.glob(".backup*"))
    database.dispose()


def packed(about: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        info = tarfile.TarInfo("toposerve.json")
        info.size = len(about)
        made.addfile(info, io.BytesIO(about))
    return file.getvalue()


def flipped(file: Path) -> bytes:
    """The backup with one wrong bit in the bytes of an image."""
    content = bytearray(file.read_bytes())
    with tarfile.open(file) as made:
        info = next(info for info in made if info.name.startswith("blobs/"))
    content[info.offset_data + 5] ^= 1
    return bytes(content)
