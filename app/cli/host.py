"""The commands of the host of a service: keys, members, db, backup, restore, doctor, audit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from app.cli.options import DataDir, console, database_of, errors, existing_database, settings_of, show_table

keys = typer.Typer(no_args_is_help=True, help="API keys, made and revoked on the host.")
members = typer.Typer(no_args_is_help=True, help="People of the OpenID provider and their roles in projects.")
db = typer.Typer(no_args_is_help=True, help="The database.")


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
    with database_of(settings_of(data_dir=data_dir)).write() as session:
        token = store.create(session, project=project, name=name, role=role, expires_at=expires)
    console.print(token, highlight=False, soft_wrap=True)
    errors.print(f"Key '{name}' of project '{project}' as {role}. It is not shown again.", highlight=False)


@keys.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Every key of every project, without its secret."""
    from app.store import keys as store

    table = Table("key", "name", "role", "project", "created", "last used", "expires", "revoked", box=None)
    with existing_database(settings_of(data_dir=data_dir)).read() as session:
        for row, project in store.every(session):
            times = (row.created_at, row.last_used_at, row.expires_at, row.revoked_at)
            table.add_row(
                f"ts_{row.prefix}",
                row.name,
                row.role,
                project,
                *(f"{time:%Y-%m-%d %H:%M}" if time else "-" for time in times),
            )
    show_table(table)


@keys.command("revoke")
def revoke_key(
    prefix: Annotated[str, typer.Argument(help="The first part of the key, ts_xxxxxxxx.")], data_dir: DataDir = None
) -> None:
    """End a key; running gateways accept it for at most five seconds more."""
    from app.store import keys as store

    with existing_database(settings_of(data_dir=data_dir)).write() as session:
        if not store.revoke(session, prefix.removeprefix("ts_")[:8]):
            console.print(f"No key starts with {prefix}. `toposerve keys list` shows them.", highlight=False)
            raise typer.Exit(1)
    console.print(f"{prefix} is revoked.", highlight=False)


@members.command("add")
def add_member(
    value: Annotated[str, typer.Argument(help="An email address; with --by, a subject or a group.")],
    project: Annotated[str, typer.Option(help="Project it belongs to; made when it does not exist.")] = "default",
    role: Annotated[str, typer.Option(help="viewer, clinician, engineer, admin or operator.")] = "viewer",
    by: Annotated[str, typer.Option(help="What the value is in a token: subject, email or group.")] = "email",
    data_dir: DataDir = None,
) -> None:
    """Let somebody of the OpenID provider, or one of its groups, into a project."""
    from app.store import members as store, projects

    with database_of(settings_of(data_dir=data_dir)).write() as session:
        row = store.add(session, project_id=projects.ensure(session, project).id, kind=by, value=value, role=role)
        console.print(str(row.id), highlight=False)
    errors.print(f"{by} {value} is a member of project '{project}' as {role}.", highlight=False, markup=False)


@members.command("list")
def list_members(data_dir: DataDir = None) -> None:
    """Every member of every project."""
    from app.store import members as store

    table = Table("id", "by", "value", "role", "project", "since", box=None)
    with existing_database(settings_of(data_dir=data_dir)).read() as session:
        for row, project in store.every(session):
            since = f"{row.created_at:%Y-%m-%d %H:%M}"
            table.add_row(str(row.id), row.kind, escape(row.value), row.role, project, since)
    show_table(table)


@members.command("remove")
def remove_member(
    member_id: Annotated[UUID, typer.Argument(help="Its id, as `toposerve members list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """End a membership; running gateways let them in for at most five seconds more."""
    from app.store import members as store

    with existing_database(settings_of(data_dir=data_dir)).write() as session:
        if not store.remove(session, member_id):
            console.print(f"There is no member {member_id}. `toposerve members list` shows them.", highlight=False)
            raise typer.Exit(1)
    console.print(f"{member_id} is removed.", highlight=False)


@db.command("upgrade")
def upgrade_database(data_dir: DataDir = None) -> None:
    """Bring the database to the schema of this version and make the bucket of the blobs; safe to run twice and by two
    at once.
    """
    from app.store.blobs import Blobs

    settings = settings_of(data_dir=data_dir)
    database_of(settings)
    Blobs(settings).prepare()
    console.print("database is up to date")


def backup(
    file: Annotated[Path, typer.Argument(help="Where it goes; must not be there yet.")],
    data_dir: DataDir = None,
) -> None:
    """Write every row of one moment and the bytes they name to one file; the service may go on meanwhile."""
    from app.store.backup import backup as write
    from app.store.blobs import Blobs

    settings = settings_of(data_dir=data_dir)
    copied = write(existing_database(settings), Blobs(settings), file)
    console.print(
        f"{copied.rows} rows and {copied.blobs} files ({copied.bytes} bytes) are in {file}",
        highlight=False,
        soft_wrap=True,
    )
    if copied.missing:
        errors.print(
            f"[yellow]{len(copied.missing)} files that rows name are not stored, such as {copied.missing[0][:12]}...[/]"
        )


def restore(
    file: Annotated[Path, typer.Argument(help="What `toposerve backup` wrote.", exists=True, dir_okay=False)],
    data_dir: DataDir = None,
) -> None:
    """Put a backup into an installation that is empty, of the same or of another kind of database and store."""
    from app.store.backup import restore as read
    from app.store.blobs import Blobs

    settings = settings_of(data_dir=data_dir)
    copied = read(database_of(settings), Blobs(settings), file)
    console.print(f"{copied.rows} rows and {copied.blobs} files ({copied.bytes} bytes) are restored", highlight=False)


def doctor(data_dir: DataDir = None) -> None:
    """Look at settings, folder, disk, database, bytes, broker, workers and models, and say what is wrong."""
    from app.cli.doctor import examine

    signs, wrong = {True: "[green]well[/]", None: "[yellow]note[/]", False: "[red]wrong[/]"}, 0
    for finding in examine(settings_of(data_dir=data_dir)):
        wrong += finding.well is False
        console.print(f"{signs[finding.well]:<6} ", end="")
        console.print(f"{finding.name}: {finding.said}", highlight=False, markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def audit(
    project: Annotated[str | None, typer.Option(help="Only what happened in this project.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Only the last so many days.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Print the audit log, oldest first, one JSON object a line: who did what to which object, when."""
    from sqlalchemy import select

    from app.store.tables import AuditLine, Project

    query = select(AuditLine, Project.name).join(Project, Project.id == AuditLine.project_id).order_by(AuditLine.id)
    if project is not None:
        query = query.where(Project.name == project)
    if days is not None:
        query = query.where(AuditLine.created_at >= datetime.now(UTC) - timedelta(days=days))
    with existing_database(settings_of(data_dir=data_dir)).read() as session:
        for line, name in session.execute(query.execution_options(yield_per=500)):
            told = {"at": line.created_at.isoformat(), "project": name, "who": line.who, "what": line.what}
            print(json.dumps(told | {"object": line.object, "request_id": line.request_id}))
