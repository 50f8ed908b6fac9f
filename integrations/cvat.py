"""CVAT's automatic annotation by a model of toposerve.

    cvat-cli task auto-annotate 7 --function-file cvat.py -p url=str:http://127.0.0.1:8000 -p model=str:vessels

Needs `toposerve-client` and `cvat-sdk[masks]` beside `cvat-cli`; the key is read from TOPOSERVE_KEY. A task has the
labels that are called like classes of the model. Interface: `cvat_sdk.auto_annotation.DetectionFunction`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import cvat_sdk.auto_annotation as annotation
import numpy as np
import PIL.Image
from cvat_sdk import models
from cvat_sdk.masks import encode_mask

from toposerve_client import Client


class Detector:
    """Draws one mask for each class of a model, but the background, that is found in an image.

    model   `vessels`, `vessels@champion` or `vessels:3`; without a version the newest one, which CVAT may keep using
    url     of the service; None: TOPOSERVE_URL
    """

    def __init__(self, model: str, url: str | None = None, key: str | None = None):
        self.model = model
        self.client = Client(url, key)

    @cached_property
    def classes(self) -> list[str]:
        """Names, background first."""
        name, _, alias = self.model.partition("@")
        name, _, number = name.partition(":")
        version = int(number) if number else None
        if alias:
            version = int(self.client.aliases.get(name, alias)["version"])
        known = self.client.models.get(name, version or int(self.client.models.get(name)["latest"]))
        return [str(each) for each in known["manifest"]["classes"]]

    @cached_property
    def spec(self) -> annotation.DetectionFunctionSpec:
        """The labels, numbered as the classes are."""
        labels = [
            annotation.label_spec(name, number, type="mask") for number, name in enumerate(self.classes[1:], start=1)
        ]
        return annotation.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: annotation.DetectionFunctionContext, image: PIL.Image.Image
    ) -> Sequence[models.LabeledShapeRequest]:
        """The masks of an image, at the model's own threshold or the one that CVAT states.

        Raises BadFunctionError where polygons are asked for: those of CVAT have no holes, which may be what counts.
        """
        if context.conv_mask_to_poly:
            raise annotation.BadFunctionError(
                "Masks are not turned into polygons, because polygons have no holes. Leave --conv-mask-to-poly out."
            )
        pixels = np.asarray(image if image.mode in ("L", "I;16") else image.convert("RGB"))
        threshold = context.conf_threshold if len(self.classes) == 2 else None
        mask = self.client.predict(self.model, pixels, threshold=threshold, topology=False).mask
        return [
            annotation.mask(number, encode_mask(mask == value))
            for number, value in self._values(mask).items()
            if (mask == value).any()
        ]

    def _values(self, mask: np.ndarray) -> dict[int, int]:
        """What stands for each class in a mask: 255 where there is one, else its number."""
        count = len(self.classes)
        return {1: 255} if count == 2 else {number: number for number in range(1, count)}


def create(model: str, url: str | None = None, key: str | None = None) -> Detector:
    """What `cvat-cli` calls, with the parameters that follow `-p`."""
    return Detector(model, url, key)
