"""The graph of a skeleton: where branches meet and end, and how long and wide each branch is.

A skeleton pixel with two neighbours lies on a branch. Pixels with more are junctions, and touching junction pixels are one node;
pixels with one neighbour are end points, with none isolated points. Branches are followed from node to node; what is left over
are closed curves without a node. Loops that lie wholly inside a clump of junction pixels are not branches.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from topology.components import label_components
from topology.distance import distance_inside
from topology.grids import Connectivity, as_mask, as_spacing, is_closed


@dataclass(frozen=True)
class Node:
    """A place where branches meet or end: pixel nearest to its centre, number of branches that leave it, and its pixels."""

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
    def length(self):
        """Total length of all branches, in the unit of the spacing."""
        return float(sum(branch.length for branch in self.branches))

    @property
    def branch_points(self):
        """Number of nodes where three or more branches meet."""
        return sum(node.degree > 2 or len(node.pixels) > 1 for node in self.nodes)

    @property
    def end_points(self):
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
    """Append the curve that leaves `start` by `first` until it meets a node or comes back to `start`; returns the new length."""
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


def _offsets(shape, full):
    steps = np.array(np.meshgrid(*[[-1, 0, 1]] * len(shape), indexing="ij")).reshape(len(shape), -1).T
    reach = np.abs(steps).sum(1)
    steps = steps[(reach > 0) & (full | (reach == 1))]
    return steps @ np.array([int(np.prod(shape[k + 1 :])) for k in range(len(shape))])


def _label_nodes(padded, pixels, degrees, connectivity):
    """Node number from 1 of each pixel of the padded grid, 0 on branches: junction clumps first, then ends and isolated points."""
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
    groups = np.split(coordinates_of(where[order]), np.searchsorted(owner[order], np.arange(2, count + 1))) if count else []
    nearest = [group[np.argmin(((group - group.mean(0)) ** 2).sum(1))] for group in groups]
    return tuple(Node(tuple(place.tolist()), int(d), group) for place, d, group in zip(nearest, degree, groups, strict=True))


def skeleton_graph(skeleton, *, spacing=None, mask=None, connectivity=Connectivity.CLOSED):
    """Nodes and branches of a thin mask, as `topology.skeleton` makes them.

    skeleton  (rows, columns) or (planes, rows, columns)
    spacing   pixel size along each axis, e.g. in mm; lengths and radii are in its unit (None: pixels)
    mask      the object that was thinned; when given, each branch carries its mean radius
    """
    skeleton = as_mask(skeleton)
    spacing = as_spacing(spacing, skeleton.ndim)
    padded = np.pad(skeleton, 1)
    around = _offsets(padded.shape, is_closed(connectivity))
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
