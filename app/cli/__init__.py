"""The command line `toposerve`, on top of the Python client.

Commands that talk to a running service take --url and --key (or TOPOSERVE_URL and TOPOSERVE_KEY); commands of the host
(`up`, `worker`, `keys`, `members`, `db`, `backup`, `restore`, `doctor`, `audit`) read the same TOPOSERVE_* settings as
it. `toposerve --install-completion` teaches the shell.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from app.cli import host, remote, service
from app.cli.options import errors
from app.errors import Problem
from app.version import VERSION

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Segmentation that keeps its topology, trained and served over HTTP.",
)
for command in (
    service.up,
    service.worker,
    remote.upload,
    remote.train,
    remote.compare,
    remote.jobs,
    remote.cancel,
    remote.promote,
    remote.predict,
    service.demo,
    host.backup,
    host.restore,
    host.doctor,
    host.audit,
):
    app.command()(command)
app.add_typer(host.keys, name="keys")
app.add_typer(host.members, name="members")
app.add_typer(host.db, name="db")


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(VERSION)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run a command; what goes wrong is one sentence and a status, never a traceback."""
    try:
        app()
    except Problem as refused:
        errors.print(f"[bold red]Refused[/] ({refused.code}): {refused}", highlight=False)
        sys.exit(1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        errors.print(f"[bold red]Cannot use[/]{where}: {error.strerror or error}.", highlight=False, soft_wrap=True)
        sys.exit(1)
    except ValidationError as error:
        from app.settings import explained

        errors.print("[bold red]Settings are not valid:[/]", highlight=False)
        errors.print(explained(error), highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        from sqlalchemy.exc import ArgumentError, DatabaseError  # slow to import, and `--help` does not need it

        if not isinstance(error, (ArgumentError, DatabaseError)):
            raise
        errors.print("[bold red]The database cannot be used:[/] ", end="")
        errors.print(str(getattr(error, "orig", error)), highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
