"""Blob storage on folders and S3: atomic, verified, swept."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import BlobCorrupt, Gone, StorageFull, Unavailable
from app.settings import Settings
from app.store.blobs import Blobs
from tests.services import free_port, s3_store, wait_for

MINE, YOURS = uuid.uuid4(), uuid.uuid4()
HELLO = hashlib.sha256(b"hello").hexdigest()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_store(tmp_path_factory.mktemp("s3")) as address:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    changes = {}
    if request.param == "s3":
        changes = {"blob_url": f"s3://toposerve/{uuid.uuid4().hex}", "blob_endpoint_url": request.getfixturevalue("s3")}
    return Blobs(Settings(_env_file=None, data_dir=tmp_path, min_free_bytes=0, **changes))


@pytest.fixture
def folder(tmp_path: Path) -> Blobs:
    return Blobs(Settings(_env_file=None, data_dir=tmp_path, min_free_bytes=0))


def files(store: Blobs) -> list[str]:
    return [path for path in store.fs.find(store.root) if store.fs.isfile(path)]


def damage(store: Blobs, sha256: str) -> None:
    path = store._path(MINE, sha256)
    content = bytearray(store.fs.cat_file(path))
    content[0] ^= 1
    store.fs.pipe_file(path, bytes(content))


def test_stored_bytes_are_read_back_by_digest(store, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"hello")
    for content in (b"hello", iter([b"he", b"llo"]), file):
        assert store.put(MINE, content) == (HELLO, 5)
    assert store.read(MINE, HELLO) == b"hello" and store.size(MINE, HELLO) == 5
    assert store.local_path(MINE, HELLO).read_bytes() == b"hello"
    assert b"".join(store.chunks(MINE, HELLO)) == b"hello"
    with store.open(MINE, HELLO) as opened:
        opened.seek(1)
        assert opened.read(2) == b"el"
    assert len(files(store)) == 1, "the same bytes are stored once and nothing is left in the way in"


def test_empty_content_can_be_stored(store):
    sha256, size = store.put(MINE, b"")
    assert size == 0 and store.read(MINE, sha256) == b""


def test_projects_share_no_bytes(store):
    store.put(MINE, b"hello")
    assert not store.exists(YOURS, HELLO)
    with pytest.raises(Gone):
        store.read(YOURS, HELLO)


def test_missing_blob_is_reported(store):
    for look in (store.read, store.local_path, store.size, store.verify):
        with pytest.raises(Gone, match="no longer stored"):
            look(MINE, HELLO)
    store.delete(MINE, HELLO)


def test_damaged_blob_is_never_read_and_storing_again_repairs_it(store):
    store.put(MINE, b"hello")
    damage(store, HELLO)
    for look in (store.read, store.local_path, store.verify):
        with pytest.raises(BlobCorrupt, match="no longer match"):
            look(MINE, HELLO)
    store.put(MINE, b"hello")
    assert store.read(MINE, HELLO) == b"hello" and store.local_path(MINE, HELLO).read_bytes() == b"hello"


def test_interrupted_stream_leaves_nothing(store):
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("client went away")

    with pytest.raises(ConnectionResetError):
        store.put(MINE, broken())
    assert files(store) == []


def test_only_old_blobs_are_listed_for_deletion(store):
    store.put(MINE, b"hello")
    assert list(store.older_than(60)) == [] and not store.delete_if_older(MINE, HELLO, 60)
    wait_for(lambda: list(store.older_than(0.01)) == [(MINE, HELLO)], what="the blob to be older than 10 ms")
    assert store.delete_if_older(MINE, HELLO, 0.01)
    assert list(store.older_than(0)) == []


def test_leftovers_of_a_killed_writer_are_swept(store):
    store.fs.pipe_file(f"{store.root}/.incoming/left", b"half")
    assert store.sweep_incoming(60) == 0
    wait_for(lambda: store.sweep_incoming(0.01) == 1, what="the file to be older than 10 ms")
    assert files(store) == []


def test_invalid_digest_reaches_no_path(store):
    for wrong in ("../../etc/passwd", "A" * 64, HELLO[:-1]):
        with pytest.raises(ValueError, match="64 lower-case"):
            store.read(MINE, wrong)


def test_full_disk_is_reported_and_leaves_nothing(folder, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        folder.put(MINE, b"hello")
    assert files(folder) == []


def test_uploads_stop_before_the_reserve_is_touched(tmp_path):
    store = Blobs(Settings(_env_file=None, data_dir=tmp_path, min_free_bytes=2**62))
    with pytest.raises(StorageFull, match="in reserve"):
        store.put(MINE, b"hello")
    assert files(store) == []


def test_large_stream_is_stored_in_bounded_memory(folder):
    piece = os.urandom(1024 * 1024)
    tracemalloc.start()
    _, size = folder.put(MINE, (piece for _ in range(64)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 64 * 2**20 and peak < 8 * 2**20


def test_an_s3_store_that_does_not_answer_is_unavailable(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    store = Blobs(
        Settings(
            _env_file=None,
            data_dir=tmp_path,
            blob_url="s3://toposerve/x",
            blob_endpoint_url=f"http://127.0.0.1:{free_port()}",
        )
    )
    with pytest.raises(Unavailable):
        store.read(MINE, HELLO)


def test_acknowledged_blobs_survive_kill_9(tmp_path):
    """A writer is killed at a random moment, again and again; what it had acknowledged is whole."""
    script = f"""
import os, uuid
from app.settings import Settings
from app.store.blobs import Blobs
store = Blobs(Settings(_env_file=None, data_dir={str(tmp_path)!r}, min_free_bytes=0))
while True:
    print(store.put(uuid.UUID({str(MINE)!r}), os.urandom(50_000))[0], flush=True)
"""
    store = Blobs(Settings(_env_file=None, data_dir=tmp_path, min_free_bytes=0))
    acknowledged: list[str] = []
    for count in (1, 7, 20, 33):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
            acknowledged += [writer.stdout.readline().strip() for _ in range(count)]
            time.sleep(0.001 * count)  # so that the kill falls into different moments of the next write
            writer.kill()
            acknowledged += [line.strip() for line in writer.stdout if len(line) == 65]
    for sha256 in acknowledged:
        store.verify(MINE, sha256)
    store.sweep_incoming(0)
    assert not [path for path in files(store) if ".incoming" in path]


def test_nobody_else_of_the_machine_may_read_database_or_blobs(tmp_path: Path) -> None:
    from app.store.session import Database

    before = os.umask(0o022)
    try:
        settings = Settings(_env_file=None, data_dir=tmp_path / "data")
        Database(settings).dispose()
        store = Blobs(settings)
    finally:
        os.umask(before)
    assert settings.database_file is not None
    assert settings.database_file.stat().st_mode & 0o777 == 0o600
    assert Path(store.root).stat().st_mode & 0o777 == 0o700
