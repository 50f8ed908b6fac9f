"""From the pixels of an image to probabilities and a mask, by one loaded network.

fit (channels, size) -> figures for scaling -> tiles: pad, scale, run -> stitch -> threshold, block by block.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from app.errors import ImageTooSmall, Invalid, ModelNonFinite, WrongInput
from app.imaging.picture import Picture
from app.schemas.base import by
from app.serving.contract import CONVERSIONS, Manifest, no_threshold
from app.serving.scaling import Scaler
from app.serving.tiles import Cuts, Window, cut, seam, stitch

LUMINANCE = (0.299, 0.587, 0.114)
"""Grey from red, green, blue as ITU-R BT.601 defines luma; rounded to nearest for integer pixels."""
UNCUT = 1.5
"""How many times the pixels of a tile an image may have to be predicted in one piece; memory grows with it."""
KINDS = {2: "images (rows x columns)", 3: "volumes (planes x rows x columns)"}
REMEDIES = {1: "a grey image", 3: "an RGB image"}


class Stopped(Exception):
    """Nobody waits for this answer any more."""


class Stop:
    """Asks a running prediction to end: between tiles, and inside ONNX Runtime through its run options."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._options: Any = None
        self.waited_ms = 0.0
        """Before the prediction began."""

    def ask(self) -> None:
        """End as soon as possible; from any thread."""
        self._asked.set()
        if self._options is not None:
            self._options.terminate = True

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def check(self) -> None:
        """Stopped when `ask` was called; for work that looks up between its steps."""
        if self.asked:
            raise Stopped

    def options(self) -> Any:
        """Run options that `ask` reaches; Stopped when it was called already."""
        if self._options is None:
            from onnxruntime import RunOptions

            self._options = RunOptions()
        if self.asked:
            raise Stopped
        return self._options


class Stopwatch:
    """Milliseconds spent in each named phase, added up."""

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[phase] += (time.perf_counter() - started) * 1000

    @property
    def spent_ms(self) -> dict[str, float]:
        """Milliseconds by phase."""
        return {phase: round(spent, 3) for phase, spent in self._spent.items()}


@dataclass(frozen=True)
class Segmentation:
    """What a network says about one image."""

    labels: np.ndarray
    """(...) uint8: position in `classes`."""
    probability: np.ndarray | None
    """(K, ...) float32: foreground (K = 1) or every class; None when it was not asked for."""
    classes: tuple[str, ...]
    threshold: float | None
    """None for networks that choose the most probable of their classes."""
    conversion: str | None
    """What was done to the pixels, with a comma between: `orientation`, `spacing`, `luminance`,
    `grey_to_rgb`, `depth` (or `depth_unknown`); None: nothing."""
    tiles: int
    timings_ms: dict[str, float]
    """normalise, infer, stitch."""


class Predictor:
    """One loaded network. Safe to call from many threads.

    run    (N, C, ...) float32 scaled, Stop -> (N, K, ...) float32; see `app.serving.runtime`
    extra  name of one of the manifest's extra outputs, the same batch, Stop -> that output; needed by networks that
           have some
    """

    def __init__(
        self,
        manifest: Manifest,
        run: Callable[[np.ndarray, Stop], np.ndarray],
        *,
        tile_batch: int = 1,
        extra: Callable[[str, np.ndarray, Stop], np.ndarray] | None = None,
    ):
        self.manifest = manifest
        self.run = run
        self._extra = extra
        self._tile_batch = tile_batch

    def predict(
        self, picture: Picture, *, threshold: float | None = None, probability: bool = True, stop: Stop | None = None
    ) -> Segmentation:
        """Probabilities and mask of one image.

        threshold    foreground is what is above it; None: the manifest's. Refused for softmax networks
        probability  False saves memory: (K, ...) float32 is not kept
        Raises WrongInput, ImageTooSmall, Invalid, ModelNonFinite; Stopped after `stop.ask()`.
        """
        started, phases = time.perf_counter(), Stopwatch()
        threshold = self._threshold(threshold)
        pixels, conversion = fit(picture.pixels, self.manifest)
        with phases("normalise"):
            scaler = Scaler(pixels, self.manifest.scaling)
        conversion = ", ".join(filter(None, (conversion, scaler.conversion))) or None
        axes = plan(picture.shape, self.manifest)
        labels = np.empty(picture.shape, np.uint8)
        kept = np.empty((self.manifest.outputs, *picture.shape), np.float32) if probability else None
        answers = self._answers(pixels, scaler, phases, stop or Stop())
        for place, padded in stitch(axes, answers, batch=self._tile_batch):
            block = padded[
                (slice(None), *(slice(side - part.start) for part, side in zip(place, picture.shape, strict=True)))
            ]
            labels[place] = classified(block, threshold)
            if kept is not None:
                kept[(slice(None), *place)] = block
        spent, total = phases.spent_ms, (time.perf_counter() - started) * 1000
        timings_ms = spent | {"stitch": round(total - sum(spent.values()), 3)}
        tiles = math.prod(len(axis.starts) for axis in axes)
        return Segmentation(labels, kept, tuple(self.manifest.classes), threshold, conversion, tiles, timings_ms)

    def persistence_threshold(self, picture: Picture, *, stop: Stop | None = None) -> tuple[float, float] | None:
        """Mean and deviation of the persistence that a ridge of this image needs to be a structure; None for networks
        that do not say.

        Each tile says its own; the answer is the mean over tiles. Raises WrongInput and ImageTooSmall; Stopped after
        `stop.ask()`.
        """
        if self._extra is None or "persistence_threshold" not in self.manifest.extra_outputs:
            return None
        pixels, _ = fit(picture.pixels, self.manifest)
        scaler = Scaler(pixels, self.manifest.scaling)
        said = []
        for place in product(*plan(picture.shape, self.manifest)):
            batch = scaler(filled(pixels, tuple(window for window, _ in place), self.manifest.padding))[None]
            said.append(self._extra("persistence_threshold", batch, stop or Stop())[0])
        mean, deviation = np.asarray(said, np.float64).mean(axis=0)
        return float(mean), float(deviation)

    def _answers(
        self, pixels: np.ndarray, scaler: Scaler, phases: Stopwatch, stop: Stop
    ) -> Callable[[list[Window]], np.ndarray]:
        def answers(windows: list[Window]) -> np.ndarray:
            with phases("normalise"):
                batch = np.empty(
                    (len(windows), len(pixels), *(part.stop - part.start for part in windows[0])), np.float32
                )
                for scaled, window in zip(batch, windows, strict=True):
                    scaler(filled(pixels, window, self.manifest.padding), out=scaled)
            with phases("infer"):
                answer = self.run(batch, stop)
            # Probabilities cannot overflow a sum, so one number tells whether all are finite.
            if not math.isfinite(float(answer.sum(dtype=np.float64))):
                raise ModelNonFinite(
                    "The network's answer for this image holds values that are not finite numbers. Use another version,"
                    " or train it again with a smaller learning rate."
                )
            return answer

        return answers

    def _threshold(self, asked: float | None) -> float | None:
        if self.manifest.activation == "sigmoid":
            return self.manifest.threshold if asked is None else asked
        if asked is None:
            return None
        sentence = no_threshold("This model", self.manifest.classes)
        raise Invalid(sentence, errors=[{"pointer": "/query/threshold", "detail": sentence}])


