"""Regions where a prediction differs from its reference, and which change the topology.

A wrong region is a connected set of pixels that are foreground in the one mask only. It is critical when adding it,
alone, to the mask that lacks it changes a Betti number of that mask. Two local counts decide in the plane: the
components it touches (b0 changes by one minus that many), and the change of the Euler characteristic over the cells it
brings. In space a region that lies within one background component and leaves it in one piece leaves the cavities as
they are; the rare rest is counted in full.

Equal numbers need not mean the same features: a region may fill one loop and close another. So it is also asked whether
a region fills all of a background component of the mask, and whether the cells that it shares with the mask are in one
piece. In the plane this is exact: when no number changes and no background component is filled, every component of
foreground and background has its one successor. In space it is necessary only, and regions that are harmless one by
one need not be so together: two may fill the same tunnel, each bringing a handle of its own. So where no region is
found and the Betti numbers of the masks differ all the same, every region counts that has a loop of its own, or one in
what it shares.

Every pixel has one of four colours: background in both masks, extra, lost, foreground in both. A line of the array is
cut into runs of one colour, and one sweep over touching runs builds three union-find forests: wrong regions, components
of the prediction, components of the reference. What a region touches is read from the same pairs of runs, so nothing
else is ever labelled in the plane. Source: Lux et al., "Topograph", ICLR 2025, which looks at neighbours only, in the
plane; a region that joins a component to itself in space, or a diagonal chain of pixels, needs the Euler
characteristic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.components import betti_numbers, label_components, root_of, sizes_and_boxes
from topology.grids import Connectivity, as_mask, as_volume, is_closed, same_shape

EXTRA, LOST = 1, 2
"""Colours of wrong pixels, and the bits of the masks: prediction 1, reference 2.

