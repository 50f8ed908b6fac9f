"""Bytes by their SHA-256, in a folder or an S3 bucket: `<root>/<project>/<ab>/<sha256>`.

A blob is written to a temporary file of the same store while its digest is computed, flushed to the disk, and renamed;
so it is there completely or not at all, and what `put` has returned survives a crash. Writing the same content again
replaces it by itself, which repairs damaged bytes and renews the age of an orphan. Projects share nothing: the same
bytes in two projects are two blobs. Reading verifies the digest, because a flipped bit in weights loads silently.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from app.errors import BlobCorrupt, Gone, StorageFull, Unavailable
from app.settings import MiB, Settings

PIECE = 1 * MiB
INCOMING = ".incoming"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

Piece = bytes | bytearray | memoryview
Content = Piece | Path | Iterable[Piece]


class Blobs:
    """The blob store of this installation; safe to share between threads."""

    def __init__(self, settings: Settings):
        options: dict[str, Any] = {}
        if settings.blobs.startswith("s3://"):
            options = (
                {"client_kwargs": {"endpoint_url": settings.blob_endpoint_url}} if settings.blob_endpoint_url else {}
            )
            options["use_listings_cache"] = False  # another process writes to the same bucket
        self.fs, self.root = fsspec.core.url_to_fs(settings.blobs, **options)
        self.is_local = self.fs.protocol == "file" or "file" in self.fs.protocol
        self._reserve = settings.min_free_bytes
        self._cache = settings.scratch / "blobs"
        if self.is_local:
            Path(self.root, INCOMING).mkdir(parents=True, exist_ok=True)
            Path(self.root).chmod(0o700)  # images of patients

    def prepare(self) -> None:
        """Make the bucket where it does not exist yet; the folder of a local store is made on opening."""
        if not self.is_local:
            with _translated():
                bucket = self.root.split("/")[0]
                if not self.fs.exists(bucket):
                    self.fs.mkdir(bucket)

    def put(self, project_id: uuid.UUID, content: Content) -> tuple[str, int]:
        """Store bytes, a file or a stream of chunks; (sha256, bytes).

        Durable on return; nothing is left behind when it raises StorageFull.
        """
        incoming = f"{self.root}/{INCOMING}/{uuid.uuid4().hex}"
        digest, size = hashlib.sha256(), 0
        with _translated(), self._removed_on_error(incoming):
            with self.fs.open(incoming, "wb") as file:
                for chunk in _chunks(content):
                    if size // (64 * MiB) != (size + len(chunk)) // (64 * MiB) or size == 0:
                        self._require_room()
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                self._flush(file)
            self._rename(incoming, self._path(project_id, digest.hexdigest()))
        return digest.hexdigest(), size

    def put_file(self, project_id: uuid.UUID, file: IO[bytes]) -> tuple[str, int]:
        """Store an open file from its start; see `put`."""
        file.seek(0)
        return self.put(project_id, iter(lambda: file.read(PIECE), b""))

    @contextmanager
    def open(self, project_id: uuid.UUID, sha256: str) -> Iterator[IO[bytes]]:
        """The blob as a binary file that can seek; not verified. Raises Gone."""
        with _translated(sha256), self.fs.open(self._path(project_id, sha256), "rb") as file:
            yield file

    def read(self, project_id: uuid.UUID, sha256: str, verify: bool = True) -> bytes:
        """All bytes of the blob. Raises Gone, and BlobCorrupt when they are not what was stored."""
        with self.open(project_id, sha256) as file:
            content = file.read()
        if verify and hashlib.sha256(content).hexdigest() != sha256:
            raise _corrupt(sha256)
        return content

    def chunks(self, project_id: uuid.UUID, sha256: str) -> Iterator[bytes]:
        """The blob piece by piece, for a download in bounded memory; verify it first where wrong bytes must never
        leave.
        """
        with self.open(project_id, sha256) as file:
            yield from iter(lambda: file.read(PIECE), b"")

    def verify(self, project_id: uuid.UUID, sha256: str) -> None:
        """Raises Gone or BlobCorrupt unless the bytes are what was stored; memory bounded."""
        digest = hashlib.sha256()
        for piece in self.chunks(project_id, sha256):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise _corrupt(sha256)

    def local_path(self, project_id: uuid.UUID, sha256: str, verify: bool = True) -> Path:
        """A file with the blob's bytes, for readers that need a path; do not write to it.

        From S3 it is fetched once and kept for a while.
        """
        path = Path(self._path(project_id, sha256)) if self.is_local else self._fetched(project_id, sha256)
        if not path.exists():
            raise Gone(f"The bytes of {sha256[:12]}... are no longer stored. Upload them again.")
        if verify and _file_digest(path) != sha256:
            if not self.is_local:
                path.unlink()
            raise _corrupt(sha256)
        return path

    def size(self, project_id: uuid.UUID, sha256: str) -> int:
        """Bytes of the blob. Raises Gone."""
        with _translated(sha256):
            return int(self.fs.size(self._path(project_id, sha256)))

    def exists(self, project_id: uuid.UUID, sha256: str) -> bool:
        """Whether the bytes are there, whole or damaged."""
        with _translated():
            return self.fs.exists(self._path(project_id, sha256))

    def delete(self, project_id: uuid.UUID, sha256: str) -> None:
        """Remove the bytes; no error when they are gone already."""
        with _translated():
            self._remove(self._path(project_id, sha256))

    def older_than(self, age_s: float) -> Iterator[tuple[uuid.UUID, str]]:
        """(project, sha256) of every blob last written more than `age_s` seconds ago."""
        for path, written in self._files():
            project, _, sha256 = path.removeprefix(self.root).strip("/").split("/")
            if project != INCOMING and time.time() - written > age_s:
                yield uuid.UUID(project), sha256

    def delete_if_older(self, project_id: uuid.UUID, sha256: str, age_s: float) -> bool:
        """Remove the bytes unless they were written again meanwhile."""
        with _translated(sha256):
            path = self._path(project_id, sha256)
            if time.time() - self.fs.modified(path).timestamp() <= age_s:
                return False
            self._remove(path)
        return True

    def sweep_incoming(self, age_s: float) -> int:
        """Remove what interrupted writers left more than `age_s` seconds ago; how many files."""
        paths = [
            entry["name"] for entry in self._listed(f"{self.root}/{INCOMING}") if time.time() - _written(entry) > age_s
        ]
        if not self.is_local and self._cache.exists():
            for path in self._cache.iterdir():
                if time.time() - path.stat().st_mtime > age_s:
                    path.unlink(missing_ok=True)
        for path in paths:
            self._remove(path)
        return len(paths)

    def _path(self, project_id: uuid.UUID, sha256: str) -> str:
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ValueError(f"Expected 64 lower-case hexadecimal digits, got {sha256!r}.")
        return f"{self.root}/{uuid.UUID(str(project_id))}/{sha256[:2]}/{sha256}"

    def _require_room(self) -> None:
        if self.is_local and (free := shutil.disk_usage(self.root).free) < self._reserve:
            raise StorageFull(
                f"{free // MiB} MiB are free and {self._reserve // MiB} MiB are kept in reserve. Nothing was kept; make"
                " room and send it again."
            )

    def _flush(self, file: Any) -> None:
        if self.is_local:
            file.flush()
            os.fsync(file.fileno())

    def _rename(self, source: str, target: str) -> None:
        if not self.is_local:
            self.fs.mv(source, target)  # a copy inside the store, which S3 makes visible at once or not at all
            return
        folder = Path(target).parent
        new = [parent for parent in (folder.parent, folder) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        Path(source).replace(target)
        for changed in {folder, *(parent.parent for parent in new)}:
            _sync_folder(changed)

    @contextmanager
    def _removed_on_error(self, path: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._remove(path)
            raise

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(path)

    def _fetched(self, project_id: uuid.UUID, sha256: str) -> Path:
        target = self._cache / f"{project_id}-{sha256}"
        if target.exists():
            os.utime(target)
            return target
        self._cache.mkdir(parents=True, exist_ok=True)
        part = self._cache / f"{uuid.uuid4().hex}.part"
        with _translated(sha256):
            self.fs.get_file(self._path(project_id, sha256), str(part))
        return part.replace(target)

    def _files(self) -> Iterator[tuple[str, float]]:
        for project in self._listed(self.root):
            if project["type"] != "directory" or project["name"].endswith(INCOMING):
                continue
            for folder in self._listed(project["name"]):
                yield from ((entry["name"], _written(entry)) for entry in self._listed(folder["name"]))

    def _listed(self, path: str) -> list[dict[str, Any]]:
        try:
            return self.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []


def _chunks(content: Content) -> Iterator[Piece]:
    if isinstance(content, Path):
        with content.open("rb") as file:
            yield from iter(lambda: file.read(PIECE), b"")
    elif isinstance(content, Piece):
        yield from (content[start : start + PIECE] for start in range(0, len(content), PIECE))
    else:
        yield from content


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(entry: dict[str, Any]) -> float:
    return entry["mtime"] if "mtime" in entry else entry["LastModified"].timestamp()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _corrupt(sha256: str) -> BlobCorrupt:
    return BlobCorrupt(
        f"The stored bytes of {sha256[:12]}... no longer match their digest. They were not used; upload them again."
    )


@contextmanager
def _translated(sha256: str = "") -> Iterator[None]:
    """The store's errors as problems that a caller can be told."""
    try:
        yield
    except FileNotFoundError:
        raise Gone(f"The bytes of {sha256[:12]}... are no longer stored. Upload them again.") from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull from error
        raise
    except Exception as error:
        if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise Unavailable("The blob store does not answer. Try again shortly.") from error
        raise
