"""Skeletons with exactly the topology of their mask, thinned evenly from all sides.

Thinning by directions. One step takes the pixels whose neighbour above is background, the next those that are open
below, then left, right, and in space first before and behind, again and again until nothing leaves; so the object
shrinks evenly and what stays lies in its middle. In each step the candidates are chosen at once: simple points (see
`topology.simple`) that are no end points. Then they leave one after the other in raster order, each if it is still
simple. Nothing depends on where the mask lies in the image, and at the end every pixel is an end point or not simple.

An end point is a pixel with exactly one foreground neighbour (8 [26] for closed cubes, 4 [6] for open ones); in space
that neighbour has at most one other, or every roughness of a surface would end as a branch.

For closed cubes in the plane every candidate of a step is still simple when its turn comes (Rosenfeld, Information and
Control 29, 1975; the tests show it for all windows), so a step is a formula over bits, 64 pixels of a line at a time.
In space the order matters. There a candidate also has to touch a voxel that stays: a ribbon two voxels wide and one
thick is open above everywhere, and one step would eat it from end to end. This is what lets objects of even width
vanish in the thinning of Lee, Kashyap and Chu, CVGIP 56 (1994), which this one follows else. Simple points of open
cubes may be open at an edge or a corner only, so there a last step takes candidates of every direction.

Zhang and Suen's thinning (1984) is here for losses that prescribe it: it leaves corners two pixels thick, and a square
of 2 x 2 pixels vanishes.
"""

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.bits import count_ones, lowest_one, pack_lines
from topology.grids import Connectivity, as_mask, as_volume, is_closed
from topology.simple import simple_in_space, space_tables, window_in_space

DIRECTIONS, ZHANG_SUEN = np.arange(4), np.array([4, 5])
"""Steps of the two thinnings in the plane: from above, below, left, right; from south-east, north-west."""
_ONE, _LAST = np.uint64(1), np.uint64(63)


@njit(cache=True, nogil=True)
def erase(flat, at):
    """Take one pixel out of the triples."""
    flat[at - 1] &= ~np.uint8(4)
    flat[at] &= ~np.uint8(2)
    flat[at + 1] &= ~np.uint8(1)


@njit(cache=True, nogil=True)
def _left(words, at):
    return words[at] << _ONE | words[at - 1] >> _LAST


@njit(cache=True, nogil=True)
def _right(words, at):
    return words[at] >> _ONE | words[at + 1] << _LAST


@njit(cache=True, nogil=True)
def _candidates(ring, step):
    """Bits whose pixel is open on one side, simple, and no end; ring: the 8 neighbours of 64 pixels, clockwise from
    above.
    """
    n, ne, e, se, s, sw, w, nw = ring
    side = (n, s, w, e)[step]
    # Each arc of neighbours begins once behind a side that is background; one arc and an open side make a pixel simple.
    a, b, c, d = ~n & (ne | e), ~e & (se | s), ~s & (sw | w), ~w & (nw | n)
    one_arc = (a ^ b ^ c ^ d) & ~(a & b | c & d)
    several = (n | s) & (e | w) | n & (ne | nw) | s & (se | sw) | e & (ne | se) | w & (nw | sw)
    return ~side & one_arc & several


@njit(cache=True, nogil=True)
def _zhang_suen(ring, step):
    """Bits whose pixel leaves in one of the two steps of Zhang and Suen, Communications of the ACM 27 (1984)."""
    n, _, e, _, s, _, w, _ = ring
    once, twice, two, seven = np.uint64(0), np.uint64(0), np.uint64(0), ~np.uint64(0)
    for k in range(8):
        here, after = ring[k], ring[(k + 1) & 7]
        rises = ~here & after
        twice |= once & rises
        once |= rises
        # With one arc of neighbours: two or more, and seven or more.
        two |= here & after
        seven &= here | after
    open_sides = ~(e & s & (n | w)) if step == 4 else ~(n & w & (e | s))
    return once & ~twice & two & ~seven & open_sides


@njit(cache=True, nogil=True)
def _leaving(ring, step):
    return _candidates(ring, step) if step < 4 else _zhang_suen(ring, step)


