"""Loops in space: which voxel closes a loop and which one fills it.

Seen from the low side (6-connected, entering from the lowest voxel up, see `topology.critical_points`) a voxel v brings
in the edges, squares and cubes whose highest vertex it is. In the link of v, its lower face neighbours are nodes and
squares are arcs. A breadth-first tree of each piece of that graph pairs every arc of the tree with the node it reaches;
the root of the first piece is paired with v itself, the roots of the others are critical edges, and arcs outside the
trees are filled by cubes or are critical squares: a discrete gradient (Robins, Wood and Sheppard, IEEE PAMI 33, 2011),
read off a table and never stored.

Along this gradient every edge flows to a set of critical edges over two elements. The flow is computed only where it is
asked for, and remembered; where squares are many, of all edges at once. So the boundary of a critical square is a small
set of critical edges, and the usual reduction of the boundary matrix pairs loops on these small sets alone. Squares
that `merge` has shown to close a cavity are skipped.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from topology.bits import Whole
from topology.chains import (
    EMPTY,
    ClosedPool,
    Pool,
    add,
    close_pool,
    elements_of,
    largest,
    largest_of,
    make_column,
    make_pool,
    open_pool,
    put,
    put_column,
    reduce,
    toggle_set,
)
from topology.critical_points import HIGHEST, LOWEST, CriticalPoints
from topology.merge_trees import all_joined, joined_in_order
from topology.simple import space_tables
from topology.sorting import falling_key, sort_by

Tables = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The tree of every link, and what squeezes a plane of the window into its index."""
Reduction = tuple[np.ndarray, ClosedPool, np.ndarray, np.ndarray, np.ndarray]
"""What `pair` returns: flows, pool, owners, ranks, fillers."""
FACE_STEPS = np.array([(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0)])
FACE_BITS = np.array([4, 10, 12, 14, 16, 22])
FACE_AXES = np.array([0, 1, 2, 2, 1, 0])
ARCS = np.array([(0, 1), (0, 2), (0, 3), (0, 4), (5, 1), (5, 2), (5, 3), (5, 4), (1, 2), (1, 3), (4, 2), (4, 3)])
ARC_BITS = np.array([1, 3, 5, 7, 19, 21, 23, 25, 9, 11, 15, 17])
CUBE_BITS = np.array([0, 2, 6, 8, 18, 20, 24, 26])
CUBE_ARCS = np.array([(0, 1, 8), (0, 2, 9), (3, 1, 10), (3, 2, 11), (4, 5, 8), (4, 6, 9), (7, 5, 10), (7, 6, 11)])
MANY = 12
"""Of how many voxels one must have a critical square for the flow of every edge to be found at once."""
ROOT, ABSENT = 6, 7
"""In the place of a parent face: the face is the root of its piece; the face neighbour is not lower."""


@njit(cache=True, nogil=True)
def _tree_of(code):
    """Parents of the six faces, three bits each, in the link whose higher voxels are the bits of a 27-bit code.

    From bit 18 on the faces that have a parent, parents first, three bits each; ABSENT ends them.
    """
    parents = np.full(6, ABSENT)
    queue = np.empty(6, np.int64)
    packed, place = 0, 18
    for root in range(6):
        if code >> FACE_BITS[root] & 1 or parents[root] != ABSENT:
            continue
        parents[root] = ROOT
        queue[0] = root
        head, tail = 0, 1
        while head < tail:
            face = queue[head]
            head += 1
            for arc in range(12):
                a, b = ARCS[arc]
                if code >> ARC_BITS[arc] & 1 or (a != face and b != face):
                    continue
                other = a + b - face
                if parents[other] == ABSENT and not code >> FACE_BITS[other] & 1:
                    parents[other] = face
                    queue[tail] = other
                    tail += 1
                    packed |= other << place
                    place += 3
    packed |= ABSENT << place
    for face in range(6):
        packed |= parents[face] << 3 * face
    return packed


