"""Admits a network trained elsewhere, from a zip archive with ONNX, after a trial.

The trial in a child process completes the manifest.

Two kinds of archive: `model.onnx` with `manifest.json`, or a MONAI bundle, `models/model.onnx` with
`configs/metadata.json`, to which a `manifest.json` adds what the metadata does not say. Both may lie inside one folder;
other files are not read. The gateway copies bytes and reads JSON; all that needs to understand the network happens in a
child (`app.serving.trial`).
"""

from __future__ import annotations

import codecs
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from sqlalchemy.orm import Session

from app import sandbox
from app.errors import (
    BadArchive,
    Invalid,
    ModelRejected,
    TooLarge,
    UnsupportedArchive,
    UnsupportedModelFormat,
    from_message,
)
from app.imaging.archive import Archive, Entry
from app.roles import Principal
from app.settings import MiB, Settings
from app.store import audit, versions
from app.store.tables import ModelVersion
from app.strict_json import parse

MOST_JSON_BYTES = 1 * MiB
PATIENCE = 6
"""Seconds of waiting for each second of processor that a trial may use: the machine does other work."""
ZIP = b"PK"
KINDS = (
    (b"\x89HDF", "an HDF5 file (Keras)"),
    (b"\x80", "a pickle"),
    (b"\x08", "a bare ONNX file, which says nothing of scaling and classes"),
)
"""How files begin that people send in place of an archive."""
FORBIDDEN = (
    ("data.pkl", "a PyTorch file, which is unpickled to be read"),
    ("MAR-INF/MANIFEST.json", "a TorchServe archive"),
)
"""Entries that say what another zip is."""
SIDES = re.compile(r"(?:([1-9]\d{0,3})\*)?[a-z]|\*")
"""`*`, `n`, `16*n`: how MONAI's metadata writes a side that is free. In `2**p*n` it leaves p open."""
EXPORT = "In PyTorch: torch.onnx.export(network, ..., dynamo=True); a MONAI bundle: python -m monai.bundle onnx_export."


@dataclass(frozen=True)
class Foreign:
    """A network that passed its trial; `file` holds the ONNX bytes from its start."""

    file: IO[bytes]
    manifest: dict[str, Any]


@contextmanager
def admitted(upload: IO[bytes], settings: Settings) -> Iterator[Foreign]:
    """The network of an uploaded archive, after its trial.

    Raises UnsupportedModelFormat, the refusals of `Archive`, TooLarge, InvalidJson, Invalid (the manifest), and those
    of the trial: ExternalDataRefused, ModelRejected, ModelSignature.
    """
    archive, files = _opened(upload, settings)
    facts, found_in = _facts(archive, files)
    onnx = files["model.onnx"]
    if onnx.size > settings.max_model_bytes:
        raise TooLarge(
            f"model.onnx has {onnx.size} bytes; at most {settings.max_model_bytes} are accepted. Export a smaller"
            " network."
        )
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.scratch) as file:
        for piece in archive.pieces(onnx):
            file.write(piece)
        file.flush()
        manifest = tried(file, facts, found_in, settings)
        file.seek(0)
        yield Foreign(file, manifest)


def register(
    session: Session, caller: Principal, name: str, manifest: dict[str, Any], onnx: versions.Blob
) -> tuple[ModelVersion, bool]:
    """The version of a network that passed its trial and whose bytes are stored, and whether it is new."""
    version, new = versions.register_import(
        session, project_id=caller.project_id, model=name, manifest=manifest, onnx=onnx
    )
    if new:
        audit.note(session, caller, "model.import", f"{name}:{version.number}")
    return version, new


