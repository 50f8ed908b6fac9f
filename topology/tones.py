"""Continuous-tone simple points (CSP): how simple each pixel of a probability map is, in [0, 1], and the skeleton that follows.

Plane: the smoothed crossing number of the cyclic gradient around the pixel, formula by formula as in the CSP paper.
Space: ours, the paper stops at the plane. For every threshold t the neighbourhood has a number of background pieces T(t), foreground
pieces C(t) and an Euler characteristic X(t) of the set K that it leaves on the boundary of the voxel (see `topology.simple`). All three,
integrated over t, have closed forms: T is the sum of the six faces of the background minus its maximum spanning forest over the twelve
edges, X is faces - max over edges + max over corners of the foreground, and C = X + T - 1 by Alexander duality. They are piecewise linear in the voxels, equal to
the counts of the binary rule on binary input, and blind to the order of the axes. Voxels are first sharpened around 0.5 with the
paper's slope, so the integral looks at thresholds near 0.5 only. The score is one where C = T = 1; it is gated by the binary rule
at 0.5, as the paper's crossings at 0.5 are constants, so that no threshold effect can change the topology of {u > 0.5}.
"""

import numpy as np
from numba import njit

from topology.grids import as_map
from topology.loops import ARC_BITS, ARCS, CUBE_ARCS, CUBE_BITS, FACE_BITS
from topology.simple import simple_in_space, space_tables

SLOPE, WIDTH, LEVEL = 16.0, 0.2, 0.5
"""alpha^2, k and t of the paper: steepness of a crossing, tolerance of the count, threshold."""


@njit(cache=True, nogil=True)
def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


@njit(cache=True, nogil=True)
def _score_in_plane(u, y, x, ring):
    """Score of one pixel of a framed plane; ring: work space of 9 values."""
    rows = (-1, -1, -1, 0, 1, 1, 1, 0)
    columns = (-1, 0, 1, 1, 1, 0, -1, -1)
    for k in range(8):
        ring[k] = 1.0 - u[y + rows[k], x + columns[k]]
    for k in range(1, 8, 2):
        if ring[k] <= LEVEL:
            ring[k] = 0.0
    # A corner counts only beside a background side, else it is not 4-connected to the pixel.
    for k in range(0, 8, 2):
        if ring[(k + 7) % 8] == 0.0 and ring[k + 1] == 0.0:
            ring[k] = 0.0
    ring[8] = ring[0]
    count = 0.0
    for k in range(8):
        crosses = (ring[k] > LEVEL) != (ring[k + 1] > LEVEL)
        step = 1.0 if crosses else abs(ring[k + 1] - ring[k])
        count += _sigmoid(SLOPE * (step - LEVEL))
    return np.exp(-((count / 2.0 - 1.0) ** 2) / (2.0 * WIDTH * WIDTH))


@njit(cache=True, nogil=True)
def soft_pieces(window):
    """Integrals over all thresholds of the foreground and background pieces around a voxel: (C, T) of 27 values in [0, 1]."""
    pieces, euler = 0.0, 0.0
    for face in FACE_BITS:
        pieces += 1.0 - window[face]
        euler += window[face]
    arcs = np.empty(12)
    for k in range(12):
        a, b = ARCS[k]
        arcs[k] = max(window[FACE_BITS[a]], window[FACE_BITS[b]], window[ARC_BITS[k]])
        euler -= arcs[k]
    for k in range(8):
        a, b, c = CUBE_ARCS[k]
        euler += max(arcs[a], arcs[b], arcs[c], window[CUBE_BITS[k]])
    name = np.arange(6)
    for k in np.argsort(arcs):
        a, b = name[ARCS[k, 0]], name[ARCS[k, 1]]
        if a != b:
            pieces -= 1.0 - arcs[k]
            for face in range(6):
                if name[face] == a:
                    name[face] = b
    return euler + pieces - 1.0, pieces


