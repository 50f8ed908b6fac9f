"""Rules between the classes of a label map: what lies inside or touches what.

Containment is local: where no pixel of a class has a neighbour outside the class and its wall, the class lies inside
the wall. So a broken rule is a place, not a number of the whole map: the pixels that touch what they should not, or the
component that touches nothing it should. Betti numbers do not say the same: with 8-connected foreground a class may
cross its wall diagonally and leave every count right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topology.components import label_components, sizes_and_boxes

KINDS = ("inside", "must_touch", "must_not_touch")
CONTACTS = ("sides", "corners")
BORDERS = ("unknown", "background")
PLACES = 20
"""Places listed for one rule."""


@dataclass(frozen=True)
class Rule:
    """What one class may lie beside.

    kind     "inside": every neighbour of the class is of the class itself or of the others.
             "must_touch": each component of the class has a neighbour of the others.
             "must_not_touch": none of its pixels has one
    subject  the class
    others   the classes, taken together, that it lies inside, must touch or must not
    contact  "sides": neighbours share a side (4 [6] of them), so a wall may be 8 [26]-connected; "corners": they share
             a corner, an edge or a side (8 [26]), so a wall must be 4 [6]-connected
    border   what lies beyond the image. "unknown": nothing that breaks a rule, for images that show a part;
             "background": a class outside the others, so that what lies inside must not reach the border
    Refuses (ValueError) other words, no others, and the subject among the others.
    """

    kind: str
    subject: int
    others: tuple[int, ...]
    contact: str = "sides"
    border: str = "unknown"

    def __post_init__(self):
        for name, choices in (("kind", KINDS), ("contact", CONTACTS), ("border", BORDERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        object.__setattr__(self, "others", tuple(self.others))
        if not self.others or self.subject in self.others:
            raise ValueError(
                f"The rule {self.kind} of class {self.subject} names {list(self.others)} beside it; name one or more"
                " other classes."
            )


class Violations(NamedTuple):
    """Where a label map breaks a rule.

    labels  int32, shape of the map: 0 where nothing is wrong, else 1 + the position of the violation. "inside" and
            "must_not_touch": the pixels on both sides of a contact; "must_touch": the component without one
    sizes   (R,) int64, pixels
    boxes   (R, 2, ndim) half open
    pixels  how many pixels of the subject are in a violation
    """

    labels: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    pixels: int


def _near(mask, contact):
    """The pixels of a mask and their neighbours."""
    grown = mask.copy()
    for axis in range(mask.ndim):
        source = grown.copy() if contact == "corners" else mask
        along, seen = np.moveaxis(grown, axis, 0), np.moveaxis(source, axis, 0)
        along[1:] |= seen[:-1]
        along[:-1] |= seen[1:]
    return grown


def _edge(shape):
    """The pixels on the border of an image."""
    edge = np.ones(shape, bool)
    edge[(slice(1, -1),) * len(shape)] = False
    return edge


def violations(labels: ArrayLike, rule: Rule, *, ignore: ArrayLike | None = None) -> Violations:
    """Where a label map breaks a rule; each 8 [26]-connected set of wrong pixels is one violation.

    labels  (rows, columns) or (planes, rows, columns) whole numbers
    ignore  bool, of the same shape: pixels that break no rule, as if they were beyond the border of a part
    Refuses (ValueError) other than 2 or 3 axes and labels that are no whole numbers. Time is linear in the pixels.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(f"Label map has dtype {labels.dtype}; give whole numbers, which name the class of each pixel.")
    unknown = np.zeros(labels.shape, bool) if ignore is None else np.asarray(ignore, bool)
    subject, others = (labels == rule.subject) & ~unknown, np.isin(labels, rule.others) & ~unknown
    if rule.kind == "must_touch":
        found, count = label_components(subject)
        excused = _near(others | unknown, rule.contact)
        if rule.border == "unknown":
            excused |= _edge(labels.shape)
        alone = np.ones(count + 1, bool)
        alone[0] = False
        alone[found[excused]] = False
        wrong = at_fault = alone[found]
    else:
        strange = others if rule.kind == "must_not_touch" else ~(subject | others | unknown)
        beside = _near(strange, rule.contact)
        if rule.kind == "inside" and rule.border == "background":
            beside |= _edge(labels.shape)
        at_fault = subject & beside
        wrong = at_fault | (strange & _near(subject, rule.contact))
    found, count = label_components(wrong)
    return Violations(found, *sizes_and_boxes(found, count), int(np.count_nonzero(at_fault)))


def broken_rules(
    prediction: ArrayLike, reference: ArrayLike, rules: Sequence[Rule], *, ignore: ArrayLike | None = None
) -> dict[int, list[dict[str, Any]]]:
    """What became of every rule, by its subject: [{rule, others, count, pixels, places, reference_count}].

    prediction, reference  label maps of one shape
    ignore  as of `violations`
    count, pixels  violations of the prediction, and the pixels of the subject in them
    places  the largest of them, at most PLACES: {box [start, stop), pixels}; of equal ones the first in raster order
    reference_count  violations of the reference itself, which the rule then does not suit
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for rule in rules:
        broken = violations(prediction, rule, ignore=ignore)
        largest = np.argsort(-broken.sizes, kind="stable")[:PLACES]
        found.setdefault(rule.subject, []).append(
            {
                "rule": rule.kind,
                "others": list(rule.others),
                "count": len(broken.sizes),
                "pixels": broken.pixels,
                "places": [{"box": broken.boxes[k].tolist(), "pixels": int(broken.sizes[k])} for k in largest],
                "reference_count": len(violations(reference, rule, ignore=ignore).sizes),
            }
        )
    return found
