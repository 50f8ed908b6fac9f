"""Synthetic fundus photographs with a vessel tree that is known to the pixel.

A retina is grown in units of its own diameter: arteries and veins leave the optic disc, run along the arcades around
the fovea and branch by Murray's law (cubes of the radii add up; angles follow from least work; C. D. Murray, J. Gen.
Physiol. 9:835, 1926) until they are too thin to see. A window of it is then photographed: uneven light, disc and fovea,
central reflex, vessels that fade as they thin, blur, noise, and sometimes the black rim of the field of view. Thin
branches keep so little contrast that a network trained for overlap alone breaks them. Nothing here is measured on
patients: the figures below were tuned by eye against a public photograph 1411 pixels across, whose largest vein is 17
pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

STEP = 0.006  # of growth, in retina diameters
THICKEST, THINNEST = 0.0060, 0.0011  # vessel radius, in retina diameters
FOVEA_FREE = 0.045  # radius without vessels
ARCADE = 0.27  # radius at which the large temporal vessels pass the fovea
SHARES = (0.3, 0.65)  # radius of the smaller daughter, as a part of its mother's
LEAST_VESSELS = 0.035  # part of a window; one with less is moved
RESPONSE = np.array([0.4, 1.0, 0.9])[:, None, None]  # of red, green and blue to light: red is nearly saturated
LEAST_RADIUS = 0.8  # pixels; a thinner vessel would fall between pixel centres and break


@dataclass(frozen=True)
class Scene:
    """A photograph and the truth about it.

    image  (size, size, 3) uint8, RGB
    mask   (size, size) bool, True on vessels inside the field of view
    betti  (b0, b1) of mask, 8-connected vessels and 4-connected background
    """

    image: np.ndarray
    mask: np.ndarray
    betti: tuple[int, ...]


@dataclass(frozen=True)
class Segment:
    """A straight piece of vessel, in retina diameters from the centre of the field (x, y)."""

    start: tuple[float, float]
    stop: tuple[float, float]
    radius: float
    fade: float  # contrast of its branch, 0 to 1
    shine: float  # strength of the reflex along its axis, 0 to 1
    artery: bool


@dataclass
class Tip:
    """Where a vessel is growing."""

    x: float
    y: float
    heading: float
    radius: float
    bend: float  # radians a step, drifting
    fade: float
    shine: float
    artery: bool
    arcade: float  # +1 or -1 while it follows an arcade around the fovea, 0 once it has left it


def vessel_tree(seed: int, size: int = 256, *, diameter: float | None = None) -> Scene:
    """A photograph of `size` x `size` pixels and its vessels; the same seed gives the same scene.

    diameter  of the whole retina in pixels, so it sets the calibre; drawn between 600 and 1411 when None
    """
    from topology.components import betti_numbers

    rng = np.random.default_rng(seed)
    diameter = diameter or float(rng.uniform(600, 1411))
    disc = (-rng.uniform(0.30, 0.38), rng.uniform(-0.04, 0.04))
    segments = list(_grown(rng, disc))
    while True:
        window = Window(rng, size, diameter)
        strokes = Strokes(window)
        for segment in segments:
            strokes.draw(segment)
        mask = strokes.mask & (window.radius < 0.5)
        if mask.mean() >= LEAST_VESSELS:
            break
    image = _photographed(rng, window, strokes, disc)
    return Scene(image, mask, betti_numbers(mask))


def _grown(rng: np.random.Generator, disc: tuple[float, float]) -> Iterator[Segment]:
    """Every segment of a retina: an artery and a vein for each quadrant, and a few small ones to each side."""
    tips = [
        _root(rng, disc, side, temporal, artery)
        for side in (-1, 1)
        for temporal in (True, False)
        for artery in (True, False)
    ]
    tips += [_small_root(rng, disc) for _ in range(rng.integers(5, 9))]
    while tips:
        tip = tips.pop()
        while tip.radius >= THINNEST and math.hypot(tip.x, tip.y) < 0.53:
            if tip.arcade == 0 and math.hypot(tip.x, tip.y) < FOVEA_FREE:
                break
            yield _advance(rng, tip)
            if rng.random() < STEP / (0.045 + 3 * tip.radius):
                tips.append(_branch(rng, tip))


def _root(rng: np.random.Generator, disc: tuple[float, float], side: int, temporal: bool, artery: bool) -> Tip:
    thickness = rng.uniform(0.75, 1.0) * (1.0 if temporal else 0.75) * (0.75 if artery else 1.0)
    heading = side * rng.uniform(1.1, 1.7) if temporal else side * rng.uniform(1.9, 2.7)
    jitter = rng.normal(0, 0.012, 2)
    return Tip(
        disc[0] + jitter[0],
        disc[1] + jitter[1],
        heading,
        THICKEST * thickness,
        0.0,
        1.0,
        rng.uniform(0.2, 1.0),
        artery,
        side if temporal else 0,
    )


def _small_root(rng: np.random.Generator, disc: tuple[float, float]) -> Tip:
    x, y = disc + rng.normal(0, 0.012, 2)
    return Tip(
        x,
        y,
        rng.uniform(-math.pi, math.pi),
        THICKEST * rng.uniform(0.3, 0.5),
        0.0,
        rng.uniform(0.6, 1),
        rng.uniform(0.2, 1.0),
        bool(rng.random() < 0.5),
        0,
    )


def _advance(rng: np.random.Generator, tip: Tip) -> Segment:
    """Grow one step: a drifting bend makes it wind, and an arcade vessel is drawn along its circle around the fovea."""
    tip.bend = 0.85 * tip.bend + rng.normal(0, 0.014 + 0.022 * (1 - tip.radius / THICKEST))
    if tip.arcade:
        outward = math.atan2(tip.y, tip.x)
        along = outward - tip.arcade * (math.pi / 2 - 1.5 * (ARCADE - math.hypot(tip.x, tip.y)))
        tip.heading += 0.12 * math.remainder(along - tip.heading, math.tau)
    tip.heading += tip.bend
    start = (tip.x, tip.y)
    tip.x += STEP * math.cos(tip.heading)
    tip.y += STEP * math.sin(tip.heading)
    tip.radius *= 0.999 - 0.009 * (1 - tip.radius / THICKEST)
    return Segment(start, (tip.x, tip.y), tip.radius, tip.fade, tip.shine, tip.artery)


def _branch(rng: np.random.Generator, tip: Tip) -> Tip:
    """Split the tip in two by Murray's law; the larger daughter goes on as the tip, the smaller one is returned."""
    mother = tip.radius
    small = mother * rng.uniform(*SHARES)
    large = (mother**3 - small**3) ** (1 / 3)
    small, large = sorted((small, large))
    side = 1 if rng.random() < 0.5 else -1
    away = _angle(mother, small, large) * rng.uniform(0.7, 1.2)
    child = Tip(
        tip.x, tip.y, tip.heading + side * away, small, 0.0, tip.fade * rng.uniform(0.6, 1), tip.shine, tip.artery, 0
    )
    tip.heading -= side * _angle(mother, large, small) * rng.uniform(0.3, 1.0)
    tip.radius = large
    return child


