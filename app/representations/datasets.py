"""Datasets, their versions and their items as the API and the pages show them."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.schemas.datasets import Dataset, DatasetItem, DatasetVersion
from app.store import datasets as store, tables


def describe(session: Session, dataset: tables.Dataset) -> Dataset:
    """The dataset as the API and the pages show it."""
    latest, here = store.newest(session, dataset), f"/v1/datasets/{dataset.name}"
    count = session.scalar(select(func.count()).select_from(store.versions_of(dataset).subquery())) or 0
    return Dataset.of(
        dataset,
        versions=count,
        latest=describe_version(session, latest) if latest else None,
        links={"self": here, "versions": f"{here}/versions"},
    )


def describe_version(session: Session, version: tables.DatasetVersion) -> DatasetVersion:
    """A version as the API and the pages show it."""
    dataset = session.get_one(tables.Dataset, version.dataset_id)
    here = f"/v1/datasets/{dataset.name}/versions/{version.number}"
    return DatasetVersion.of(
        version,
        dataset=dataset.name,
        version=version.number,
        ref=f"{dataset.name}@{version.number}",
        pairs=version.statistics.get("pairs", 0),
        links={
            "self": here,
            "dataset": f"/v1/datasets/{dataset.name}",
            "items": f"{here}/items",
            "plan": f"{here}/plan",
        },
    )


def describe_item(session: Session, item: tables.DatasetItem) -> DatasetItem:
    """A pair as the API and the pages show it."""
    image = session.get_one(tables.Image, item.image_id)
    return DatasetItem.of(
        item,
        image=item.image_id,
        shape=image.shape,
        links={"image": f"/v1/images/{item.image_id}", "preview": f"/v1/images/{item.image_id}/preview.png"},
    )
