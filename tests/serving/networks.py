"""Small hand-written ONNX networks with known outputs, and their manifests."""

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SOFTWARE = {"torch": "none", "onnx": onnx.__version__}


def blur(*, channels=1, side=3, gain=4.0, offset=0.0):
    """sigmoid(gain * (mean over a square and all channels) + offset)."""
    weight = np.full((1, channels, side, side), gain / (channels * side * side), np.float32)
    nodes = [
        _convolution("image", "logit", "weight", side, bias="bias"),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    return _model(nodes, {"weight": weight, "bias": np.array([offset], np.float32)}, channels, 1)


def with_threshold():
    """`blur`, and a persistence threshold whose mean is that of the scaled image; its deviation is 0.25."""
    weight = np.full((1, 1, 3, 3), 4 / 9, np.float32)
    nodes = [
        _convolution("image", "logit", "weight", 3),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "reads", "offset"], ["persistence_threshold"]),
    ]
    arrays = {"weight": weight, "reads": np.array([[1, 0]], np.float32), "offset": np.array([0, 0.25], np.float32)}
    return _model(
        nodes,
        arrays,
        1,
        1,
        extra=[helper.make_tensor_value_info("persistence_threshold", TensorProto.FLOAT, ["batch", 2])],
    )


def constant(value):
    """The same probability everywhere, so that an answer tells which network gave it."""
    nodes = [
        _convolution("image", "nothing", "weight", 1),
        helper.make_node("Add", ["nothing", "value"], ["probability"]),
    ]
    return _model(
        nodes, {"weight": np.zeros((1, 1, 1, 1), np.float32), "value": np.array([[[[value]]]], np.float32)}, 1, 1
    )


PLAIN = {"kind": "dataset", "mean": [0.0], "std": [1.0]}
"""Scaling for `through`: pixels as they are, one channel."""


def through(*, channels=1, dimensions=2):
    """The image divided by 255, channel by channel: a map that a test has drawn.

    Its manifest needs `PLAIN` scaling of as many channels.
    """
    weight = np.zeros((channels, channels) + (1,) * dimensions, np.float32)
    for k in range(channels):
        weight[k, k] = 1 / 255
    return _model(
        [_convolution("image", "probability", "weight", 1, dimensions=dimensions)],
        {"weight": weight},
        channels,
        channels,
        dimensions=dimensions,
    )