def tried(file: IO[bytes], facts: dict[str, Any], found_in: str, settings: Settings) -> dict[str, Any]:
    """The whole manifest of an ONNX file that passed its trial in a child; the refusals of the trial, or ModelRejected
    when the child ended.
    """
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        question = {
            "memory_bytes": settings.import_memory_bytes,
            "cpu_s": settings.import_cpu_s,
            "folder": folder,
            "facts": facts,
            "found_in": found_in,
            "tile_batch": settings.tile_batch,
        }
        command = [sys.executable, "-m", "app.serving.trial", str(file.fileno())]
        with sandbox.start(
            command,
            memory_bytes=settings.import_memory_bytes,
            threads=1,
            gpu=False,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[file.fileno()],
        ) as trial:
            try:
                answer, _ = trial.communicate(json.dumps(question).encode(), settings.import_cpu_s * PATIENCE)
            except subprocess.TimeoutExpired:
                raise _too_slow(settings) from None
    if trial.returncode == -signal.SIGXCPU:
        raise _too_slow(settings)
    if trial.returncode != 0:
        raise ModelRejected(
            f"The trial of the network crashed, or needed more than {settings.import_memory_bytes} bytes of memory to"
            " open it and run it on one tile. Make it smaller."
        )
    verdict = json.loads(answer)
    if "manifest" in verdict:
        return verdict["manifest"]
    raise from_message(verdict)


def _too_slow(settings: Settings) -> ModelRejected:
    return ModelRejected(
        f"The trial of the network needed more than {settings.import_cpu_s} s of processor to open it and run it on a"
        " few tiles. Make it smaller, or say a smaller `tile` in the manifest."
    )


def _opened(upload: IO[bytes], settings: Settings) -> tuple[Archive, dict[str, Entry]]:
    """The archive and its files by name, without the one folder that they may lie in."""
    _refuse_other_kinds(upload)
    limit = settings.max_model_bytes + 16 * MiB
    sizes = {"max_dataset_bytes": limit, "max_upload_bytes": limit}
    counts = {"max_archive_entries": 1000, "max_archive_ratio": 1000}  # weights may be mostly zeros
    try:
        archive = Archive(upload, settings.model_copy(update=sizes | counts))
    except UnsupportedArchive:
        raise UnsupportedModelFormat from None
    files = _by_name(archive.entries)
    for name, kind in FORBIDDEN:
        if any(path == name or path.endswith(f"/{name}") for path in files) and "model.onnx" not in files:
            raise UnsupportedModelFormat(
                f"The archive is {kind}. Nothing is unpickled here; export the network as ONNX. {EXPORT}"
            )
    if "model.onnx" not in files:
        raise UnsupportedModelFormat(f"The archive holds neither model.onnx nor models/model.onnx. {EXPORT}")
    return archive, files


def _refuse_other_kinds(upload: IO[bytes]) -> None:
    """Say what was sent in place of a zip archive, from its first bytes and, for zips that other programs write, from
    their names.
    """
    upload.seek(0)
    head = upload.read(4096)
    if head.startswith(ZIP):
        for name, kind in FORBIDDEN:
            if name.encode() in head[:512]:  # before the directory is judged, which such files need not pass
                raise UnsupportedModelFormat(
                    f"The archive is {kind}. Nothing is unpickled here; export the network as ONNX. {EXPORT}"
                )
        return
    for start, kind in KINDS:
        if head.startswith(start):
            raise UnsupportedModelFormat(f"The body is {kind}. Send a zip archive with model.onnx and manifest.json.")
    raise UnsupportedModelFormat


def _by_name(entries: list[Entry]) -> dict[str, Entry]:
    """Entries by name; `models/model.onnx` of a bundle is called model.onnx, too, and a folder around everything is cut
    off.
    """
    folders = {entry.name.partition("/")[0] for entry in entries if "/" in entry.name}
    wrapped = len(folders) == 1 and all("/" in entry.name for entry in entries) and not folders & {"models", "configs"}
    files = {entry.name.partition("/")[2] if wrapped else entry.name: entry for entry in entries}
    if "models/model.onnx" in files:
        if "model.onnx" in files:
            raise BadArchive("The archive holds both model.onnx and models/model.onnx. Leave one out.")
        files["model.onnx"] = files["models/model.onnx"]
    return files


