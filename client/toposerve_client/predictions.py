"""Stored predictions: their masks, their references, and edits by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from toposerve_client import files
from toposerve_client.errors import Json
from toposerve_client.jobs import Ref, id_of
from toposerve_client.requests import Flow, Listing, address
from toposerve_client.transport import Group, M, listing, operation

Kind = Literal["connect", "cut", "fill", "remove"]


class Prediction(NamedTuple):
    """What a network says about one image: `mask, report = client.predict(...)`."""

    mask: files.Array
    """(rows, columns) or (planes, rows, columns) uint8: 0 and 255, or class positions where there are more than two."""
    report: Json
    """Model, classes, topology, expectation, repair, timings; of a stored prediction also `id` and links."""


class Images(Group[M]):
    """Stored images of the project."""

    @operation
    def upload(self, image: files.Image, *, name: str | None = None) -> Flow[Json]:
        """Store an image; the same bytes are the same image."""
        params = {"name": name or files.name_of(image)}
        return (yield from self._json("POST", "/v1/images", content=files.content_of(image), params=params))

    @operation
    def get(self, image: Ref) -> Flow[Json]:
        """What is known about an image."""
        return (yield from self._json("GET", address("images", id_of(image))))

    @listing
    def list(self) -> Listing[Json]:
        """Every image, the newest first."""
        yield from self._listed("/v1/images")

    @operation
    def save(self, image: Ref, path: str | Path) -> Flow[Path]:
        """Save the bytes of an image as they came; their path."""
        yield from self._ask("GET", address("images", id_of(image), "content"), save=Path(path))
        return Path(path)

    @operation
    def delete(self, image: Ref) -> Flow[None]:
        """Delete an image that nothing was learnt or measured from."""
        yield from self._ask("DELETE", address("images", id_of(image)))


class Predictions(Group[M]):
    """Stored predictions of the project."""

    @operation
    def get(self, prediction: Ref) -> Flow[Json]:
        """A stored prediction: its topology, its files, and how far it is from its reference."""
        return (yield from self._json("GET", address("predictions", id_of(prediction))))

    @listing
    def list(self, *, model: str | None = None, image: Ref | None = None, job: Ref | None = None) -> Listing[Json]:
        """Every stored prediction, the newest first; only those of a model version, an image or a job."""
        ids = {name: None if ref is None else id_of(ref) for name, ref in (("image", image), ("job", job))}
        yield from self._listed("/v1/predictions", model=model, **ids)

    @operation
    def mask(self, prediction: Ref) -> Flow[files.Array]:
        """The mask of a prediction, as the network made it."""
        found: Json = yield from self._json("GET", address("predictions", id_of(prediction)))
        return files.decoded((yield from self._ask("GET", found["artifacts"]["mask"]["href"])).content)

    @operation
    def save(self, prediction: Ref, artifact: str, path: str | Path) -> Flow[Path]:
        """Save a file of a prediction: mask, skeleton, simple_points, probability or uncertainty; its path."""
        found: Json = yield from self._json("GET", address("predictions", id_of(prediction)))
        if artifact not in found["artifacts"]:
            raise ValueError(f"There is no {artifact} of this prediction; it has {', '.join(found['artifacts'])}.")
        yield from self._ask("GET", found["artifacts"][artifact]["href"], save=Path(path))
        return Path(path)


class References(Group[M]):
    """What is right about stored predictions."""

    @operation
    def set(self, prediction: Ref, mask: files.Image) -> Flow[Json]:
        """Say what is right; the prediction with every metric in `measurements`.

        mask  class positions (or 0 and 255), 255 where nobody knows; an array, a path or bytes
        """
        path = address("predictions", id_of(prediction), "reference")
        return (yield from self._json("PUT", path, content=files.labels_of(mask)))


class Edits(Group[M]):
    """Changes by hand of stored predictions; the mask of the network stays beside them."""

    @operation
    def make(
        self,
        prediction: Ref,
        kind: Kind,
        at: Sequence[int],
        to: Sequence[int] | None = None,
        *,
        class_name: str | None = None,
    ) -> Flow[Json]:
        """Connect or cut between two pixels or at one, fill the hole or remove the component at a pixel, by the pixels
        of the network's map that change the least; the edit, with the Betti numbers before and after.

        at, to  (row, column) or (plane, row, column)
        """
        wish = {"kind": kind, "at": [int(part) for part in at], "class_name": class_name}
        wish |= {"to": None if to is None else [int(part) for part in to]}
        return (yield from self._json("POST", address("predictions", id_of(prediction), "edits"), json=wish))

    @listing
    def list(self, prediction: Ref) -> Listing[Json]:
        """The edits of a prediction, the last one first."""
        yield from self._listed(address("predictions", id_of(prediction), "edits"))

    @operation
    def mask(self, prediction: Ref) -> Flow[files.Array]:
        """The mask with its edits applied."""
        answer = yield from self._ask("GET", address("predictions", id_of(prediction), "edits", "mask"))
        return files.decoded(answer.content)

    @operation
    def undo(self, prediction: Ref, edit: Ref) -> Flow[None]:
        """Undo the last edit; Refused with 409 for an earlier one."""
        yield from self._ask("DELETE", address("predictions", id_of(prediction), "edits", id_of(edit)))