def fit(pixels: np.ndarray, manifest: Manifest) -> tuple[np.ndarray, str | None]:
    """The image with the channels that the network has, and what was done to get there; WrongInput or ImageTooSmall if
    it cannot be.
    """
    channels, *size = pixels.shape
    if len(size) != manifest.dimensions:
        remedy = "single slices" if manifest.dimensions == 2 else "a volume"
        raise WrongInput(
            f"The image has {len(size)} axes, {by(size)}; this model was trained on {KINDS[manifest.dimensions]}. Send"
            f" {remedy}."
        )
    if min(size) < manifest.multiple:
        raise ImageTooSmall(
            f"The image is {by(size)} pixels; this model needs at least {by([manifest.multiple] * len(size))}. Send a"
            " larger image."
        )
    if channels == manifest.channels:
        return pixels, None
    conversion = CONVERSIONS.get((channels, manifest.channels))
    if conversion == "luminance":
        return luminance(pixels), conversion
    if conversion == "grey_to_rgb":
        return np.broadcast_to(pixels, (3, *size)), conversion
    remedy = REMEDIES.get(manifest.channels, f"an image of {manifest.channels} channels")
    raise WrongInput(
        f"The image has {_channels(channels)}; this model was trained on {_channels(manifest.channels)}. Send {remedy},"
        " or name another model."
    )


def plan(size: tuple[int, ...], manifest: Manifest) -> tuple[Cuts, ...]:
    """How an image of that size is cut, one entry per axis; lengths include the padding to `multiple`.

    Up to `UNCUT` times a tile it is not cut at all: what tiles share would be computed twice. A network of fixed sides
    gets tiles of these, and images that are smaller are filled up to one.
    """
    multiple, free = manifest.multiple, manifest.sides == "any"
    lengths = [math.ceil(side / multiple) * multiple for side in size]
    if not free:
        lengths = [max(length, side) for length, side in zip(lengths, manifest.tile, strict=True)]
    whole = free and math.prod(lengths) <= UNCUT * math.prod(manifest.tile)
    sides = lengths if whole else manifest.tile
    seams = [
        seam(side, receptive_field=manifest.receptive_field, overlap=manifest.overlap, multiple=multiple)
        for side in sides
    ]
    return tuple(
        cut(length, side, at, multiple=multiple, shrink=free)
        for length, side, at in zip(lengths, sides, seams, strict=True)
    )


def luminance(pixels: np.ndarray) -> np.ndarray:
    """(3, ...) red, green, blue to (1, ...) grey of the same dtype: 0.299 R + 0.587 G + 0.114 B."""
    grey = np.empty((1, *pixels.shape[1:]), pixels.dtype)
    for row, *colours in zip(
        grey[0], *pixels, strict=True
    ):  # one by one: the whole image in float64 would be 24 times its grey
        mixed = sum(weight * colour.astype(np.float64) for weight, colour in zip(LUMINANCE, colours, strict=True))
        row[...] = mixed if pixels.dtype.kind == "f" else np.rint(mixed)
    return grey


def filled(pixels: np.ndarray, window: Window, padding: Literal["edge", "reflect"]) -> np.ndarray:
    """A window of the image; what lies beyond the image's end is filled as `padding` says."""
    inside = pixels[(slice(None), *window)]
    missing = [(0, part.stop - part.start - side) for part, side in zip(window, inside.shape[1:], strict=True)]
    return np.pad(inside, [(0, 0), *missing], mode=padding) if any(after for _, after in missing) else inside


def classified(probability: np.ndarray, threshold: float | None) -> np.ndarray:
    """(...) class positions of (K, ...) probabilities: above the threshold, or without one the most probable."""
    return probability.argmax(axis=0) if threshold is None else probability[0] > np.float32(threshold)


def _channels(count: int) -> str:
    return f"{count} channel{'' if count == 1 else 's'}"
