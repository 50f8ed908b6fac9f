"""Continuous-tone simple points (CSP) of a probability map, and the skeleton with its gradient.

Plane: the smoothed crossing number of the cyclic gradient around the pixel, formula by formula as in the CSP paper,
times the gate below. Space: ours, the paper stops at the plane. For every threshold t the neighbourhood has a number of
background pieces T(t), foreground pieces C(t) and an Euler characteristic X(t) of the set K that it leaves on the
boundary of the voxel (see `topology.simple`). All three, integrated over t, have closed forms: T is the sum of the six
faces of the background minus its maximum spanning forest over the twelve edges, X is faces - max over edges + max over
corners of the foreground, and C = X + T - 1 by Alexander duality. They are piecewise linear in the voxels, equal to the
counts of the binary rule on binary input, and blind to the order of the axes. Voxels are first sharpened around 0.5
with the paper's slope, so the integral looks at thresholds near 0.5 only. The score is one where C = T = 1. Gate: the
score is 0 where the binary rule at 0.5 is not met, in the plane too, and that is a constant, as the paper's crossings
at 0.5 are. So nothing can change the topology of {u > 0.5}: the paper's own score lets an isolated pixel go when the
background around it is uneven.

The rule "published" is the published code's, in the plane: without the gate, and with its corner rule. A corner of the
ring counts where one of its two sides is background; the published code copies the sides above and below into the
corners first and those left and right over them, so a corner beside a background above or below alone is lost. On
saturated maps both rules give the same skeleton; elsewhere that of the published one may have other Betti numbers.

Kernels see a map as a flat, framed array and a neighbourhood as a window of 9 or 27 tones in raster order: the values
themselves in the plane, the sharpened ones in space. Arithmetic is float64, whatever the map is stored in.
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.grids import as_map, as_volume
from topology.loops import ARC_BITS, ARCS, CUBE_ARCS, CUBE_BITS, FACE_BITS
from topology.simple import (
    RING_BITS,
    plane_tables,
    simple_in_space,
    space_tables,
    triples,
    window_in_plane,
    window_in_space,
)
from topology.skeleton import erase

RULES = ("exact", "published")
SLOPE, WIDTH, LEVEL = 16.0, 0.2, 0.5
"""alpha^2, k and t of the paper: steepness of a crossing, tolerance of the count, threshold."""
NOTHING = 1e-9
"""Values below stay as they are: they can lose no more than that."""
CROSSED, EVEN = 1 / (1 + np.exp(-SLOPE * (1 - LEVEL))), 1 / (1 + np.exp(SLOPE * LEVEL))
"""What a step across the level and a step of height 0 count."""
ARC_BETWEEN = np.full((6, 6), -1)
"""Number of the edge between two faces of a voxel; -1 for opposite faces."""
ARC_BETWEEN[ARCS[:, 0], ARCS[:, 1]] = ARC_BETWEEN[ARCS[:, 1], ARCS[:, 0]] = np.arange(12)


@njit(cache=True, nogil=True)
def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


@njit(cache=True, nogil=True)
def _sharpen(u, flat):
    """What scores look at: the values of a plane, the sharpened values of a volume."""
    tones = np.empty(u.size)
    for at in range(u.size):
        tones[at] = u[at] if flat else _sigmoid(SLOPE * (u[at] - LEVEL))
    return tones


@njit(cache=True, nogil=True)
def _pieces_in_plane(window, ring, counted, published):
    """Background pieces around a pixel that may go: half the steps of the ring.

    ring       out: 9 values of the background in cyclic order, closed; 0 where it is not connected to a side
    counted    out: how much each of the 8 steps counts
    published  with the corner rule of the published code
    """
    for k in range(8):
        ring[k] = 1.0 - window[RING_BITS[k]]
    for k in range(1, 8, 2):
        if ring[k] < LEVEL:
            ring[k] = 0.0
    for k in range(0, 8, 2):
        across, beside = ring[k - 1 if k > 0 else 7], ring[k + 1]
        if published:  # of the sides beside a corner, the one left or right of the pixel: at 3 or 7
            across = beside = ring[3 if k == 2 or k == 4 else 7]
        if across == 0.0 and beside == 0.0:
            ring[k] = 0.0  # a corner counts only beside a background side, else it is not 4-connected to the pixel
    ring[8] = ring[0]
    count = 0.0
    for k in range(8):
        if _crosses(ring, k):
            counted[k] = CROSSED
        elif ring[k] == ring[k + 1]:
            counted[k] = EVEN
        else:
            counted[k] = _sigmoid(SLOPE * (abs(ring[k + 1] - ring[k]) - LEVEL))
        count += counted[k]
    return count / 2.0


@njit(cache=True, nogil=True)
def _crosses(ring, k):
    """True when a step of the ring leads from background to foreground or back."""
    return (ring[k] >= LEVEL) != (ring[k + 1] >= LEVEL)


@njit(cache=True, nogil=True)
def _gaussian(squares):
    return np.exp(-squares / (2.0 * WIDTH * WIDTH))


@njit(cache=True, nogil=True)
def _slopes_in_plane(window, slopes, ring, counted, published):
    """Score of a pixel that may go, and in `slopes` (9) its derivative by each value of the window.

    A step across the level is a constant.
    """
    excess = _pieces_in_plane(window, ring, counted, published) - 1.0
    score = _gaussian(excess * excess)
    slopes[:] = 0.0
    for k in range(8):
        if _crosses(ring, k):
            continue
        step = (
            counted[k]
            * (1.0 - counted[k])
            * SLOPE
            / 2.0
            * np.sign(ring[k + 1] - ring[k])
            * -score
            * excess
            / (WIDTH * WIDTH)
        )
        for end, towards in ((k, step), ((k + 1) % 8, -step)):
            if ring[end] > 0.0:
                slopes[RING_BITS[end]] += towards
    return score


@njit(cache=True, nogil=True)
def soft_pieces(window, tops, joins):
    """Integrals over all thresholds of the foreground and background pieces around a voxel: (C, T) of 27 values in [0,
    1].

    tops   out: for the 12 edges and the 8 corners of the voxel, the bit of the window where their maximum is
    joins  out: for the 12 edges, True when it is in the maximum spanning forest of the background (Prim: the octahedron
           has 6 nodes)
    """
    pieces, euler = 0.0, 0.0
    for face in FACE_BITS:
        pieces += 1.0 - window[face]
        euler += window[face]
    for k in range(12):
        a, b, top = FACE_BITS[ARCS[k, 0]], FACE_BITS[ARCS[k, 1]], ARC_BITS[k]
        top = a if window[a] > window[top] else top
        top = b if window[b] > window[top] else top
        tops[k], joins[k] = top, False
        euler -= window[top]
    for k in range(8):
        top = CUBE_BITS[k]
        for arc in CUBE_ARCS[k]:
            top = tops[arc] if window[tops[arc]] > window[top] else top
        tops[12 + k] = top
        euler += window[top]
    reached = 1
    while reached != 63:
        best, low = -1, 2.0
        for k in range(12):
            a, b = ARCS[k]
            if (reached >> a ^ reached >> b) & 1 and window[tops[k]] < low:
                best, low = k, window[tops[k]]
        joins[best] = True
        pieces -= 1.0 - low
        reached |= 1 << ARCS[best, 0] | 1 << ARCS[best, 1]
    return euler + pieces - 1.0, pieces


@njit(cache=True, nogil=True)
def _slopes_in_space(window, slopes, tops, joins):
    """Score of a voxel that may go, and in `slopes` (27) its derivative by each tone: every maximum is one voxel of the
    window.
    """
    inside, outside = soft_pieces(window, tops, joins)
    score = _gaussian((inside - 1.0) ** 2 + (outside - 1.0) ** 2)
    by_euler = -score * (inside - 1.0) / (WIDTH * WIDTH)
    by_pieces = by_euler - score * (outside - 1.0) / (WIDTH * WIDTH)
    slopes[:] = 0.0
    for face in FACE_BITS:
        slopes[face] += by_euler - by_pieces
    for k in range(12):
        slopes[tops[k]] += (by_pieces if joins[k] else 0.0) - by_euler
    for k in range(12, 20):
        slopes[tops[k]] += by_euler
    return score


@njit(cache=True, nogil=True)
def _may_go(solid, at, around, tables):
    """The gate: True when a pixel or voxel is simple in {u > 0.5}, whose triples are `solid`."""
    in_plane, in_space = tables
    if around.size == 9:
        return in_plane[window_in_plane(solid, at, around[7])] == 1
    return simple_in_space(window_in_space(solid, at, around[16], around[22]), in_space)


@njit(cache=True, nogil=True)
def _score(solid, tones, at, around, tables, published, window, ring, counted, tops, joins):
    """Score of one pixel of a flat, framed map; around: steps to the 9 or 27 pixels of its window; then work space."""
    if not published and not _may_go(solid, at, around, tables):
        return 0.0
    for k in range(around.size):
        window[k] = tones[at + around[k]]
    if around.size == 9:
        return _gaussian((_pieces_in_plane(window, ring, counted, published) - 1.0) ** 2)
    inside, outside = soft_pieces(window, tops, joins)
    return _gaussian((inside - 1.0) ** 2 + (outside - 1.0) ** 2)


@njit(cache=True, nogil=True)
def _work():
    """Window, slopes, ring and counted steps of the plane, maxima and forest of space."""
    return np.empty(27), np.empty(27), np.empty(9), np.empty(8), np.empty(20, np.int64), np.empty(12, np.bool_)


@njit(cache=True, nogil=True)
def _inside(shape, flat):
    """Flat indices of the pixels inside the frame, subfield after subfield: the caller's odd places first, the first
    axis alternating fastest.
    """
    depth, height, width = shape
    places = np.empty((1 if flat else depth - 2) * (height - 2) * (width - 2), np.int32)
    n = 0
    for field in range(4 if flat else 8):
        rest = field if flat else field >> 1
        for z in range(0 if flat else 2 - (field & 1), depth if flat else depth - 1, 2):
            for y in range(2 - (rest & 1), height - 1, 2):
                for x in range(2 - (rest >> 1 & 1), width - 1, 2):
                    places[n] = (z * height + y) * width + x
                    n += 1
    return places


@njit(cache=True, nogil=True)
def _scores(solid, tones, places, around, tables, published):
    window, _, ring, counted, tops, joins = _work()
    scores = np.zeros(tones.size)
    for at in places:
        scores[at] = _score(solid, tones, at, around, tables, published, window, ring, counted, tops, joins)
    return scores


@njit(cache=True, nogil=True)
def _neighbours(solid, places, around):
    """Number of neighbours (8 or 26) of each pixel above the level."""
    count = np.zeros(solid.size, np.uint8)
    for at in places:
        if solid[at] & 2:
            for step in around:
                count[at + step] += step != 0
    return count


@njit(cache=True, nogil=True)
def _longer(array):
    return np.concatenate((array, np.empty_like(array)))


@njit(cache=True, nogil=True)
def _thin(u, solid, tones, places, iterations, around, tables, published):
    """Multiply by one minus the score, subfield by subfield; changes u, the triples `solid` and tones.

    Pixels with fewer than two neighbours above the level when the sweep begins are ends and stay. A pixel that kept its
    value is left alone until a pixel near it changes. Returns the history: flat indices of what was changed, in order,
    and the values it had before.
    """
    window, _, ring, counted, tops, joins = _work()
    flat = around.size == 9
    count = _neighbours(solid, places, around)
    stirred = np.ones(u.size, np.bool_)
    changed, held = np.empty(places.size, np.int32), np.empty(places.size, u.dtype)
    n = 0
    waiting = np.empty(places.size, np.int32)
    candidates = 0
    for at in places:
        if count[at] >= 2 and u[at] > NOTHING:
            waiting[candidates] = at
            candidates += 1
    for _ in range(iterations):
        begun, still = n, 0
        for k in range(candidates):
            at = waiting[k]
            if count[at] < 2 or u[at] <= NOTHING:
                continue  # neither ever comes back
            waiting[still] = at
            still += 1
            if not stirred[at]:
                continue
            score = _score(solid, tones, at, around, tables, published, window, ring, counted, tops, joins)
            stirred[at] = False
            if score == 0.0:
                continue
            if n == changed.size:
                changed, held = _longer(changed), _longer(held)
            changed[n], held[n] = at, u[at]
            n += 1
            u[at] *= 1.0 - score
            tones[at] = u[at] if flat else _sigmoid(SLOPE * (u[at] - LEVEL))
            if solid[at] & 2 and u[at] <= LEVEL:
                erase(solid, at)
            for step in around:
                stirred[at + step] = True
        candidates = still
        for k in range(begun, n):
            if held[k] > LEVEL and u[changed[k]] <= LEVEL:
                for step in around:
                    count[changed[k] + step] -= step != 0
        if n == begun:
            break
    return changed[:n].copy(), held[:n].copy()


@njit(cache=True, nogil=True)
def _unthin(tones, gradient, changed, held, around, published):
    """Undo the history, last change first; changes tones and turns the gradient by the skeleton into the gradient by
    the map.
    """
    window, slopes, ring, counted, tops, joins = _work()
    flat = around.size == 9
    for n in range(changed.size - 1, -1, -1):
        at = changed[n]
        tones[at] = held[n] if flat else _sigmoid(SLOPE * (held[n] - LEVEL))
        for k in range(around.size):
            window[k] = tones[at + around[k]]
        score = (
            _slopes_in_plane(window, slopes, ring, counted, published)
            if flat
            else _slopes_in_space(window, slopes, tops, joins)
        )
        lost = gradient[at] * held[n]
        gradient[at] *= 1.0 - score
        if lost == 0.0:
            continue
        for k in range(around.size):
            if slopes[k] != 0.0:
                by_value = 1.0 if flat else SLOPE * window[k] * (1.0 - window[k])
                gradient[at + around[k]] -= lost * slopes[k] * by_value


def _tables():
    return plane_tables()[0], space_tables()


class _Grid:
    """A map in [0, 1] as the kernels see it: framed and flat, with its subfields and the steps to a pixel's window."""

    def __init__(self, prob):
        prob = as_map(prob)
        if prob.min() < 0 or prob.max() > 1:
            raise ValueError(
                f"Values span {prob.min():g} to {prob.max():g}; probabilities in [0, 1] are needed. Apply a sigmoid"
                " first."
            )
        self.shape, self.flat = prob.shape, prob.ndim == 2
        framed = tuple(side + 2 for side in prob.shape)
        self.values = self.frame(prob)
        solid = triples(as_volume(prob > LEVEL).view(np.uint8))
        self.solid = (solid[1] if self.flat else solid).ravel()
        self.tones = _sharpen(self.values, self.flat)
        self.places = _inside((1, *framed) if self.flat else framed, self.flat)
        strides = (framed[1], 1) if self.flat else (framed[1] * framed[2], framed[2], 1)
        self.around = sum(
            stride * (steps - 1) for stride, steps in zip(strides, np.indices((3,) * prob.ndim), strict=True)
        ).ravel()

    def frame(self, array):
        """Flat copy with a frame of zeros."""
        return np.pad(array, 1).ravel()

    def unframe(self, flat):
        """The inverse, as a copy."""
        return flat.reshape([side + 2 for side in self.shape])[(slice(1, -1),) * len(self.shape)].copy()


