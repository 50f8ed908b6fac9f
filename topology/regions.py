"""Where a prediction differs from its reference, region by region, and which of these differences matter to topology.

A wrong region is a connected set of pixels that are foreground in the one mask only. It is critical when adding it, alone, to the mask
that lacks it changes a Betti number of that mask. Three local counts decide: the components it touches (b0 changes by one minus that
many), the change of the Euler characteristic over the cells it brings, and the background around it (a region within one background
component that leaves it in one piece leaves the cavities as they are). In the plane the first two suffice; in space the rare rest is
counted in full.
Source: Lux et al., "Topograph", ICLR 2025, which looks at neighbours only, in the plane; a region that joins a component to itself
in space, or a diagonal chain of pixels, needs the Euler characteristic.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from topology.components import betti_numbers, label_components, sizes_and_boxes
from topology.grids import Connectivity, as_mask, as_volume, is_closed, same_shape


@dataclass(frozen=True)
class RegionGraph:
    """The wrong regions of a prediction, what they touch, and what each would change.

    labels       int32, shape of the masks: 0 where both agree, else 1 + the position of the region
    false        (R,) bool: True foreground in the prediction only, False in the reference only
    sizes        (R,) pixels
    boxes        (R, 2, ndim) half open
    places       (R, ndim) pixel of the region nearest to its centre
    touched      (R,) components of the lacking mask that the region touches
    backgrounds  (R,) regions of common background that it touches
    changes      (R, ndim) change of each Betti number of the lacking mask when the region is added to it
    """

    labels: np.ndarray
    false: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    places: np.ndarray
    touched: np.ndarray
    backgrounds: np.ndarray
    changes: np.ndarray

    @property
    def critical(self):
        """(R,) bool: adding the region changes a Betti number."""
        return (self.changes != 0).any(axis=1)


@njit(cache=True, nogil=True)
def _local_counts(regions, lacking, components, background, near, closed, flat):
    """Change of the Euler characteristic of each region, and its (region, component) and (region, background) contacts as keys.

    All arrays are framed by one pixel; near: offsets of the foreground neighbourhood, sides first; 4 [6] of them are sides.
    """
    depth, height, width = regions.shape
    count = regions.max()
    euler = np.zeros(count + 1, np.int64)
    region = regions.ravel()
    inside = lacking.ravel()
    component = components.ravel()
    outside = background.ravel()
    sides = 4 if flat else 6
    reach = near.size if closed else sides
    reach_back = sides if closed else near.size
    contacts = np.empty(region.size, np.int64)
    borders = np.empty(region.size, np.int64)
    n = m = 0
    for at in range(region.size):
        r = np.int64(region[at])
        if r == 0:
            continue
        last = last_border = np.int64(0)
        for k in range(near.size):
            other = at + near[k]
            if k < reach and component[other] != 0 and component[other] != last:
                last = np.int64(component[other])
                if n == contacts.size:
                    contacts = np.concatenate((contacts, np.empty(n, np.int64)))
                contacts[n] = r << 32 | last
                n += 1
            if k < reach_back and outside[other] != 0 and outside[other] != last_border:
                last_border = np.int64(outside[other])
                if m == borders.size:
                    borders = np.concatenate((borders, np.empty(m, np.int64)))
                borders[m] = r << 32 | last_border
                m += 1
        for dz in range(0 if flat else -1, 1 if flat else 2):
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    euler[r] += _new_cell(region, inside, at, dz * height * width, dy * width, dx, closed, flat)
    return euler, contacts[:n], borders[:m]


@njit(cache=True, nogil=True)
def _new_cell(region, inside, at, dz, dy, dx, closed, flat):
    """Sign of the cell between a pixel and its neighbour at an offset, if the region of the pixel brings it and the pixel is its first."""
    spans = (dz != 0) + (dy != 0) + (dx != 0)
    for k in range(8):
        if (k & 1 and dx == 0) or (k & 2 and dy == 0) or (k & 4 and dz == 0):
            continue
        other = at + (dx if k & 1 else 0) + (dy if k & 2 else 0) + (dz if k & 4 else 0)
        mine = region[other] == region[at]
        if mine and other < at:
            return 0
        if closed and inside[other]:
            return 0
        if not closed and not mine and not inside[other]:
            return 0
    dimension = (2 if flat else 3) - spans if closed else spans
    return -1 if dimension & 1 else 1


def _near(shape):
    """Offsets of the neighbours of a pixel in a framed volume, those that share a side first."""
    ndim = 2 if shape[0] == 1 else 3
    steps = np.stack(np.unravel_index(np.arange(3**ndim), (3,) * ndim), axis=1) - 1
    steps = steps[np.abs(steps).sum(1) > 0]
    steps = steps[np.argsort(np.abs(steps).sum(1), kind="stable")]
    return steps @ np.array([shape[1] * shape[2], shape[2], 1])[3 - ndim :]


def _contacts_per_region(keys, count):
    return np.bincount(np.unique(keys) >> 32, minlength=count + 1)[1:]


def _places(labels, count):
    """The pixel of each label that is nearest to its centre of mass."""
    pixels = np.flatnonzero(labels)
    owner = labels.ravel()[pixels] - 1
    coordinates = np.stack(np.unravel_index(pixels, labels.shape), axis=1)
    sizes = np.bincount(owner, minlength=count)
    centres = np.stack([np.bincount(owner, weights=axis, minlength=count) for axis in coordinates.T], axis=1) / np.maximum(sizes, 1)[:, None]
    away = ((coordinates - centres[owner]) ** 2).sum(1)
    order = np.lexsort((away, owner))
    first = np.searchsorted(owner[order], np.arange(count))
    return coordinates[order[first]]


def _judge(wrong, lacking, common, connectivity):
    """Labels of the regions of one sort, and touched, backgrounds and changes of each."""
    closed, flat = is_closed(connectivity), wrong.ndim == 2
    framed = [as_volume(np.pad(m, 1)) if not flat else np.pad(m, 1)[np.newaxis] for m in (wrong, lacking)]
    shape = wrong.ndim * (slice(1, -1),)
    opposite = Connectivity.OPEN if closed else Connectivity.CLOSED
    regions, count = label_components(np.pad(wrong, 1), connectivity=connectivity)
    components, _ = label_components(np.pad(lacking, 1), connectivity=connectivity)
    background, _ = label_components(np.pad(common, 1, constant_values=1), connectivity=opposite)
    near = _near(as_volume(regions).shape)
    euler, contacts, borders = _local_counts(as_volume(regions), framed[1], as_volume(components), as_volume(background), near, closed, flat)
    touched, backgrounds = (_contacts_per_region(keys, count) for keys in (contacts, borders))
    changes = np.zeros((count, wrong.ndim), np.int64)
    changes[:, 0] = 1 - touched
    changes[:, 1] = changes[:, 0] - euler[1:]
    if not flat:
        rooms, _ = label_components(np.pad(lacking, 1) ^ 1, connectivity=opposite)
        within = regions > 0
        hosts = _contacts_per_region(regions[within].astype(np.int64) << 32 | rooms[within], count)
        for k in np.flatnonzero((backgrounds != 1) | (hosts != 1)):
            added = betti_numbers(lacking | (regions[shape] == k + 1), connectivity=connectivity)
            changes[k] = np.subtract(added, betti_numbers(lacking, connectivity=connectivity))
    return regions[shape], count, touched, backgrounds, changes


def region_graph(prediction, reference, *, connectivity=Connectivity.CLOSED):
    """The wrong regions of a prediction and which of them are critical for topology; see `RegionGraph`.

    prediction, reference  binary masks of one shape, (rows, columns) or (planes, rows, columns)
    """
    same_shape(prediction, reference)
    prediction, reference = as_mask(prediction), as_mask(reference)
    common = (prediction | reference) ^ 1
    sorts = [(prediction & (reference ^ 1), reference), (reference & (prediction ^ 1), prediction)]
    judged = [_judge(wrong, lacking, common, connectivity) for wrong, lacking in sorts]
    (extra, extras, *extra_facts), (lost, losses, *lost_facts) = judged
    labels = np.where(lost > 0, lost + np.int32(extras), extra).astype(np.int32)
    count = extras + losses
    sizes, boxes = sizes_and_boxes(labels, count)
    facts = [np.concatenate(pair) for pair in zip(extra_facts, lost_facts, strict=True)]
    return RegionGraph(labels, np.arange(count) < extras, sizes, boxes, _places(labels, count), *facts)
