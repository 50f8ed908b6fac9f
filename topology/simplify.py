"""Changes a map as little as possible to the topology that was asked.

`simplify_below` removes every feature that lives no longer than a bound: a peak that is too low is cut off at the pass
where its component dies, a pit that is too shallow is filled up to the pass where its loop closes; both again, until
no such feature is left.

`simplify_to` gives the superlevel set {map > threshold} the Betti numbers asked for at the least total change: the sum
over the changed pixels of |value - threshold|, which weighs how sure the map is and how much is changed; of equal sums
fewer pixels decide, then the place. Surplus components are erased or bridged, surplus holes filled or cut open along
the cheapest paths (`topology.paths`), whichever plan costs the least in all (`topology.prize_collecting`); no path has
more pixels than what it saves from being erased or filled. Lacking features are added where the map nearly has them
(`topology.additions`). The plain repair, keep the largest components and fill the smallest holes, is worked out beside
it and taken where it costs less. In the end the Betti numbers are counted anew (`topology.components`, which shares no
code with the search).

`simplify_firm` keeps exactly those features that hold by a margin (`topology.margins`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from topology.additions import add_lacking
from topology.components import betti_numbers
from topology.edited_mask import BACKGROUND, FOREGROUND, Edit, EditedMask, off
from topology.grids import Connectivity, as_map, is_closed
from topology.handles import remove_loops
from topology.margins import margins
from topology.paths import steps_of
from topology.persistence import persistence
from topology.prize_collecting import collect

Numbers = tuple[int | None, ...]
"""Betti numbers by dimension; None: free."""
TIME_LIMIT_S = 30.0
"""How long a repair is sought unless stated."""
ROUNDS = 16
"""How often removing and adding take turns; two or three are usual."""


class Unreachable(ValueError):
    """The Betti numbers asked for were not reached: no edit brings them nearer, or the time was over.

    reached  how far it came; asked: what was asked for, None where free; spent: whether the time was over
    """

    def __init__(self, reached: tuple[int, ...], asked: Numbers, spent: bool) -> None:
        super().__init__(reached, asked, spent)
        self.reached, self.asked, self.spent = reached, asked, spent

    def __str__(self) -> str:
        if self.spent:
            why = f"the time for more was over before {self.asked}. Allow more time, smooth the map,"
        else:
            why = f"no edit brings them nearer to {self.asked}. Ask for numbers it can have,"
        if len(self.asked) == 3 and self.reached[1] < (self.asked[1] or 0):
            why = f"loops of a volume are taken away, never added, so not {self.asked}. Leave loops free (None),"
        return f"The map reaches Betti numbers {self.reached}; {why} or take the part that was reached (partial=True)."


@dataclass(frozen=True)
class Simplified:
    """A changed map, the edits that made it, and its certificate.

    values       the new map, dtype of the request
    edits        sequence of Edit; of `simplify_to` the costliest first, of `simplify_below` in the order they were made
    certificate  {"betti", "threshold"}, counted on the new map; of `simplify_below` {"min_persistence", "shortest"}
                 and, where a threshold was given, the same; of `simplify_to` also {"asked", "reached": whether the
                 numbers are those asked for, "spent": whether the time was over before every plan was compared}
    """

    values: np.ndarray
    edits: Sequence[Edit]
    certificate: dict[str, Any]


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


def _cut_and_fill(framed, bars, dimension, steps):
    """Flatten the peaks (dimension 0) or pits (top dimension) of the given bars in a framed map, the longest first.

    Returns an Edit for each.
    """
    flat, edits = framed.ravel(), []
    for k in np.argsort(-bars.persistence, kind="stable"):
        peak, level = (
            (bars.births[k], bars.death_values[k]) if dimension == 0 else (bars.deaths[k], bars.birth_values[k])
        )
        at = int(np.ravel_multi_index(tuple(peak + 1), framed.shape))
        if dimension == 0 and flat[at] > level:
            pixels = _flood(flat, at, level, True, steps)
        elif dimension > 0 and flat[at] < level:
            pixels = _flood(flat, at, np.nextafter(level, flat.dtype.type(-np.inf)), False, steps)
        else:
            continue
        change = np.abs(flat[pixels].astype(np.float64) - level)
        flat[pixels] = level
        where = np.stack(np.unravel_index(pixels, framed.shape)) - 1
        box = tuple(where.min(1).tolist()), tuple((where.max(1) + 1).tolist())
        kind, place = "fill" if dimension else "cut", tuple(peak.tolist())
        edits.append(Edit(kind, dimension, place, box, len(pixels), float(change.max()), float(change.sum())))
    return edits


def simplify_below(
    values: ArrayLike,
    min_persistence: float,
    *,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    threshold: float | None = None,
) -> Simplified:
    """The map without any component or hole [cavity] that lives no longer than `min_persistence`.

    values  (rows, columns): components and loops; (planes, rows, columns): components and cavities, for loops in space
            have no such fill
    returns Simplified; no value changes by more than `min_persistence` in one edit, features that live longer stay
    """
    values = as_map(values)
    framed = np.pad(values, 1, constant_values=np.nan)
    inner, top, edits = framed[(slice(1, -1),) * values.ndim], values.ndim - 1, []
    while True:
        code = persistence(inner, connectivity=connectivity, dimensions=[0, top])
        short = code[code.persistence <= min_persistence]
        if not len(short):
            break
        dimension = 0 if (short.dimension == 0).any() else top
        steps = steps_of(framed.shape, (dimension == 0) == is_closed(connectivity))
        edits += _cut_and_fill(framed, short.of(dimension), dimension, steps)
    new = inner.copy()
    shortest = float(code.persistence.min())
    certificate: dict[str, Any] = {
        "min_persistence": float(min_persistence),
        "shortest": None if np.isinf(shortest) else shortest,
    }
    if threshold is not None:
        certificate |= {
            "threshold": float(threshold),
            "betti": betti_numbers(new > threshold, connectivity=connectivity),
        }
    return Simplified(new, tuple(edits), certificate)


class _Spent(Exception):
    """The time is over."""


class _Clock:
    """Called between short steps of the work: asks the caller whether to go on, and ends it when the time is over."""

    def __init__(self, limit_s: float | None, check: Callable[[], object] | None) -> None:
        self._end, self._check = None if limit_s is None else time.monotonic() + limit_s, check

    def __call__(self) -> None:
        if self._check is not None:
            self._check()
        if self._end is not None and time.monotonic() > self._end:
            raise _Spent


def _asked(betti: Any, ndim: int) -> Numbers:
    """The Betti numbers as a tuple; a ValueError that names what is none."""
    shape = "(b0, b1) for an image, (b0, b1, b2) for a volume; None leaves a number free"
    if not isinstance(betti, tuple | list | np.ndarray):
        raise ValueError(f"Betti numbers {betti!r} are no sequence: give {shape}.")
    if len(betti) != ndim:
        raise ValueError(f"Betti numbers {tuple(betti)} do not fit a map with {ndim} axes: give {shape}.")
    for number in betti:
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if number is not None and (not whole or number < 0):
            raise ValueError(f"Betti number {number!r} is no whole number of at least 0: give {shape}.")
    return tuple(None if number is None else int(number) for number in betti)


@dataclass
class _Plan:
    """One way to repair.

    paths    whether components may be joined, or only given up
    by_size  whether the components that stay without paths are the largest, or those that cost the most
    firm     framed pixels of the features that stay, by dimension; None: as many as `wanted` stay
    """

    edited: EditedMask
    wanted: Numbers
    paths: bool = True
    by_size: bool = False
    firm: dict[int, np.ndarray] | None = None
    spent: bool = False

    def off(self) -> int:
        """How far the numbers are from what is wanted."""
        return off(self.edited.betti(), self.wanted)

    def run(self) -> _Plan:
        """Edit until the numbers are as wanted, nothing more helps, or the time is over (`spent`)."""
        top, stalled, left = self.edited.ndim - 1, 0, self.off()
        try:
            for _ in range(ROUNDS):
                if not left or stalled == 2:
                    break
                self._remove(FOREGROUND, 0, top)
                self._remove(BACKGROUND, top, 0)
                if self.paths and top == 2:
                    remove_loops(self.edited, self.wanted)
                if self.paths:
                    add_lacking(self.edited, self.wanted)
                before, left = left, self.off()
                stalled = stalled + 1 if left >= before else 0
        except _Spent:
            self.spent = True
        return self

    def _remove(self, side, dimension, across):
        """Give up or join what is too many on one side; `across` is the dimension of what the other side's count."""
        if self.wanted[dimension] is None:
            return
        self.edited.pause()
        components = self.edited.components(side)
        keep = self.wanted[dimension] + (side == BACKGROUND)
        if len(components) <= keep:
            return
        if self.firm is not None:
            self._keep(side, dimension, components, self._stay(side, components, self.firm[dimension]))
            return
        others = self.edited.components(1 - side)
        # What lies inside goes with what is given up; where those are not too many, it may not be given up.
        enclosing = self.edited.enclosing(others, components)
        inside = np.bincount(enclosing[enclosing >= 0], minlength=len(components))
        if self.wanted[across] is not None:
            surplus = len(others) - (side == FOREGROUND) - self.wanted[across]
            components.masses[inside > max(surplus, 0)] = np.inf
        self._keep(side, dimension, components, [0] if side == BACKGROUND else None, keep)

    def _stay(self, side, components, places):
        """The components of a side that hold one of these pixels, and the outside."""
        labels = components.labels.ravel()[places[self.edited.flat[places] == side]]
        return np.unique(np.append(labels, 1) if side == BACKGROUND else labels) - 1

    def _keep(self, side, dimension, components, roots, groups=None):
        """Keep so many components of a side, among them the roots; no others where no number is given."""
        groups = len(roots) if groups is None else groups
        kinds = ("erase", "bridge") if side == FOREGROUND else ("fill", "open")
        if not self.paths:
            facts = (components.first, -components.masses, -components.pixels)
            order = np.lexsort(facts if self.by_size else (facts[0], facts[2], facts[1]))
            if side == BACKGROUND:
                order = np.append(0, order[order != 0])
            given_up = np.ones(len(components), bool)
            given_up[order[:groups]] = False
            self.edited.give_up(side, components, given_up, kinds[0], dimension)
            return
        masses = np.sort(components.masses)
        limit = masses[:-1].sum()  # a path that costs more than all that could be given up
        regions = self.edited.regions(side, components.labels, len(components), limit=limit)
        paths = regions.paths()
        kept, taken = collect(
            components.masses,
            components.pixels,
            paths.labels - 1,
            paths.costs,
            paths.sizes,
            roots=roots,
            groups=groups,
        )
        self.edited.pause()
        self.edited.give_up(side, components, ~kept, kinds[0], dimension)
        self.edited.join(
            side,
            components,
            (regions.between(*paths.ends[k]) for k in taken),
            most=int(kept.sum()) - groups,
            kind=kinds[1],
            dimension=dimension,
        )


