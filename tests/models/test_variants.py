"""Half-precision and 8-bit variants: made if masks agree, refused otherwise."""

import numpy as np
import onnxruntime
import pytest
from scipy.ndimage import gaussian_filter

from models import variants
from tests.serving import networks


def islands(count=3, side=64):
    """Images of -1 and 1:
    nine of these never add up to 0, so the blur of a 3 x 3 square stays clear of the threshold.
    """
    rng = np.random.default_rng(0)
    return [
        np.sign(gaussian_filter(rng.standard_normal((side, side)), 3)).astype(np.float32)[None, None]
        for _ in range(count)
    ]


def written(folder, content):
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


def test_variants_that_agree_are_written_and_described(tmp_path):
    images = islands()
    made = variants.make(["fp16", "int8"], written(tmp_path, networks.blur()), tmp_path, images, images, 0.5)
    full = variants.answers(tmp_path / "model.onnx", images)
    for name, told in made.items():
        path = tmp_path / f"model.{name}.onnx"
        assert told["refused"] is None and told["bytes"] == path.stat().st_size and len(told["onnx_sha256"]) == 64
        assert told["verification"]["items"] == 3 and 0 < told["verification"]["max_difference"] < 0.1
        figures, refused = variants.judge(full, variants.answers(path, images), 0.5)
        assert (figures, refused) == (told["verification"], None)
    assert made["int8"]["verification"]["max_difference"] > made["fp16"]["verification"]["max_difference"], (
        "8 bits are coarser than 11"
    )


def test_int8_and_fp16_variants_compute_in_their_precision(tmp_path):
    import onnx

    images = islands(1)
    variants.make(["fp16", "int8"], written(tmp_path, networks.blur()), tmp_path, images, images, 0.5)
    types = {
        name: {tensor.data_type for tensor in onnx.load(str(tmp_path / f"model.{name}.onnx")).graph.initializer}
        for name in ("fp16", "int8")
    }
    assert onnx.TensorProto.INT8 in types["int8"] and types["fp16"] == {onnx.TensorProto.FLOAT16}
    for name in types:
        session = onnxruntime.InferenceSession(str(tmp_path / f"model.{name}.onnx"), providers=["CPUExecutionProvider"])
        assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


def test_a_variant_that_changes_too_much_is_refused_and_not_written(tmp_path):
    # A slope of 4000 makes every pixel near the threshold flip with the last of 8 bits.
    rough = [np.random.default_rng(0).standard_normal((1, 1, 64, 64)).astype(np.float32) * 0.01 for _ in range(2)]
    wide = [image * 100 for image in rough]
    made = variants.make(["int8"], written(tmp_path, networks.blur(gain=4000)), tmp_path, rough, wide, 0.5)
    assert (
        "of the pixels change their class; 0.10% may" in made["int8"]["refused"] and made["int8"]["onnx_sha256"] is None
    )
    assert made["int8"]["verification"]["mask_disagreement"] > variants.MOST_PIXELS_APART
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_failed_variant_does_not_fail_the_run(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no such operator\nsecond line")

    monkeypatch.setattr(variants, "write_fp16", broken)
    images = islands(1)
    made = variants.make(["fp16", "int8"], written(tmp_path, networks.blur()), tmp_path, images, images, 0.5)
    assert (
        made["fp16"]["refused"] == "It could not be made: ValueError: no such operator"
        and made["int8"]["refused"] is None
    )


RING = np.array([[pixel == "#" for pixel in row] for row in (".......", "..###..", "..#.#..", "..###..", ".......")])


@pytest.mark.parametrize(
    ("pixels", "betti", "refused"),
    [([], 0, None), ([(2, 3)], 1, None), ([(0, 0), (0, 6)], 2, "A Betti number changes by 2; 1 is allowed.")],
)
def test_topology_may_change_by_one_and_no_more(monkeypatch, pixels, betti, refused):
    monkeypatch.setattr(variants, "MOST_PIXELS_APART", 0.5)
    full = RING.astype(np.float32)[None]
    other = full.copy()
    for pixel in pixels:
        other[0][pixel] = 1 - other[0][pixel]
    figures, said = variants.judge([full], [other], 0.5)
    assert (figures["betti_difference"], said) == (betti, refused) and figures["mask_disagreement"] == len(
        pixels
    ) / RING.size


def test_a_tenth_of_a_percent_of_the_pixels_may_change():
    full = np.zeros((1, 40, 50), np.float32)
    full[0, :20] = 1
    for apart, kept in ((2, True), (3, False)):
        other = full.copy()
        other[0, 20, :apart] = 1  # at the rim, so no Betti number changes
        assert (variants.judge([full], [other], 0.5)[1] is None) == kept
    assert variants.judge([full], [full * np.nan], 0.5)[1] == "It answers with values that are no finite numbers."
