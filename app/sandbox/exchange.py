"""Messages and arrays between a process and its child, without pickling.

A message is a line of JSON on a local socket, and the descriptor of a file may go with it. An array travels as the
descriptor of anonymous memory, sealed so that a compromised child cannot change or truncate it later; no
pixel goes through the socket.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import socket
import tempfile
from typing import Any

import numpy as np

LINE_BYTES = 64 * 1024
NUMBERS = "buif"
"""Kinds of dtype that an array may have: no objects, no text."""
try:
    from fcntl import F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl

    SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
except ImportError:  # not Linux: the receiver copies instead
    SEALS = 0


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
        return os.memfd_create("array", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def sealed(array: np.ndarray) -> int:
    """A descriptor of the numbers of an array, in memory that nobody can change any more."""
    descriptor = memory()
    rest = np.ascontiguousarray(array).data.cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    seal(descriptor)
    return descriptor


def seal(descriptor: int) -> None:
    """Let nobody change the memory behind a descriptor any more, where the system can."""
    if SEALS:
        fcntl(descriptor, F_ADD_SEALS, SEALS)


def is_sealed(descriptor: int) -> bool:
    """Whether nobody can change the memory behind a descriptor."""
    return bool(SEALS and fcntl(descriptor, F_GET_SEALS) & SEALS == SEALS)


def array_of(descriptor: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The array behind a descriptor, which is closed: mapped where it is sealed, copied where it is not.

    It owns its memory and may be written to. ValueError when the file does not hold such an array.
    """
    try:
        size = os.fstat(descriptor).st_size
        if np.dtype(dtype).kind not in NUMBERS or size != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{size} bytes are no {dtype} of {shape}.")
        if size and is_sealed(descriptor):
            return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY), dtype).reshape(shape)
        copy = np.empty(size, np.uint8)
        done = 0
        while done < size:
            done += os.preadv(descriptor, [copy.data[done:]], done)
        return copy.view(dtype).reshape(shape)
    except TypeError as error:  # not the name of a dtype
        raise ValueError(str(error)) from None
    finally:
        os.close(descriptor)
