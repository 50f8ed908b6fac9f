"""One mask that a person edits click by click, with its history.

A click where the mask has nothing means "connect here": the two nearest pieces are joined through it by the pixels that
change the network's map the least, or the hole around it is filled where that takes hardly more. A click on the mask
means "cut here", or removes the component where that takes hardly more. `topology.edits` does the discrete work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.errors import Invalid, InvalidRequest

HARDLY_MORE = 4
"""A hole is filled, a component removed, when it has at most so many times the pixels of a path or cut."""
MOST_UNDONE = 16
"""Steps that can be taken back."""
MOST_WAITING = 100
"""Interactions that wait for their prediction."""
BYTES_PER_VOXEL = 8
"""Of a drawing: its map, its mask, what one step compares, and a bit for every step that can be taken back."""

Place = tuple[int, ...]
Box = list[list[int]]


@dataclass(frozen=True)
class Step:
    """What changed: the smallest box around it, and what is in that box now."""

    box: Box
    mask: np.ndarray
    """(X, Y, Z) uint8 of the box."""


@dataclass(frozen=True)
class Wish:
    """One interaction: a click (one place) or a stroke (the two ends of it)."""

    places: list[Place]
    adds: bool


@dataclass
class Told:
    """What came of some interactions."""

    kinds: list[str] = field(default_factory=list)
    """The edits that were made."""
    said: list[str] = field(default_factory=list)
    """Why others were not."""
    betti: tuple[int, ...] | None = None


class Drawing:
    """The map of a network, and the mask that is drawn on it; callers hold `lock`.

    values     (X, Y, Z) float32; an axis of length 1 makes it an image
    threshold  above which it is foreground
    """

    def __init__(self, values: np.ndarray, threshold: float):
        self.lock = threading.Lock()
        self._values, self._threshold = values, threshold
        self.clear()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        return self._values.size * BYTES_PER_VOXEL

    def clear(self) -> None:
        """Begin again with an empty mask; the network's is drawn with the next interaction."""
        self.mask = np.zeros(self.shape, bool)
        self._begun = False
        self._before: list[bytes] = []
        self._waiting: list[Wish] = []

    def start_from(self, mask: np.ndarray) -> None:
        """Draw on another mask than the network's; what was drawn before is forgotten."""
        self.clear()
        self.mask, self._begun = mask.reshape(self.shape) != 0, True

    def wait(self, wish: Wish) -> None:
        """Remember an interaction until it is asked for."""
        for place in wish.places:
            if len(place) != len(self.shape) or not all(0 <= k < n for k, n in zip(place, self.shape, strict=True)):
                raise Invalid(f"The place {list(place)} is outside the image of {list(self.shape)}.")
        if len(self._waiting) >= MOST_WAITING:
            raise InvalidRequest(f"{MOST_WAITING} interactions wait already. Predict first.")
        self._waiting.append(wish)

    def draw(self, check: Callable[[], None]) -> tuple[Step | None, Told]:
        """Do what waits; the network's mask comes first. What changed, and what was done.

        check  called some times a second; what it raises ends the work, and nothing has changed
        """
        before, told = self.mask, Told()
        mask = before if self._begun else self._values > np.float32(self._threshold)
        for wish in self._waiting:
            mask = self._edited(mask, wish, told, check)
        told.betti = told.betti or self._betti(mask)
        self.mask, self._begun, self._waiting = mask, True, []
        step = _between(before, mask)
        if step is not None:
            self._before = [*self._before, np.packbits(before).tobytes()][-MOST_UNDONE:]
        return step, told

    def undo(self) -> Step | None:
        """Take the last step back; None where there is none."""
        self._waiting = []
        if not self._before:
            return None
        now, packed = self.mask, np.frombuffer(self._before.pop(), np.uint8)
        self.mask = np.unpackbits(packed, count=now.size).reshape(self.shape).view(bool)
        self._begun = bool(self._before) or bool(self.mask.any())
        return _between(now, self.mask)

    def _betti(self, mask: np.ndarray) -> tuple[int, ...]:
        from topology.components import betti_numbers

        return tuple(betti_numbers(self._flat(mask)))

    def _flat(self, array: np.ndarray) -> np.ndarray:
        """An array without its axis of length 1, where it has one."""
        return array.squeeze(axis=self._thin) if self._thin is not None else array

    @property
    def _thin(self) -> int | None:
        """The axis of length 1 of an image; None for volumes."""
        thin = [axis for axis, side in enumerate(self.shape) if side == 1]
        return thin[0] if thin else None

    def _edited(self, mask: np.ndarray, wish: Wish, told: Told, check: Callable[[], None]) -> np.ndarray:
        """The mask after one interaction; the same where there was nothing to do, and why."""
        places = [tuple(k for axis, k in enumerate(place) if axis != self._thin) for place in wish.places]
        flat, values = self._flat(mask), self._flat(self._values)
        from topology import edits

        if len(places) == 1 and bool(flat[places[0]]) == wish.adds:
            there = "foreground" if wish.adds else "background"
            told.said.append(f"The voxel {list(wish.places[0])} is {there} already.")
            return mask
        options: dict[str, Any] = {"threshold": self._threshold, "check": check}
        local, whole = (edits.connect, edits.fill) if wish.adds else (edits.cut, edits.remove)
        found, refusals = [], []
        for tool in (local,) if len(places) > 1 else (local, whole):
            try:
                found.append(tool(values, flat, *places, **options))
            except edits.NoEdit as refused:
                refusals.append(str(refused))
        if not found:
            told.said.extend(refusals)
            return mask
        edit = found[0]
        if len(found) > 1 and len(found[1].pixels) <= HARDLY_MORE * len(edit.pixels):
            edit = found[1]
        told.kinds.append(edit.kind)
        told.betti = tuple(edit.betti_after)
        return edit.made(flat).reshape(self.shape)


def stroke(mask: np.ndarray, corner: Place) -> list[Place]:
    """The two ends of a stroke: its voxel that is farthest from its middle, and the one farthest from that.

    mask    (X, Y, Z), a crop of the image that begins at `corner`
    """
    voxels = np.argwhere(mask)
    if not len(voxels):
        raise Invalid("The scribble is empty. Draw at least one voxel.")
    first = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmax()]
    second = voxels[((voxels - first) ** 2).sum(axis=1).argmax()]
    ends = {tuple(int(k) + at for k, at in zip(end, corner, strict=True)) for end in (first, second)}
    return sorted(ends)


def _between(before: np.ndarray, after: np.ndarray) -> Step | None:
    """The box around what differs."""
    differs = before != after
    box: Box = []
    for axis in range(differs.ndim):
        there = np.flatnonzero(differs.any(axis=tuple(k for k in range(differs.ndim) if k != axis)))
        if not len(there):
            return None
        box.append([int(there[0]), int(there[-1]) + 1])
    return Step(box, after[tuple(slice(*sides) for sides in box)].astype(np.uint8))