def _angle(mother: float, daughter: float, other: float) -> float:
    """Angle between mother and daughter that costs the least work (Murray 1926, equation 2)."""
    cosine = (mother**4 + daughter**4 - other**4) / (2 * mother**2 * daughter**2)
    return math.acos(min(1.0, max(-1.0, cosine)))


class Window:
    """The part of the retina that is photographed, with the position of each of its pixels.

    x, y     (size, size) in retina diameters from the centre of the field
    radius   distance from that centre: the field of view ends at 0.5
    """

    def __init__(self, rng: np.random.Generator, size: int, diameter: float):
        distance = max(0.0, 0.5 - 0.5 * max(0.0, size / diameter - 0.3) / 0.7) * math.sqrt(rng.random())
        direction = rng.uniform(0, math.tau)
        self.size, self.diameter = size, diameter
        self.left = distance * math.cos(direction) * diameter - size / 2
        self.top = distance * math.sin(direction) * diameter - size / 2
        steps = np.arange(size) + 0.5
        self.x = (steps + self.left)[None, :] / diameter
        self.y = (steps + self.top)[:, None] / diameter
        self.radius = np.hypot(self.x, self.y)

    def pixel(self, point: tuple[float, float]) -> tuple[float, float]:
        """Row and column of a point of the retina, in pixels; pixel centres are at halves."""
        return point[1] * self.diameter - self.top, point[0] * self.diameter - self.left


class Strokes:
    """Segments drawn into a window.

    mask      True where a pixel's centre lies inside a vessel
    arteries, veins   (size, size) how dark each makes the pixel, 0 to 1
    """

    def __init__(self, window: Window):
        shape = (window.size, window.size)
        self._window = window
        self.mask = np.zeros(shape, bool)
        self.arteries, self.veins = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self._depths = {
            artery: np.full(shape, -np.inf, np.float32) for artery in (True, False)
        }  # pixels below the nearest wall

    def draw(self, segment: Segment) -> None:
        """Add one segment, if it touches the window."""
        radius = max(segment.radius * self._window.diameter, LEAST_RADIUS)
        (r0, c0), (r1, c1) = self._window.pixel(segment.start), self._window.pixel(segment.stop)
        reach, size = radius + 1, self._window.size
        rows = slice(max(0, int(min(r0, r1) - reach)), max(0, min(size, int(max(r0, r1) + reach) + 1)))
        columns = slice(max(0, int(min(c0, c1) - reach)), max(0, min(size, int(max(c0, c1) + reach) + 1)))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        row = np.arange(rows.start, rows.stop)[:, None] + 0.5 - r0
        column = np.arange(columns.start, columns.stop)[None, :] + 0.5 - c0
        along = np.clip((row * (r1 - r0) + column * (c1 - c0)) / max((r1 - r0) ** 2 + (c1 - c0) ** 2, 1e-9), 0, 1)
        distance = np.hypot(row - along * (r1 - r0), column - along * (c1 - c0))
        self.mask[rows, columns] |= distance <= radius
        layer, depths = (
            (self.arteries if segment.artery else self.veins)[rows, columns],
            self._depths[segment.artery][rows, columns],
        )
        inside = radius - distance
        nearer = (
            inside > depths
        )  # the segment that a pixel lies deepest in colours it, or the reflex would be painted over
        layer[nearer] = _darkness(distance[nearer], radius, segment)
        depths[nearer] = inside[nearer]


