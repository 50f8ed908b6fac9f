"""The cache of model names: validity, invalidation, refusals."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest

from app.errors import NotFound
from app.serving.names import Names
from app.settings import Settings
from app.store.session import Database
from tests.records import register, set_alias


def versions(database, blobs, project_id):
    return [register(database, blobs, project_id, "m", bytes([number])) for number in range(3)]


def test_every_form_of_a_model_name_is_resolved(database: Database, blobs, project_id: UUID) -> None:
    first, _, newest = versions(database, blobs, project_id)
    set_alias(database, first, "champion")
    names = Names(database, 60)
    for _ in range(2):
        assert [names.resolve(project_id, ref)[1].id for ref in ("m", "m@champion", "m:1")] == [
            newest.id,
            first.id,
            first.id,
        ]
        assert names.resolve(project_id, "m")[0].name == "m"


def test_cached_name_needs_no_query(
    database: Database, blobs, project_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(database, blobs, project_id)
    names = Names(database, 60)
    names.resolve(project_id, "m")
    monkeypatch.setattr(database, "read", None)
    assert names.resolve(project_id, "m")[1].number == 3


def test_own_write_invalidates_the_cache_at_once(database: Database, blobs, project_id: UUID) -> None:
    first, second, _ = versions(database, blobs, project_id)
    names = Names(database, 60)
    for version in (first, second, first):
        set_alias(database, version, "champion")
        assert names.resolve(project_id, "m@champion")[1].id == version.id


def test_write_of_another_process_is_seen_after_the_cache_time(
    settings: Settings, database: Database, blobs, project_id: UUID
) -> None:
    first, second, _ = versions(database, blobs, project_id)
    set_alias(database, first, "champion")
    names, theirs = Names(database, 0.2), Database(settings)
    assert names.resolve(project_id, "m@champion")[1].id == first.id
    set_alias(theirs, second, "champion")
    time.sleep(0.25)
    assert names.resolve(project_id, "m@champion")[1].id == second.id
    theirs.dispose()


def test_lookup_overtaken_by_a_write_is_not_cached(
    database: Database, blobs, project_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = versions(database, blobs, project_id)
    set_alias(database, first, "champion")
    names, read = Names(database, 60), database.read

    @contextmanager
    def overtaken() -> Iterator[object]:
        with read() as session:
            yield session
        set_alias(database, second, "champion")

    monkeypatch.setattr(database, "read", overtaken)
    assert names.resolve(project_id, "m@champion")[1].id == first.id
    monkeypatch.setattr(database, "read", read)
    assert names.resolve(project_id, "m@champion")[1].id == second.id


def test_unknown_names_are_never_cached_and_projects_are_separate(database: Database, blobs, project_id: UUID) -> None:
    versions(database, blobs, project_id)
    names = Names(database, 60)
    names.resolve(project_id, "m")
    for _ in range(2):
        with pytest.raises(NotFound):
            names.resolve(project_id, "m@nobody")
        with pytest.raises(NotFound):
            names.resolve(UUID(int=1), "m")
