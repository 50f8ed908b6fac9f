"""Chains over the field of two elements: sets of integers under symmetric difference.

A pool is (store, starts, memory, used). store[0] holds the elements of all sets one after the other, starts[0] where
each set begins; set k is store[0][starts[0][k] : starts[0][k + 1]], ascending. memory caches recent answers; used
counts sets and elements. Number 1 is the empty set, 2 + k the set {k}; number 0 is left for "not known yet".

A column is one set that changes: a bit for each element, above them a bit for each word of 64 that is not 0, and so on
(the bit tree of Bauer, Kerber, Reininghaus and Wagner, PHAT, Journal of Symbolic Computation 78, 2017).
"""

import numpy as np
from numba import njit

from topology.bits import Whole, lowest_one

Pool = tuple[list[np.ndarray], list[np.ndarray], np.ndarray, np.ndarray]
ClosedPool = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""A pool inside compiled code, where store and starts may grow, and outside."""
Column = tuple[np.ndarray, np.ndarray]
"""Words of all floors, the elements first, and where each floor begins; bits stand in falling order of elements."""
EMPTY = 1
MEMORY = 2**14


@njit(cache=True, nogil=True)
def make_pool(singles: Whole) -> Pool:
    """A pool that knows the empty set and the sets {0} .. {singles - 1}."""
    starts = np.empty(4 * singles + 1024, np.int64)
    store = np.empty(4 * singles + 1024, np.int32)
    starts[0] = starts[1] = starts[2] = 0
    for k in range(singles):
        store[k] = k
        starts[3 + k] = k + 1
    used = np.array([singles + 2, singles])
    return [store], [starts], np.zeros((MEMORY, 3), np.int64), used


@njit(cache=True, nogil=True)
def close_pool(pool: Pool) -> ClosedPool:
    """The pool as plain arrays, which may leave compiled code."""
    store, starts, memory, used = pool
    return store[0][: used[1]], starts[0][: used[0] + 1], memory, used


@njit(cache=True, nogil=True)
def open_pool(arrays: ClosedPool) -> Pool:
    """A pool from plain arrays; what is added to it does not change them."""
    store, starts, memory, used = arrays
    return [store], [np.concatenate((starts, np.empty(starts.size + 64, np.int64)))], memory.copy(), used.copy()


@njit(cache=True, nogil=True)
def _make_room(pool, elements):
    store, starts, _, used = pool
    if used[1] + elements > store[0].size:
        store[0] = np.concatenate((store[0], np.empty(store[0].size + elements, np.int32)))
    if used[0] + 2 > starts[0].size:
        starts[0] = np.concatenate((starts[0], np.empty(starts[0].size, np.int64)))


@njit(cache=True, nogil=True)
def _difference(left, i, i_stop, right, j, j_stop, out, n):
    """Write the symmetric difference of left[i:i_stop] and right[j:j_stop], both ascending, to `out` from place n on;
    returns the place after it.
    """
    while i < i_stop and j < j_stop:
        x, y = left[i], right[j]
        out[n] = min(x, y)
        n += x != y
        i += x <= y
        j += y <= x
    while i < i_stop:
        out[n] = left[i]
        i += 1
        n += 1
    while j < j_stop:
        out[n] = right[j]
        j += 1
        n += 1
    return n


@njit(cache=True, nogil=True)
def _add(pool, a, b):
    """Number of the symmetric difference of two sets of at least one element each."""
    store, starts, memory, used = pool
    low, high = min(a, b), max(a, b)
    slot = (low * 40503 + high * 48271) & (MEMORY - 1)
    if memory[slot, 0] == low and memory[slot, 1] == high:
        return memory[slot, 2]
    i, i_stop = starts[0][low], starts[0][low + 1]
    j, j_stop = starts[0][high], starts[0][high + 1]
    _make_room(pool, i_stop - i + j_stop - j)
    data, begin = store[0], used[1]
    n = _difference(data, i, i_stop, data, j, j_stop, data, begin)
    if n == begin:
        number = np.int64(EMPTY)
    elif n == begin + 1:
        number = np.int64(data[begin]) + 2
    else:
        number = used[0]
        used[0] += 1
        used[1] = n
        starts[0][number + 1] = n
    memory[slot, 0], memory[slot, 1], memory[slot, 2] = low, high, number
    return number


@njit(cache=True, nogil=True)
def add(pool: Pool, a: Whole, b: Whole) -> Whole:
    """Number of the symmetric difference of two numbered sets."""
    if a == EMPTY:
        return np.int64(b)
    if b == EMPTY:
        return np.int64(a)
    if a == b:
        return np.int64(EMPTY)
    return _add(pool, np.int64(a), np.int64(b))


@njit(cache=True, nogil=True)
def largest(pool: Pool, number: Whole) -> Whole:
    """Largest element of a set that is not empty."""
    return pool[0][0][pool[1][0][number + 1] - 1]


@njit(cache=True, nogil=True)
def reduce(pool: Pool, owners: np.ndarray, number: Whole) -> Whole:
    """Add to a set the owned sets with its largest element until nobody owns that element;
    EMPTY when nothing is left.
    """
    while number != EMPTY:
        owner = owners[largest(pool, number)]
        if owner == 0:
            break
        number = add(pool, number, owner)
    return number


@njit(cache=True, nogil=True)
def put(pool: Pool, elements: np.ndarray) -> Whole:
    """Number of a new set with the given elements, each of which occurs once, in any order."""
    if elements.size == 0:
        return np.int64(EMPTY)
    store, starts, _, used = pool
    _make_room(pool, elements.size)
    number = used[0]
    used[0] += 1
    store[0][used[1] : used[1] + elements.size] = np.sort(elements)
    used[1] += elements.size
    starts[0][number + 1] = used[1]
    return number


@njit(cache=True, nogil=True)
def elements_of(pool: Pool, number: Whole) -> np.ndarray:
    """The elements of a set, ascending."""
    return pool[0][0][pool[1][0][number] : pool[1][0][number + 1]]


@njit(cache=True, nogil=True)
def make_column(size: Whole) -> Column:
    """The empty column of elements from 0 to size - 1."""
    starts = np.zeros(8, np.int64)
    floors, words, total = 0, np.int64(size), np.int64(0)
    while True:
        words = words // 64 + 1
        starts[floors] = total
        total += words
        floors += 1
        if words == 1:
            break
    return np.zeros(total, np.uint64), starts[:floors]


@njit(cache=True, nogil=True)
def _toggle(words, starts, at):
    """Flip the bit of an element, and those above it where its word becomes 0 or ceases to be."""
    for k in range(starts.size):
        word = starts[k] + (at >> 6)
        before = words[word]
        after = before ^ np.uint64(1) << np.uint64(at & 63)
        words[word] = after
        if before != 0 and after != 0:
            break
        at >>= 6


@njit(cache=True, nogil=True)
def toggle_set(pool: Pool, number: Whole, words: np.ndarray, starts: np.ndarray, size: Whole) -> None:
    """Add a numbered set of a pool to a column of elements below `size`."""
    data, places = pool[0][0], pool[1][0]
    for k in range(places[number], places[number + 1]):
        _toggle(words, starts, size - 1 - np.int64(data[k]))


@njit(cache=True, nogil=True)
def largest_of(words: np.ndarray, starts: np.ndarray, size: Whole) -> Whole:
    """Largest element of a column; -1 where it is empty."""
    at = np.int64(0)
    for k in range(starts.size - 1, -1, -1):
        word = words[starts[k] + at]
        if word == 0:
            return np.int64(-1)
        at = at << 6 | np.int64(lowest_one(word))
    return size - 1 - at


@njit(cache=True, nogil=True)
def put_column(pool: Pool, words: np.ndarray, starts: np.ndarray, size: Whole, room: np.ndarray) -> Whole:
    """Number of a new set with the elements of a column, which is empty afterwards; room for `size` int32."""
    n = 0
    element = largest_of(words, starts, size)
    while element >= 0:
        n += 1
        room[size - n] = element
        _toggle(words, starts, size - 1 - element)
        element = largest_of(words, starts, size)
    _make_room(pool, n)
    used = pool[3]
    data, number, begin = pool[0][0], used[0], used[1]
    for k in range(n):
        data[begin + k] = room[size - n + k]
    used[0] += 1
    used[1] += n
    pool[1][0][number + 1] = used[1]
    return number
