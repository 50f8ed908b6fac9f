"""Bottleneck and Wasserstein distances between the persistence diagrams of two maps.

A bar is a point (birth, death) and may be matched with a point of the other diagram or with its own place on the
diagonal, at half its length away (the ground distance is the larger difference of coordinates). Points that never die
are matched among themselves, in the order of their births.

Bottleneck: within a radius, points shorter than twice the radius may go to the diagonal, and the rest must find
partners. A matching that covers the long points of both diagrams exists exactly when each side can be covered by
itself (Mendelsohn and Dulmage, 1958), so bipartite matching decides a radius and bisection over all distances finds the
least. Wasserstein: sending two points to the diagonal costs the sum of both ways, so matching them saves what it is
less; the assignment that saves the most is the cheapest matching.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from topology.persistence import Barcode

MOST_PAIRS = 2**24
"""Pairs of bars whose distances are held at once: 128 MiB."""
Diagram = Barcode | ArrayLike
"""The bars of one dimension: a `Barcode`, or (K, 2) births and deaths, infinite for what never ends."""


def _split(diagram: Diagram) -> tuple[np.ndarray, np.ndarray]:
    """Finite points (K, 2), and the sorted births of the others."""
    if isinstance(diagram, Barcode):
        if len(set(diagram.dimension.tolist())) > 1:
            raise ValueError("The barcode holds bars of several dimensions. Select one: `barcode.of(1)`.")
        diagram = np.stack([diagram.birth_values, diagram.death_values], axis=1)
    points = np.asarray(diagram, dtype=np.float64).reshape(-1, 2) if np.size(diagram) == 0 else np.asarray(diagram)
    if points.ndim != 2 or points.shape[1] != 2 or points.dtype.kind not in "iuf":
        raise ValueError(
            f"A diagram has shape {points.shape} and dtype {points.dtype}; give (K, 2) real births and deaths."
        )
    points = points.astype(np.float64)
    if np.isnan(points).any() or np.isinf(points[:, 0]).any():
        raise ValueError("A diagram holds NaN or infinite births. Only deaths may be infinite.")
    lasting = np.isinf(points[:, 1])
    return points[~lasting], np.sort(points[lasting, 0])


def _compared(first: Diagram, second: Diagram) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Distances of all pairs of finite points, of both to the diagonal, and the distances of the endless bars (None:
    their numbers differ).
    """
    (points, endless), (others, other_endless) = _split(first), _split(second)
    if len(points) * len(others) > MOST_PAIRS:
        raise ValueError(
            f"{len(points)} and {len(others)} finite bars make more than {MOST_PAIRS} pairs. Leave out short ones with"
            " `min_persistence`."
        )
    apart = np.abs(points[:, None, 0] - others[None, :, 0])
    np.maximum(apart, np.abs(points[:, None, 1] - others[None, :, 1]), out=apart)
    away, others_away = (np.abs(each[:, 0] - each[:, 1]) / 2 for each in (points, others))
    return apart, away, others_away, np.abs(endless - other_endless) if len(endless) == len(other_endless) else None


def _covers(near: np.ndarray, long: np.ndarray) -> bool:
    """Whether every long point (row) can have a partner (column) of its own."""
    edges = csr_array(near[long])
    return bool((maximum_bipartite_matching(edges, perm_type="column") >= 0).all()) if edges.shape[0] else True


def bottleneck_distance(first: Diagram, second: Diagram) -> float:
    """Least radius within which every bar finds a bar of the other diagram, or the diagonal.

    first, second  `Barcode` of one dimension, or (K, 2) array of births and deaths
    returns        in units of the map; infinite when different numbers of bars never end
    Source: Cohen-Steiner, Edelsbrunner and Harer, "Stability of Persistence Diagrams", 2007: two maps that differ by at
    most e have diagrams that are at most e apart. Refuses (ValueError) more than 2**24 pairs of finite bars.
    """
    apart, away, others_away, endless = _compared(first, second)
    if endless is None:
        return float("inf")
    radii = np.unique(np.concatenate([[0.0], apart.ravel(), away, others_away]))
    low, high = 0, len(radii) - 1
    while low < high:
        middle = (low + high) // 2
        near = apart <= radii[middle]
        if _covers(near, away > radii[middle]) and _covers(near.T, others_away > radii[middle]):
            high = middle
        else:
            low = middle + 1
    return float(max(radii[low], endless.max(initial=0.0)))


def wasserstein_distance(first: Diagram, second: Diagram, *, order: float = 1.0) -> float:
    """Least total distance over all matchings of two diagrams: (sum of distances ** order) ** (1 / order).

    Arguments and errors as for `bottleneck_distance`; order is at least 1.
    """
    if not 1 <= order < np.inf:
        raise ValueError(
            f"Order {order!r} is none. Give a number of at least 1; for infinity ask `bottleneck_distance`."
        )
    apart, away, others_away, endless = _compared(first, second)
    if endless is None:
        return float("inf")
    away, others_away = away**order, others_away**order
    saved = np.maximum(away[:, None] + others_away[None, :] - apart**order, 0.0)
    rows, columns = linear_sum_assignment(saved, maximize=True)
    total = away.sum() + others_away.sum() - saved[rows, columns].sum() + (endless**order).sum()
    return float(max(total, 0.0) ** (1 / order))