@njit(cache=True, nogil=True)
def _all_trees():
    """`_tree_of` for every 18-bit code of faces and edges (numbered as in `topology.simple`)."""
    bits = np.array([1, 3, 4, 5, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 21, 22, 23, 25])
    trees = np.empty(2**18, np.int64)
    for index in range(trees.size):
        code = 0
        for k in range(18):
            code |= (index >> k & 1) << bits[k]
        trees[index] = _tree_of(code)
    return trees


@cache
def tree_tables() -> Tables:
    """The tree of every link, and the tables that squeeze a plane of the window into its index."""
    _, _, _, belt_of, cross_of = space_tables()
    return _all_trees(), belt_of, cross_of


@njit(cache=True, nogil=True)
def _tree_at(code, tables):
    trees, belt_of, cross_of = tables
    return trees[cross_of[code & 511] | belt_of[code >> 9 & 511] << 5 | cross_of[code >> 18 & 511] << 13]


@njit(cache=True, nogil=True)
def _higher(levels, a, b):
    return levels[a] > levels[b] or (levels[a] == levels[b] and a < b)


@njit(cache=True, nogil=True)
def edge_at(at: Whole, face: Whole, steps: np.ndarray) -> Whole:
    """Number of the edge from a voxel to one of its six face neighbours:
    three times the lesser index, plus the axis.
    """
    return 3 * min(at, at + steps[face]) + FACE_AXES[face]


@njit(cache=True, nogil=True)
def flow(
    edge: Whole,
    levels: np.ndarray,
    codes: np.ndarray,
    steps: np.ndarray,
    tables: Tables,
    flows: np.ndarray,
    pool: Pool,
    stack: np.ndarray,
) -> Whole:
    """Number of the set of critical edges to which an edge flows; remembered in `flows` together with all it needed.

    An edge hangs, by one square, on its parent in the tree of its higher vertex; so it flows where that parent and the
    two other sides of the square flow. Edges of the frame lie in a simply connected shell and flow nowhere.

    stack  int32: edges that wait, each followed by the three that it needs
    """
    if flows[edge] != 0:
        return np.int64(flows[edge])
    trees, belt_of, cross_of = tables
    edge = np.int64(edge)
    start = edge
    top = 0
    while True:
        at = edge // 3
        axis = edge - 3 * at
        face = 5 - axis
        other = at + steps[face]
        rises = levels[at] < levels[other]
        outside = levels[at] == LOWEST and not rises
        if rises:
            at, other, face = other, at, axis
        code = np.int64(codes[at])
        index = cross_of[code & 511] | belt_of[code >> 9 & 511] << 5 | cross_of[code >> 18 & 511] << 13
        parent = trees[index] >> 3 * face & 7
        if outside or parent == ROOT:
            flows[edge] = EMPTY
        else:
            below = at + steps[parent]
            stack[top] = edge
            stack[top + 1] = 3 * min(at, below) + FACE_AXES[parent]
            stack[top + 2] = 3 * min(other, other + steps[parent]) + FACE_AXES[parent]
            stack[top + 3] = 3 * min(below, below + steps[face]) + axis
            top += 4
        while top > 0:
            edge, first, second, third = stack[top - 4], stack[top - 3], stack[top - 2], stack[top - 1]
            a, b, c = flows[first], flows[second], flows[third]
            if a == 0 or b == 0 or c == 0:
                edge = np.int64(first if a == 0 else second if b == 0 else third)
                break
            # Mostly two are equal, and nothing is added up.
            if (a == b) | (a == c) | (b == c):
                flows[edge] = a ^ b ^ c
            else:
                flows[edge] = add(pool, add(pool, a, b), c)
            top -= 4
        if top == 0:
            return np.int64(flows[start])


