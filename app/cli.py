"""The command line `toposerve`: demo, up, worker, train, predict, keys, db.

Commands that talk to a running service take --url and --key (or TOPOSERVE_URL and TOPOSERVE_KEY); commands of the host
(`up`, `worker`, `keys`, `db`) read the same TOPOSERVE_* settings as the service. `toposerve --install-completion`
teaches the shell.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from app.client import Client, Refused
from app.errors import Problem

if TYPE_CHECKING:  # imported where they are used, so that `--help` and the shell's completion answer at once
    from app.settings import Settings
    from app.store.session import Database

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Segmentation that keeps its topology, trained and served over HTTP.",
)
keys = typer.Typer(no_args_is_help=True, help="API keys, made and revoked on the host.")
db = typer.Typer(no_args_is_help=True, help="The database.")
app.add_typer(keys, name="keys")
app.add_typer(db, name="db")
console = Console()

Url = Annotated[str, typer.Option(envvar="TOPOSERVE_URL", help="Address of the service.")]
Key = Annotated[str | None, typer.Option(envvar="TOPOSERVE_KEY", help="API key; not needed where the service is open.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the database and the blobs, the same for every command; default TOPOSERVE_DATA_DIR."),
]
DEFAULT_URL = "http://127.0.0.1:8000"


def main() -> None:
    """Run a command; what goes wrong is one sentence and a status, never a traceback."""
    try:
        app()
    except (Refused, Problem) as refused:
        Console(stderr=True).print(f"[bold red]Refused[/] ({refused.code}): {refused}", highlight=False)
        sys.exit(1)
    except ValidationError as error:
        lines = "\n".join(
            f"  {'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()
        )
        Console(stderr=True).print(f"[bold red]Settings are not valid:[/]\n{lines}", highlight=False, markup=True)
        sys.exit(2)


# The service ------------------------------------------------------------------------------------------------------


@app.command()
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
    settings = _settings(host=host, port=port, data_dir=data_dir, open=open_)
    _database(settings).dispose()
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
        Console(stderr=True).print(f"[bold red]Stopped.[/] {reason}", highlight=False, soft_wrap=True)
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


@app.command()
def worker(
    lanes: Annotated[str, typer.Option(help="Which queues to serve: train, quick, or both.")] = "train,quick",
    data_dir: DataDir = None,
) -> None:
    """Start a worker: on Celery where TOPOSERVE_REDIS_URL is set, else one that polls the table of jobs."""
    settings = _settings(data_dir=data_dir)
    _say_database(settings)
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


# Jobs and predictions ---------------------------------------------------------------------------------------------


@app.command()
def train(
    spec: Annotated[Path, typer.Argument(help="Job spec as JSON (see /docs); - reads standard input.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    follow: Annotated[bool, typer.Option(help="Show progress until the job ends.")] = True,
) -> None:
    """Submit a training job and follow it."""
    from app.progress import follow_job

    try:
        body = json.loads(sys.stdin.read() if str(spec) == "-" else spec.read_text())
    except (OSError, ValueError) as error:
        console.print(f"[bold red]Cannot read {spec}[/]: {error}", highlight=False)
        raise typer.Exit(2) from error
    with Client(url, key) as client:
        job = client.submit({"kind": "train"} | body)
        console.print(f"job {job['id']}  {client.url}/jobs/{job['id']}", highlight=False)
        if follow:
            ended = follow_job(client, job["id"], str(body.get("model", "train")), console)
            if ended["state"] != "succeeded":
                raise typer.Exit(1)
            console.print_json(data=ended["result"])


MASKS = "application/gzip, image/png;q=0.9"
"""A mask on the grid of what comes as NIfTI, of anything else a PNG."""


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    images: Annotated[list[Path], typer.Argument(help="Images to segment.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")] = Path(),
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Probability above which a pixel is foreground.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Segment images, write a mask beside each name and print its topology."""
    from rich.progress import track

    out.mkdir(parents=True, exist_ok=True)
    table = Table("image", "class", "components", "holes", "cavities", "Euler characteristic", box=None)
    failures = 0
    with Client(url, key) as client:
        for path in track(images, "predicting", console=Console(stderr=True), disable=len(images) < 2):
            try:
                mask = client.predict(model, path, accept=MASKS, threshold=threshold, topology="true")
            except Refused as refused:
                failures += 1
                console.print(f"[red]{path.name}[/]: {refused}", highlight=False)
                continue
            form = "nii.gz" if mask.headers["Content-Type"] == "application/gzip" else "png"
            (out / f"{Path(path.name.removesuffix('.gz')).stem}.mask.{form}").write_bytes(mask.content)
            for name, numbers in json.loads(mask.headers["Toposerve-Topology"]).items():
                table.add_row(
                    path.name,
                    name,
                    *(
                        "" if numbers.get(fact) is None else str(numbers[fact])
                        for fact in ("beta0", "beta1", "beta2", "euler")
                    ),
                )
    console.print(table)
    if failures:
        raise typer.Exit(1)


