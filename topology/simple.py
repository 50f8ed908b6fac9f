"""Simple points: foreground pixels whose removal changes no Betti number, in 2D and 3D.

A pixel x is a closed cube. What the rest of the foreground leaves on its boundary sphere is a closed set K, and
removing x changes no Betti number exactly when K is a point up to homotopy: one component, and one component of the
rest of the sphere. Plane: K lives on a circle of 8 neighbours, so a table answers. Space: the rest of the sphere is up
to 6 open faces joined over up to 12 open edges (a table of 2^18 answers); once it is one piece, Alexander duality gives
the components of K as its Euler characteristic, a sum of one number for the upper half, one for the lower and one for
the belt (a table of 2^17 numbers). Open cubes ask the same question of the complemented neighbourhood. The rule equals
the (26, 6) characterisation of Bertrand and Malandain, Pattern Recognition Letters 15 (1994): one 26-component of
foreground in N26*, one 6-component of background in N18 that touches N6. The tests prove it against Betti numbers.

Window codes are raster codes: bit 3 (dy + 1) + (dx + 1) in the plane, 9 (dz + 1) + 3 (dy + 1) + (dx + 1) in space,
centre included. Kernels keep, for each pixel, one byte with the three bits of (left, itself, right), so a window is
read in 3 (plane) or 9 (space) loads.
"""

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.bits import Whole
from topology.grids import Connectivity, as_mask, is_closed

RING_BITS = np.array([0, 1, 2, 5, 8, 7, 6, 3])
"""Bits of the 8 neighbours in cyclic order NW N NE E SE S SW W; odd places are sides, even places corners."""


def _ring_pieces(ring):
    """Components of the present neighbours under 8-adjacency, and under 4-adjacency those that touch a side of the
    centre.
    """
    around = [(ring[k - 1], ring[k], ring[(k + 1) % 8], k % 2 == 0) for k in range(8)]
    # Two sides that meet at an absent corner touch each other there; a corner alone does not touch the centre along a
    # side.
    eight = [here or (corner and before and after) for before, here, after, corner in around]
    four = [here and (not corner or before or after) for before, here, after, corner in around]
    return [sum(arc[k] and not arc[k - 1] for k in range(8)) + all(arc) for arc in (eight, four)]


def _rings():
    return (np.arange(512)[:, None] >> RING_BITS & 1).astype(bool)


@cache
def ring_pieces() -> np.ndarray:
    """Per 9-bit code: components of its neighbours, 8-adjacent, and 4-adjacent among those that touch a side of the
    centre.
    """
    return np.array([_ring_pieces(ring) for ring in _rings().tolist()]).T


@cache
def plane_tables() -> tuple[np.ndarray, ...]:
    """Per 9-bit window code: simple (closed), simple (open), and the number of foreground 8- and 4-neighbours.

    All uint8 (512,).
    """
    rings, (eight, four) = _rings(), ring_pieces()
    opposite = 511 - np.arange(512)
    closed = (eight == 1) & (four[opposite] == 1)
    return tuple(np.asarray(t, np.uint8) for t in (closed, closed[opposite], rings.sum(1), rings[:, 1::2].sum(1)))


@njit(cache=True, nogil=True)
def _half_euler():
    """Face - edges + corners of K on the upper cap, for each 9-bit upper plane (low bits) and 8-bit belt without its
    centre.
    """
    cap = np.zeros(512 * 256, np.int8)
    for code in range(cap.size):
        upper = code & 511
        belt = (code >> 9 & 15) | (code >> 13 & 15) << 5
        euler = upper >> 4 & 1
        for side in (1, 3, 5, 7):
            euler -= (upper >> 4 | upper >> side | belt >> side) & 1
        for corner in (0, 2, 6, 8):
            row = 1 if corner < 3 else 7
            column = 3 if corner % 3 == 0 else 5
            euler += (upper >> 4 | (upper | belt) >> row | (upper | belt) >> column | (upper | belt) >> corner) & 1
        cap[code] = euler
    return cap


