"""The program that tries a network trained elsewhere: reads its graph, then runs it.

    python -m app.serving.trial MODEL_FD < question.json > verdict.json

question  {"memory_bytes", "cpu_s", "folder", "facts", "found_in", "tile_batch"}: the limits, of which the sandbox has
          set the first, an empty folder to work in, what is known of the manifest, how many tiles serving runs at once
verdict   {"manifest": {...}} or the problem {"code", "detail", "errors"}

Why a walk of the protobuf before ONNX Runtime sees it: given bytes, ONNX Runtime resolves external data against the
working folder and follows hard links, and a few bytes may ask for gigabytes. Refused: external data anywhere
(subgraphs, sparse tensors, functions, attributes alike), every operator outside `OPERATORS`, and with them control
flow, randomness, text and sizes that depend on pixel values. What passes is run on noise: at two small sizes, and on
the largest pieces that serving will hand it, because memory may grow faster than the image. Format: onnx.proto of ONNX
1.23.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, NoReturn

from app.errors import ExternalDataRefused, Invalid, ModelRejected, ModelSignature, Problem
from app.sandbox import limit_processor_time
from app.schemas.base import by
from app.serving.pipeline import UNCUT

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from app.serving.contract import Manifest

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Cast CastLike
    Ceil Celu CenterCropPad Clip Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum
    DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear
    RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin
    Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu
    Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
""".split()  # noqa: SIM905 one quoted name a line would be 140 lines
)
"""Operators of the domain `ai.onnx` that segmentation networks are made of."""
MOST_NODES = 20_000
MOST_VALUES = 2**31
"""Numbers in one tensor."""
OLDEST_OPSET = 7
DEFAULTS = {
    "format": "toposerve-manifest/1",
    "task": "segmentation",
    "threshold": 0.5,
    "padding": "edge",
    "overlap": 0.25,
    "receptive_field": None,
    "verification": None,
    "spec": {},
    "step": 0,
    "metrics": {},
    "software": {},
}
"""What a manifest need not say when a network is imported."""
TILE = {2: 512, 3: 64}
TRIED_SIDE = {2: 64, 3: 24}
MEMORY = re.compile(r"bad_alloc|allocate memory|out of memory", re.IGNORECASE)
"""How ONNX Runtime says that there is not enough of it."""
SLACK = 1e-3
"""How far a probability may lie outside [0, 1]."""


def judge(content: bytes, facts: dict[str, Any], found_in: str, tile_batch: int = 1) -> Manifest:
    """The whole manifest of a network that may be served, or the Problem that says why not.

    facts       what its sender said; what `DEFAULTS` or the file itself tells need not be in it
    found_in    where the facts came from, for the sentence about those that are missing
    tile_batch  tiles that serving runs at once
    """
    model = parsed(content)
    walk(model)
    manifest = completed(content, model, facts, found_in)
    del model
    run(content, manifest, tile_batch)
    return manifest