@njit(cache=True, nogil=True)
def _score_in_space(u, z, y, x, window, tables):
    """Score of one voxel of a framed volume; window: work space of 27 values."""
    code = 0
    for k in range(27):
        window[k] = u[z + k // 9 - 1, y + k // 3 % 3 - 1, x + k % 3 - 1]
        code |= (1 if window[k] > LEVEL else 0) << k
    if not simple_in_space(code, tables):
        return 0.0
    for k in range(27):
        window[k] = _sigmoid(SLOPE * (window[k] - LEVEL))
    inside, outside = soft_pieces(window)
    return np.exp(-((inside - 1.0) ** 2 + (outside - 1.0) ** 2) / (2.0 * WIDTH * WIDTH))


@njit(cache=True, nogil=True)
def _scores(u, flat, tables):
    """Scores of every pixel inside the frame."""
    scores = np.zeros(u.shape)
    work = np.empty(27)
    depth, height, width = u.shape
    for z in range(0 if flat else 1, depth if flat else depth - 1):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                scores[z, y, x] = _score_in_plane(u[z], y, x, work) if flat else _score_in_space(u, z, y, x, work, tables)
    return scores


@njit(cache=True, nogil=True)
def _neighbours(u, z, y, x, flat):
    """Number of neighbours (8 or 26) at or above the level."""
    count = 0
    for dz in range(0 if flat else -1, 1 if flat else 2):
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                count += u[z + dz, y + dy, x + dx] >= LEVEL
    return count - (u[z, y, x] >= LEVEL)


@njit(cache=True, nogil=True)
def _peel(u, iterations, flat, tables):
    """Multiply by one minus the score, subfield by subfield, end points spared; changes u."""
    depth, height, width = u.shape
    work = np.empty(27)
    keep = np.zeros(u.shape, np.uint8)
    for _ in range(iterations):
        for z in range(0 if flat else 1, depth if flat else depth - 1):
            for y in range(1, height - 1):
                for x in range(1, width - 1):
                    keep[z, y, x] = _neighbours(u, z, y, x, flat) < 2
        for field in range(4 if flat else 8):
            # Framed indices are one larger, so the caller's odd rows are even here; the first axis alternates fastest.
            even = (0 if flat else field & 1, field & 1 if flat else field >> 1 & 1, field >> 1 & 1 if flat else field >> 2 & 1)
            for z in range(0 if flat else 2 - even[0], depth if flat else depth - 1, 1 if flat else 2):
                for y in range(2 - even[1], height - 1, 2):
                    for x in range(2 - even[2], width - 1, 2):
                        if u[z, y, x] > 0.0 and not keep[z, y, x]:
                            score = _score_in_plane(u[z], y, x, work) if flat else _score_in_space(u, z, y, x, work, tables)
                            u[z, y, x] *= 1.0 - score


def _framed(values):
    values = as_map(values).astype(np.float64)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"Values span {values.min():g} to {values.max():g}; probabilities in [0, 1] are needed. Apply a sigmoid first.")
    framed = np.pad(values, 1)
    return (framed if values.ndim == 3 else framed[np.newaxis]), values.ndim == 2


def _unframe(framed, flat):
    return framed[0, 1:-1, 1:-1] if flat else framed[1:-1, 1:-1, 1:-1]


def simple_score(prob):
    """How simple each pixel is: float64 in [0, 1], near 1 where removing it keeps the topology of {prob > 0.5}, near 0 elsewhere.

    prob  (rows, columns) or (planes, rows, columns) probabilities; (8, 4) and (26, 6) connectivity, the outside is 0
    On binary input the score is above 0.5 exactly at simple pixels (those of value 0 are judged as if they were foreground).
    Source: the CSP paper in the plane (alpha 4, t 0.5, k 0.2); in space see the head of this file.
    """
    framed, flat = _framed(prob)
    return _unframe(_scores(framed, flat, space_tables()), flat)


def continuous_skeleton(prob, *, iterations=10):
    """Skeleton of a probability map that keeps its tones: float64, at most `prob`, with {skeleton > 0.5} of the same Betti numbers.

    iterations  each peels about one pixel from every side; take at least the largest half width
    """
    framed, flat = _framed(prob)
    _peel(framed, iterations, flat, space_tables())
    return _unframe(framed, flat)
