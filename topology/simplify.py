"""Change a map as little as possible so that its topology is what was asked, and prove it.

Two requests. `simplify_below` removes every feature that lives no longer than a bound: a peak that is too low is cut
off at the pass where its component dies, a pit that is too shallow is filled up to the pass where its loop closes; both
again, until no such feature is left. `simplify_to` gives the superlevel set {map > threshold} the Betti numbers asked
for: surplus features are removed in the order of their persistence by the smaller of two changes (a component is erased
or bridged, a hole filled or cut open along the path of least change), lacking ones are added where the map nearly has
them: at a peak or pit, or along a pass, nearest to the threshold. Every edit is checked by counting Betti numbers anew
(`topology.components` shares no code with persistence) and taken only if it brings them nearer to the request. Edits of
different features hardly ever meet, so many are made at once and counted together; a batch that falls short is halved
until the ones that fail are known, and the time is that of a few counts, not of one for each edit. `simplify_firm` asks
for the numbers of those features that hold by a margin (`topology.margins`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from topology.components import betti_numbers
from topology.grids import Connectivity, as_map, is_closed
from topology.margins import margins
from topology.persistence import persistence


@dataclass(frozen=True)
class Edit:
    """One change:
    what was done, where, to how many pixels in which half-open box, and the largest change of a value.
    """

    kind: str
    dimension: int
    position: tuple
    box: tuple
    pixels: int
    change: float


EFFORT = 5 * 10**8
"""Pixels that may be counted for one request before it is given up: a few seconds.

