"""The graph of a skeleton: nodes, branches, their lengths and widths.

A skeleton pixel with two neighbours lies on a branch. Pixels with more are junctions, and touching junction pixels are
one node; pixels with one neighbour are end points, with none isolated points. Branches are followed from node to node;
what is left over are closed curves without a node. Loops that lie wholly inside a clump of junction pixels are not
branches. Who needs only the totals need not follow anything: they are sums over pixels and their neighbours
(`skeleton_totals`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.components import count_components, label_components
from topology.distance import distance_inside
from topology.grids import Connectivity, Spacing, as_mask, as_spacing, as_volume, is_closed, same_shape


@dataclass(frozen=True)
class Node:
    """A place where branches meet or end: pixel nearest to its centre, number of branches that leave it, and its
    pixels.
    """

    position: tuple
    degree: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Branch:
    """A curve between two nodes (indices; -1, -1 for a closed curve without a node).

    pixels  (K, ndim) in order along the curve, node pixels at both ends included
    length  sum of the Euclidean steps, in the unit of the spacing
    radius  mean distance to the background along the curve, or None when no mask was given
    """

    nodes: tuple
    pixels: np.ndarray
    length: float
    radius: float | None


@dataclass(frozen=True)
class SkeletonGraph:
    """Nodes and branches of one skeleton; counts and lengths are read off them."""

    nodes: tuple
    branches: tuple
    shape: tuple

    @property
    def length(self) -> float:
        """Total length of all branches, in the unit of the spacing."""
        return float(sum(branch.length for branch in self.branches))

    @property
    def branch_points(self) -> int:
        """Number of nodes where three or more branches meet."""
        return sum(node.degree > 2 or len(node.pixels) > 1 for node in self.nodes)

    @property
    def end_points(self) -> int:
        """Number of nodes where a single branch ends."""
        return sum(node.degree == 1 and len(node.pixels) == 1 for node in self.nodes)


@njit(cache=True, nogil=True)
def _degrees(flat, pixels, around):
    degrees = np.zeros(pixels.size, np.int64)
    for k in range(pixels.size):
        for step in around:
            degrees[k] += flat[pixels[k] + step]
    return degrees


@njit(cache=True, nogil=True)
def _follow(flat, node_of, done, around, start, first, path, n):
    """Append the curve that leaves `start` by `first` until it meets a node or comes back to `start`; returns the new
    length.
    """
    path[n] = start
    n += 1
    before, at = start, first
    while True:
        path[n] = at
        n += 1
        if node_of[at] > 0 or at == start:
            return n
        done[at] = 1
        ahead = -1
        for step in around:
            if flat[at + step] and at + step != before:
                ahead = at + step
                break
        before, at = at, ahead


@njit(cache=True, nogil=True)
def _trace(flat, node_of, pixels, around):
    """All branches as one concatenated path of linear indices, with the offset of each."""
    done = np.zeros(flat.size, np.uint8)
    path = np.empty(4 * around.size * pixels.size + 4, np.int64)
    offsets = [0]
    n = 0
    for start in pixels:
        if node_of[start] == 0:
            continue
        for step in around:
            first = start + step
            if not flat[first] or done[first] or node_of[first] == node_of[start]:
                continue
            if node_of[first] > 0 and first < start:
                continue
            n = _follow(flat, node_of, done, around, start, first, path, n)
            offsets.append(n)
    for start in pixels:
        if node_of[start] > 0 or done[start]:
            continue
        done[start] = 1
        for step in around:
            if flat[start + step]:
                n = _follow(flat, node_of, done, around, start, start + step, path, n)
                offsets.append(n)
                break
    return path[:n].copy(), np.array(offsets)


def _neighbourhood(shape, full):
    """(K, 3) steps to the neighbours on a framed grid in raster order, and the (K,) offsets of linear indices they
    stand for.
    """
    steps = np.stack(np.unravel_index(np.arange(27), (3, 3, 3)), axis=1) - 1
    reach = np.abs(steps).sum(1)
    steps = steps[(reach > 0) & (full | (reach == 1)) & ((steps[:, 0] == 0) | (len(shape) == 3))]
    return steps, steps @ np.array([shape[-2] * shape[-1], shape[-1], 1])


def _label_nodes(padded, pixels, degrees, connectivity):
    """Node number from 1 of each pixel of the padded grid, 0 on branches: junction clumps first, then ends and isolated
    points.
    """
    junction = np.zeros(padded.shape, np.uint8)
    junction.ravel()[pixels[degrees > 2]] = 1
    labels, count = label_components(junction, connectivity=connectivity)
    tips = pixels[degrees < 2]
    labels.ravel()[tips] = np.arange(count + 1, count + 1 + len(tips), dtype=np.int32)
    return labels, count + len(tips)


def _make_nodes(labels, count, coordinates_of, degree):
    where = np.flatnonzero(labels.ravel())
    owner = labels.ravel()[where]
    order = np.argsort(owner, kind="stable")
    groups = (
        np.split(coordinates_of(where[order]), np.searchsorted(owner[order], np.arange(2, count + 1))) if count else []
    )
    nearest = [group[np.argmin(((group - group.mean(0)) ** 2).sum(1))] for group in groups]
    return tuple(
        Node(tuple(place.tolist()), int(d), group) for place, d, group in zip(nearest, degree, groups, strict=True)
    )


def skeleton_graph(
    skeleton: ArrayLike,
    *,
    spacing: Spacing = None,
    mask: ArrayLike | None = None,
    connectivity: Connectivity | str = Connectivity.CLOSED,
) -> SkeletonGraph:
    """Nodes and branches of a thin mask, as `topology.skeleton` makes them.

    skeleton  (rows, columns) or (planes, rows, columns)
    spacing   pixel size along each axis, e.g. in mm; lengths and radii are in its unit (None: pixels)
    mask      the object that was thinned; when given, each branch carries its mean radius
    """
    skeleton = as_mask(skeleton)
    spacing = as_spacing(spacing, skeleton.ndim)
    padded = np.pad(skeleton, 1)
    _, around = _neighbourhood(padded.shape, is_closed(connectivity))
    pixels = np.flatnonzero(padded)
    degrees = _degrees(padded.ravel(), pixels, around)
    labels, count = _label_nodes(padded, pixels, degrees, connectivity)
    path, offsets = _trace(padded.ravel(), labels.ravel(), pixels, around)

    def coordinates_of(linear):
        return np.stack(np.unravel_index(linear, padded.shape), axis=1) - 1

    coordinates = coordinates_of(path)
    steps = np.zeros(len(path))
    steps[1:] = np.sqrt((((coordinates[1:] - coordinates[:-1]) * spacing) ** 2).sum(1))
    ends = labels.ravel()[np.stack([path[offsets[:-1]], path[offsets[1:] - 1]], axis=1)].astype(int) - 1
    degree = np.bincount(ends[ends >= 0], minlength=count)
    inside = None if mask is None else distance_inside(mask, spacing=spacing)
    branches = []
    for pair, start, stop in zip(ends.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        curve = coordinates[start:stop]
        radius = None if inside is None else float(inside[tuple(curve.T)].mean())
        branches.append(Branch(tuple(pair), curve, float(steps[start + 1 : stop].sum()), radius))
    return SkeletonGraph(_make_nodes(labels, count, coordinates_of, degree), tuple(branches), skeleton.shape)


@dataclass(frozen=True)
class SkeletonTotals:
    """What a skeleton adds up to; the numbers of its `SkeletonGraph`, without the graph.

    length, length_px  total length of all branches, in the unit of the spacing and in pixels
    branch_points      places where three or more branches meet
    end_points         places where a single branch ends
    branches           curves between two of these, and closed curves
    spurs              of these, side branches that are no longer than the mask is wide where they leave: roughness of
                       the outline
    """

    length: float
    length_px: float
    branch_points: int
    end_points: int
    branches: int
    spurs: int


BRANCH, JUNCTION = 3, 4
"""Least values of a pixel in `_neighbours`: on a branch (two neighbours), of a junction (more).