The mask that lacks a colour is the other bit.
"""


@dataclass(frozen=True)
class RegionGraph:
    """The wrong regions of a prediction, what they touch, and what each would change.

    prediction, reference  uint8 0/1 masks, as compared
    connectivity           how their foreground is connected
    labels                 int32, shape of the masks: 0 where both agree, else 1 + the position of the region
    false                  (R,) bool: True foreground in the prediction only (these come first), False in the reference
                           only
    sizes                  (R,) pixels
    touched                (R,) components of the lacking mask that the region touches
    contacts               (R,) pieces of the faces, edges and corners that the region shares with the lacking mask;
                           0 where cubes are open, which share none
    fills                  (R,) bool: a background component of the lacking mask lies in the region; False where cubes
                           are open, for which it is not asked
    euler                  (R,) change of the Euler characteristic of the lacking mask when the region is added to it
    """

    prediction: np.ndarray
    reference: np.ndarray
    connectivity: Connectivity
    labels: np.ndarray
    false: np.ndarray
    sizes: np.ndarray
    touched: np.ndarray
    contacts: np.ndarray
    fills: np.ndarray
    euler: np.ndarray

    @cached_property
    def changes(self) -> np.ndarray:
        """(R, ndim) change of each Betti number of the lacking mask when the region is added to it."""
        changes = np.zeros((len(self.sizes), self.labels.ndim), np.int64)
        changes[:, 0] = 1 - self.touched
        changes[:, 1] = changes[:, 0] - self.euler
        for k in np.flatnonzero(self._may_change_cavities):
            changes[k] = self._counted(k)
        return changes

    @cached_property
    def critical(self) -> np.ndarray:
        """(R,) bool: adding the region changes a Betti number; cheaper than `changes`, because two counts settle almost
        all.
        """
        critical = (self.touched != 1) | (self.euler != 0)
        if not critical.all():
            for k in np.flatnonzero(~critical & self._may_change_cavities):
                critical[k] = self._counted(k).any()
        return critical

    @cached_property
    def relevant(self) -> np.ndarray:
        """(R,) bool: topology depends on the region: it is critical, or moves a feature to another place, or, in space,
        does so together with others. Where none is, all Betti numbers of the two masks are equal, and in the plane each
        feature is in its place. For closed cubes (ValueError otherwise).
        """
        if not is_closed(self.connectivity):
            raise ValueError("Which regions are relevant is known for connectivity 'closed' only; ask `critical`.")
        relevant = self.critical | (self.contacts != 1) | self.fills
        if self.labels.ndim == 3 and len(relevant) and not relevant.any() and self._numbers_differ:
            return np.array([self._has_loop(k) for k in range(len(relevant))])
        return relevant

    @property
    def _numbers_differ(self):
        ours, theirs = (
            betti_numbers(each, connectivity=self.connectivity) for each in (self.prediction, self.reference)
        )
        return ours != theirs

    def _has_loop(self, k):
        """True when region k, or what it shares with the lacking mask, has a loop."""
        low, high = self.boxes[k]
        near = tuple(slice(max(start - 1, 0), stop + 1) for start, stop in zip(low, high, strict=True))
        region = self.labels[near] == k + 1
        shared = shared_cells(region, self._lacking(k)[near] > 0)
        return betti_numbers(region)[1] > 0 or betti_numbers(shared, connectivity=Connectivity.OPEN)[1] > 0

    @cached_property
    def boxes(self) -> np.ndarray:
        """(R, 2, ndim) half open."""
        return sizes_and_boxes(self.labels, len(self.sizes))[1]

    @cached_property
    def places(self) -> np.ndarray:
        """(R, ndim) pixel of the region nearest to its centre of mass."""
        pixels = np.flatnonzero(self.labels)
        owner = self.labels.ravel()[pixels] - 1
        coordinates = np.stack(np.unravel_index(pixels, self.labels.shape), axis=1)
        centres = (
            np.stack([np.bincount(owner, weights=axis, minlength=len(self.sizes)) for axis in coordinates.T], axis=1)
            / self.sizes[:, None]
        )
        order = np.lexsort((((coordinates - centres[owner]) ** 2).sum(1), owner))
        return coordinates[order[np.searchsorted(owner[order], np.arange(len(self.sizes)))]]

    def _lacking(self, k):
        return self.reference if self.false[k] else self.prediction

    def _counted(self, k):
        """Changes of all Betti numbers by region k, from the whole array."""
        before, after = (
            betti_numbers(mask, connectivity=self.connectivity)
            for mask in (self._lacking(k), self._lacking(k) | (self.labels == k + 1))
        )
        return np.subtract(after, before)

    @cached_property
    def _may_change_cavities(self):
        """(R,) bool: the region is not in one background component of the lacking mask alone, or may tear that one;
        never in the plane.
        """
        if self.labels.ndim == 2:
            return np.zeros(len(self.sizes), bool)
        opposite = Connectivity.OPEN if is_closed(self.connectivity) else Connectivity.CLOSED
        outsides = [np.pad(mask, 1) ^ 1 for mask in (self.prediction | self.reference, self.prediction, self.reference)]
        parts = [label_components(outside, connectivity=opposite)[0] for outside in outsides]
        return ~_in_one_component(
            np.pad(self.labels, 1), self.false, *parts, _near(parts[0].shape, not is_closed(self.connectivity))
        )


def shared_cells(region: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The cells of the grid that the closed cubes of two disjoint masks share: bool, (2 side + 1) a side.

    region, mask  bool, of one shape; pixels lie at odd places of the answer, their faces, edges and corners between
    Its Betti numbers as a mask of its own, 4 [6]-connected, are those of the shared cells as a complex.
    """
    grids = []
    for pixels in (region, mask):
        cells = np.zeros([2 * side + 1 for side in pixels.shape], bool)
        cells[(slice(1, None, 2),) * pixels.ndim] = pixels
        for axis in range(pixels.ndim):
            along = np.moveaxis(cells, axis, 0)
            along[:-1] |= np.moveaxis(cells.copy(), axis, 0)[1:]
            along[2::2] |= along[1::2]
        grids.append(cells)
    return grids[0] & grids[1]


def _near(shape, full):
    """Offsets of the neighbours of a voxel: 26, or the six that share a side."""
    steps = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=1) - 1
    apart = np.abs(steps).sum(1)
    return steps[(apart > 0) & (full | (apart == 1))] @ np.array([shape[1] * shape[2], shape[2], 1])