@njit(cache=True, nogil=True)
def _belt_euler():
    """Faces - edges of K on the belt, for each 8-bit belt."""
    belt_euler = np.zeros(256, np.int8)
    for code in range(256):
        belt = (code & 15) | (code >> 4) << 5
        euler = 0
        for side in (1, 3, 5, 7):
            euler += belt >> side & 1
        for corner in (0, 2, 6, 8):
            row = 1 if corner < 3 else 7
            column = 3 if corner % 3 == 0 else 5
            euler -= (belt >> row | belt >> column | belt >> corner) & 1
        belt_euler[code] = euler
    return belt_euler


@njit(cache=True, nogil=True)
def _background_pieces():
    """6-components of background among faces, joined over edges: index = upper 5 bits, belt 8, lower 5 (foreground
    bits).

    The 5 bits of a cap are N W face E S, the 8 of the belt its raster code without the centre.
    """
    pieces = np.zeros(2**18, np.uint8)
    face_place = (2, 6, 8, 9, 11, 15)  # upper; N, W, E, S of the belt; lower
    edge_place = (0, 1, 3, 4, 13, 14, 16, 17, 5, 7, 10, 12)
    ends = ((0, 1), (0, 2), (0, 3), (0, 4), (5, 1), (5, 2), (5, 3), (5, 4), (1, 2), (1, 3), (4, 2), (4, 3))
    name = np.zeros(6, np.int64)
    for code in range(pieces.size):
        for face in range(6):
            name[face] = -1 if code >> face_place[face] & 1 else face
        for edge in range(12):
            a, b = name[ends[edge][0]], name[ends[edge][1]]
            if a >= 0 and b >= 0 and a != b and not code >> edge_place[edge] & 1:
                for face in range(6):
                    if name[face] == max(a, b):
                        name[face] = min(a, b)
        for face in range(6):
            pieces[code] += name[face] == face
    return pieces


@cache
def space_tables() -> tuple[np.ndarray, ...]:
    """The three tables of the rule in space and the two that squeeze plane codes: see `simple_in_space`."""
    plane = np.arange(512)
    belt = plane & 15 | plane >> 5 << 4
    cross = np.sum([(plane >> bit & 1) << k for k, bit in enumerate((1, 3, 4, 5, 7))], axis=0)
    return _half_euler(), _belt_euler(), _background_pieces(), belt.astype(np.int32), cross.astype(np.int32)


@njit(cache=True, nogil=True)
def pieces_in_space(code: Whole, tables: tuple[np.ndarray, ...]) -> tuple[Whole, Whole]:
    """Components of K and of the rest of the sphere (K closed) for a 27-bit window: what removal merges and fills."""
    half, middle, pieces, belt_of, cross_of = tables
    upper = code & 511
    belt = belt_of[code >> 9 & 511]
    lower = code >> 18 & 511
    outside = pieces[cross_of[upper] | belt << 5 | cross_of[lower] << 13]
    euler = half[upper | belt << 9] + half[lower | belt << 9] + middle[belt]
    if outside == 0:
        return np.int64(1), np.int64(0)
    return np.int64(euler) + np.int64(outside) - 1, np.int64(outside)


@njit(cache=True, nogil=True)
def simple_in_space(code: Whole, tables: tuple[np.ndarray, ...]) -> bool:
    """True when the centre of a 27-bit window is simple for closed cubes; pass the complemented code for open ones."""
    inside, outside = pieces_in_space(code, tables)
    return inside == 1 and outside == 1


@njit(cache=True, nogil=True)
def triples(volume: np.ndarray) -> np.ndarray:
    """Padded (planes + 2, rows + 2, columns + 2) uint8 whose bits 0, 1, 2 are the foreground left of, at and right of a
    pixel.
    """
    planes, rows, columns = volume.shape
    packed = np.zeros((planes + 2, rows + 2, columns + 2), np.uint8)
    for z in range(planes):
        for y in range(rows):
            line = volume[z, y]
            out = packed[z + 1, y + 1]
            for x in range(columns):
                out[x] |= line[x] << 2
            for x in range(columns):
                out[x + 1] |= line[x] << 1
            for x in range(columns):
                out[x + 2] |= line[x]
    return packed


