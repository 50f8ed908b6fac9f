"""CVAT's function: masks of a model as CVAT's own code checks and reads them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.gateway import Gateway
from tests.images import noise_png
from tests.protocols.viewers import told_by
from tests.serving import networks


def asked(gateway: Gateway, model: str, image: bytes, folder: Any, threshold: str = "none") -> Any:
    (folder / "image.png").write_bytes(image)
    return told_by("cvat_client.py", gateway.url, gateway.keys["clinician"], model, folder / "image.png", threshold)


def answered(gateway: Gateway, model: str, image: bytes, **options: Any) -> np.ndarray:
    """The mask that the API answers."""
    return np.asarray(Pillow.open(io.BytesIO(gateway.predict(model, image, accept="image/png", **options).content)))


@pytest.mark.parametrize("threshold", ["none", "0.7"])
def test_mask_of_a_task_is_that_of_the_model(gateway: Gateway, tmp_path: Any, threshold: str) -> None:
    gateway.register("blur", networks.blur())
    image = noise_png(40, 30)
    told = asked(gateway, "blur", image, tmp_path, threshold)
    assert (told["labels"], told["frames"]) == ({"1": "vessel"}, [3])
    expected = answered(gateway, "blur", image, **({} if threshold == "none" else {"threshold": threshold})) > 0
    np.testing.assert_array_equal(np.array(told["masks"]["vessel"]), expected)
    assert "polygons have no holes" in told["polygons"]


def test_each_class_has_a_label_of_its_own(gateway: Gateway, tmp_path: Any) -> None:
    gateway.register("bands", networks.bands(), classes=("background", "artery", "vein"))
    image = noise_png(40, 30)
    told = asked(gateway, "bands:1", image, tmp_path)
    assert told["labels"] == {"1": "artery", "2": "vein"}
    expected = answered(gateway, "bands", image)
    for number, name in ((1, "artery"), (2, "vein")):
        np.testing.assert_array_equal(np.array(told["masks"][name]), expected == number)


def test_nothing_is_drawn_where_nothing_is_found(gateway: Gateway, tmp_path: Any) -> None:
    gateway.register("empty", networks.constant(0.0))
    assert asked(gateway, "empty", noise_png(20, 20), tmp_path)["masks"] == {}