Masks that need a repair need far less; noise needs more.
"""


class Unreachable(ValueError):
    """The Betti numbers asked for were not reached: no edit brings them nearer, or the effort was spent.

    `reached` has how far it got.
    """

    def __init__(self, reached, asked, spent):
        self.reached, self.asked, self.spent = reached, asked, spent
        why = f"so many edits fail that {asked} is given up" if spent else f"no edit brings them nearer to {asked}"
        super().__init__(f"The map reaches Betti numbers {reached}; {why}. Ask for numbers it can have.")


@dataclass(frozen=True)
class Simplified:
    """A changed map, the edits that made it, and its certificate.

    values       the new map, dtype of the request
    edits        tuple of Edit, in the order they were made
    certificate  {"betti", "threshold"}, counted on the new map, or {"min_persistence", "shortest"} and the same
    """

    values: np.ndarray
    edits: tuple
    certificate: dict


def _steps(shape, full):
    """Offsets of the neighbours in a framed array, by sides or by corners too."""
    grid = np.stack(np.unravel_index(np.arange(3 ** len(shape)), (3,) * len(shape)), axis=1) - 1
    reach = np.abs(grid).sum(1)
    grid = grid[(reach > 0) & (full | (reach == 1))]
    return grid @ np.array([int(np.prod(shape[k + 1 :])) for k in range(len(shape))])


@njit(cache=True, nogil=True)
def _flood(values, at, level, above, steps):
    """Framed pixels connected to `at` whose value is above (at or below) the level; the frame is NaN and stops the
    flood.
    """
    seen = {np.int64(at)}
    queue = [np.int64(at)]
    head = 0
    while head < len(queue):
        here = queue[head]
        head += 1
        for step in steps:
            other = here + step
            inside = values[other] > level if above else values[other] <= level
            if inside and other not in seen:
                seen.add(other)
                queue.append(other)
    return np.array(queue)


@njit(cache=True, nogil=True)
def _walk(values, at, level, up, steps):
    """Framed pixels from `at` by the steepest way to the first pixel above (at or below) the level,
    that one left out.
    """
    way = [np.int64(at)]
    while True:
        best = np.int64(-1)
        for step in steps:
            other = at + step
            if np.isnan(values[other]):
                if not up:
                    return np.array(way)
                continue
            better = best < 0 or (values[other] > values[best] if up else values[other] < values[best])
            if better:
                best = other
        if best < 0 or (values[best] <= values[at] if up else values[best] >= values[at]):
            return np.array(way)
        at = best
        if values[at] > level if up else values[at] <= level:
            return np.array(way)
        way.append(at)


class _Editor:
    """A framed copy of the map on which edits are tried; the frame is NaN."""

    def __init__(self, values, connectivity):
        self.framed = np.pad(values, 1, constant_values=np.nan)
        self.flat = self.framed.ravel()
        self.inner = self.framed[(slice(1, -1),) * values.ndim]
        self.connectivity = connectivity
        closed = is_closed(connectivity)
        self.fore, self.back = (_steps(self.framed.shape, full) for full in (closed, not closed))
        self.edits = []

    def index(self, place):
        """Framed linear index of a pixel of the map."""
        return int(np.ravel_multi_index(tuple(np.asarray(place) + 1), self.framed.shape))

    def set(self, pixels, level, kind, dimension, place):
        """Give pixels a value and write the edit down; returns what is needed to take it back."""
        before = self.flat[pixels].copy()
        self.flat[pixels] = level
        where = np.stack(np.unravel_index(pixels, self.framed.shape)) - 1
        box = tuple(where.min(1).tolist()), tuple((where.max(1) + 1).tolist())
        self.edits.append(
            Edit(kind, dimension, tuple(int(x) for x in place), box, len(pixels), float(np.abs(before - level).max()))
        )
        return pixels, before

    def take_back(self, undo):
        """Undo the last edit."""
        pixels, before = undo
        self.flat[pixels] = before
        self.edits.pop()


def _cut_and_fill(editor, bars, dimension):
    """Flatten the peaks (dimension 0) or pits (top dimension) of the given bars, the longest first."""
    for k in np.argsort(-bars.persistence, kind="stable"):
        peak, level = (
            (bars.births[k], bars.death_values[k]) if dimension == 0 else (bars.deaths[k], bars.birth_values[k])
        )
        at = editor.index(peak)
        if dimension == 0 and editor.flat[at] > level:
            pixels = _flood(editor.flat, at, level, True, editor.fore)
            editor.set(pixels, level, "cut", 0, peak)
        elif dimension > 0 and editor.flat[at] < level:
            pixels = _flood(editor.flat, at, np.nextafter(level, editor.flat.dtype.type(-np.inf)), False, editor.back)
            editor.set(pixels, level, "fill", dimension, peak)


def simplify_below(values, min_persistence, *, connectivity=Connectivity.CLOSED, threshold=None):
    """The map without any component or hole [cavity] that lives no longer than `min_persistence`.

    values  (rows, columns): components and loops; (planes, rows, columns): components and cavities, for loops in space
            have no such fill
    returns Simplified; no value changes by more than `min_persistence` in one edit, features that live longer stay
    """
    values = as_map(values)
    editor = _Editor(values, connectivity)
    top = values.ndim - 1
    while True:
        code = persistence(editor.inner, connectivity=connectivity, dimensions=[0, top])
        short = code[code.persistence <= min_persistence]
        if not len(short):
            break
        dimension = 0 if (short.dimension == 0).any() else top
        _cut_and_fill(editor, short.of(dimension), dimension)
    new = editor.inner.copy()
    shortest = float(code.persistence.min())
    certificate = {"min_persistence": float(min_persistence), "shortest": None if np.isinf(shortest) else shortest}
    if threshold is not None:
        certificate |= {
            "threshold": float(threshold),
            "betti": betti_numbers(new > threshold, connectivity=connectivity),
        }
    return Simplified(new, tuple(editor.edits), certificate)


def _just_above(threshold, dtype):
    return np.nextafter(dtype.type(threshold), dtype.type(np.inf))


KINDS = (("erase", "bridge", "plant", "split"), ("open", "fill", "close", "punch"))
"""Edits of components and of holes [cavities]: undo the birth, reach the death, bring the birth about, undo the death.
"""


def _proposals(editor, want, have, threshold):
    """Edits worth trying, cheapest first: (cost, kind, dimension, place, number of the bar)."""
    code = persistence(editor.inner, connectivity=editor.connectivity, dimensions=[0, editor.inner.ndim - 1])
    above, below = code.birth_values.astype(np.float64) - threshold, threshold - code.death_values.astype(np.float64)
    present, surplus = (above > 0) & (below >= 0), (have - want)[code.dimension]
    found = []
    for k in np.flatnonzero((present & (surplus > 0)) | (~present & (surplus < 0))):
        undo, reach, bring, split = KINDS[min(code.dimension[k], 1)]
        if present[k]:
            kinds = [(above[k], undo, code.births[k]), (below[k], reach, code.deaths[k])]
        else:
            kinds = [(-above[k], bring, code.births[k]) if above[k] <= 0 else (-below[k], split, code.deaths[k])]
        found += [
            (float(cost), kind, int(code.dimension[k]), place, k) for cost, kind, place in kinds if np.isfinite(cost)
        ]
    return sorted(found, key=lambda proposal: proposal[0])


def _batch(proposals, lacking):
    """The cheapest proposal of each bar, no more in each dimension than its number differs from the request."""
    room, taken, batch = lacking.copy(), set(), []
    for proposal in proposals:
        _, _, dimension, _, bar = proposal
        if bar not in taken and room[dimension] > 0:
            taken.add(bar)
            room[dimension] -= 1
            batch.append(proposal)
    return batch


def _change(editor, kind, place, threshold):
    """Pixels and new level of an edit of one kind at one place."""
    up = kind in ("bridge", "fill", "plant", "close")
    level = _just_above(threshold, editor.flat.dtype) if up else editor.flat.dtype.type(threshold)
    if kind in ("erase", "fill"):
        return _flood(editor.flat, editor.index(place), threshold, not up, editor.back if up else editor.fore), level
    if kind in ("plant", "punch"):
        return np.array([editor.index(place)]), level
    return _joined(editor, place, threshold, up), level


def _joined(editor, saddle, threshold, up):
    """Pixels of the two steepest ways from a saddle, in framed indices."""
    steps = editor.fore if up else editor.back
    flat, at = editor.flat, editor.index(saddle)
    labels = _sides(flat, at, threshold, up, steps)
    return np.unique(np.concatenate([np.array([at]), *[_walk(flat, start, threshold, up, steps) for start in labels]]))


def _sides(flat, at, threshold, up, steps):
    """Neighbours of a saddle from which ways lead on that the threshold has not reached yet; one for each side of the
    saddle.
    """
    ahead = [at + step for step in steps if not np.isnan(flat[at + step])]
    ahead = [o for o in ahead if (flat[o] >= flat[at] if up else flat[o] <= flat[at])]
    reached = {o for o in ahead if (flat[o] > threshold if up else flat[o] <= threshold)}
    sides, taken = [], set(reached)
    order = sorted(set(ahead) - reached, key=lambda o: -flat[o] if up else flat[o])
    for o in order:
        if not any(o + step in taken for step in steps):
            sides.append(o)
        taken.add(o)
    return sides


AT_ONCE = 128
"""Edits that are made before the first count."""
COUNTS_OF_A_SURVEY = 20
"""How many counts of a mask take as long as the persistence of its map."""


def _name(proposal):
    """What tells one edit from another: its kind and its place."""
    _, kind, _, place, _ = proposal
    return kind, tuple(place.tolist())


class _Request:
    """Betti numbers wanted of {map > threshold}, and the edits that bring them nearer."""

    def __init__(self, editor, betti, threshold, effort):
        self.editor, self.threshold = editor, threshold
        self.counts_left = max(effort // editor.inner.size, 16)
        self.free = np.array([number is None for number in betti])
        self.have = self.count()
        self.want = np.where(self.free, self.have, np.array([number or 0 for number in betti]))

    def count(self):
        self.counts_left -= 1
        return np.array(betti_numbers(self.editor.inner > self.threshold, connectivity=self.editor.connectivity))

    def lacking(self, have):
        """How far each number is from the request; numbers that are free are not."""
        return np.where(self.free, 0, np.abs(have - self.want))

    def serve(self):
        """Edit until nothing is lacking; Unreachable when no edit helps."""
        failed, made = set(), False
        while self.lacking(self.have).any():
            self.counts_left -= COUNTS_OF_A_SURVEY
            target = np.where(self.free, self.have, self.want)
            proposals = _proposals(self.editor, target, self.have, self.threshold)
            # What failed is tried again only after everything else has been: a bar's dearer edit goes first.
            batch = _batch([each for each in proposals if _name(each) not in failed], self.lacking(self.have))
            if batch:
                for start in range(0, len(batch), AT_ONCE):
                    made |= self.make(batch[start : start + AT_ONCE], failed)
            elif made:
                failed, made = set(), False
            else:
                self.refuse(spent=False)

    def refuse(self, *, spent):
        asked = tuple(None if free else int(number) for free, number in zip(self.free, self.want, strict=True))
        raise Unreachable(tuple(self.have.tolist()), asked, spent)

    def make(self, batch, failed):
        """Make those edits of a batch that bring the numbers nearer, note the others; whether there were any.

        Unreachable when the effort is spent.
        """
        if self.counts_left <= 0:
            self.refuse(spent=True)
        undo = []
        for _, kind, dimension, place, _ in batch:
            undo.append(self.editor.set(*_change(self.editor, kind, place, self.threshold), kind, dimension, place))
        now = self.count()
        if self.lacking(now).sum() <= self.lacking(self.have).sum() - len(batch):
            self.have = now
            return True
        for each in reversed(undo):
            self.editor.take_back(each)
        if len(batch) == 1:
            failed.add(_name(batch[0]))
            return False
        half = len(batch) // 2
        return self.make(batch[:half], failed) | self.make(batch[half:], failed)


def simplify_to(values, betti, *, threshold=0.5, connectivity=Connectivity.CLOSED, effort=EFFORT):
    """The map with {map > threshold} of given Betti numbers, by the fewest and least persistent changes that were
    found.

    values   (rows, columns) or (planes, rows, columns) real map
    betti    (b0, b1) in the plane, exact; in space (b0, None, b2): loops follow from neither components nor cavities
             and are not
             steered. None leaves a number free
    effort   pixels that may be counted before the request is given up
    returns  Simplified with edits erase, bridge, fill, open, plant, split, punch, close, and the Betti numbers counted
             on the new map
    Refuses (Unreachable, a ValueError) numbers that no edit of one feature of the map brings nearer, e.g. more
    components than it has peaks, and those that take more than the effort, e.g. of noise.
    """
    values = as_map(values)
    threshold = float(values.dtype.type(threshold))
    if len(betti) != values.ndim or any(b is not None and b < 0 for b in betti):
        raise ValueError(
            f"Betti numbers {tuple(betti)} do not fit a map with {values.ndim} axes: give {values.ndim} numbers of at"
            " least 0."
        )
    editor = _Editor(values, connectivity)
    request = _Request(editor, betti, threshold, effort)
    request.serve()
    certificate = {"threshold": threshold, "betti": tuple(request.count().tolist())}
    return Simplified(editor.inner.copy(), tuple(editor.edits), certificate)


def firm_numbers(values, margin, *, threshold=0.5, connectivity=Connectivity.CLOSED):
    """Betti numbers of those features of {values > threshold} that hold by at least a margin (see `topology.margins`).

    margin   how far the threshold must be able to move before a feature changes, in units of the map
    returns  as `simplify_to` takes them: (b0, b1) in the plane, (b0, None, b2) in space
    """
    top = np.ndim(values) - 1
    found = margins(values, threshold, near=0.0, dimensions=[0, top], connectivity=connectivity)
    firm = found.bars.dimension[found.present & (found.margins >= margin)]
    return tuple(int((firm == k).sum()) if k in (0, top) else None for k in range(top + 1))


def simplify_firm(values, margin, *, threshold=0.5, connectivity=Connectivity.CLOSED):
    """The map whose superlevel set keeps of its features only those that hold by at least a margin; arguments as of
    `firm_numbers`.

    A component that is barely there is erased, a gap that barely parts is bridged, a hole filled or opened; each by the
    smaller change.
    """
    betti = firm_numbers(values, margin, threshold=threshold, connectivity=connectivity)
    return simplify_to(values, betti, threshold=threshold, connectivity=connectivity)