def leaning():
    """A network in space whose weights are noise: the answer for a turned volume is not the turned answer."""
    weight = np.random.default_rng(1).normal(0, 1, (1, 1, 3, 3, 3)).astype(np.float32)
    nodes = [
        _convolution("image", "logit", "weight", 3, dimensions=3),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    return _model(nodes, {"weight": weight}, 1, 1, dimensions=3)


def not_a_number():
    """sqrt of the scaled image: NaN wherever a pixel is darker than the mean."""
    return _model([helper.make_node("Sqrt", ["image"], ["probability"])], {}, 1, 1)


def squared():
    """sigmoid of the image, by way of a matrix with a row and a column for every pixel: memory grows with the square of
    the image.
    """
    nodes = [
        helper.make_node("Reshape", ["image", "as_column"], ["column"]),
        helper.make_node("Reshape", ["image", "as_row"], ["row"]),
        helper.make_node("MatMul", ["column", "row"], ["products"]),
        helper.make_node("ReduceMean", ["products"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["image", "nothing"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    arrays = {
        "as_column": np.array([-1, 1], np.int64),
        "as_row": np.array([1, -1], np.int64),
        "zero": np.array(0, np.float32),
    }
    return _model(nodes, arrays, 1, 1)


def slow(layers=300):
    """sigmoid of the image after so many blurs: time without memory, which ends between two of them when asked."""
    weight = np.full((1, 1, 3, 3), 1 / 9, np.float32)
    names = ["image", *(f"blurred{number}" for number in range(layers))]
    nodes = [_convolution(names[i], names[i + 1], "weight", 3) for i in range(layers)]
    nodes.append(helper.make_node("Sigmoid", [names[-1]], ["probability"]))
    return _model(nodes, {"weight": weight}, 1, 1)


def bands(classes=3, channels=1):
    """softmax over `classes` that prefers a higher class the brighter a pixel is."""
    levels = np.linspace(-1, 1, classes, dtype=np.float32)
    weight = np.repeat((4 * levels).reshape(classes, 1, 1, 1), channels, axis=1) / channels
    nodes = [
        _convolution("image", "logit", "weight", 1, bias="bias"),
        helper.make_node("Softmax", ["logit"], ["probability"], axis=1),
    ]
    return _model(nodes, {"weight": weight, "bias": -2 * levels**2}, channels, classes)


def pyramid(*, seed=0, width=4):
    """Two levels like a U-Net with random weights; multiple 2, receptive field at most PYRAMID_FIELD."""
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    arrays = {
        "w1": weights(width, 1, 5, 5),
        "w2": weights(width, width, 3, 3),
        "up": weights(width, width, 2, 2),
        "w3": 4 * weights(1, 2 * width, 3, 3),
    }
    nodes = [
        _convolution("image", "fine", "w1", 5),
        helper.make_node("Relu", ["fine"], ["fine_on"]),
        helper.make_node("MaxPool", ["fine_on"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        _convolution("pooled", "coarse", "w2", 3),
        helper.make_node("Relu", ["coarse"], ["coarse_on"]),
        helper.make_node("ConvTranspose", ["coarse_on", "up"], ["raised"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["fine_on", "raised"], ["both"], axis=1),
        _convolution("both", "logit", "w3", 3),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    return _model(nodes, arrays, 1, 1)


PYRAMID_FIELD = 13  # 2 * (2 + 2 + 1 + 1 for the pooling cell) + 1


def blur_3d(*, side=3, gain=4.0):
    """`blur` of a volume."""
    weight = np.full((1, 1, side, side, side), gain / side**3, np.float32)
    nodes = [
        _convolution("image", "logit", "weight", side, dimensions=3),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    return _model(nodes, {"weight": weight}, 1, 1, dimensions=3)


def manifest(content, *, channels=1, classes=("background", "vessel"), dimensions=2, **changes):
    """The manifest of such a network."""
    facts = {
        "format": "toposerve-manifest/1",
        "task": "segmentation",
        "dimensions": dimensions,
        "channels": channels,
        "classes": list(classes),
        "activation": "sigmoid" if len(classes) == 2 else "softmax",
        "threshold": 0.5,
        "scaling": {"kind": "image"},
        "multiple": 1,
        "padding": "edge",
        "tile": [512] * dimensions,
        "overlap": 0.25,
        "receptive_field": 3,
        "opset": 18,
        "input": "image",
        "output": "probability",
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "weights_sha256": None,
        "verification": {"items": 0, "max_difference": 0.0, "tolerance": 1e-4, "mask_disagreements": 0},
        "spec": {},
        "step": 0,
        "metrics": {},
        "software": SOFTWARE,
    }
    return facts | changes


def _convolution(source, target, weight, side, *, bias=None, dimensions=2):
    inputs = [source, weight] + ([bias] if bias else [])
    return helper.make_node(
        "Conv", inputs, [target], kernel_shape=[side] * dimensions, pads=[side // 2] * (2 * dimensions)
    )


def _model(nodes, arrays, channels, outputs, dimensions=2, extra=()):
    names = ["d", "h", "w"][-dimensions:]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, *names])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", outputs, *names]), *extra],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def fixed(content, shape):
    """The same network for images of that (batch, channels, *sides) only; sides that are text stay free."""
    model = onnx.ModelProto.FromString(content)
    for value in (model.graph.input[0], model.graph.output[0]):
        for dim, side in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(side, int):
                dim.dim_value = side
    onnx.checker.check_model(model)
    return model.SerializeToString()


FACTS = {
    "dimensions": 2,
    "channels": 1,
    "classes": ["background", "vessel"],
    "activation": "sigmoid",
    "scaling": {"kind": "image"},
    "multiple": 1,
}
"""The least that the manifest of an imported network must say."""
