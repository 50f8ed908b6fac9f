"""Connected components, holes and Euler characteristic of a mask.

A line of the array is cut into runs (maximal intervals of foreground). Runs are boxes, so by the nerve theorem the mask
is as connected as the graph of touching runs: components come from union-find over runs, not over pixels. The Euler
characteristic needs no union at all: vertices minus edges along one line is the number of runs of the OR (closed cubes)
or AND (open cubes) of the lines around it, which is a bit count. In the plane the loops follow as b1 = b0 - chi; in
space the cavities are the background components that the outside does not reach, and b1 = b0 + b2 - chi.
"""

from typing import Any

import cc3d
import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.bits import Whole, count_ones, lowest_one, pack_lines
from topology.grids import Connectivity, as_mask, as_volume, is_closed


@njit(cache=True, nogil=True)
def _runs_of_line(words, columns, complement, starts, stops, n):
    """Append the runs of one packed line (of its complement when asked); returns the new count."""
    carry = np.uint64(0)
    inside = False
    for w in range(words.size):
        word = words[w]
        if complement:
            word = ~word
            left = columns - 64 * w
            if left < 64:
                word &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
        change = word ^ ((word << np.uint64(1)) | carry)
        carry = word >> np.uint64(63)
        while change != 0:
            column = 64 * w + np.int64(lowest_one(change))
            change &= change - np.uint64(1)
            if inside:
                stops[n] = column
                n += 1
            else:
                starts[n] = column
            inside = not inside
    if inside:
        stops[n] = columns
        n += 1
    return n


@njit(cache=True, nogil=True)
def _count_runs(packed, columns, complement):
    """Number of runs in all lines."""
    total = np.int64(0)
    planes, rows, words = packed.shape
    for z in range(planes):
        for y in range(rows):
            carry = np.uint64(0)
            for w in range(words):
                word = packed[z, y, w]
                if complement:
                    word = ~word
                    left = columns - 64 * w
                    if left < 64:
                        word &= (np.uint64(1) << np.uint64(left)) - np.uint64(1)
                total += np.int64(count_ones(word & ~((word << np.uint64(1)) | carry)))
                carry = word >> np.uint64(63)
    return total