@njit(cache=True, nogil=True)
def _flow_everywhere(levels, codes, steps, tables, flows, pool):
    """`flow` of all edges, where most of them are needed: voxels ascend, so what an edge needs is known before it.

    A look at each link instead of one for each edge, and no stack.
    """
    for k in range(flows.size):
        flows[k] = max(flows[k], EMPTY)
    inside = np.flatnonzero((levels != LOWEST) & (levels != HIGHEST))
    keys = np.empty(levels.size, np.uint32)
    for k in range(levels.size):
        keys[k] = falling_key(levels[k])
    order = sort_by(keys, inside)
    for k in range(order.size - 1, -1, -1):
        at = order[k]
        tree = _tree_at(np.int64(codes[at]), tables)
        faces = tree >> 18
        while faces & 7 != ABSENT:
            face = faces & 7
            faces >>= 3
            parent = tree >> 3 * face & 7
            other, below = at + steps[face], at + steps[parent]
            a = flows[edge_at(at, parent, steps)]
            b = flows[edge_at(other, parent, steps)]
            c = flows[edge_at(below, face, steps)]
            edge = edge_at(at, face, steps)
            if (a == b) | (a == c) | (b == c):
                flows[edge] = a ^ b ^ c
            else:
                flows[edge] = add(pool, add(pool, a, b), c)


@njit(cache=True, nogil=True)
def _critical_arcs(code, tree):
    """Bits of the arcs that no tree holds and no cube fills: one for each loop of the link."""
    loose = 0
    for arc in range(12):
        a, b = ARCS[arc]
        lower = not (code >> FACE_BITS[a] & 1 or code >> FACE_BITS[b] & 1 or code >> ARC_BITS[arc] & 1)
        if lower and tree >> 3 * a & 7 != b and tree >> 3 * b & 7 != a:
            loose |= 1 << arc
    filled = np.zeros(12, np.int64)
    for cube in range(8):
        if code >> CUBE_BITS[cube] & 1:
            continue
        a, b, c = CUBE_ARCS[cube]
        if code >> ARC_BITS[a] & 1 or code >> ARC_BITS[b] & 1 or code >> ARC_BITS[c] & 1:
            continue
        if not (_arc_is_lower(code, a) and _arc_is_lower(code, b) and _arc_is_lower(code, c)):
            continue
        row = (1 << a | 1 << b | 1 << c) & loose
        for arc in range(11, -1, -1):
            if row >> arc & 1:
                if filled[arc] == 0:
                    filled[arc] = row
                    break
                row ^= filled[arc]
    for arc in range(12):
        if filled[arc] != 0:
            loose &= ~(1 << arc)
    return loose


@njit(cache=True, nogil=True)
def _arc_is_lower(code, arc):
    a, b = ARCS[arc]
    return not (code >> FACE_BITS[a] & 1 or code >> FACE_BITS[b] & 1 or code >> ARC_BITS[arc] & 1)


