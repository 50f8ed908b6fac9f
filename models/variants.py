"""Half-precision and 8-bit variants of an exported network, verified on validation images.

fp16: weights and activations in half precision, input and output stay float32. int8: convolutions on 8-bit integers,
weights per channel, activations by the ranges that calibration images show (static quantisation, QDQ). Both are made by
ONNX Runtime's own tools.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from models.evaluate import masks

MOST_PIXELS_APART = 1e-3
"""Part of the pixels of the validation images whose class may change."""
MOST_BETTI_APART = 1
"""How much any Betti number of any class of any validation image may change."""
CALIBRATED = 16
"""Images whose activations set the ranges of int8."""


def write_fp16(source: str | Path, target: str | Path) -> None:
    """The network in half precision behind a float32 input and output."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a weight below 6e-8 becomes 0, which the comparison judges
        onnx.save(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))


def write_int8(source: str | Path, target: str | Path, batches: Iterable[np.ndarray]) -> None:
    """The network with its convolutions on 8-bit integers; `batches` are scaled (1, C, ...) float32 images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._waiting = iter(batches)

        def get_next(self):
            batch = next(self._waiting, None)
            return None if batch is None else {"image": batch}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the library advises a preparation that our export has done
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv"],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": False},
        )
    finally:
        root.setLevel(level)


def answers(path: str | Path, batches: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The probability maps (K, ...) of the network in a file for each (1, C, ...) batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(["probability"], {"image": batch})[0][0] for batch in batches]


def betti_apart(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray]) -> int:
    """The largest difference of a Betti number between two stacks of masks (K', ...)."""
    from topology.components import betti_numbers  # compiled kernels: only when a variant was asked for

    return max(
        abs(a - b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(betti_numbers(one), betti_numbers(other), strict=True)
    )


def judge(full: list[np.ndarray], variant: list[np.ndarray], threshold: float) -> tuple[dict[str, Any], str | None]:
    """What changes from the full network's probability maps to the variant's: figures, and the reason to refuse it or
    None.

    full, variant   lists of (K, ...) float32
    """
    ours, theirs = ([masks(prob, threshold) for prob in maps] for maps in (full, variant))
    pixels = sum(mask[0].size for mask in ours)
    apart = sum(int((a != b).any(0).sum()) for a, b in zip(ours, theirs, strict=True)) / pixels
    betti = max(betti_apart(a, b) for a, b in zip(ours, theirs, strict=True))
    finite = all(np.isfinite(prob).all() for prob in variant)
    figures = {
        "items": len(full),
        "mask_disagreement": apart,
        "most_mask_disagreement": MOST_PIXELS_APART,
        "betti_difference": betti,
        "most_betti_difference": MOST_BETTI_APART,
        "max_difference": (
            max(float(np.abs(a - b).max()) for a, b in zip(full, variant, strict=True)) if finite else None
        ),
    }
    return figures, _reason(finite, apart, betti)


def _reason(finite, apart, betti):
    if not finite:
        return "It answers with values that are no finite numbers."
    if apart > MOST_PIXELS_APART:
        return f"{apart:.2%} of the pixels change their class; {MOST_PIXELS_APART:.2%} may."
    if betti > MOST_BETTI_APART:
        return f"A Betti number changes by {betti}; {MOST_BETTI_APART} is allowed."
    return None


def make(
    names: Iterable[str],
    source: str | Path,
    out: str | Path,
    batches: list[np.ndarray],
    calibration: list[np.ndarray],
    threshold: float,
) -> dict[str, Any]:
    """Write the accepted variants as `model.<name>.onnx` into `out`: {name: what the manifest says of it}.

    batches       scaled validation images (1, C, ...) float32 that full network and variant are compared on
    calibration   scaled training images of the same form
    A variant that cannot be made or changes too much is recorded with the reason and not written; the full network
    stands.
    """
    from models import checkpoints

    full = answers(source, batches)
    made: dict[str, dict[str, Any]] = {}
    for name in names:
        with tempfile.TemporaryDirectory(dir=out) as folder:
            draft = Path(folder) / "model.onnx"
            try:
                write_fp16(source, draft) if name == "fp16" else write_int8(source, draft, calibration)
                figures, refused = judge(full, answers(draft, batches), threshold)
            except Exception as error:  # a tool that cannot convert this network is no fault of the training
                figures, refused = (
                    {},
                    (
                        f"It could not be made: {type(error).__name__}:"
                        f" {str(error).splitlines()[0][:200] if str(error) else 'no reason was given'}"
                    ),
                )
            made[name] = {"refused": refused, "onnx_sha256": None, "bytes": None, "verification": figures}
            if refused is None:
                made[name] |= {"onnx_sha256": checkpoints.file_sha256(draft), "bytes": draft.stat().st_size}
                draft.rename(Path(out) / f"model.{name}.onnx")
    return made