@cache
def leaving_tables(*, zhang_suen: bool = False) -> np.ndarray:
    """uint8 (steps, 512): 1 where a foreground pixel with this 9-bit window code leaves in a step of the thinning."""
    codes = np.arange(512)
    bits = [np.packbits((codes >> bit & 1).astype(np.uint8), bitorder="little").view("<u8") for bit in range(9)]
    steps = ZHANG_SUEN if zhang_suen else DIRECTIONS
    tables = np.zeros((len(steps), 8), np.uint64)
    for row, step in zip(tables, steps, strict=True):
        for word in range(8):
            row[word] = bits[4][word] & _leaving(tuple(bits[bit][word] for bit in (1, 2, 5, 8, 7, 6, 3, 0)), step)
    return np.unpackbits(tables.view(np.uint8), axis=1, bitorder="little")


@njit(cache=True, nogil=True)
def _thin_words(words, steps):
    """Thin until stable; words: a framed plane, 64 pixels of a line in each, changed in place.

    A word is looked at in every step after the last change in it or beside it.
    """
    _, width = words.shape
    flat = words.ravel()
    fresh = np.uint8(steps.size)
    steps_left = np.where(flat != 0, fresh, np.uint8(0))
    where, what = np.empty(flat.size, np.int64), np.empty(flat.size, np.uint64)
    changing = True
    while changing:
        changing = False
        for step in steps:
            count = 0
            for at in range(width, flat.size - width):
                here = flat[at]
                if steps_left[at] == 0 or here == 0:
                    continue
                steps_left[at] -= np.uint8(1)
                changing = True
                up, down = at - width, at + width
                if (step == 0 and here & ~flat[up] == 0) or (step == 1 and here & ~flat[down] == 0):
                    continue
                ring = (
                    flat[up],
                    _right(flat, up),
                    _right(flat, at),
                    _right(flat, down),
                    flat[down],
                    _left(flat, down),
                    _left(flat, at),
                    _left(flat, up),
                )
                leaving = here & _leaving(ring, step)
                if leaving:
                    where[count], what[count] = at, leaving
                    count += 1
            for k in range(count):
                flat[where[k]] &= ~what[k]
                for row in (-width, 0, width):
                    steps_left[where[k] + row - 1 : where[k] + row + 2] = fresh


def _thin_plane(mask, steps):
    words = np.pad(pack_lines(mask[np.newaxis])[0], 1)
    _thin_words(words, steps)
    lines = np.ascontiguousarray(words[1:-1, 1:-1]).view(np.uint8)
    return np.unpackbits(lines, axis=1, count=mask.shape[1], bitorder="little").view(bool)


CROWD = 3
"""A voxel with one neighbour is no end point if that has as many neighbours or more."""
CANDIDATE = 8
"""Bit of a voxel's byte, beside its triple, until it is decided whether it leaves."""
WHOLE_WINDOW, FACES = 2**27 - 1, sum(1 << bit for bit in (4, 10, 12, 14, 16, 22))


@njit(cache=True, nogil=True)
def _wake(waiting, at, lines):
    """Let the 27 voxels around one wait; lines: offsets in words to the nine lines they lie in."""
    word, here = at >> 6, _ONE << np.uint64(at & 63)
    three = here << _ONE | here | here >> _ONE
    for line in lines:
        waiting[word + line] |= three
    if here == _ONE:
        for line in lines:
            waiting[word + line - 1] |= _ONE << _LAST
    if here >> _LAST:
        for line in lines:
            waiting[word + line + 1] |= _ONE


@njit(cache=True, nogil=True)
def _open(bits, word, step):
    """The foreground of 64 voxels whose neighbour at an offset of linear indices is background; 0: all foreground."""
    if step == 0:
        return bits[word]
    if step * step == 1:
        return bits[word] & ~(_left(bits, word) if step < 0 else _right(bits, word))
    return bits[word] & ~bits[word + (step >> 6)]


@njit(cache=True, nogil=True)
def _stays_beside(flat, code, at, around):
    """Whether a foreground neighbour of the voxel, by its window code, is no candidate."""
    rest = np.uint64(code)
    while rest != 0:
        if not flat[at + around[lowest_one(rest)]] & CANDIDATE:
            return True
        rest &= rest - _ONE
    return False


