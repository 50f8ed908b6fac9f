"""Stable sorting of many 32-bit keys by counting digits, which takes no comparisons.

Three passes over digits of 11 bits, the lowest first; a pass in which all keys agree is left out. Keys of one sort are
applied one after the other, the least important first, as in `numpy.lexsort`.
"""

import numpy as np
from numba import njit

DIGIT = 11


@njit(cache=True, nogil=True)
def falling_key(level: np.int32) -> np.uint32:
    """uint32 key under which larger int32 levels come first."""
    return np.uint32(2**31 - 1 - np.int64(level))


@njit(cache=True, nogil=True)
def ordered_level(value: np.float32) -> np.int32:
    """int32 in the order of float32 values that are no NaN; -0.0 equals 0.0."""
    bits = np.float32(value + np.float32(0)).view(np.int32)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(cache=True, nogil=True)
def sort_by(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The positions in `order` sorted by their uint32 keys; positions of equal keys stay in their order.

    keys   (K,) uint32
    order  (M,) int64 positions
    """
    size = 1 << DIGIT
    counts = np.zeros((3, size), np.int64)
    for at in order:
        key = np.int64(keys[at])
        counts[0, key & (size - 1)] += 1
        counts[1, key >> DIGIT & (size - 1)] += 1
        counts[2, key >> 2 * DIGIT] += 1
    other = np.empty_like(order)
    for digit in range(3):
        places = counts[digit]
        if places.max() == order.size:
            continue
        total = np.int64(0)
        for k in range(size):
            count = places[k]
            places[k] = total
            total += count
        for at in order:
            held = np.int64(keys[at]) >> digit * DIGIT & (size - 1)
            other[places[held]] = at
            places[held] += 1
        order, other = other, order
    return order