@app.command()
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
    """Start a service and show it: upload, train twice, export, compare, predict."""
    from app.demo.story import run

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


# The host ---------------------------------------------------------------------------------------------------------


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what will use it.")] = "first key",
    project: Annotated[str, typer.Option(help="Project it belongs to; made when it does not exist.")] = "default",
    role: Annotated[str, typer.Option(help="viewer, clinician, engineer, admin or operator.")] = "admin",
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; default never.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and show it once."""
    from app.store import keys as store

    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    with _database(_settings(data_dir=data_dir)).write() as session:
        token = store.create(session, project=project, name=name, role=role, expires_at=expires)
    console.print(token, highlight=False, soft_wrap=True)
    Console(stderr=True).print(
        f"Key '{name}' of project '{project}' as {role}. It is not shown again.", highlight=False
    )


@keys.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Every key of every project, without its secret."""
    from app.store import keys as store

    table = Table("key", "name", "role", "project", "created", "last used", "expires", "revoked", box=None)
    with _existing_database(_settings(data_dir=data_dir)).read() as session:
        for row, project in store.every(session):
            times = (row.created_at, row.last_used_at, row.expires_at, row.revoked_at)
            table.add_row(
                f"ts_{row.prefix}",
                row.name,
                row.role,
                project,
                *(f"{time:%Y-%m-%d %H:%M}" if time else "-" for time in times),
            )
    console.print(table)


@keys.command("revoke")
def revoke_key(
    prefix: Annotated[str, typer.Argument(help="The first part of the key, ts_xxxxxxxx.")], data_dir: DataDir = None
) -> None:
    """End a key; running gateways accept it for at most five seconds more."""
    from app.store import keys as store

    with _existing_database(_settings(data_dir=data_dir)).write() as session:
        if not store.revoke(session, prefix.removeprefix("ts_")[:8]):
            console.print(f"No key starts with {prefix}. `toposerve keys list` shows them.", highlight=False)
            raise typer.Exit(1)
    console.print(f"{prefix} is revoked.", highlight=False)


@db.command("upgrade")
def upgrade_database(data_dir: DataDir = None) -> None:
    """Bring the database to the schema of this version and make the bucket of the blobs; safe to run twice and by two
    at once.
    """
    from app.store.blobs import Blobs

    settings = _settings(data_dir=data_dir)
    _database(settings)
    Blobs(settings).prepare()
    console.print("database is up to date")


def _database(settings: Settings) -> Database:
    """The database of the settings, made where there is none, in the present schema; says which one it is."""
    from app.store.migrate import upgrade
    from app.store.session import Database

    _say_database(settings)
    database = Database(settings)
    upgrade(database)
    return database


def _existing_database(settings: Settings) -> Database:
    """The database; refused in a folder where no service has made one, which then is the wrong folder."""
    if (file := settings.database_file) is not None and not file.exists():
        raise Refused(
            f"There is no database {file}. Give the service's folder: --data-dir, or TOPOSERVE_DATA_DIR.",
            0,
            "no_database",
        )
    return _database(settings)


def _say_database(settings: Settings) -> None:
    """Which database a command of the host uses, on standard error."""
    from sqlalchemy.engine import make_url

    file = settings.database_file
    new = file is not None and not file.exists()
    name = str(file or make_url(settings.database).render_as_string(hide_password=True))
    console = Console(stderr=True)
    console.print(f"Database: {name}" + (" (new)" if new else ""), highlight=False, markup=False, soft_wrap=True)


def _settings(**given: Any) -> Settings:
    """The settings, with what the command line gave put in the environment so that child processes agree."""
    from app.settings import Settings, get_settings

    given = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**given)
    for name, value in given.items():
        os.environ[f"TOPOSERVE_{name.upper()}"] = str(value)
    get_settings.cache_clear()
    return settings


if __name__ == "__main__":
    main()
