"""The program of a decoding child process: decodes image after image for its parent.

    python -m app.imaging.decoder_process SOCKET_FD

A question comes with the descriptor of a file, an answer with the descriptor of its pixels (`app.sandbox.exchange`). It
ends when its parent closes the connection. `app.imaging.decoders` is the other end.
"""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

from app.errors import CorruptImage, ExpandsTooLarge, Problem
from app.imaging.decode import decode, decode_labels, decode_map
from app.imaging.dicom.identity import cleaned
from app.imaging.header import File, read_header
from app.imaging.packed import unpack
from app.imaging.picture import Picture
from app.sandbox import limit_processor_time
from app.sandbox.exchange import memory, receive, seal, sealed, send

READ: dict[str, Callable[..., Picture]] = {
    "decode": decode,
    "decode_map": decode_map,
    "decode_labels": decode_labels,
    "unpack": unpack,
}


def answer(question: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], int | None]:
    """What is in the file, or the problem with it."""
    limit_processor_time(question["cpu_s"])
    limits: Any = SimpleNamespace(**question["limits"])
    try:
        with File(io.FileIO(descriptor)) as stream:
            return _looked_at(question, stream, limits)
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


def _looked_at(question: dict[str, Any], stream: Any, limits: Any) -> tuple[dict[str, Any], int | None]:
    if question["what"] == "read_header":
        header = read_header(stream, limits)
        facts = {"shape": header.shape, "dtype": header.dtype, "channels": header.channels}
        return facts | _place(header), None
    if question["what"] == "cleaned":
        return _cleaned(stream, question["options"])
    picture = READ[question["what"]](stream, limits, **question["options"])
    return {"shape": picture.pixels.shape, "dtype": picture.pixels.dtype.name} | _place(picture), sealed(picture.pixels)


def _cleaned(stream: Any, options: dict[str, Any]) -> tuple[dict[str, Any], int]:
    descriptor = memory()
    try:
        with open(descriptor, "w+b", closefd=False) as into:
            warnings = cleaned(stream, into, **options)
        seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return {"warnings": warnings}, descriptor


def _place(known: Any) -> dict[str, Any]:
    return {
        "format": known.format,
        "spacing_mm": known.spacing_mm,
        "orientation": known.orientation,
        "is_bilevel": known.is_bilevel,
        "sparse": known.sparse,
        "forms": known.forms and asdict(known.forms),
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