@njit(cache=True, nogil=True)
def _thin_space(packed, bits, steps, crowd, closed, tables):
    """Thin until stable; packed: triples of a framed volume whose lines are a multiple of 64 long, bits: its voxels as
    words; both are changed in place.

    steps  offsets of linear indices to the neighbour that must be background, 0: to none
    crowd  a voxel with one neighbour is an end point if that has fewer neighbours than this
    A voxel waits when something beside it changed since it was looked at.
    """
    _, height, width = packed.shape
    area = height * width
    flat = packed.ravel()
    around = np.array([z * area + y * width + x for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    lines = around[1::3] >> 6
    beside, flip = (WHOLE_WINDOW & ~(1 << 13), 0) if closed else (FACES, WHOLE_WINDOW)
    waiting, most = bits.copy(), 0
    for word in bits:
        most += np.int64(count_ones(word))
    places, codes = np.empty(most, np.int64), np.empty(most, np.int32)
    changing = True
    while changing:
        changing = False
        for step in steps:
            count = 0
            for word in range(area >> 6, bits.size - (area >> 6)):
                if waiting[word] == 0:
                    continue
                asked = waiting[word] & _open(bits, word, step)
                waiting[word] &= ~asked
                while asked != 0:
                    at = word << 6 | np.int64(lowest_one(asked))
                    asked &= asked - _ONE
                    code = window_in_space(flat, at, width, area)
                    near = np.uint64(code & beside)
                    if near & (near - _ONE) == 0:
                        if near == 0:
                            continue
                        other = window_in_space(flat, at + around[lowest_one(near)], width, area)
                        if count_ones(np.uint64(other & beside)) < crowd:
                            continue
                    if simple_in_space(code ^ flip, tables):
                        places[count], codes[count] = at, code
                        count += 1
            changing |= count > 0
            for at in places[:count]:
                flat[at] |= CANDIDATE
            for k in range(count):
                at = places[k]
                flat[at] &= ~np.uint8(CANDIDATE)
                code = window_in_space(flat, at, width, area)
                if not _stays_beside(flat, code & beside, at, around):
                    waiting[at >> 6] |= _ONE << np.uint64(at & 63)
                elif code == codes[k] or simple_in_space(code ^ flip, tables):
                    erase(flat, at)
                    bits[at >> 6] &= ~(_ONE << np.uint64(at & 63))
                    _wake(waiting, at, lines)


def _thin_volume(mask, closed):
    """By the kernel of space, for a plane as well: as a volume of one plane it has the same simple points."""
    volume = as_volume(mask)
    planes, rows, columns = volume.shape
    framed = np.zeros((planes + 2, rows + 2, (columns + 2 + 63) // 64 * 64), np.uint8)
    framed[1:-1, 1:-1, 1 : columns + 1] = volume
    packed = framed << 1
    packed[..., 1:] |= framed[..., :-1]
    packed[..., :-1] |= framed[..., 1:] << 2
    bits = np.packbits(framed, axis=2, bitorder="little").view("<u8").ravel()
    width = framed.shape[2]
    area = framed.shape[1] * width
    steps = [-area, area][: 2 * (mask.ndim - 2)] + [-width, width, -1, 1] + ([] if closed else [0])
    _thin_space(packed, bits, np.array(steps), CROWD if mask.ndim == 3 else 27, closed, space_tables())
    return (packed[1:-1, 1:-1, 1 : columns + 1] >> 1 & 1).reshape(mask.shape).view(bool)


def skeletonize(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> np.ndarray:
    """The one pixel wide centre lines of a mask, with exactly its Betti numbers: bool, shape of the mask.

    mask  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    Every end point of the mask is kept (in space: of a branch of three voxels or more). In the result each pixel is an
    end point or not simple, so nothing can go without breaking the topology or shortening a branch. A shape without
    arms, such as a disk or a ball, leaves one to three pixels; cavities of a volume stay, enclosed by a sheet, as
    exactness demands. Deterministic, and moves with the mask; under rotation lines may lie a pixel apart, because an
    even width has no middle.
    """
    mask = as_mask(mask)
    closed = is_closed(connectivity)
    return _thin_plane(mask, DIRECTIONS) if closed and mask.ndim == 2 else _thin_volume(mask, closed)


def zhang_suen(mask: ArrayLike) -> np.ndarray:
    """Zhang and Suen's thinning of a plane: bool, shape of the mask. Betti numbers are not always kept.

    mask  (rows, columns); every value that is not 0 is foreground
    The rule of 1984 as published; scikit-image's `skeletonize` removes some corners more. ValueError for a volume.
    """
    mask = as_mask(mask)
    if mask.ndim != 2:
        raise ValueError(f"Zhang and Suen's thinning is that of a plane; this mask has {mask.ndim} axes.")
    return _thin_plane(mask, ZHANG_SUEN)
