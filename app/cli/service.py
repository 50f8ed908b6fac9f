"""The commands of a service: up, worker, demo."""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import DataDir, console, database_of, errors, say_database, settings_of, told


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    open_: Annotated[bool | None, typer.Option("--open", help="Serve without keys; loopback only.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Embedded workers; default 1, or 0 where TOPOSERVE_REDIS_URL is set.")
    ] = None,
) -> None:
    """Start the gateway, and without a broker one embedded worker beside it."""
    settings = settings_of(host=host, port=port, data_dir=data_dir, open=open_)
    database_of(settings).dispose()
    with _listening_socket(settings.host, settings.port) as listener:
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        _announce(settings.data_dir, address)
        console.print(
            f"toposerve at [bold]{address}[/]" + ("  (open: no key is asked for)" if settings.open else ""),
            highlight=False,
        )
        count = workers if workers is not None else (0 if settings.redis_url else 1)
        _keep_running(listener, count)


def _keep_running(listener: socket.socket, workers: int) -> None:
    from app import supervisor
    from app.supervisor import Fork, Program, Supervised

    def report(sentence: str) -> None:
        console.print(f"[yellow]{sentence}[/]", highlight=False, soft_wrap=True)

    def gateway() -> Fork:
        importlib.import_module("app.main")  # here, while the workers start, so that no fork has to
        gc.freeze()  # what is here stays, and looking at it would copy it into every fork
        return Fork(partial(_serve, listener))

    def worker() -> Program:
        return Program("workers", "--parent", str(os.getpid()))

    processes = [Supervised("worker", worker, report) for _ in range(workers)]
    processes.append(Supervised("gateway", gateway, report, needed=True))
    try:
        supervisor.supervise(processes, before_stopping=listener.close)
    except supervisor.GaveUp as reason:
        errors.print(f"[bold red]Stopped.[/] {reason}", highlight=False, soft_wrap=True)
        raise typer.Exit(3) from None


def _serve(listener: socket.socket) -> None:
    import uvicorn

    from app.http.parser import MOST_CONNECTIONS, Protocol, room_for_files

    room_for_files()
    config = uvicorn.Config(
        "app.main:create",
        factory=True,
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=8,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)


def _listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        console.print(
            f"[bold red]Cannot listen on {host}:{port}[/] ({error.strerror}). Choose another --port; 0 takes a free"
            " one.",
            highlight=False,
        )
        raise typer.Exit(1) from error
    return listener


def _announce(data_dir: Path, address: str) -> None:
    """Write where the service is, so that who started it with port 0 can find it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    temporary = data_dir / "service.json.tmp"
    temporary.write_text(json.dumps({"url": address, "pid": os.getpid()}))
    temporary.replace(data_dir / "service.json")


def worker(
    lanes: Annotated[str, typer.Option(help="Which queues to serve: train, quick, or both.")] = "train,quick",
    data_dir: DataDir = None,
) -> None:
    """Start a worker: on Celery where TOPOSERVE_REDIS_URL is set, else one that polls the table of jobs."""
    settings = settings_of(data_dir=data_dir)
    say_database(settings)
    if settings.redis_url:
        pool = ["--pool", "threads", "--concurrency", str(len(lanes.split(",")))]
        command = [
            "celery",
            "--app",
            "workers.broker",
            "worker",
            "--queues",
            lanes,
            *pool,
            "--loglevel",
            settings.log_level,
        ]
    else:
        command = ["workers", "--lanes", lanes]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with images/ and masks/; default is synthetic vessels.", exists=True, file_okay=False
        ),
    ] = None,
    foreground: Annotated[
        int | None, typer.Option(help="Mask value that is foreground; default: every value but 0.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each network; default: those of the README.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, split and training.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder of the demo's service; emptied first.")] = Path(".demo"),
) -> None:
    """Start a service and show it: upload, train with several losses, export, compare, predict."""
    from app.demo.story import run

    with told():
        run(
            console,
            data=data,
            foreground=foreground,
            steps=steps,
            seed=seed,
            keep=keep,
            json_file=json_file,
            data_dir=data_dir,
        )
