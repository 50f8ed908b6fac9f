"""Scores images by how uncertain their topology is, to label those first.

An image is scored by its uncertain features: components, holes and cavities of its map that appear or vanish when the
threshold moves by at most `topology.margins.NEAR`. Scores are kept by network and image for as long as the process
lives.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from app.errors import Problem
from app.imaging import Picture
from app.serving import certainty
from app.serving.pipeline import Predictor, Segmentation, Stop
from app.store.tables import Image, ModelVersion

if TYPE_CHECKING:
    from app.services import Services

CANDIDATES = 500
"""Images that are compared, the newest ones."""
REMEMBERED = 100_000
_scores: dict[tuple[UUID, UUID], float | None] = {}
"""(network, image) -> uncertain features; None: the network cannot read it."""


def known(version: ModelVersion, images: Iterable[Image]) -> dict[UUID, float | None]:
    """The scores of those images that have been scored; None where the network cannot read the image."""
    return {image.id: _scores[version.id, image.id] for image in images if (version.id, image.id) in _scores}


def score(
    services: Services, version: ModelVersion, images: Iterable[Image], seconds: float, stop: Stop
) -> dict[UUID, float | None]:
    """Score the images that have no score yet, in their order and as many as the time allows; all known scores."""
    images, until = list(images), time.monotonic() + seconds
    predictor = services.registry.get(version.project_id, version)
    for image in images:
        if (version.id, image.id) in _scores:
            continue
        if time.monotonic() > until:
            break
        if len(_scores) >= REMEMBERED:
            _scores.clear()
        _scores[version.id, image.id] = _scored(services, predictor, image, stop)
    return known(version, images)


def _scored(services: Services, predictor: Predictor, image: Image, stop: Stop) -> float | None:
    try:
        picture = services.decoders.decode(services.blobs.read(image.project_id, image.sha256))
        return float(sum(uncertain_features(predictor.predict(each, stop=stop)) for each in _parts(picture, predictor)))
    except Problem as problem:
        if problem.status >= 500:
            raise
        return None  # of another kind than the network was trained on


def _parts(picture: Picture, predictor: Predictor) -> Iterator[Picture]:
    """The image, or each plane of a volume where the network was trained on images."""
    if picture.is_volume and predictor.manifest.dimensions == 2:
        yield from map(picture.plane, range(picture.planes))
    else:
        yield picture


def uncertain_features(segmentation: Segmentation) -> int:
    """How many components, holes and cavities of all classes a change of the threshold by 0.1 makes or unmakes."""
    from topology.margins import NEAR

    positions = range(1, len(segmentation.classes))
    return sum(int((certainty.features(segmentation, each).margins <= NEAR).sum()) for each in positions)
