"""How two partitions of the same pixels disagree: variation of information and adapted Rand error.

Both need only the table of how many pixels carry label a in the one and b in the other. It is sparse, so it is counted
into a hash table; neighbouring pixels mostly share their pair, so runs are added as one.
"""

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.grids import same_shape


@njit(cache=True, nogil=True)
def _runs(first, second, keep, ignore_zero):
    """Keys first * 2^32 + second of the runs of equal pairs along the flattened arrays, and the length of each run."""
    keys = np.empty(first.size + 1, np.int64)
    lengths = np.empty(first.size + 1, np.int32)
    n = -1
    last = np.int64(-1)
    for k in range(first.size):
        if (keep.size > 0 and not keep[k]) or (ignore_zero and first[k] == 0):
            continue
        key = np.int64(first[k]) << 32 | np.int64(second[k])
        if key != last:
            n += 1
            keys[n] = last = key
            lengths[n] = 0
        lengths[n] += 1
    return keys[: n + 1], lengths[: n + 1]


@njit(cache=True, nogil=True)
def _contingency(runs, lengths):
    """Distinct keys and their total lengths, by a hash table with linear probing."""
    room = 64
    while room < 2 * runs.size:
        room *= 2
    keys = np.full(room, -1, np.int64)
    counts = np.zeros(room, np.int64)
    for k in range(runs.size):
        slot = np.int64((np.uint64(runs[k]) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & (room - 1)
        while keys[slot] >= 0 and keys[slot] != runs[k]:
            slot = (slot + 1) & (room - 1)
        keys[slot] = runs[k]
        counts[slot] += lengths[k]
    filled = keys >= 0
    return keys[filled], counts[filled]


def contingency(
    reference: ArrayLike, prediction: ArrayLike, *, keep: np.ndarray | None = None, ignore_zero: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel counts shared by each pair of labels: (reference label, prediction label, count), three int64 arrays.

    reference, prediction  int32 labels >= 0 of equal shape
    keep                   bool, pixels to count (None: all)
    ignore_zero            leave out pixels whose reference label is 0
    """
    same_shape(reference, prediction, "Labels")
    first, second = (np.ascontiguousarray(labels, dtype=np.int32).ravel() for labels in (reference, prediction))
    chosen = np.empty(0, np.uint8) if keep is None else np.ascontiguousarray(keep, dtype=np.uint8).ravel()
    keys, counts = _contingency(*_runs(first, second, chosen, ignore_zero))
    return keys >> 32, keys & (2**32 - 1), counts


def _marginals(table):
    reference, prediction, counts = table
    shares = [np.unique(labels, return_inverse=True)[1] for labels in (reference, prediction)]
    return [np.bincount(share, weights=counts)[share] for share in shares], [
        np.bincount(share, weights=counts) for share in shares
    ]


def variation_of_information(
    reference: ArrayLike, prediction: ArrayLike, *, keep: np.ndarray | None = None, ignore_zero: bool = False
) -> tuple[float, float]:
    """(false splits, false merges) in bits: H(prediction | reference) and H(reference | prediction); their sum is the
    VOI.

    Zero means the same partition. Source: Meila, Journal of Multivariate Analysis 98 (2007). No pixel to compare: (0,
    0).
    """
    table = contingency(reference, prediction, keep=keep, ignore_zero=ignore_zero)
    counts = table[2]
    if not counts.size:
        return 0.0, 0.0
    (of_reference, of_prediction), _ = _marginals(table)
    share = counts / counts.sum()
    splits, merges = (abs((share * np.log2(whole / counts)).sum()) for whole in (of_reference, of_prediction))
    return float(splits), float(merges)


def adapted_rand_error(
    reference: ArrayLike, prediction: ArrayLike, *, keep: np.ndarray | None = None, ignore_zero: bool = True
) -> float:
    """1 - F score over pairs of pixels that lie together, in [0, 1]; label 0 of the reference is not compared unless
    asked.

    Source: Arganda-Carreras et al., Frontiers in Neuroanatomy 9:142 (2015). No pair in either partition: 0, they agree.
    """
    table = contingency(reference, prediction, keep=keep, ignore_zero=ignore_zero)
    _, wholes = _marginals(table)
    together, by_reference, by_prediction = (float((c * (c - 1.0)).sum()) for c in (table[2], *wholes))
    pairs = by_reference + by_prediction
    return 1.0 - 2.0 * together / pairs if pairs else 0.0
