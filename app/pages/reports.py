"""Topology reports as the tables that pages show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.pages.rendering import Facts
from app.pages.words import REPORT

MOST_PLACES = 60
"""Places of one prediction in its table: the least certain of each list."""


def places_table(report: Mapping[str, Any] | None) -> list[Facts]:
    """One row for each place that the report names: what holds by little, what breaks an expectation, what a repair
    changed. The worst first; where wrong places are known, the page adds them.
    """
    rows: dict[tuple[str, ...], Facts] = {}
    for class_name, facts in (report or {}).items():
        nearly = list((facts.get("margins") or {}).get("features", []))
        expected = [place for each in facts.get("violations") or () for place in each["places"]]
        for why, features in (("expectation", expected), ("stability", nearly)):
            for each in features[:MOST_PLACES]:
                nouns = ("component", "loop", "cavity")[each["dimension"]]
                kind = f"{nouns} in the mask" if each["present"] else f"{nouns} that it nearly has"
                rows.setdefault(
                    (class_name, str(each["position"]), kind),
                    _place(why, kind, class_name, each["position"], each["margin"], each.get("size"), each["sentence"]),
                )
        for each in facts.get("edits", [])[:MOST_PLACES]:
            kind = f"repair: {each['kind']}"
            key = (class_name, str(each["position"]), kind)
            rows[key] = _place("repair", kind, class_name, each["position"], each["change"], each["pixels"], "")
    return sorted(rows.values(), key=lambda place: place["margin"])[: 3 * MOST_PLACES]


def _place(
    why: str, kind: str, class_name: str, at: list[int], margin: float, size: int | None, sentence: str
) -> Facts:
    return {
        "why": why,
        "kind": kind,
        "class_name": class_name,
        "at": at,
        "margin": margin,
        "size": size,
        "sentence": sentence,
    }


def expectation_table(report: Mapping[str, Any] | None) -> list[Facts]:
    """One row for each number that was expected, with the one that was found."""
    return [
        {"class_name": class_name, "label": REPORT[name][0], "expected": number, "found": facts[name]}
        for class_name, facts in (report or {}).items()
        for name, number in facts.get("expected", {}).items()
    ]


def topology_table(report: Mapping[str, Any] | None) -> Facts | None:
    """The report as rows of figures, one column per class, each with its unit."""
    if not report:
        return None
    first = next(iter(report.values()))
    pixels = "voxels" if first.get("beta2") is not None else "px"
    units = {"length": first.get("length_unit", "px"), "pixels": pixels, "share": "0 to 1"}
    rows = [
        {
            "name": name,
            "label": label,
            "unit": units.get(kind, ""),
            "digits": 2 if kind == "share" else 1,
            "values": [each.get(name) for each in report.values()],
        }
        for name, (label, kind) in REPORT.items()
        if any(each.get(name) is not None for each in report.values())
    ]
    return {"classes": list(report), "rows": rows}