2 is an end point, 1 isolated.
"""


@njit(cache=True, nogil=True)
def _neighbours(flat, around):
    """uint8 of a framed skeleton: 0 in the background, else 1 + the number of neighbours."""
    found = np.zeros(flat.size, np.uint8)
    for at in range(flat.size):
        if flat[at]:
            found[at] = 1
            for step in around:
                found[at] += flat[at + step]
    return found


@njit(cache=True, nogil=True)
def _count_steps(near, ahead, kinds):
    """Steps between neighbours by kind, without those inside a junction, and how many of them lead along a branch or
    leave a junction.

    ahead  offsets of one half of the neighbourhood, so that each pair is met once; kinds: the kind of each
    """
    steps = np.zeros(8, np.int64)
    along = leaving = np.int64(0)
    for at in range(near.size):
        here = near[at]
        if here == 0:
            continue
        for k in range(ahead.size):
            there = near[at + ahead[k]]
            if there == 0 or (here >= JUNCTION and there >= JUNCTION):
                continue
            steps[kinds[k]] += 1
            along += here == BRANCH and there == BRANCH
            leaving += here >= JUNCTION or there >= JUNCTION
    return steps, along, leaving


@njit(cache=True, nogil=True)
def _all_within(volume, z, y, x, radius, spacing):
    """Whether every pixel of a framed mask that is nearer than `radius` to a pixel is foreground."""
    depth = np.int64(0) if volume.shape[0] == 1 else np.int64(radius / spacing[0])
    height, width = np.int64(radius / spacing[1]), np.int64(radius / spacing[2])
    if y - height < 0 or x - width < 0 or z - depth < 0:
        return False
    if z + depth >= volume.shape[0] or y + height >= volume.shape[1] or x + width >= volume.shape[2]:
        return False
    for dz in range(-depth, depth + 1):
        for dy in range(-height, height + 1):
            room = radius * radius - (dz * spacing[0]) ** 2 - (dy * spacing[1]) ** 2
            if room <= 0:
                continue
            for dx in range(-width, width + 1):
                if (dx * spacing[2]) ** 2 < room and not volume[z + dz, y + dy, x + dx]:
                    return False
    return True


@njit(cache=True, nogil=True)
def _count_spurs(near, volume, around, lengths, spacing):
    """Branches from an end point to a junction of width at least their length; near and volume are framed alike."""
    area = volume.shape[1] * volume.shape[2]
    spurs = 0
    for tip in range(near.size):
        if near[tip] != 2:
            continue
        before, at, length = -1, tip, 0.0
        while near[at] == BRANCH or at == tip:
            for k in range(around.size):
                ahead = at + around[k]
                if near[ahead] != 0 and ahead != before:
                    before, at = at, ahead
                    length += lengths[k]
                    break
        if near[at] >= JUNCTION:
            z, rest = divmod(at, area)
            y, x = divmod(rest, volume.shape[2])
            spurs += _all_within(volume, z, y, x, length / 2 * (1 - 1e-9), spacing)  # equal in spite of rounding
    return spurs


def skeleton_totals(
    skeleton: ArrayLike,
    mask: ArrayLike,
    *,
    spacing: Spacing = None,
    connectivity: Connectivity | str = Connectivity.CLOSED,
) -> SkeletonTotals:
    """Total length and numbers of branches, branch points and end points of a thin mask: those of `skeleton_graph`, in
    linear time.

    skeleton  (rows, columns) or (planes, rows, columns), as `topology.skeleton` makes it of `mask`
    spacing   pixel size along each axis, e.g. in mm (None: pixels)
    returns   SkeletonTotals
    Nothing is followed but spurs. Two junction pixels that touch belong to one node, so every other step between
    neighbours lies on exactly one branch, and a branch that is no closed curve leaves a node twice. A run of pixels
    with two neighbours each has one step less than pixels unless it is closed, so closed curves are the components of
    these pixels that have no missing step.
    """
    skeleton, mask = as_mask(skeleton), as_mask(mask)
    same_shape(skeleton, mask, "Skeleton and mask")
    padded = np.pad(skeleton, 1)
    steps, around = _neighbourhood(padded.shape, is_closed(connectivity))
    volume_spacing = np.ones(3)
    volume_spacing[3 - skeleton.ndim :] = as_spacing(spacing, skeleton.ndim)
    lengths = np.sqrt(((steps * volume_spacing) ** 2).sum(1))
    near = _neighbours(padded.ravel(), around)
    half = len(steps) // 2
    kinds = np.abs(steps) @ np.array([4, 2, 1])
    taken, along, leaving = _count_steps(near, around[half:], kinds[half:])
    grid = near.reshape(padded.shape)
    on_branch, tips = int(np.count_nonzero(near == BRANCH)), int(np.count_nonzero(near == 2))
    closed_curves = count_components(grid == BRANCH, connectivity=connectivity) - (on_branch - int(along))
    px, unit = np.zeros(8), np.zeros(8)
    px[kinds], unit[kinds] = np.sqrt(np.abs(steps).sum(1)), lengths
    return SkeletonTotals(
        length=float(taken @ unit),
        length_px=float(taken @ px),
        branch_points=count_components(grid >= JUNCTION, connectivity=connectivity),
        end_points=tips,
        branches=(tips + int(leaving)) // 2 + closed_curves,
        spurs=int(_count_spurs(near, as_volume(np.pad(mask, 1)), around, lengths, volume_spacing)),
    )