def parsed(content: bytes) -> ModelProto:
    """The protobuf; ModelRejected when it is none or holds no graph."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        model = ModelProto.FromString(content)
    except DecodeError:
        raise ModelRejected(
            "model.onnx cannot be parsed: it is damaged, cut short, nested too deeply, or no ONNX file. Export it"
            " again."
        ) from None
    if not model.graph.node:
        raise ModelRejected("model.onnx holds no graph. Export it again.")
    return model


def walk(model: ModelProto) -> None:
    """Refuse by content alone: ExternalDataRefused, ModelRejected."""
    from onnx import NodeProto, SparseTensorProto, TensorProto

    if len(model.graph.node) > MOST_NODES:
        raise _too_many()
    everything = list(_messages(model))
    tensors = [message for message in everything if isinstance(message, TensorProto)]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ExternalDataRefused
    nodes = [message for message in everything if isinstance(message, NodeProto)]
    if len(nodes) > MOST_NODES:
        raise _too_many()
    if model.functions or model.training_info or any(isinstance(message, SparseTensorProto) for message in everything):
        raise ModelRejected(
            "The network holds local functions, training information or sparse tensors. Export it as one plain graph."
        )
    _check_operators(nodes)
    for tensor in tensors:
        if any(side < 0 for side in tensor.dims) or math.prod(tensor.dims) > MOST_VALUES:
            raise ModelRejected(
                f"A tensor of the network declares sides {by(tensor.dims[:8])}; every side must be at"
                f" least 0 and all together at most {MOST_VALUES} numbers."
            )


def _messages(root: Any) -> Iterator[Any]:
    """Every message inside a protobuf, wherever it hangs, so that no place can be forgotten."""
    from google.protobuf.message import Message

    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _too_many() -> ModelRejected:
    return ModelRejected(f"The network has more than {MOST_NODES} nodes. Export it without unrolled loops.")


def _check_operators(nodes: list[Any]) -> None:
    foreign = sorted({node.domain for node in nodes} - {"", "ai.onnx"})
    if foreign:
        raise ModelRejected(
            f"The network uses operators of the domain {foreign[0][:64]!r}; those of `ai.onnx` are accepted. Export it"
            " without custom operators."
        )
    unknown = sorted({node.op_type for node in nodes} - OPERATORS)
    if unknown:
        raise ModelRejected(
            f"The network uses {', '.join(name[:32] for name in unknown[:8])}. Control flow, randomness, text and sizes"
            " that depend on pixel values are not run here; export it without them (in PyTorch: dynamo=True, network"
            " in evaluation mode)."
        )


def completed(content: bytes, model: ModelProto, facts: dict[str, Any], found_in: str) -> Manifest:
    """The manifest from the facts, the file and the defaults; Invalid names what is missing or wrong, ModelRejected the
    opset.
    """
    import hashlib

    from pydantic import ValidationError

    from app.serving.contract import Manifest

    digest = hashlib.sha256(content).hexdigest()
    if facts.get("onnx_sha256", digest) != digest:
        raise Invalid(
            "The manifest names another network by `onnx_sha256` than the model.onnx beside it. Send the two that"
            " belong together.",
            errors=[{"pointer": "/manifest/onnx_sha256", "detail": "not the digest of model.onnx"}],
        )
    # The weights and variants stay where the network was trained, and what it was compared with there was not compared
    # here.
    told = (
        DEFAULTS
        | _names(model)
        | _tile(facts)
        | _fixed(model, facts)
        | facts
        | {
            "opset": _opset(model),
            "onnx_sha256": digest,
            "weights_sha256": None,
            "verification": None,
            "variants": {},
        }
    )
    try:
        manifest = Manifest.model_validate(told)
        _refuse_no_deviation(manifest, found_in)
        return manifest
    except ValidationError as error:
        missing = [
            str(each["loc"][0]) for each in error.errors() if each["type"] == "missing" and len(each["loc"]) == 1
        ]
        wrong = [
            {"pointer": "/manifest/" + "/".join(map(str, each["loc"])), "detail": each["msg"]}
            for each in error.errors()
        ]
        said = (
            f"{found_in} does not say {', '.join(missing)}"
            if missing
            else f"{found_in} is not valid: {wrong[0]['pointer']}: {wrong[0]['detail']}"
        )
        raise Invalid(
            f"{said}. Write it into manifest.json; docs/how-to/import.md lists every fact.", errors=wrong[:20]
        ) from None


def _refuse_no_deviation(manifest: Manifest, found_in: str) -> None:
    """Pixels are divided by the deviation: with 0 every image becomes black and white."""
    channels = enumerate(manifest.scaling.std if manifest.scaling.kind in ("dataset", "clipped") else ())
    if zero := [channel for channel, deviation in channels if deviation == 0]:
        raise Invalid(
            f"{found_in} gives channel {zero[0]} the deviation 0; pixels are divided by it. Write that of the training"
            " images, or 1 for none.",
            errors=[{"pointer": f"/manifest/scaling/std/{channel}", "detail": "must be above 0"} for channel in zero],
        )


def _opset(model: ModelProto) -> int:
    from onnx.defs import onnx_opset_version

    opsets = {opset.domain: opset.version for opset in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    if set(opsets) - {"", "ai.onnx"} or not OLDEST_OPSET <= opset <= onnx_opset_version():
        named = (
            ", ".join(f"{domain[:32] or 'ai.onnx'} {version}" for domain, version in opsets.items()) or "no operators"
        )
        raise ModelRejected(
            f"The network imports {named}; accepted is ai.onnx from {OLDEST_OPSET} to {onnx_opset_version()}. Export it"
            " for one of these."
        )
    return opset


def _names(model: ModelProto) -> dict[str, str]:
    """The names of input and output where there is one of each."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    outputs = [value.name for value in model.graph.output]
    return ({"input": inputs[0]} if len(inputs) == 1 else {}) | ({"output": outputs[0]} if len(outputs) == 1 else {})


def _tile(facts: dict[str, Any]) -> dict[str, Any]:
    """Sides that serving cuts large images into, when nobody said."""
    dimensions, multiple = facts.get("dimensions"), facts.get("multiple")
    if dimensions not in (2, 3) or type(multiple) is not int or multiple < 1:
        return {}  # the manifest will be refused for that
    return {"tile": [math.ceil(TILE[dimensions] / multiple) * multiple] * dimensions}


