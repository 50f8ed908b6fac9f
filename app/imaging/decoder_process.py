"""The program of a decoding child process: decodes image after image for its parent.

    python -m app.imaging.decoder_process SOCKET_FD

A question is a line of JSON and the descriptor of a file, an answer a line of JSON and, for pixels, the descriptor of
sealed memory that holds them. Nothing is pickled and no pixel goes through the connection. It ends when its parent
closes the connection. `app.imaging.decoders` is the other end.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import numpy as np

from app.errors import CorruptImage, ExpandsTooLarge, Problem
from app.imaging.decode import decode, decode_mask
from app.imaging.header import read_header
from app.sandbox import limit_processor_time

LINE_BYTES = 64 * 1024
try:
    from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE

    SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
except ImportError:  # not Linux: the parent copies instead
    SEALS = 0


class File(io.BufferedReader):
    """A file without a path; readers of images want a name that is a text."""

    name = "image"


def send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """One line, and a descriptor with it."""
    line = json.dumps(message).encode() + b"\n"
    if descriptor is None:
        connection.sendall(line)
        return
    sent = socket.send_fds(connection, [line], [descriptor])
    connection.sendall(line[sent:])


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None]:
    """The next message and its descriptor; EOFError when the other end is gone."""
    line, descriptors, _, _ = socket.recv_fds(connection, LINE_BYTES, 1)
    while not line.endswith(b"\n"):
        more = connection.recv(LINE_BYTES)
        if not more:
            raise EOFError
        line += more
    return json.loads(line), descriptors[0] if descriptors else None


def memory() -> int:
    """A file that lives in memory where there is such a thing, else in the folder for temporary files,
    without a name.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _kept(pixels: np.ndarray) -> int:
    """The pixels in memory that nobody can change any more, so that a child gone bad cannot pull it away from under its
    parent.
    """
    descriptor = memory()
    rest = memoryview(np.ascontiguousarray(pixels)).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    if SEALS:
        import fcntl

        fcntl.fcntl(descriptor, F_ADD_SEALS, SEALS)
    return descriptor


def answer(question: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], int | None]:
    """What is in the file, or the problem with it."""
    limit_processor_time(question["cpu_s"])
    limits: Any = SimpleNamespace(**question["limits"])
    try:
        with File(io.FileIO(descriptor)) as stream:
            return _looked_at(question["what"], stream, limits)
    except Problem as problem:
        return problem.as_message(), None
    except MemoryError:
        too_large = ExpandsTooLarge(
            f"The image needs more than the {question['memory_bytes']} bytes of memory that a decoder has. Send a"
            " smaller image or a part of it."
        )
        return too_large.as_message(), None
    except Exception as error:
        # The file is to blame before we are; the log has the rest.
        return CorruptImage().as_message() | {"unforeseen": repr(error)[:500]}, None


def _looked_at(what: str, stream: Any, limits: Any) -> tuple[dict[str, Any], int | None]:
    if what == "decode_mask":
        mask = decode_mask(stream, limits)
        return {"shape": mask.shape, "dtype": mask.dtype.name}, _kept(mask)
    if what == "read_header":
        header = read_header(stream, limits)
        return {
            "shape": header.shape,
            "dtype": header.dtype,
            "channels": header.channels,
            "orientation": header.orientation,
        } | _place(header), None
    picture = decode(stream, limits)
    return {"shape": picture.pixels.shape, "dtype": picture.pixels.dtype.name} | _place(picture), _kept(picture.pixels)


def _place(known: Any) -> dict[str, Any]:
    return {
        "format": str(known.format),
        "spacing_mm": known.spacing_mm,
        "affine": None if known.affine is None else known.affine.tolist(),
    }


def main() -> None:
    """Answer until the parent is gone."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    while True:
        try:
            question, descriptor = receive(connection)
            assert descriptor is not None
            found, pixels = answer(question, descriptor)
            send(connection, found, pixels)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            os._exit(0)
        if pixels is not None:
            os.close(pixels)


if __name__ == "__main__":
    main()
