"""How two partitions of the same pixels disagree: variation of information and adapted Rand error.

Both need only the table of how many pixels carry label a in the one and b in the other. It is sparse, so it is counted
into a hash table; neighbouring pixels mostly share their pair, so runs are added as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.grids import same_shape


class AdaptedRand(NamedTuple):
    """Agreement over pairs of pixels that lie together, each in [0, 1].

    error      1 - F score of precision and recall
    precision  of the pairs that lie together in the prediction, how many do so in the reference: falls with mergers
    recall     of the pairs that lie together in the reference, how many do so in the prediction: falls with splits
    """

    error: float
    precision: float
    recall: float


@njit(cache=True, nogil=True)
def _holds(labels, label):
    found = False
    for other in labels:
        found |= other == label
    return found


@njit(cache=True, nogil=True)
def _runs(first, second, keep, not_first, not_second):
    """Keys first * 2^32 + second of the runs of equal pairs along the flattened arrays, and the length of each run."""
    keys = np.empty(first.size + 1, np.int64)
    lengths = np.empty(first.size + 1, np.int32)
    n = -1
    last = np.int64(-1)
    counted = False
    for k in range(first.size):
        if keep.size > 0 and not keep[k]:
            continue
        key = np.int64(first[k]) << 32 | np.int64(second[k])
        if key != last:
            last = key
            counted = not (_holds(not_first, first[k]) or _holds(not_second, second[k]))
            if counted:
                n += 1
                keys[n] = key
                lengths[n] = 0
        if counted:
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


def _as_labels(labels: ArrayLike, side: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(
            f"{side} labels have dtype {labels.dtype}; whole numbers are needed, which say which pixels lie together."
            " Label the components of a mask or threshold a map first."
        )
    return np.ascontiguousarray(labels).ravel()


def _numbered(labels: np.ndarray, ignored: Iterable[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels as int32 numbers >= 0, the numbers of the ignored ones, and the label of each number (None: itself)."""
    ignored = list(ignored)
    if not labels.size or (labels.min() >= 0 and labels.max() < 2**31):
        return labels.astype(np.int32, copy=False), np.array([k for k in ignored if 0 <= k < 2**31], np.int32), None
    names, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.int32), np.flatnonzero([name in ignored for name in names.tolist()]), names


def contingency(
    reference: ArrayLike,
    prediction: ArrayLike,
    *,
    keep: ArrayLike | None = None,
    ignore_reference: Iterable[int] = (),
    ignore_prediction: Iterable[int] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel counts shared by each pair of labels: (reference label, prediction label, count), three arrays.

    reference, prediction  labels of equal shape, any whole numbers: every integer dtype, negatives and ids of 64 bits
                           included; floats are refused (ValueError)
    keep                   bool, pixels to count (None: all)
    ignore_reference, ignore_prediction  labels of the one and of the other whose pixels are left out
    """
    same_shape(reference, prediction, "Labels")
    first, not_first, names = _numbered(_as_labels(reference, "Reference"), ignore_reference)
    second, not_second, other_names = _numbered(_as_labels(prediction, "Prediction"), ignore_prediction)
    if keep is None:
        chosen = np.empty(0, np.uint8)
    else:
        same_shape(reference, keep, "Labels and pixels to keep")
        chosen = (np.asarray(keep) != 0).astype(np.uint8).ravel()
    keys, counts = _contingency(*_runs(first, second, chosen, not_first.astype(np.int32), not_second.astype(np.int32)))
    numbers, other_numbers = keys >> 32, keys & (2**32 - 1)
    return (
        numbers if names is None else names[numbers],
        other_numbers if other_names is None else other_names[other_numbers],
        counts,
    )


def _marginals(table):
    reference, prediction, counts = table
    shares = [np.unique(labels, return_inverse=True)[1] for labels in (reference, prediction)]
    return [np.bincount(share, weights=counts)[share] for share in shares], [
        np.bincount(share, weights=counts) for share in shares
    ]


def variation_of_information(
    reference: ArrayLike,
    prediction: ArrayLike,
    *,
    keep: ArrayLike | None = None,
    ignore_reference: Iterable[int] = (),
    ignore_prediction: Iterable[int] = (),
) -> tuple[float, float]:
    """(false splits, false merges) in bits: H(prediction | reference) and H(reference | prediction); their sum is the
    VOI.

    For labels and options see `contingency`. Of instances on a background of label 0, ignore 0: in the reference to
    compare its objects only, in both to compare only what both hold to be an object.
    Zero means the same partition. Source: Meila, Journal of Multivariate Analysis 98 (2007). No pixel to compare: (0,
    0).
    """
    table = contingency(
        reference, prediction, keep=keep, ignore_reference=ignore_reference, ignore_prediction=ignore_prediction
    )
    counts = table[2]
    if not counts.size:
        return 0.0, 0.0
    (of_reference, of_prediction), _ = _marginals(table)
    share = counts / counts.sum()
    splits, merges = (abs((share * np.log2(whole / counts)).sum()) for whole in (of_reference, of_prediction))
    return float(splits), float(merges)


def adapted_rand(
    reference: ArrayLike,
    prediction: ArrayLike,
    *,
    keep: ArrayLike | None = None,
    ignore_reference: Iterable[int] = (0,),
    ignore_prediction: Iterable[int] = (),
) -> AdaptedRand:
    """Adapted Rand error with its precision and recall; label 0 of the reference is not compared unless asked.

    For labels and options see `contingency`. Source: Arganda-Carreras et al., Frontiers in Neuroanatomy 9:142 (2015).
    No pair in a partition: nothing is wrong with its pairs, its share is 1; no pair in either: error 0, they agree.
    scikit-image 0.26 returns the same three with precision and recall exchanged, against its own description.
    """
    table = contingency(
        reference, prediction, keep=keep, ignore_reference=ignore_reference, ignore_prediction=ignore_prediction
    )
    _, wholes = _marginals(table)
    together, by_reference, by_prediction = (float((c * (c - 1.0)).sum()) for c in (table[2], *wholes))
    pairs = by_reference + by_prediction
    return AdaptedRand(
        1.0 - 2.0 * together / pairs if pairs else 0.0,
        together / by_prediction if by_prediction else 1.0,
        together / by_reference if by_reference else 1.0,
    )
