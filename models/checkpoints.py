"""Checkpoints as safetensors files: tensors, a JSON header, and a digest over both.

Nothing is pickled. A file is written beside its place, flushed to the disk and then renamed, so that a reader finds
either the old file or the whole new one. The digest is inside, so that a flipped bit is found wherever the file has
travelled.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.errors import InvalidInput, NoRoom, is_full

FORMAT = "toposerve-weights/1"
KEPT = 2  # the last checkpoint, and the one before in case a disk loses the last


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(tensors: dict[str, torch.Tensor], facts: str) -> str:
    """SHA-256 over the facts and over name, type, shape and bytes of every tensor, in order of names."""
    state = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return state.hexdigest()


def _sync(path: str | Path) -> None:
    """Ask the operating system to put a file or a folder on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: str | Path, tensors: dict[str, torch.Tensor], facts: Any) -> str:
    """Write tensors {name: tensor} and JSON-able facts; returns the file's SHA-256. NoRoom when the disk is full, and
    what was saved before is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = json.dumps(facts, sort_keys=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        header = json.dumps({"format": FORMAT, "facts": facts, "digest": _digest(tensors, facts)})
        save_file(
            tensors, draft, metadata={"toposerve": header}
        )  # one entry: safetensors writes several in random order
        _sync(draft)
        sha256 = file_sha256(draft)
        draft.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise NoRoom(
            f"There is no room on the disk for {path.name}, {size / 2**20:.1f} MiB. Make room and resume: what was"
            " saved before is kept."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return sha256


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], Any]:
    """(tensors, facts) of a file that `save` wrote; anything else, and any change since, is refused (InvalidInput)."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("toposerve", "{}"))
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        if header.get("format") != FORMAT:
            raise InvalidInput(
                f"{path} is not one of our weight files: its format is {header.get('format')!r}, not {FORMAT!r}."
            )
        if _digest(tensors, header["facts"]) != header["digest"]:
            raise InvalidInput(
                f"{path} is damaged: its content does not match its own digest. Use an earlier checkpoint."
            )
        return tensors, json.loads(header["facts"])
    except FileNotFoundError:
        raise InvalidInput(f"There is no file {path}.") from None
    except (SafetensorError, OSError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise InvalidInput(
            f"{path} is damaged or not a safetensors file: {error}. Use an earlier checkpoint."
        ) from error


def prune(folder: str | Path) -> None:
    """Delete all checkpoints of a folder but the last two."""
    for path in sorted(Path(folder).glob("*.safetensors"))[:-KEPT]:
        path.unlink()


def prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{prefix.name: tensor}."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, by their own names."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State tensors of an optimizer, {"<parameter index>.<name>": tensor}; learning rates follow from the step."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items() if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `flatten_optimizer` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