def _facts(archive: Archive, files: dict[str, Entry]) -> tuple[dict[str, Any], str]:
    """What the archive says for the manifest, and where."""
    own = _json(archive, files["manifest.json"]) if "manifest.json" in files else None
    if "configs/metadata.json" in files:
        said = bundled(_json(archive, files["configs/metadata.json"])) | (own or {})
        if "answers" not in said:
            raise _unsaid(
                "configs/metadata.json",
                "answers",
                'whether the network answers with "probability" or, as MONAI networks usually do, "logits"',
            )
        return said, "configs/metadata.json" if own is None else "configs/metadata.json with manifest.json"
    if own is None:
        raise Invalid(
            "The archive has no manifest.json. Put one beside model.onnx; docs/how-to/import.md shows a small one.",
            errors=[{"pointer": "/manifest", "detail": "required"}],
        )
    return own, "manifest.json"


def _json(archive: Archive, entry: Entry) -> dict[str, Any]:
    if entry.size > MOST_JSON_BYTES:
        raise TooLarge(f"{entry.name} has {entry.size} bytes; at most {MOST_JSON_BYTES} are accepted.")
    value = parse(archive.read(entry).removeprefix(codecs.BOM_UTF8))
    if not isinstance(value, dict):
        raise Invalid(
            f"{entry.name} must be a JSON object.", errors=[{"pointer": "/manifest", "detail": "not an object"}]
        )
    return value


def bundled(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a MONAI bundle's metadata says for the manifest: dimensions, channels, classes, activation, multiple; what
    it leaves open is left out.

    Source: MONAI bundle specification, `network_data_format`. It has no place for scaling, and `value_range` of the
    output describes the bundle after its own post-processing, not the network.
    """
    described = metadata.get("network_data_format")
    image, answer = _only(described, "inputs"), _only(described, "outputs")
    facts: dict[str, Any] = {}
    if isinstance(image.get("num_channels"), int):
        facts["channels"] = image["num_channels"]
    if isinstance(shape := image.get("spatial_shape"), list) and shape:
        facts["dimensions"] = len(shape)
        multiples = [_multiple(side) for side in shape]
        if all(multiples):
            facts["multiple"] = math.lcm(*multiples)  # type: ignore[arg-type]  # none is None: all() has looked
    names = answer.get("channel_def")
    if isinstance(names, dict) and names and set(names) == {str(number) for number in range(len(names))}:
        classes = [names[str(number)] for number in range(len(names))]
        single = answer.get("num_channels") == 1
        facts["classes"] = ["background", *classes] if single and len(classes) == 1 else classes
        facts["activation"] = "sigmoid" if single else "softmax"
    return facts


def _only(described: Any, side: str) -> dict[str, Any]:
    """The only input or output that a bundle describes."""
    values = (
        list(described[side].values()) if isinstance(described, dict) and isinstance(described.get(side), dict) else []
    )
    if len(values) != 1 or not isinstance(values[0], dict):
        raise _unsaid("configs/metadata.json", f"network_data_format/{side}", "exactly one image in and one out")
    return values[0]


def _multiple(side: Any) -> int | None:
    """16 of `16*n`, 1 of `*`, 96 of 96; None for what is none of these."""
    if isinstance(side, int) and not isinstance(side, bool) and side > 0:
        return side
    if isinstance(side, str) and (found := SIDES.fullmatch(side.replace(" ", ""))):
        return int(found[1] or 1)
    return None


def _unsaid(where: str, fact: str, meaning: str) -> Invalid:
    return Invalid(
        f"{where} does not say {fact}: {meaning}. Put a manifest.json that says it beside the folder configs.",
        errors=[{"pointer": f"/manifest/{fact}", "detail": "required"}],
    )
