"""Trained networks, their versions and the aliases that point to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from toposerve_client import files
from toposerve_client.errors import Json
from toposerve_client.requests import Flow, Listing, address
from toposerve_client.tables import Table
from toposerve_client.transport import Group, M, listing, operation


class Models(Group[M]):
    """Models of the project."""

    @listing
    def list(self) -> Listing[Json]:
        """Every model, the newest first."""
        yield from self._listed("/v1/models")

    @operation
    def get(self, name: str, version: int | None = None) -> Flow[Json]:
        """A model and its aliases, or the card of one version: how it was made, what it scored, how it is run."""
        one = () if version is None else ("versions", version)
        return (yield from self._json("GET", address("models", name, *one)))

    @listing
    def versions(self, name: str) -> Listing[Json]:
        """Every version of a model, the newest first."""
        yield from self._listed(address("models", name, "versions"))

    @operation
    def upload(self, name: str, archive: files.Image) -> Flow[Json]:
        """Import a network that was trained elsewhere: a zip of model.onnx and manifest.json; the new version."""
        return (yield from self._json("POST", address("models", name, "versions"), content=files.content_of(archive)))

    @operation
    def save_onnx(self, name: str, version: int, path: str | Path, *, variant: str | None = None) -> Flow[Path]:
        """Save the network as ONNX, or a smaller form of it (`fp16`, `int8`); its path."""
        where = address("models", name, "versions", version, "onnx")
        yield from self._ask("GET", where, params={"variant": variant}, save=Path(path))
        return Path(path)

    @operation
    def save_weights(self, name: str, version: int, path: str | Path) -> Flow[Path]:
        """Save the weights as safetensors; their path."""
        yield from self._ask("GET", address("models", name, "versions", version, "safetensors"), save=Path(path))
        return Path(path)

    @operation
    def compare(self, a: str, b: str) -> Flow[Table]:
        """Two versions over the images that both were evaluated on: a row for each metric, with the mean of both, of
        their differences and its 95 % interval, and in how many images b is better and worse. No row when nothing was
        measured on both.

        a, b  `vessels:1`, `vessels@champion`
        """
        found = yield from self._json("GET", "/compare.json", params={"a": a, "b": b})
        return Table(
            {
                "metric": row["metric"],
                a: row["a"]["mean"],
                b: row["b"]["mean"],
                "difference": row["difference"]["mean"],
                "sd of differences": row["difference"]["sd"],
                "low": row["difference"]["low"],
                "high": row["difference"]["high"],
                "images": row["n"],
                "b better": row["b_better"],
                "b worse": row["b_worse"],
            }
            for row in found["paired"]
        )


class Aliases(Group[M]):
    """Names such as `champion` that point to one version of a model."""

    @operation
    def list(self, model: str) -> Flow[Sequence[Json]]:
        """Every alias of a model."""
        return cast(Sequence[Json], (yield from self._json("GET", address("models", model, "aliases"))))

    @operation
    def get(self, model: str, alias: str) -> Flow[Json]:
        """One alias: its version, and an etag that changes whenever it moves."""
        return (yield from self._json("GET", address("models", model, "aliases", alias)))

    @operation
    def move(
        self,
        model: str,
        alias: str,
        version: int,
        *,
        gate: Mapping[str, Any] | None = None,
        if_match: str | None = None,
    ) -> Flow[Json]:
        """Point an alias to a version.

        gate      bounds that its figures must keep: `{"min_dice": 0.8, "max_beta0_error": 2}`
        if_match  the etag as it was read; Refused with 412 when the alias has moved since
        """
        body = {"version": version} | ({"gate": dict(gate)} if gate else {})
        headers = {"If-Match": if_match} if if_match else {}
        return (yield from self._json("PUT", address("models", model, "aliases", alias), json=body, headers=headers))

    @operation
    def remove(self, model: str, alias: str) -> Flow[None]:
        """Take an alias away; the version stays."""
        yield from self._ask("DELETE", address("models", model, "aliases", alias))

    @listing
    def history(self, model: str, alias: str) -> Listing[Json]:
        """Every move of an alias, the newest first."""
        yield from self._listed(address("models", model, "aliases", alias, "history"))
