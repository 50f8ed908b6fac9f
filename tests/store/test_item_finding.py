"""Items of a dataset version, found and sorted by what is in their masks, on both databases."""

from __future__ import annotations

from app.store import datasets
from app.store.finding import items_of
from tests.gateway import Gateway
from tests.records import add_dataset


def test_items_are_found_and_sorted_by_betti_numbers_on_both_databases(gateway: Gateway) -> None:
    version = add_dataset(gateway.database, gateway.blobs, gateway.project_id, name="rings", count=4)
    finder = items_of(version, "line")
    with gateway.database.write() as session:
        for item in session.scalars(datasets.items_of(version)):
            counts = {"line": [1, item.position]}
            item.statistics = {"betti": counts, "pixels": {"background": 9, "line": 40 - item.position}}
    with gateway.database.read() as session:
        items = datasets.items_of(version)
        for side, positions in (("least", [2, 3]), ("most", [0, 1, 2])):
            found = session.scalars(items.where(finder.filters[f"beta1_{side}"].condition(2)))
            assert sorted(item.position for item in found) == positions
        assert len(session.scalars(items.where(finder.filters["class_name"].condition("line"))).all()) == 4
        ordered = session.scalars(items.order_by(finder.orders["pixels"].value))
        assert [item.position for item in ordered] == [3, 2, 1, 0]