@njit(cache=True, nogil=True)
def root_of(parent: np.ndarray, node: Whole) -> Whole:
    """Oldest ancestor of a node, halving the path on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def _join_lines(starts, stops, parent, a, a_stop, b, b_stop, reach):
    """Union the touching runs of two neighbouring lines; returns how many unions joined two components."""
    unions = 0
    while a < a_stop and b < b_stop:
        if starts[a] < stops[b] + reach and starts[b] < stops[a] + reach:
            ra = root_of(parent, a)
            rb = root_of(parent, b)
            if ra != rb:
                unions += 1
                if ra < rb:
                    parent[rb] = ra
                else:
                    parent[ra] = rb
        if stops[a] < stops[b]:
            a += 1
        else:
            b += 1
    return unions


@njit(cache=True, nogil=True)
def _unite_runs(packed, columns, complement, full, outside, flat):
    """Runs of a volume and their union-find forest (parent = smaller index = earlier in raster order).

    full: runs touch at corners too. outside: one more run, index 0, that touches every run at the border; flat: planes
    have no border. Returns starts, stops, first run of each line, parent, number of components (the outside included
    when asked).
    """
    planes, rows, _ = packed.shape
    n = np.int64(1 if outside else 0)
    total = _count_runs(packed, columns, complement) + n
    starts = np.empty(total, np.int32)
    stops = np.empty(total, np.int32)
    first = np.empty(planes * rows + 1, np.int64)
    parent = np.arange(total).astype(np.int32)
    components = total
    reach = 1 if full else 0
    for z in range(planes):
        for y in range(rows):
            line = z * rows + y
            first[line] = n
            stop = _runs_of_line(packed[z, y], columns, complement, starts, stops, n)
            if outside:
                edge_line = (not flat and (z == 0 or z == planes - 1)) or y == 0 or y == rows - 1
                for r in range(n, stop):
                    if edge_line or starts[r] == 0 or stops[r] == columns:
                        root = root_of(parent, np.int64(r))
                        if root != 0:
                            parent[root] = 0
                            components -= 1
            if y > 0:
                components -= _join_lines(starts, stops, parent, n, stop, first[line - 1], n, reach)
            if z > 0:
                above = line - rows
                components -= _join_lines(starts, stops, parent, n, stop, first[above], first[above + 1], reach)
                if full and y > 0:
                    components -= _join_lines(starts, stops, parent, n, stop, first[above - 1], first[above], reach)
                if full and y < rows - 1:
                    components -= _join_lines(starts, stops, parent, n, stop, first[above + 1], first[above + 2], reach)
            n = stop
    first[planes * rows] = n
    return starts, stops, first, parent, components


@njit(cache=True, nogil=True)
def _combined_runs(packed, corners, closed):
    """Runs of the lines combined over the given corner offsets, summed over all positions of the corner.

    Closed cubes OR the lines around a grid line (positions reach one past the array); open cubes AND them (one short).
    """
    planes, rows, words = packed.shape
    reach_z = corners[0]
    reach_y = corners[1]
    total = np.int64(0)
    low_z, high_z = (-reach_z, planes) if closed else (0, planes - reach_z)
    low_y, high_y = (-reach_y, rows) if closed else (0, rows - reach_y)
    for z in range(low_z, high_z):
        for y in range(low_y, high_y):
            carry = np.uint64(0)
            for w in range(words):
                word = np.uint64(0) if closed else ~np.uint64(0)
                for dz in range(reach_z + 1):
                    for dy in range(reach_y + 1):
                        zz = z + dz
                        yy = y + dy
                        if 0 <= zz < planes and 0 <= yy < rows:
                            if closed:
                                word |= packed[zz, yy, w]
                            else:
                                word &= packed[zz, yy, w]
                total += np.int64(count_ones(word & ~((word << np.uint64(1)) | carry)))
                carry = word >> np.uint64(63)
    return total


@njit(cache=True, nogil=True)
def _euler(packed, flat, closed):
    """Euler characteristic by inclusion and exclusion over lines; flat: the volume is one plane."""
    line = _combined_runs(packed, (0, 0), closed)
    across = _combined_runs(packed, (0, 1), closed)
    if flat:
        return across - line if closed else line - across
    through = _combined_runs(packed, (1, 0), closed)
    both = _combined_runs(packed, (1, 1), closed)
    return both - across - through + line if closed else line - across - through + both


def euler_characteristic(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> int:
    """Components minus loops plus cavities of a mask, from local counts alone.

    mask  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    If the answer depends strongly on `connectivity`, the resolution is too low for the structure.
    """
    mask = as_mask(mask)
    return int(_euler(pack_lines(as_volume(mask)), mask.ndim == 2, is_closed(connectivity)))


def count_components(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> int:
    """The number of components of a mask, b0 alone; the cheapest of all counts."""
    mask = as_mask(mask)
    return int(
        _unite_runs(pack_lines(as_volume(mask)), mask.shape[-1], False, is_closed(connectivity), False, mask.ndim == 2)[
            4
        ]
    )


def betti_numbers(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> tuple[int, ...]:
    """Numbers of components, loops and (in space) cavities: (b0, b1) or (b0, b1, b2).

    mask  (rows, columns) or (planes, rows, columns); every value that is not 0 is foreground
    The outside is background, so a component that touches the border counts like any other, and a gap at the border is
    no loop.
    """
    mask = as_mask(mask)
    closed = is_closed(connectivity)
    columns = mask.shape[-1]
    packed = pack_lines(as_volume(mask))
    euler = int(_euler(packed, mask.ndim == 2, closed))
    components = int(_unite_runs(packed, columns, False, closed, False, mask.ndim == 2)[4])
    if mask.ndim == 2:
        return components, components - euler
    cavities = int(_unite_runs(packed, columns, True, not closed, True, False)[4]) - 1
    return components, components + cavities - euler, cavities


@njit(cache=True, nogil=True)
def _paint(labels, starts, stops, first, parent, skip):
    """Write a label into every run; labels count from 1 in raster order of the first pixel. Returns how many."""
    count = np.int32(0)
    name = np.zeros(parent.size, np.int32)
    rows = labels.shape[1]
    for line in range(first.size - 1):
        for r in range(first[line], first[line + 1]):
            root = root_of(parent, np.int64(r))
            if root < skip:
                continue
            if name[root] == 0:
                count += np.int32(1)
                name[root] = count
            labels[line // rows, line % rows, starts[r] : stops[r]] = name[root]
    return count


def _label(mask, complement, full, outside):
    volume = as_volume(mask)
    starts, stops, first, parent, _ = _unite_runs(
        pack_lines(volume), mask.shape[-1], complement, full, outside, mask.ndim == 2
    )
    labels = np.zeros(volume.shape, np.int32)
    count = _paint(labels, starts, stops, first, parent, 1 if outside else 0)
    return labels.reshape(mask.shape), int(count)


def label_components(
    mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED
) -> tuple[np.ndarray, int]:
    """A number for each foreground component: (int32 labels, count), 0 for background, 1.. in raster order of the first
    pixel.

    In space components that join through edges and corners are cc3d's, which is half as fast again as runs there; runs
    are as fast or faster everywhere else (benchmarks/kernels.py).
    """
    mask = as_mask(mask)
    if mask.ndim == 3 and is_closed(connectivity):
        return number_components(mask, 26)
    return _label(mask, False, is_closed(connectivity), False)


def number_components(labels: np.ndarray, neighbours: int) -> tuple[np.ndarray, int]:
    """Numbers of the components of every class of a volume, by cc3d: as of `label_components`.

    labels      (planes, rows, columns) whole numbers, 0 for background
    neighbours  6, 18 or 26
    """
    around: Any = neighbours
    numbers, count = cc3d.connected_components(labels, connectivity=around, return_N=True, out_dtype=np.uint32)
    return numbers.view(np.int32), count


def label_background(
    mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED
) -> tuple[np.ndarray, int]:
    """A number for each background component, border ones apart: cells between membranes. Foreground is 0."""
    return _label(as_mask(mask), True, not is_closed(connectivity), False)


def label_holes(mask: ArrayLike, *, connectivity: Connectivity | str = Connectivity.CLOSED) -> tuple[np.ndarray, int]:
    """A number for each enclosed background component (hole in the plane, cavity in space); foreground and outside are
    0.
    """
    return _label(as_mask(mask), True, not is_closed(connectivity), True)


@njit(cache=True, nogil=True)
def _measure_labels(labels, count):
    """(count, 7) int64: size, then start and stop of the box along each of three axes."""
    facts = np.zeros((count, 7), np.int64)
    facts[:, 1:4] = 2**31
    planes, rows, columns = labels.shape
    for z in range(planes):
        for y in range(rows):
            for x in range(columns):
                label = labels[z, y, x]
                if label > 0:
                    row = facts[label - 1]
                    row[0] += 1
                    row[1] = min(row[1], z)
                    row[2] = min(row[2], y)
                    row[3] = min(row[3], x)
                    row[4] = max(row[4], z + 1)
                    row[5] = max(row[5], y + 1)
                    row[6] = max(row[6], x + 1)
    return facts


def sizes_and_boxes(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each label, (count,), and its half-open box, (count, 2, ndim): start row, then stop row."""
    facts = _measure_labels(as_volume(labels), count)
    boxes = np.stack([facts[:, 1:4], facts[:, 4:7]], axis=1)
    return facts[:, 0], boxes[:, :, 3 - labels.ndim :]
