"""Controls of a comparison: what a mask is worth after edits that know nothing."""

from __future__ import annotations

import numpy as np


class RandomRepair:
    """Changes masks by as many random edits as they have wrong features; the k-th image draws from the k-th generator,
    so that how much is edited in one changes nothing in the next.
    """

    def __init__(self, seed: int):
        self._seed, self._drawn = seed, 0

    def __call__(self, masks: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Masks (K, ...) bool of an image, edited; `references` of the same shape say how many edits each gets."""
        from topology.components import betti_numbers

        rng = np.random.default_rng([self._seed, self._drawn, 5])
        self._drawn += 1
        wrong = [
            sum(abs(a - b) for a, b in zip(betti_numbers(mask), betti_numbers(reference), strict=True))
            for mask, reference in zip(masks, references, strict=True)
        ]
        return np.stack([random_repair(mask, edits, rng) for mask, edits in zip(masks, wrong, strict=True)])


def random_repair(mask: np.ndarray, edits: int, rng: np.random.Generator) -> np.ndarray:
    """The mask (...) bool after so many topology edits at random places: a component removed, or joined to the nearest
    other one by a straight line, or a hole (in volumes a cavity) filled; the kind and the place are drawn.

    It ends early where nothing is left to edit: one component without holes. What a repair that looks must beat: it
    lowers Betti errors of masks with too many features, too, and cannot put the right feature into the right place.
    Source: the random repair baseline of topocheck; ours also fills holes.
    """
    from topology.components import label_components, label_holes  # compiled kernels: loaded where they are asked for

    mask = mask.copy()
    for _ in range(edits):
        (parts, count), (holes, pits) = label_components(mask), label_holes(mask)
        kinds = [kind for kind, possible in ((_remove, count > 1), (_join, count > 1), (_fill, pits > 0)) if possible]
        if not kinds:
            break
        kind = kinds[rng.integers(len(kinds))]
        labels, number = (holes, pits) if kind is _fill else (parts, count)
        kind(mask, labels, 1 + rng.integers(number))
    return mask


def _remove(mask, parts, number):
    mask[parts == number] = False


def _fill(mask, holes, number):
    mask[holes == number] = True


def _join(mask, parts, number):
    """Draw the straight line of pixels from a component to the nearest pixel of any other one."""
    from scipy import ndimage

    others = mask & (parts != number)
    away, nearest = ndimage.distance_transform_edt(~others, return_indices=True)
    own = parts == number
    start = np.unravel_index(np.argmin(np.where(own, away, np.inf)), mask.shape)
    end = [axis[start] for axis in nearest]
    steps = int(max(abs(a - b) for a, b in zip(start, end, strict=True))) + 1
    mask[tuple(np.rint(np.linspace(a, b, steps)).astype(int) for a, b in zip(start, end, strict=True))] = True
