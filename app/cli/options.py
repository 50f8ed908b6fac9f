"""Options, settings and messages that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # imported where they are used, so that `--help` and the shell's completion answer at once
    from app.settings import Settings
    from app.store.session import Database
    from toposerve_client import Client

console, errors = Console(), Console(stderr=True)
MOST_COLUMNS = 500
"""Width of the widest table."""

Url = Annotated[
    str, typer.Option(envvar="TOPOSERVE_URL", help="Address of the service: http://host:port, or host:port.")
]
Key = Annotated[str | None, typer.Option(envvar="TOPOSERVE_KEY", help="API key; not needed where the service is open.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the database and the blobs, the same for every command; default TOPOSERVE_DATA_DIR."),
]
DEFAULT_URL = "http://127.0.0.1:8000"


def refuse(sentence: str, code: str, status: int = 1) -> NoReturn:
    """End the command with a sentence on standard error."""
    errors.print(f"[bold red]Refused[/] ({code}): ", end="")
    errors.print(sentence, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(status)


@contextmanager
def told() -> Iterator[None]:
    """What the client raises ends the command with its sentence."""
    from toposerve_client import ToposerveError

    try:
        yield
    except ToposerveError as error:
        refuse(str(error), error.code)
    except (ValueError, OSError) as error:  # an address, a file or a folder that cannot be what it should
        refuse(str(error), "invalid", 2)


@contextmanager
def client_of(url: str, key: str | None) -> Iterator[Client]:
    """The client of a service, whose errors end the command."""
    from toposerve_client import Client

    with told(), Client(url, key) as client:
        yield client


def database_of(settings: Settings) -> Database:
    """The database of the settings, made where there is none, in the present schema; says which one it is."""
    from app.store.migrate import upgrade
    from app.store.session import Database

    say_database(settings)
    database = Database(settings)
    upgrade(database)
    return database


def existing_database(settings: Settings) -> Database:
    """The database; refused in a folder where no service has made one, which then is the wrong folder."""
    if (file := settings.database_file) is not None and not file.exists():
        refuse(
            f"There is no database {file}. Give the service's folder: --data-dir, or TOPOSERVE_DATA_DIR.", "no_database"
        )
    return database_of(settings)


def say_database(settings: Settings) -> None:
    """Which database a command of the host uses, on standard error."""
    from sqlalchemy.engine import make_url

    file = settings.database_file
    new = file is not None and not file.exists()
    name = str(file or make_url(settings.database).render_as_string(hide_password=True))
    errors.print(f"Database: {name}" + (" (new)" if new else ""), highlight=False, markup=False, soft_wrap=True)


def settings_of(**given: Any) -> Settings:
    """The settings, with what the command line gave put in the environment so that child processes agree."""
    from app.settings import Settings, get_settings

    given = {name: value for name, value in given.items() if value is not None}
    settings = Settings(**given)
    for name, value in given.items():
        os.environ[f"TOPOSERVE_{name.upper()}"] = str(value)
    get_settings.cache_clear()
    return settings


def show_table(table: Table) -> None:
    """Print a table as wide as its texts: names that are cut cannot be copied."""
    width = console.measure(table, options=console.options.update(max_width=MOST_COLUMNS)).maximum
    Console(width=max(console.width, width)).print(table)