@njit(cache=True, nogil=True)
def window_in_plane(flat: np.ndarray, at: Whole, width: Whole) -> Whole:
    """9-bit code around a linear index of flattened triples."""
    return np.int64(flat[at - width] & 7) | np.int64(flat[at] & 7) << 3 | np.int64(flat[at + width] & 7) << 6


@njit(cache=True, nogil=True)
def window_in_space(flat: np.ndarray, at: Whole, width: Whole, area: Whole) -> Whole:
    """27-bit code around a linear index of flattened triples."""
    upper = window_in_plane(flat, at - area, width)
    belt = window_in_plane(flat, at, width)
    lower = window_in_plane(flat, at + area, width)
    return upper | belt << 9 | lower << 18


@njit(cache=True, nogil=True)
def _mark_plane(volume, table):
    """1 at the foreground pixels whose window the table names."""
    packed = triples(volume)[1]
    width = packed.shape[1]
    flat = packed.ravel()
    _, rows, columns = volume.shape
    marked = np.zeros(volume.shape, np.uint8)
    for y in range(rows):
        for x in range(columns):
            marked[0, y, x] = volume[0, y, x] & table[window_in_plane(flat, (y + 1) * width + x + 1, width)]
    return marked


@njit(cache=True, nogil=True)
def _mark_space(volume, closed, tables):
    """1 at the simple foreground voxels."""
    packed = triples(volume)
    width = packed.shape[2]
    area = packed.shape[1] * width
    flat = packed.ravel()
    planes, rows, columns = volume.shape
    marked = np.zeros(volume.shape, np.uint8)
    flip = 0 if closed else 2**27 - 1
    for z in range(planes):
        for y in range(rows):
            for x in range(columns):
                if volume[z, y, x]:
                    at = ((z + 1) * area) + (y + 1) * width + x + 1
                    marked[z, y, x] = simple_in_space(window_in_space(flat, at, width, area) ^ flip, tables)
    return marked


def simple_points(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> np.ndarray:
    """The foreground pixels whose removal, one at a time, changes no Betti number: bool, shape of the mask.

    mask  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    Two simple points need not stay simple when both go: remove one, then ask again (`topology.skeleton` does).
    A background pixel may be added without harm exactly when it is a simple point of the complement under the other
    connectivity; pad the array by one pixel first, because the complement does not end at the border.
    """
    mask = as_mask(mask)
    closed = is_closed(connectivity)
    if mask.ndim == 2:
        return _mark_plane(mask[np.newaxis], plane_tables()[0 if closed else 1])[0].view(bool)
    return _mark_space(mask, closed, space_tables()).view(bool)


BACKGROUND, INTERIOR, SIMPLE, ISOLATED, CRITICAL = range(5)
"""What becomes of a mask when one pixel goes: nothing to go; a hole [cavity] more; the same topology; a component less;
it splits or
opens, because the pixel is a bridge or closes a loop."""


def point_kinds(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> np.ndarray:
    """Which of BACKGROUND, INTERIOR, SIMPLE, ISOLATED and CRITICAL each pixel is: uint8, shape of the mask.

    mask  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    Interior pixels are those without background that they touch, isolated ones those without foreground; of the others
    that are not simple, thin structure hangs on each.
    """
    mask = as_mask(mask)
    full = is_closed(connectivity)
    framed = np.pad(mask, 1)
    kinds = np.where(
        simple_points(mask, connectivity=connectivity), SIMPLE, np.where(mask, CRITICAL, BACKGROUND)
    ).astype(np.uint8)
    inside, crowd = mask.copy(), np.zeros_like(mask)
    for step in np.ndindex((3,) * mask.ndim):
        sides = sum(each != 1 for each in step)
        if not sides:
            continue
        there = framed[tuple(slice(each, each + side) for each, side in zip(step, mask.shape, strict=True))]
        # Foreground touches by sides, and by corners too where cubes are closed; background the other way round.
        if sides == 1 or full:
            crowd |= there
        if sides == 1 or not full:
            inside &= there
    kinds[inside > 0] = INTERIOR
    kinds[(mask & ~crowd.view(bool)) > 0] = ISOLATED
    return kinds