def simplify_to(
    values: ArrayLike,
    betti: Sequence[int | None] | np.ndarray,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    time_limit_s: float | None = TIME_LIMIT_S,
    check: Callable[[], object] | None = None,
    partial: bool = False,
) -> Simplified:
    """The map with {map > threshold} of given Betti numbers, at the least total change that was found (see the module).

    values        (rows, columns) or (planes, rows, columns) real map
    betti         (b0, b1) in the plane, (b0, b1, b2) in space; None leaves a number free
    time_limit_s  seconds after which the best that was reached counts; None: no limit
    check         called some times a second; what it raises ends the work
    partial       give what was reached, instead of Unreachable, where the numbers are not reached
    returns       Simplified with edits erase, bridge, fill, open, plant, split, punch, close
    Refuses (ValueError, naming it) what is no Betti number, and (Unreachable, a ValueError) numbers that no edit of
    one feature of the map brings nearer, e.g. more components than it has peaks.
    """
    values = as_map(values)
    wanted = _asked(betti, values.ndim)
    clock = _Clock(time_limit_s, check)

    def plan(**options):
        return _Plan(EditedMask(values, threshold, connectivity, pause=clock), wanted, **options).run()

    return _finish(_better(plan), wanted, partial)


def _better(plan):
    """The better of the least total change and the plain repair, which is quick and therefore first."""
    plain = plan(paths=False, by_size=True)
    if plain.spent or not plain.edited.made:
        return plain if plain.spent or not plain.off() else plan()
    ours = plan()
    if ours.edited.cost()[1] > plain.edited.cost()[1]:
        # The components that cost the most to give up may not be the largest; then they set how much may change.
        sure = plan(paths=False)
        there = [each.edited.cost()[1] for each in (plain, sure) if each.off() == 0]
        if there and ours.edited.cost()[1] > max(there):
            ours, plain = plain, sure
    best = min(ours, plain, key=lambda each: (each.off(), *each.edited.cost()))
    best.spent = ours.spent or plain.spent
    return best