@njit(cache=True, nogil=True)
def critical_edges(
    codes: np.ndarray, saddles: np.ndarray, steps: np.ndarray, tables: Tables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edge number, voxel and face of each critical edge, in the order of the low side (saddles ascending)."""
    edges = np.empty(5 * saddles.size, np.int64)
    places = np.empty(5 * saddles.size, np.int64)
    faces = np.empty(5 * saddles.size, np.int64)
    n = 0
    for at in saddles:
        tree = _tree_at(np.int64(codes[at]), tables)
        first = True
        for face in range(6):
            if tree >> 3 * face & 7 == ROOT:
                if not first:
                    edges[n], places[n], faces[n] = edge_at(at, face, steps), at, face
                    n += 1
                first = False
    return edges[:n], places[:n], faces[:n]


@njit(cache=True, nogil=True)
def pair(
    levels: np.ndarray,
    codes: np.ndarray,
    squares: np.ndarray,
    edges: np.ndarray,
    joining: np.ndarray,
    steps: np.ndarray,
    tables: Tables,
) -> Reduction:
    """Reduce the boundaries of the critical squares of the given voxels (ascending) to pairs with critical edges.

    edges    numbers of the critical edges, ascending in the order of the low side
    joining  those to leave out of all sets: edges that join components close no loop and never come last in a cycle, so
             pairs are the same without them; none where the cycles themselves are wanted
    returns  flows, pool, owners (set number of the reduced boundary that ends at each critical edge, or 0), rank of
             that square in the
             order of the low side, and its voxel
    """
    flows = np.zeros(3 * levels.size, np.int32)
    stack = np.empty(12 * levels.size, np.int32)  # a path meets an edge once; untouched pages cost nothing
    pool = make_pool(edges.size)
    for k in range(edges.size):
        flows[edges[k]] = EMPTY if joining[k] else k + 2
    if MANY * squares.size > levels.size:
        _flow_everywhere(levels, codes, steps, tables, flows, pool)
    owners = np.zeros(edges.size, np.int64)
    ranks = np.full(edges.size, -1, np.int64)
    fillers = np.full(edges.size, -1, np.int64)
    words, starts = make_column(edges.size)
    room = np.empty(edges.size, np.int32)
    rank = 0
    for at in squares:
        code = np.int64(codes[at])
        arcs = _critical_arcs(code, _tree_at(code, tables))
        for arc in range(12):
            if not arcs >> arc & 1:
                continue
            a, b = ARCS[arc]
            corner = at + steps[a] + steps[b]
            sides = (
                edge_at(at, a, steps),
                edge_at(at, b, steps),
                3 * min(at + steps[a], corner) + FACE_AXES[b],
                3 * min(at + steps[b], corner) + FACE_AXES[a],
            )
            for side in sides:
                number: int | np.integer = np.int64(flows[side])
                if number == 0:
                    number = flow(side, levels, codes, steps, tables, flows, pool, stack)
                toggle_set(pool, number, words, starts, edges.size)
            edge = largest_of(words, starts, edges.size)
            while edge >= 0 and owners[edge] != 0:
                toggle_set(pool, np.int64(owners[edge]), words, starts, edges.size)
                edge = largest_of(words, starts, edges.size)
            if edge >= 0:
                owners[edge] = put_column(pool, words, starts, edges.size, room)
                ranks[edge] = rank
                fillers[edge] = at
                rank += 1
    return flows, close_pool(pool), owners, ranks, fillers


@njit(cache=True, nogil=True)
def _descend(at, levels, codes, steps, tables, flows, pool, stack, paths, way):
    """Number of the flow of the way from a voxel of another map down its own gradient to a pit; remembered in
    `paths`.

    levels, codes of the map that is descended are the first of each pair; flows belong to the second.
    """
    n = 0
    while paths[at] == 0:
        face = 0
        tree = _tree_at(np.int64(codes[0][at]), tables)
        while face < 6 and tree >> 3 * face & 7 != ROOT:
            face += 1
        if face == 6 or levels[0][at] == LOWEST:
            paths[at] = EMPTY
            break
        way[n] = edge_at(at, face, steps)
        n += 1
        at += steps[face]
    total = np.int64(paths[at])
    while n > 0:
        n -= 1
        total = add(pool, total, flow(way[n], levels[1], codes[1], steps, tables, flows, pool, stack))
        low = way[n] // 3
        axis = way[n] % 3
        high = low + steps[5 - axis] if axis == 0 else low + steps[4] if axis == 1 else low + steps[3]
        paths[low if paths[low] == 0 else high] = total
    return total


@njit(cache=True, nogil=True)
def image(
    levels: tuple[np.ndarray, np.ndarray],
    codes: tuple[np.ndarray, np.ndarray],
    inner: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, ClosedPool],
    outer: Reduction,
    steps: np.ndarray,
    tables: Tables,
) -> np.ndarray:
    """For each loop of the inner map, the loop of the outer one that dies when it does: a number of a critical
    edge, or -1.

    levels, codes  of the inner and of the outer map
    inner          critical edges, their voxels, faces, owners, fillers, and the pool of the inner map
    outer          flows, pool, owners, ranks and fillers of the outer map; the flows are copied, because they
                   will name
                   sets that only the pool of this call holds
    A loop of the inner map is the cycle whose reduced boundary its critical edge owns, drawn down the gradient.
    Flowing along the outer gradient it becomes a sum of loops of the outer map; it lives until the last of these
    is filled, unless an older inner loop already lives that long, which is then added to it.
    """
    edges, places, faces, owned, filled, closed_names = inner
    flows, closed_pool, owners, ranks, fillers = outer
    flows = flows.copy()
    names, pool = open_pool(closed_names), open_pool(closed_pool)
    stack = np.empty(12 * levels[1].size, np.int32)
    paths = np.zeros(levels[0].size, np.int32)
    way = np.empty(levels[0].size, np.int64)
    arms = np.zeros(edges.size, np.int64)
    edge_of_rank = np.full(ranks.size + 1, -1)
    for k in range(ranks.size):
        if ranks[k] >= 0:
            edge_of_rank[ranks[k]] = k
    lives = make_pool(ranks.size)
    heirs = np.zeros(ranks.size + 1, np.int64)
    parts = np.empty(ranks.size + 1, np.int32)
    dies = np.full(edges.size, -1)
    for edge in range(edges.size):
        if owned[edge] == 0 or levels[0][places[edge]] == levels[0][filled[edge]]:
            continue
        cycle: Whole = np.int64(EMPTY)
        for arm in elements_of(names, owned[edge]):
            if arms[arm] == 0:
                total = flow(edges[arm], levels[1], codes[1], steps, tables, flows, pool, stack)
                for end in (places[arm], places[arm] + steps[faces[arm]]):
                    total = add(
                        pool, total, _descend(end, levels, codes, steps, tables, flows, pool, stack, paths, way)
                    )
                arms[arm] = total
            cycle = add(pool, cycle, arms[arm])
        n = 0
        while cycle != EMPTY:
            last = largest(pool, cycle)
            parts[n] = ranks[last]
            n += 1
            cycle = add(pool, cycle, owners[last])
        life = reduce(lives, heirs, put(lives, parts[:n]))
        if life != EMPTY:
            last = largest(lives, life)
            heirs[last] = life
            death = edge_of_rank[last]
            if levels[0][places[edge]] < levels[1][fillers[death]]:
                dies[edge] = death
    return dies


class Loops:
    """The loops of the low side of one map in space: their critical edges, and what `pair` found for each."""

    def __init__(self, points: CriticalPoints, *, cycles: bool = True):
        """cycles: whether `image_in` will be asked for, which follows the loops themselves."""
        self.levels, self.codes, self.steps, self.tables = kernel_arguments(points)
        self.edges, self.places, self.faces = critical_edges(self.codes, points.low.saddles, self.steps, self.tables)
        if cycles:
            joining = np.zeros(len(self.edges), np.bool_)
        else:
            tree = points.low_tree
            joining = joined_in_order(tree.side.order, tree.starts, tree.joined)
        self.found = pair(self.levels, self.codes, open_squares(points), self.edges, joining, self.steps, self.tables)

    @property
    def fillers(self) -> np.ndarray:
        """Voxel that fills each loop, -1 where a critical edge joins components and closes no loop."""
        return self.found[4]

    def image_in(self, outer: Loops) -> np.ndarray:
        """For each critical edge, the critical edge of `outer` whose loop dies with the image of ours; -1 for none."""
        _, pool, owners, _, fillers = self.found
        inner = self.edges, self.places, self.faces, owners, fillers, pool
        return image(
            (self.levels, outer.levels), (self.codes, outer.codes), inner, outer.found, self.steps, self.tables
        )


def pair_loops(points: CriticalPoints) -> tuple[np.ndarray, np.ndarray]:
    """(edge voxel, square voxel) of every loop of the low side, framed linear indices, pairs of no length included."""
    loops = Loops(points, cycles=False)
    closed = loops.fillers >= 0
    return loops.places[closed], loops.fillers[closed]


def kernel_arguments(points: CriticalPoints) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tables]:
    """What the kernels of this file need to know of a map."""
    _, height, width = points.levels.shape
    steps = FACE_STEPS @ np.array([height * width, width, 1])
    return points.levels.ravel(), points.codes.ravel(), steps, tree_tables()


def open_squares(points: CriticalPoints) -> np.ndarray:
    """Voxels, ascending in the order of the low side, with critical squares not all known to close cavities."""
    tree = points.up_tree
    left = ~all_joined(tree.starts, tree.joined)
    return points.up.places[points.up.order[left[points.up.order]]][::-1].copy()