def _darkness(distance: np.ndarray, radius: float, segment: Segment) -> np.ndarray:
    """Depth of blood along the line of sight, less the light that the wall of a large vessel throws back along its
    axis.
    """
    depth = np.sqrt(np.clip(1 - (distance / (radius + 0.5)) ** 2, 0, 1))
    calibre = min(1.0, segment.radius / THICKEST)
    shine = segment.shine * calibre**0.5 * np.exp(-((distance / (0.25 * radius)) ** 2))
    return (depth - shine) * segment.fade * (0.30 + 0.70 * calibre**0.7)


def _photographed(rng: np.random.Generator, window: Window, strokes: Strokes, disc: tuple[float, float]) -> np.ndarray:
    """Light, tissue, vessels, lens and sensor, in that order."""
    from scipy.ndimage import gaussian_filter, zoom

    def clouds(width: float, strength: float) -> np.ndarray:
        """Smooth random field of standard deviation `strength`; width in retina diameters.

        Coarse noise, enlarged: it is smooth anyway.
        """
        sigma = width * window.diameter
        coarse = max(1, int(sigma / 3))
        cells = -(-window.size // coarse) + 1
        field = zoom(gaussian_filter(rng.normal(size=(cells, cells)), sigma / coarse, mode="reflect"), coarse, order=1)[
            : window.size, : window.size
        ]
        return strength * field / max(float(field.std()), 1e-9)

    tissue = _tissue(rng, window, disc)
    fibres = np.exp(-(((window.x - disc[0]) ** 2 + (window.y - disc[1]) ** 2) / 0.35**2)) * clouds(
        rng.uniform(0.0010, 0.0018), rng.uniform(0.01, 0.05)
    )
    light = np.exp(
        fibres
        + clouds(0.006, 0.012)
        + clouds(0.02, 0.025)
        + clouds(0.07, rng.uniform(0.05, 0.15))
        - rng.uniform(0.2, 0.9) * window.radius**2
    )
    seen = np.clip(1 - np.abs(clouds(0.03, 0.22)), 0.35, 1)  # vessels dip in and out of the tissue
    veins, arteries = strokes.veins * seen, 0.72 * strokes.arteries * seen
    contrast = rng.uniform(0.85, 1.2)
    blood = np.array([0.13, 0.58, 0.42])[:, None, None] * contrast
    picture = tissue * light[None] ** RESPONSE * (1 - blood * veins) * (1 - blood * arteries)
    picture = np.stack([gaussian_filter(channel, rng.uniform(0.0005, 0.0012) * window.diameter) for channel in picture])
    noise = gaussian_filter(rng.normal(0, rng.uniform(1, 5), picture.shape), (0, 0.7, 0.7)) * 2
    edge = np.clip((0.5 - window.radius) * window.diameter / 2 + 0.5, 0, 1)
    seen = np.clip((picture + noise) * edge + rng.uniform(0, 3), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(seen, 0, -1))


def _tissue(rng: np.random.Generator, window: Window, disc: tuple[float, float]) -> np.ndarray:
    """(3, size, size): the colour of a retina without vessels, with its bright disc and dark fovea."""
    green = rng.uniform(62, 115)
    base = np.array([rng.uniform(165, 235), green, green * rng.uniform(0.45, 0.8)])[:, None, None]
    fovea = rng.uniform(0.2, 0.45) * np.exp(-(window.radius**2) / (2 * 0.05**2))
    tissue = base * (1 - fovea * np.array([0.25, 0.9, 0.8])[:, None, None])
    away = np.hypot(window.x - disc[0], (window.y - disc[1]) * rng.uniform(0.85, 1.0))
    rim = 1 / (1 + np.exp((away - rng.uniform(0.060, 0.075)) / 0.004))
    cup = np.exp(-((away / 0.035) ** 2))
    glow = 0.25 * np.exp(-((away / 0.16) ** 2))
    bright = np.array([252, 210, 145])[:, None, None] * (0.85 + 0.2 * cup)
    return tissue * (1 + glow) * (1 - 0.8 * rim) + bright * 0.8 * rim