@njit(cache=True, nogil=True)
def _in_one_component(labels, false, common, beside_prediction, beside_reference, near):
    """(R,) bool: all of a region lies in one background component of the lacking mask, and touches one of the common
    background.
    """
    flat, shared = labels.ravel(), common.ravel()
    parts = (beside_prediction.ravel(), beside_reference.ravel())
    hosts, borders = np.zeros(false.size, np.int64), np.zeros(false.size, np.int64)
    single = np.ones(false.size, np.bool_)
    for at in np.flatnonzero(flat):
        k = flat[at] - 1
        part = parts[1][at] if false[k] else parts[0][at]
        if hosts[k] == 0:
            hosts[k] = part
        single[k] &= hosts[k] == part
        for step in near:
            border = shared[at + step]
            if border != 0:
                if borders[k] == 0:
                    borders[k] = border
                single[k] &= borders[k] == border
    return single & (borders > 0)


@njit(cache=True, nogil=True)
def _cut(colours):
    """Runs of one colour but background, as start and stop in the raveled array; and the first run of each line."""
    width = colours.shape[2]
    flat = colours.ravel()
    starts, stops = np.empty(flat.size, np.int64), np.empty(flat.size, np.int64)
    first = np.empty(flat.size // width + 1, np.int64)
    n = 0
    for line in range(first.size - 1):
        first[line] = n
        last = np.uint8(0)
        for at in range(line * width, line * width + width):
            colour = flat[at]
            if colour != last:
                if last != 0:
                    stops[n] = at
                    n += 1
                starts[n] = at
                last = colour
    first[-1] = n
    return starts[:n].copy(), stops[:n].copy(), first


@njit(cache=True, nogil=True)
def _unite(parent, a, b):
    a, b = root_of(parent, a), root_of(parent, b)
    parent[max(a, b)] = min(a, b)


@njit(cache=True, nogil=True)
def _meetings(starts, stops, first, full, width, height):
    """(M, 2) pairs of runs that touch; full: at corners too; width, height: pixels in a line and lines in a plane,
    framed.
    """
    reach = 1 if full else 0
    pairs = np.empty(
        (17 * starts.size, 2), np.int32
    )  # in one line, and with four lines before; untouched pages cost nothing
    n = 0
    for line in range(first.size - 1):
        a_stop = first[line + 1]
        for a in range(first[line] + 1, a_stop):
            if starts[a] == stops[a - 1]:
                pairs[n, 0], pairs[n, 1] = a - 1, a
                n += 1
        # In the plane of the line, the one before; in the plane before, those within a line (full) or the same.
        for back in (1, height - 1, height, height + 1):
            if back > line or (not full and back != 1 and back != height):
                continue
            shift = back * width
            a, b, b_stop = first[line], first[line - back], first[line - back + 1]
            while a < a_stop and b < b_stop:
                stop = stops[b] + shift
                if starts[a] < stop + reach and starts[b] + shift < stops[a] + reach:
                    pairs[n, 0], pairs[n, 1] = a, b
                    n += 1
                if (
                    stops[a] == stop and a + 1 < a_stop and starts[a + 1] < stop + reach
                ):  # the run that follows a meets b in a corner
                    pairs[n, 0], pairs[n, 1] = a + 1, b
                    n += 1
                if stops[a] < stop:
                    a += 1
                else:
                    b += 1
    return pairs[:n]


@njit(cache=True, nogil=True)
def _grow(pairs, hues):
    """Forests over runs: of wrong regions, of the prediction, of the reference; and the pairs as (wrong run, run of the
    mask that lacks it).
    """
    forests = np.empty((3, hues.size), np.int32)
    for run in range(hues.size):
        forests[0, run] = forests[1, run] = forests[2, run] = run
    contacts = np.empty((2 * len(pairs), 2), np.int32)
    n = 0
    for k in range(len(pairs)):
        a, b = pairs[k, 0], pairs[k, 1]
        mine, other = hues[a], hues[b]
        if mine & other & EXTRA:
            _unite(forests[EXTRA], a, b)
        if mine & other & LOST:
            _unite(forests[LOST], a, b)
        if mine == other:
            if mine != EXTRA + LOST:
                _unite(forests[0], a, b)
            continue
        if mine != EXTRA + LOST:
            contacts[n, 0], contacts[n, 1] = a, b
            n += 1
        if other != EXTRA + LOST:
            contacts[n, 0], contacts[n, 1] = b, a
            n += 1
    return forests, contacts[:n]


@njit(cache=True, nogil=True)
def _number(hues, forest):
    """Number of the region of each wrong run (0: not wrong), extra regions first, each sort in raster order; and how
    many, all and extra.
    """
    numbers = np.zeros(hues.size, np.int64)
    count = extras = 0
    for sort in (EXTRA, LOST):
        for run in range(hues.size):
            if hues[run] == sort:
                root = root_of(forest, run)
                if root == run:
                    count += 1
                    numbers[run] = count
                numbers[run] = numbers[root]
        if sort == EXTRA:
            extras = count
    return numbers, count, extras


@njit(cache=True, nogil=True)
def _touched(numbers, hues, forests, contacts, count):
    """(R,) different components of the lacking mask among the contacts of each region."""
    place = np.zeros(count + 2, np.int64)
    for k in range(contacts.shape[0]):
        place[numbers[contacts[k, 0]] + 1] += 1
    place = np.cumsum(place)
    components = np.empty(contacts.shape[0], np.int64)
    for k in range(contacts.shape[0]):
        run = contacts[k, 0]
        components[place[numbers[run]]] = root_of(forests[EXTRA + LOST - hues[run]], contacts[k, 1])
        place[numbers[run]] += 1
    seen = np.zeros(hues.size, np.int64)
    touched = np.zeros(count, np.int64)
    for region in range(1, count + 1):
        for k in range(place[region - 1], place[region]):
            touched[region - 1] += seen[components[k]] != region
            seen[components[k]] = region
    return touched


@njit(cache=True, nogil=True)
def _joins(parent, low, halves, steps, mine, lacking):
    """How many pieces fewer the edges that end at a shared corner leave.

    low     index of the corner, that of the first pixel around it
    halves  for each axis, the pixels around the corner before it: those around the edge that comes from there
    """
    fewer = 0
    for axis in range(halves.size):
        if mine & halves[axis] and lacking & halves[axis]:
            a, b = root_of(parent, low), root_of(parent, low - steps[axis])
            if a != b:
                parent[max(a, b)] = min(a, b)
                fewer += 1
    return fewer


@njit(cache=True, nogil=True)
def _meet(labels, colours, places, full, around, count):
    """(R,) change of the Euler characteristic of the lacking mask by each region, summed over the corners that its
    pixels share, and, where cubes are closed (full), (R,) pieces of what the two share.

    places  raveled indices of the wrong pixels
    around  what `_corners` says of the corners of a pixel
    """
    corners, chi, halves, steps = around
    region, colour = labels.ravel(), colours.ravel()
    euler, pieces = np.zeros(count, np.int64), np.zeros(count, np.int64)
    # Closed cubes: a corner is shared by at most one region of each colour.
    parents = np.empty((2, colour.size if full else 0), np.int32)
    for k in range(parents.shape[1]):
        parents[0, k] = parents[1, k] = k
    for at in places:
        mine = region[at]
        lacking = EXTRA + LOST - colour[at]
        for corner in range(corners.shape[0]):
            before = after = 0
            for k in range(corners.shape[1]):
                other = at + corners[corner, k]
                if region[other] == mine:
                    if other < at:  # that pixel counts this corner
                        before = after = 0
                        break
                    after |= 1 << k
                elif colour[other] & lacking:
                    before |= 1 << k
                    after |= 1 << k
            euler[mine - 1] += chi[after] - chi[before]
            if full and before:
                fewer = _joins(parents[lacking - 1], at + corners[corner, 0], halves, steps, after & ~before, before)
                pieces[mine - 1] += 1 - fewer
    return euler, pieces


@njit(cache=True, nogil=True)
def _filled(labels, colours, places, steps, count):
    """(R,) bool: some piece of a region, joined by sides, touches no background: all of a background component of the
    lacking mask, whose pixels are joined by sides where cubes are closed.
    """
    region, colour = labels.ravel(), colours.ravel()
    piece = np.zeros(region.size, np.int32)
    open_ = np.zeros(places.size + 1, np.uint8)
    forest = np.arange(places.size + 1)
    for k in range(places.size):
        at = places[k]
        piece[at] = k + 1
    for at in places:
        for step in steps:
            if region[at - step] == region[at]:
                a, b = root_of(forest, np.int64(piece[at])), root_of(forest, np.int64(piece[at - step]))
                forest[max(a, b)] = min(a, b)
    for at in places:
        for step in steps:
            if colour[at - step] == 0 or colour[at + step] == 0:
                open_[root_of(forest, np.int64(piece[at]))] = 1
    fills = np.zeros(count, np.bool_)
    for at in places:
        if not open_[root_of(forest, np.int64(piece[at]))]:
            fills[region[at] - 1] = True
    return fills


@njit(cache=True, nogil=True)
def _compare(colours, full, around):
    """Framed labels, how many regions are extra, and sizes, touched, contacts, fills and Euler changes of all; colours:
    framed uint8, 3-D.
    """
    starts, stops, first = _cut(colours)
    hues = colours.ravel()[starts]
    forests, contacts = _grow(_meetings(starts, stops, first, full, colours.shape[2], colours.shape[1]), hues)
    numbers, count, extras = _number(hues, forests[0])
    labels = np.zeros(colours.shape, np.int32)
    flat = labels.ravel()
    sizes = np.zeros(count, np.int64)
    places = np.empty(colours.size, np.int64)
    n = 0
    for run in range(hues.size):
        if numbers[run] != 0:
            sizes[numbers[run] - 1] += stops[run] - starts[run]
            for at in range(starts[run], stops[run]):
                flat[at] = numbers[run]
                places[n] = at
                n += 1
    touched = _touched(numbers, hues, forests, contacts, count)
    euler, contacts = _meet(labels, colours, places[:n], full, around, count)
    fills = _filled(labels, colours, places[:n], around[3], count) if full else np.zeros(count, np.bool_)
    return labels, extras, sizes, touched, contacts, fills, euler


@cache
def _corner_parts(ndim, closed):
    """For every pattern of the 2^ndim pixels around a grid corner, 2^ndim times its part of the Euler characteristic.

    A cell with a corner here has 2^dimension corners, and pays each an equal part. Closed cubes: a cell is there when a
    pixel around it is; open ones: a cell stands for the dual one, there when all pixels around it are.
    """
    around = np.stack(np.unravel_index(np.arange(2**ndim), (2,) * ndim), axis=1)
    parts = np.zeros(2**2**ndim, np.int64)
    for pattern in range(parts.size):
        inside = np.array([pattern >> k & 1 for k in range(2**ndim)], bool)
        for cell in np.ndindex((3,) * ndim):  # along each axis: the low side, the high side, or across the corner
            chosen = inside[[all(c in (2, s) for c, s in zip(cell, side, strict=True)) for side in around]]
            across = cell.count(2)
            dimension = ndim - across if closed else across
            if chosen.any() if closed else chosen.all():
                parts[pattern] += (-1) ** dimension * 2**across
    return parts


@cache
def _corners(ndim, strides, closed):
    """What `_meet` knows of the K = 2^ndim pixels around a corner of a pixel: (K, K) their offsets from the pixel, for
    each corner; `_corner_parts`; for each axis the pixels before the corner; offset of a step along each axis.
    """
    around = np.stack(np.unravel_index(np.arange(2**ndim), (2,) * ndim), axis=1)
    offsets = (around[None] - around[:, None]) @ np.array(strides)
    halves = (1 << np.arange(2**ndim)) @ (around == 0)
    return offsets, _corner_parts(ndim, closed), halves, np.array(strides)


def region_graph(
    prediction: ArrayLike, reference: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED
) -> RegionGraph:
    """The wrong regions of a prediction and which of them are critical for topology; see `RegionGraph`.

    prediction, reference  binary masks of one shape, (rows, columns) or (planes, rows, columns)
    """
    same_shape(prediction, reference)
    prediction, reference = as_mask(prediction), as_mask(reference)
    ndim, closed = prediction.ndim, is_closed(connectivity)
    colours = np.zeros([side + 2 for side in prediction.shape], np.uint8)
    inside = ndim * (slice(1, -1),)
    colours[inside] = prediction | reference << 1
    labels, extras, sizes, touched, contacts, fills, euler = _compare(
        as_volume(colours), closed, _corners(ndim, colours.strides, closed)
    )
    labels = labels.reshape(colours.shape)[inside]
    return RegionGraph(
        prediction,
        reference,
        Connectivity(connectivity),
        labels,
        np.arange(len(sizes)) < extras,
        sizes,
        touched,
        contacts,
        fills,
        euler // 2**ndim,
    )