def _is_published(rule, ndim):
    """True for the rule "published"; refuses (ValueError) others than RULES, and that one in space."""
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; choose one of {', '.join(RULES)}.")
    if rule == "published" and ndim == 3:
        raise ValueError("The published rule of continuous simple points is for the plane; use rule 'exact' in space.")
    return rule == "published"


def simple_score(prob: ArrayLike, *, rule: str = "exact") -> np.ndarray:
    """How simple each pixel is: float64 in [0, 1], near 1 where removing it keeps the topology of {prob > 0.5}, 0 where
    it does not.

    prob  (rows, columns) or (planes, rows, columns) probabilities; (8, 4) and (26, 6) connectivity, the outside is 0
    rule  "exact", or in the plane "published": see the head of this file
    On binary input the score is above 0.5 exactly at simple pixels (those of value 0 are judged as if they were
    foreground). Source: the CSP paper in the plane (alpha 4, t 0.5, k 0.2); the gate and the score in space are ours.
    """
    grid = _Grid(prob)
    published = _is_published(rule, len(grid.shape))
    return grid.unframe(_scores(grid.solid, grid.tones, grid.places, grid.around, _tables(), published))


class Thinning:
    """The continuous skeleton of one map, and the way back for gradients.

    prob        (rows, columns) or (planes, rows, columns) in [0, 1]
    iterations  sweeps; each peels about one pixel from every side
    rule        as of `simple_score`
    skeleton    the same shape, float32 for float32 and narrower, else float64
    It remembers what was changed and the value before, 8 to 12 bytes a change, and works the rest out again. A pixel is
    changed only while it is simple and above 1e-9, so there are a few times as many changes as pixels near the
    structure, not sweeps times image.
    """

    def __init__(self, prob, *, iterations, rule="exact"):
        self._grid = grid = _Grid(prob)
        self._published = _is_published(rule, len(grid.shape))
        kernel = (grid.values, grid.solid, grid.tones, grid.places, iterations, grid.around)
        self._history = _thin(*kernel, _tables(), self._published)
        self.skeleton = grid.unframe(grid.values)

    def back(self, gradient: ArrayLike) -> np.ndarray:
        """Gradient by the map from the gradient by the skeleton: arrays of the map's shape, float64 back.

        Exact but at ties: the gate at 0.5, the end points and crossings of 0.5 are constants; a maximum that two voxels
        attain follows one of them.
        """
        framed = self._grid.frame(np.asarray(gradient, np.float64))
        changed, held = self._history
        _unthin(self._grid.tones.copy(), framed, changed, held, self._grid.around, self._published)
        return self._grid.unframe(framed)


def continuous_skeleton(prob: ArrayLike, *, iterations: int = 10, rule: str = "exact") -> np.ndarray:
    """Skeleton of a probability map that keeps its tones: float64, at most `prob`, with {skeleton > 0.5} of the same
    Betti numbers (by the rule "exact").

    iterations  each peels about one pixel from every side; take at least the largest half width
    rule        as of `simple_score`
    """
    return Thinning(np.asarray(prob, np.float64), iterations=iterations, rule=rule).skeleton
