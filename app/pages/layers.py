"""Layers of a prediction as small PNGs: arrays in, coloured pictures with transparent ground out.

A stored mask or a picture of a volume is one plane by the time it comes here. Colours are chosen so that a viewer who
sees no red or no green can still tell them apart (the Okabe-Ito set; a test computes the distances as three kinds of
colour-blind eyes see them).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image as Pillow

MASK, SKELETON, REFERENCE = (0, 158, 115), (240, 228, 66), (204, 121, 167)
FALSE_POSITIVE, FALSE_NEGATIVE = (213, 94, 0), (86, 180, 233)
"""As in the picture at /v1/predictions/{id}/difference.png."""
CLASSES = (MASK, (230, 159, 0), REFERENCE, (0, 114, 178), SKELETON, FALSE_POSITIVE, FALSE_NEGATIVE)
"""Colours of classes 1, 2, ... of a mask with several; they repeat after seven."""
SWATCHES = {
    "skeleton": SKELETON,
    "reference": REFERENCE,
    "false-positive": FALSE_POSITIVE,
    "false-negative": FALSE_NEGATIVE,
} | {f"class-{number}": colour for number, colour in enumerate(CLASSES, start=1)}
"""The same colours by the names that the style sheet gives them."""


def outlined(mask: np.ndarray) -> np.ndarray:
    """The pixels of a class-index mask (H, W) that have a neighbour of another class above, below or beside them."""
    inside = np.ones(mask.shape, bool)
    inside[1:] &= mask[1:] == mask[:-1]
    inside[:-1] &= mask[:-1] == mask[1:]
    inside[:, 1:] &= mask[:, 1:] == mask[:, :-1]
    inside[:, :-1] &= mask[:, :-1] == mask[:, 1:]
    return np.where(inside, 0, mask)


def mask_layer(mask: np.ndarray, colour: int | None = None) -> bytes:
    """A class-index mask (H, W), background transparent, class k in its own colour, or all in colour number `colour`
    of CLASSES, from 1.
    """
    if colour is not None:
        return _tinted((mask > 0).astype(np.uint8), (CLASSES[colour - 1],))
    indices = np.where(mask > 0, (mask.astype(np.int64) - 1) % len(CLASSES) + 1, 0).astype(np.uint8)
    return _tinted(indices, CLASSES)


def reference_layer(reference: np.ndarray) -> bytes:
    """The reference of a single class (H, W), in a colour that is told from the mask's."""
    return _tinted((reference > 0).astype(np.uint8), (REFERENCE,))


def skeleton_layer(skeleton: np.ndarray) -> bytes:
    """A skeleton (H, W), any value above zero drawn."""
    return _tinted((skeleton > 0).astype(np.uint8), (SKELETON,))


def difference_layer(prediction: np.ndarray, reference: np.ndarray, ignore: int | None = None) -> bytes:
    """Where two class-index masks (H, W) differ: predicted only, and in the reference only. Pixels nobody labelled stay
    clear.

    A pixel that is foreground in both, of different classes, counts as predicted wrongly.
    """
    wrong = prediction != reference
    if ignore is not None:
        wrong &= reference != ignore
    indices = np.where(wrong, np.where(prediction > 0, 1, 2), 0).astype(np.uint8)
    return _tinted(indices, (FALSE_POSITIVE, FALSE_NEGATIVE))


def blend(picture: bytes, mask: np.ndarray) -> bytes:
    """A thumbnail with its mask laid over it, for lists: the picture as it is shown, the mask in its own size."""
    from PIL import Image  # here, so that a gateway starts without it

    ground = Image.open(io.BytesIO(picture)).convert("RGB")
    over = Image.open(io.BytesIO(mask_layer(mask))).convert("RGBA").resize(ground.size, Image.Resampling.BOX)
    over.putalpha(over.getchannel("A").point(lambda alpha: alpha * 6 // 10))
    ground.paste(over, (0, 0), over)
    return _png(ground)


SHAPES = {
    "break": "M0 -6 A6 6 0 1 1 -.01 -6 Z",
    "missing": "M0 -6 A6 6 0 1 1 -.01 -6 Z",
    "merge": "M-5.5 -5.5 H5.5 V5.5 H-5.5 Z",
    "spurious": "M-5.5 -5.5 H5.5 V5.5 H-5.5 Z",
    "hole": "M0 -7 L6.5 5 H-6.5 Z",
}
"""What was lost is ringed, what was invented is boxed, a hole too many is a triangle; so shape says it as well as
colour.
"""
LOST = ("break", "missing")


def located_layer(errors: Sequence[Mapping[str, Any]], rows: int, columns: int) -> bytes:
    """Places where topology is wrong as an SVG over an image of that size;
    each mark has the same size on every image.
    """
    scale = max(columns, rows) / 440
    marks = []
    for error in errors:
        row, column = error["position"][-2:]
        colour = "#%02x%02x%02x" % (FALSE_NEGATIVE if error["kind"] in LOST else FALSE_POSITIVE)
        path = (
            f'd="{SHAPES[error["kind"]]}" transform="translate({column + 0.5} {row + 0.5}) scale({scale:g})"'
            ' fill="none"'
        )
        marks.append(
            f'<path {path} stroke="#000" stroke-opacity=".75" stroke-width="3.4"/><path {path} stroke="{colour}"'
            ' stroke-width="1.8"/>'
        )
    size = f'viewBox="0 0 {columns} {rows}" preserveAspectRatio="none"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(marks)}</svg>'.encode()


def _tinted(indices: np.ndarray, colours: tuple[tuple[int, int, int], ...]) -> bytes:
    from PIL import Image

    # A palette PNG is a quarter of the bytes of RGBA and says the same.
    image = Image.frombytes("P", indices.shape[::-1], np.ascontiguousarray(indices).tobytes())
    image.putpalette([0, 0, 0, *(part for colour in colours for part in colour)])
    image.info["transparency"] = 0
    return _png(image)


def _png(image: Pillow.Image) -> bytes:
    # Fast rather than small: these pictures travel once.
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
