"""One edit by hand of a mask of classes, with the topology before and after.

The discrete work is `topology.edits`'s. Pixels that a class gains come from whatever class had them; pixels that it
loses go to the next probable class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import Invalid, NothingToEdit
from app.schemas.edits import Kind
from app.serving import certainty

ADDING = ("connect", "fill")
"""Kinds that make pixels foreground; the others take it away."""
Runs = list[list[int]]
"""[start, stop, class position]: half-open pieces of lines in raster order, and what they become."""


@dataclass(frozen=True)
class ClassMask:
    """Which class each pixel is of, as a network left it and as edits left it."""

    original: np.ndarray
    """(...) uint8: position in `classes`, as the network left it."""
    labels: np.ndarray
    """(...) uint8: the same after all edits."""
    classes: Sequence[str]
    threshold: float | None
    """None: the most probable class."""


@dataclass(frozen=True)
class Made:
    """An edit that was worked out on a mask of class positions."""

    labels: np.ndarray
    """The mask after it."""
    adds: bool
    pixels: int
    box: list[list[int]]
    cost: float
    runs: Runs
    before: dict[str, dict[str, int]]
    """Class name -> Betti numbers."""
    after: dict[str, dict[str, int]]


def made(
    kind: Kind,
    at: Sequence[int],
    to: Sequence[int] | None,
    *,
    mask: ClassMask,
    probability: np.ndarray,
    class_name: str | None,
    check: Callable[[], None],
) -> Made:
    """Work an edit out.

    probability  (K, ...) float32: the foreground, or every class
    check        called some times a second; what it raises ends the work
    Raises NothingToEdit, and Invalid for a pixel that is none and a class that is none.
    """
    from topology import edits

    classes, labels, threshold = mask.classes, mask.labels, mask.threshold
    position = _position(classes, class_name)
    values, level = certainty.score(probability, mask.original, position, threshold)
    tool = {"connect": edits.connect, "cut": edits.cut, "fill": edits.fill, "remove": edits.remove}[kind]
    places = [tuple(place) for place in (at, to) if place is not None]
    if len(places) > 1 and kind in ("fill", "remove"):
        raise _refused(f"{kind} works at one pixel. Leave `to` out.", "to")
    try:
        edit = tool(values, labels == position, *places, threshold=level, check=check)
    except edits.NoEdit as refused:
        raise NothingToEdit(str(refused)) from None
    except ValueError as refused:
        raise _refused(str(refused), "at") from None
    return _counted(edit, labels, classes, position, _next(probability, labels, position, edit, threshold))


def _position(classes: Sequence[str], class_name: str | None) -> int:
    if class_name is None and len(classes) == 2:
        return 1
    if class_name not in classes[1:]:
        raise _refused(f"`class_name` must be one of {', '.join(classes[1:])}.", "class_name")
    return classes.index(class_name)


def _refused(sentence: str, field: str) -> Invalid:
    return Invalid(sentence, errors=[{"pointer": f"/{field}", "detail": sentence}])


def _next(probability: np.ndarray, labels: np.ndarray, position: int, edit: Any, threshold: float | None) -> np.ndarray:
    """(N,) class positions of the pixels of an edit after it."""
    count = len(edit.pixels)
    if edit.adds or threshold is not None:
        return np.full(count, position if edit.adds else 0, np.uint8)
    shares = probability[(slice(None), *edit.pixels.T)].copy()
    shares[position] = -np.inf
    return shares.argmax(axis=0).astype(np.uint8)


def _counted(edit: Any, labels: np.ndarray, classes: Sequence[str], position: int, become: np.ndarray) -> Made:
    changed = labels.copy()
    changed[tuple(edit.pixels.T)] = become
    touched = {position, *become.tolist(), *labels[tuple(edit.pixels.T)].tolist()}
    before = {name: _betti(labels == k) for k, name in enumerate(classes) if k}
    after = {name: _betti(changed == k) if k in touched else before[name] for k, name in enumerate(classes) if k}
    low, high = edit.pixels.min(axis=0), edit.pixels.max(axis=0) + 1
    return Made(
        changed,
        edit.adds,
        len(edit.pixels),
        [low.tolist(), high.tolist()],
        edit.cost,
        _runs(np.ravel_multi_index(tuple(edit.pixels.T), labels.shape), become, labels.shape[-1]),
        before,
        after,
    )


def _betti(mask: np.ndarray) -> dict[str, int]:
    from topology.components import betti_numbers

    return {f"beta{k}": number for k, number in enumerate(betti_numbers(mask))}


def _runs(linear: np.ndarray, become: np.ndarray, columns: int) -> Runs:
    """Pieces of lines with one class each, of pixels in raster order."""
    breaks = (np.diff(linear) != 1) | (np.diff(become.astype(np.int64)) != 0) | (linear[1:] % columns == 0)
    starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    stops = np.append(starts[1:], len(linear)) - 1
    return np.stack([linear[starts], linear[stops] + 1, become[starts]], axis=1).tolist()


def applied(labels: np.ndarray, runs: Iterable[Runs]) -> np.ndarray:
    """A copy of class positions with the runs of several edits, in their order."""
    changed = labels.copy()
    flat = changed.reshape(-1)
    for edit in runs:
        for start, stop, position in edit:
            flat[start:stop] = position
    return changed


def in_lines(runs: Runs, shape: Sequence[int], most: int) -> Runs:
    """The first runs as [row, start, stop, class position] or [plane, row, start, stop, class position]."""
    columns = shape[-1]
    found = []
    for start, stop, position in runs[:most]:
        line = start // columns
        lines = [line] if len(shape) == 2 else [line // shape[1], line % shape[1]]
        found.append([*lines, start % columns, start % columns + stop - start, position])
    return found