def _finish(plan, wanted, partial):
    """Simplified, or Unreachable where the numbers were not reached and no part of the way is wanted."""
    reached = plan.edited.betti()
    there = plan.off() == 0
    if not there and not partial:
        raise Unreachable(reached, wanted, plan.spent)
    certificate = {
        "threshold": float(plan.edited.threshold),
        "betti": reached,
        "asked": wanted,
        "reached": there,
        "spent": plan.spent,
    }
    return Simplified(plan.edited.map(), plan.edited.edits(), certificate)


def _firm(values, margin, threshold, connectivity):
    """Pixels of the firm features by dimension, (K, ndim) each: the peak of a component, the pit of a hole [cavity]."""
    top = np.ndim(values) - 1
    found = margins(values, threshold, near=0.0, dimensions=[0, top], connectivity=connectivity)
    bars = found.bars[found.present & (found.margins >= margin)]
    return {0: bars.of(0).births, top: bars.of(top).deaths}


def firm_numbers(
    values: ArrayLike,
    margin: float,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
) -> Numbers:
    """Betti numbers of those features of {values > threshold} that hold by at least a margin (see `topology.margins`).

    margin   how far the threshold must be able to move before a feature changes, in units of the map
    returns  as `simplify_to` takes them: (b0, b1) in the plane, (b0, None, b2) in space
    """
    firm = _firm(values, margin, threshold, connectivity)
    return tuple(len(firm[k]) if k in firm else None for k in range(np.ndim(values)))


def simplify_firm(
    values: ArrayLike,
    margin: float,
    *,
    threshold: float = 0.5,
    connectivity: Connectivity | str = Connectivity.CLOSED,
    time_limit_s: float | None = TIME_LIMIT_S,
    check: Callable[[], object] | None = None,
    partial: bool = False,
) -> Simplified:
    """The map whose superlevel set keeps of its features only those that hold by at least a margin.

    A component that is barely there is erased, a gap that barely parts is bridged, a hole filled or opened; each by the
    smaller total change, however large a firm one is that stays. The margin bounds a move of the threshold; it says
    nothing of noise that moves each pixel by itself. Arguments as of `firm_numbers` and `simplify_to`.
    """
    values = as_map(values)
    edited = EditedMask(values, threshold, connectivity, pause=_Clock(time_limit_s, check))
    places = _firm(values, margin, threshold, connectivity)
    firm = {
        dimension: np.array([edited.index(place) for place in each], np.int64) for dimension, each in places.items()
    }
    wanted = tuple(len(firm[k]) if k in firm else None for k in range(values.ndim))
    return _finish(_Plan(edited, wanted, firm=firm).run(), wanted, partial)
