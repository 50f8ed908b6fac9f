"""The program of a child process that runs one network for its parent.

    python -m app.serving.network_process SOCKET_FD

The first message says which network and how it shall run, with the descriptor of its bytes; the answer is what is known
of it once it is loaded and warm. Then a message with the descriptor of a batch is answered with the descriptor of what
the network says about it, and a message without one asks the run that goes on to end. `app.serving.bounded` is the
other end.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.errors import Problem
from app.sandbox.exchange import array_of, receive, sealed, send
from app.serving.contract import Manifest
from app.serving.load import Load
from app.serving.pipeline import Stop, Stopped
from app.serving.runtime import Network


def opened(message: dict[str, Any], descriptor: int) -> Network:
    """The network of a first message, warm."""
    content = array_of(descriptor, (message["size"],), "uint8").tobytes()
    how = {name: message[name] for name in ("threads", "order", "device")}
    network = Network(content, Manifest.model_validate(message["manifest"]), Load(), **how)
    network.warm(batch_most=message["batch_most"])
    return network


def facts_of(network: Network) -> dict[str, Any]:
    """What the parent tells of a network that it does not have itself."""
    return {name: getattr(network, name) for name in ("bytes", "provider", "device", "threads", "batch")}


def answer(connection: socket.socket, network: Network, message: dict[str, Any], descriptor: int, stop: Stop) -> None:
    """Run the network on one batch and send what it says, or why it says nothing."""
    try:
        batch = array_of(descriptor, tuple(message["shape"]), "float32")
        name = message["output"]
        said = network(batch, stop) if name is None else network.extra(name, batch, stop)
        send(connection, {"shape": said.shape, "dtype": said.dtype.name}, sealed(said))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except Stopped:
        send(connection, {"stopped": True})
    except BaseException as error:
        send(connection, {"failed": repr(error)[:500]})


def main() -> None:
    """Run until the parent is gone."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # and it is removed: a network that names a file finds none
    message, descriptor = receive(connection)
    assert descriptor is not None
    try:
        network = opened(message, descriptor)
        send(connection, facts_of(network))
    except Problem as problem:
        send(connection, problem.as_message())
        return
    except Exception as error:
        send(connection, {"failed": repr(error)[:500]})
        return
    runner, stop = ThreadPoolExecutor(1), Stop()
    while True:
        try:
            message, descriptor = receive(connection)
        except (EOFError, OSError):
            os._exit(0)
        if descriptor is None:
            stop.ask()
            continue
        stop = Stop()
        runner.submit(answer, connection, network, message, descriptor, stop)


if __name__ == "__main__":
    main()