def _fixed(model: ModelProto, facts: dict[str, Any]) -> dict[str, Any]:
    """What the file fixes of its input: `batch`, and `tile` where it fixes a side; Invalid where the manifest names
    another tile.
    """
    wanted = facts.get("input") or _names(model).get("input")
    value = next((value for value in model.graph.input if value.name == wanted), None)
    dimensions = facts.get("dimensions")
    shape = [] if value is None else [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    if dimensions not in (2, 3) or len(shape) != dimensions + 2:
        return {}  # the manifest will be refused, or the signature
    found: dict[str, Any] = {"batch": shape[0]} if shape[0] else {}
    fixed = shape[2:]
    if not any(fixed):
        return found
    said = facts.get("tile") or [TILE[dimensions]] * dimensions
    tile = [side or other for side, other in zip(fixed, said, strict=False)]
    if facts.get("tile", tile) != tile:
        raise Invalid(
            f"The network takes images of {by(tile)} only and the manifest names the tile {by(said)}. Leave `tile` out,"
            " or export the network for any size.",
            errors=[{"pointer": "/manifest/tile", "detail": f"must be {by(tile)}"}],
        )
    return found | {"sides": "tile", "tile": tile, "multiple": 1}


def run(content: bytes, manifest: Manifest, tile_batch: int) -> None:
    """Open the network and run it on noise of every number and size in `_tried`: ModelSignature, ModelRejected."""
    import numpy as np

    from app.serving.runtime import answered, check_signature, open_session, probabilities

    try:
        session = open_session(content, 1)
    except ModelSignature as error:
        raise ModelRejected(f"ONNX Runtime does not open the network: {_reason(error.__cause__)}") from None
    check_signature(session, manifest)
    noise = np.random.default_rng(0)
    for count, size in _tried(manifest, tile_batch):
        batch = noise.standard_normal((count, manifest.channels, *size), dtype=np.float32)
        try:
            answer = answered(session, manifest.output, batch, manifest)
        except Exception as error:
            _refuse_failure(error, count, size)
        _check_answer(answer, batch, manifest)
        _check_range(probabilities(answer, manifest), manifest)


def _tried(manifest: Manifest, tile_batch: int) -> list[tuple[int, list[int]]]:
    """Number and size of the images of each run: two small ones that differ in number and in every side, neither a
    square; then what serving hands over at most, an image that is not cut yet and a batch of tiles. Of a network of
    fixed sides, only these.
    """
    if manifest.sides == "tile":
        return [(count, manifest.tile) for count in sorted({1, 2, tile_batch})]
    multiple, axes = manifest.multiple, range(manifest.dimensions)
    side = math.ceil(TRIED_SIDE[manifest.dimensions] / multiple) * multiple
    small = [(count, [side + multiple * ((axis + count) % 2) for axis in axes]) for count in (1, 2)]
    longest = int(UNCUT * manifest.tile[0]) // multiple * multiple
    return [*small, (1, [longest, *manifest.tile[1:]]), (tile_batch, manifest.tile)]


def _refuse_failure(error: Exception, count: int, size: list[int]) -> NoReturn:
    """The refusal of a network that failed on images of that number and size."""
    if isinstance(error, MemoryError) or MEMORY.search(str(error)):
        raise ModelRejected(
            f"The network needs more memory than a trial has for {count} image{'s' * (count > 1)} of {by(size)}."
            " Make it smaller, or say a smaller `tile` in the manifest."
        ) from None
    raise ModelRejected(f"The network fails on an image of {by(size)}: {_reason(error)}") from None


def _check_answer(answer: np.ndarray, batch: np.ndarray, manifest: Manifest) -> None:
    expected = (len(batch), manifest.outputs, *batch.shape[2:])
    if answer.shape != expected:
        raise ModelSignature(
            f"Asked with {batch.shape} the network answers {answer.shape}; {expected} was expected, a probability for"
            " each pixel. Check `multiple`, `classes` and `activation` in the manifest."
        )


def _check_range(answer: np.ndarray, manifest: Manifest) -> None:
    low, high = float(answer.min()), float(answer.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ModelRejected(
            "The network answers noise of mean 0 and deviation 1 with values that are no finite numbers. Export weights"
            " that have learnt something."
        )
    if low < -SLACK or high > 1 + SLACK:
        raise ModelSignature(
            f"The network answers between {low:.3g} and {high:.3g}, which are no probabilities. When these are logits,"
            f' say `"answers": "logits"` in the manifest, and serving applies the {manifest.activation}.'
        )


def _reason(error: BaseException | None) -> str:
    """The first line of what a library says, without paths and bounded."""
    lines = str(error).strip().splitlines() or ["no reason was given"]
    return re.sub(r"/\S*", "", lines[0])[:200].rstrip(". ") + "."


def main() -> None:
    """Read the question, judge, print the verdict."""
    question = json.load(sys.stdin)
    limit_processor_time(question["cpu_s"])
    os.chdir(question["folder"])
    try:
        with os.fdopen(int(sys.argv[1]), "rb") as file, redirect_stdout(sys.stderr):
            file.seek(0)
            asked = (question["facts"], question["found_in"], question["tile_batch"])
            verdict = {"manifest": judge(file.read(), *asked).model_dump()}
    except Problem as problem:
        verdict = problem.as_message()
    except MemoryError:
        verdict = ModelRejected(
            f"The network needs more than {question['memory_bytes']} bytes of memory to be opened and run once. Make it"
            " smaller."
        ).as_message()
    print(json.dumps(verdict), flush=True)
    os._exit(0)  # what a library does at its end is nobody's business


if __name__ == "__main__":
    main()
