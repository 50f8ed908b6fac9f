"""What the topology of an answer is expected to be, and where it is otherwise.

beta0:1,beta1:0        every class but the background
vessel.beta0:1         one class
{"vessel": {"beta0": 1}}  the same as JSON, for class names with a comma or a colon in them
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import ExpectationViolated, Invalid
from app.serving import certainty

if TYPE_CHECKING:
    from topology.margins import Margins

Expected = dict[str, dict[str, int]]
"""Class name -> number -> what it shall be."""

PLACES = 20
"""Places listed for one violation."""
LARGEST = 2**31 - 1
NOUNS = {"beta0": ("component", "components"), "beta1": ("loop", "loops"), "beta2": ("cavity", "cavities")}


# Reading ------------------------------------------------------------------------------------------------------------


def read(text: str, classes: Sequence[str], dimensions: int) -> Expected:
    """What is expected of each class, by the grammar above; Invalid where it cannot be."""
    names = [*(f"beta{k}" for k in range(dimensions)), "euler"]
    expected: Expected = {}
    for class_name, name, number in _named(text):
        if class_name is not None and class_name not in classes[1:]:
            raise _refused(
                f"There is no class {class_name[:64]!r} to expect something of; there is {', '.join(classes[1:])}."
            )
        if name not in names:
            raise _refused(
                f"There is no number {name[:64]!r}; in {dimensions} dimensions there are {', '.join(names)}."
            )
        least = 0 if name != "euler" else -LARGEST
        if not least <= number <= LARGEST:
            raise _refused(f"{name} cannot be {str(number)[:16]}; it is a whole number from {least} to {LARGEST}.")
        for each in classes[1:] if class_name is None else [class_name]:
            numbers = expected.setdefault(each, {})
            if numbers.setdefault(name, number) != number:
                raise _refused(f"{name} of {each} is expected to be both {numbers[name]} and {number}.")
    return expected


def _named(text: str) -> list[tuple[str | None, str, int]]:
    """(class or None, name, number) of each part of the text."""
    stripped = text.strip()
    if stripped.startswith("{") and '"' in stripped:
        return _from_json(stripped)
    if stripped.startswith("{") and stripped.endswith("}"):
        stripped = stripped[1:-1]
    parts = []
    for part in stripped.split(","):
        name, colon, number = part.strip().rpartition(":")
        if not colon or not re.fullmatch(r"-?[0-9]{1,10}", number.strip()):
            raise _refused(
                f"{part.strip()[:64]!r} is not a name, a colon and a whole number. Write `beta0:1,beta1:0`, or"
                " `vessel.beta0:1` for one class."
            )
        class_name, dot, name = name.strip().rpartition(".")
        parts.append((class_name if dot else None, name, int(number)))
    return parts


def _from_json(text: str) -> list[tuple[str | None, str, int]]:
    try:
        sent = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _refused(
            'This is no JSON object. Write {"beta0": 1}, {"vessel": {"beta0": 1}}, or beta0:1 without quotes.'
        ) from None
    parts: list[tuple[str | None, str, int]] = []
    for key, value in sent.items():
        nested = value.items() if isinstance(value, dict) else [(key.rpartition(".")[2], value)]
        class_name = key if isinstance(value, dict) else key.rpartition(".")[0] or None
        for name, number in nested:
            if type(number) is not int:
                raise _refused(f"{name[:64]} must be a whole number.")
            parts.append((class_name, name, number))
    if not parts:
        raise _refused("Nothing is expected. Write `beta0:1,beta1:0`, or leave it out.")
    return parts


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _refused(sentence: str) -> Invalid:
    return Invalid(sentence, errors=[{"pointer": "/query/expect", "detail": sentence}])


# Checking -----------------------------------------------------------------------------------------------------------


def violations(
    facts: Mapping[str, Any],
    expected: Mapping[str, int],
    mask: np.ndarray,
    features: Callable[[], Margins],
    threshold: float,
) -> list[dict[str, Any]]:
    """Where one class of an answer is not what was expected: one entry for each number that differs.

    facts     the topology report of the class; mask: its pixels
    features  gives every feature of the class's map; asked only when something differs
    """
    wrong = [(name, number) for name, number in expected.items() if facts[name] != number]
    return [_violation(name, number, facts[name], mask, features(), threshold) for name, number in wrong]


def _violation(
    name: str, expected: int, found: int, mask: np.ndarray, features: Margins, threshold: float
) -> dict[str, Any]:
    chosen = (
        features
        if name == "euler"
        else features[(features.bars.dimension == int(name[-1])) & (features.present == (found > expected))]
    )
    places = [certainty.describe(chosen, k, threshold) for k in range(min(len(chosen), PLACES))]
    if found > expected and name != "euler":
        places = [place | extent for place, extent in zip(places, _extents(name, mask, places), strict=True)]
    return {"name": name, "expected": expected, "found": found, "by": found - expected, "places": places}


def _extents(name: str, mask: np.ndarray, places: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Box and size of each component, or hole [cavity], that is too many; a tunnel of a volume has neither."""
    from topology.components import label_components, label_holes, sizes_and_boxes

    if name == "beta1" and mask.ndim == 3:
        return [{} for _ in places]
    labels, count = (label_components if name == "beta0" else label_holes)(mask)
    sizes, boxes = sizes_and_boxes(labels, count)
    inside = [labels[tuple(place["born_at"] if name == "beta0" else place["dies_at"])] for place in places]
    # A repaired mask may not have the feature any more that the map has.
    return [{"box": boxes[label - 1].tolist(), "size": int(sizes[label - 1])} if label else {} for label in inside]


def sentence(class_name: str, violation: Mapping[str, Any]) -> str:
    """What a violation says to a person."""
    found, expected = violation["found"], violation["expected"]
    if violation["name"] == "euler":
        return f"{class_name} has the Euler characteristic {found}; {expected} was expected."
    one, many = NOUNS[violation["name"]]
    return (
        f"{class_name} has {found} {one if found == 1 else many}; {expected} {'was' if expected == 1 else 'were'}"
        " expected."
    )


def insist(report: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ExpectationViolated, with every violation, unless the report has none."""
    wrong = listed(report)
    if wrong:
        told = [sentence(each["class_name"], each) for each in wrong]
        raise ExpectationViolated(
            f"{' '.join(told)} Look at the places, send repair=true to have the mask changed, or leave out strict.",
            errors=[{"pointer": "/query/expect", "detail": each} for each in told],
            members={"violations": wrong},
        )


def listed(report: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The violations of every class, each with the name of its class."""
    return [
        {"class_name": name} | dict(each) for name, facts in report.items() for each in facts.get("violations") or ()
    ]
