"""The topology of one mask as JSON; lists are bounded, totals are exact."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.errors import TooManyPixels
from app.schemas.predictions import ClassTopology
from app.schemas.topology import (
    Bar,
    Branch,
    Comparison,
    GraphBranch,
    LocatedError,
    Node,
    Persistence,
    Skeleton,
    SkeletonGraph,
)
from app.serving import answers

MOST_PIXELS = 16_777_216
"""Pixels that are analysed while the caller waits: 4096 x 4096; larger images are analysed by a job."""
LISTED = 1000
"""Entries of a list in an answer."""
MOST_SKELETON_PIXELS = 1_000_000
"""A longer skeleton is that of noise; its graph would take minutes and gigabytes."""
CLASSES = ("background", "foreground")

Spacing = Sequence[float] | None


def skeleton(mask: np.ndarray) -> np.ndarray:
    """The exact skeleton as a mask."""
    from topology.skeleton import skeletonize

    return skeletonize(mask)


def topology(mask: np.ndarray, spacing: Spacing) -> ClassTopology:
    """Betti numbers, Euler characteristic, lengths and components."""
    return ClassTopology(class_name=CLASSES[1], **answers.topology(mask.astype(np.uint8), CLASSES, spacing)[CLASSES[1]])


def simple_points(mask: np.ndarray) -> np.ndarray:
    """The simple points as a mask."""
    from topology.simple import simple_points

    return simple_points(mask)


def _followed(mask: np.ndarray, spacing: Spacing) -> Any:
    """The `topology.graph.SkeletonGraph` of a mask; TooManyPixels when the skeleton is too long to be followed."""
    from topology.graph import skeleton_graph

    thin = skeleton(mask)
    pixels = int(np.count_nonzero(thin))
    if pixels > MOST_SKELETON_PIXELS:
        raise TooManyPixels(
            f"The skeleton has {pixels} pixels; at most {MOST_SKELETON_PIXELS} are followed. Smooth the mask, or cut"
            " out a part of it."
        )
    return skeleton_graph(thin, mask=mask, spacing=spacing)


def graph(mask: np.ndarray, spacing: Spacing) -> Skeleton:
    """Nodes of highest degree and longest branches; TooManyPixels when the skeleton is too long to be followed."""
    found = _followed(mask, spacing)
    nodes = sorted(found.nodes, key=lambda node: -node.degree)[:LISTED]
    branches = sorted(found.branches, key=lambda branch: -branch.length)[:LISTED]
    places = [None if index < 0 else list(found.nodes[index].position) for branch in branches for index in branch.nodes]
    return Skeleton(
        nodes=[Node(position=list(node.position), degree=node.degree) for node in nodes],
        branches=[
            Branch(start=start, end=end, length=branch.length, radius=branch.radius)
            for branch, start, end in zip(branches, places[::2], places[1::2], strict=True)
        ],
    )


def whole_graph(mask: np.ndarray, spacing: Spacing) -> SkeletonGraph:
    """All nodes and branches; TooManyPixels when the skeleton is too long to be followed."""
    found, pixel = _followed(mask, spacing), min(spacing) if spacing else 1.0
    branches = []
    for branch in found.branches:
        source, target = (None if node < 0 else node for node in branch.nodes)
        width = 2 * branch.radius - pixel
        branches.append(
            GraphBranch(source=source, target=target, length=branch.length, radius=branch.radius, width=width)
        )
    return SkeletonGraph(
        length_unit="mm" if spacing else "px",
        length=found.length,
        nodes=[Node(position=list(node.position), degree=node.degree) for node in found.nodes],
        branches=branches,
    )


def graphml(found: SkeletonGraph) -> bytes:
    """A skeleton graph as GraphML, which graph tools read; a closed curve without a node gets one without a position.

    Node data: degree, and the pixel as row and column, in a volume plane, row and column. Edge data: length, radius and
    width, in the unit that the graph names.
    """
    root = ET.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    axes = ("plane", "row", "column")
    keys = {"graph": {"length_unit": "string"}, "node": dict.fromkeys((*axes, "degree"), "int")}
    for kind, data in (keys | {"edge": dict.fromkeys(("length", "radius", "width"), "double")}).items():
        for name, form in data.items():
            ET.SubElement(root, "key", {"id": name, "for": kind, "attr.name": name, "attr.type": form})
    drawn = ET.SubElement(root, "graph", id="skeleton", edgedefault="undirected")

    def tell(element: ET.Element, **data: object) -> None:
        for name, value in data.items():
            ET.SubElement(element, "data", key=name).text = str(value)

    tell(drawn, length_unit=found.length_unit)
    for number, node in enumerate(found.nodes):
        place = dict(zip(axes[-len(node.position) :], node.position, strict=True))
        tell(ET.SubElement(drawn, "node", id=f"n{number}"), **place, degree=node.degree)
    for number, branch in enumerate(found.branches):
        ends = f"n{branch.source}", f"n{branch.target}"
        if branch.source is None:
            ends = f"curve{number}", f"curve{number}"
            ET.SubElement(drawn, "node", id=ends[0])
        edge = ET.SubElement(drawn, "edge", id=f"e{number}", source=ends[0], target=ends[1])
        tell(edge, length=branch.length, radius=branch.radius, width=branch.width)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def persistence(values: np.ndarray) -> Persistence:
    """The longest bars of the superlevel filtration, and how many there are by dimension."""
    from topology.persistence import persistence

    code = persistence(values)
    longest = code[np.argsort(-code.persistence, kind="stable")[:LISTED]]
    columns = (longest.dimension, longest.birth_values, longest.death_values, longest.births, longest.deaths)
    return Persistence(
        counts=np.bincount(code.dimension, minlength=values.ndim).tolist(),
        bars=[_bar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)],
    )


def _bar(dimension: int, birth: float, death: float, born_at: list[int], dies_at: list[int]) -> Bar:
    ends = math.isfinite(death)
    return Bar(
        dimension=dimension,
        birth=birth,
        death=death if ends else None,
        born_at=born_at,
        dies_at=dies_at if ends else None,
    )


def comparison(
    values: np.ndarray, mask: np.ndarray, reference: np.ndarray, threshold: float, spacing: Spacing
) -> Comparison:
    """Every metric of the mask against the reference, and where the map that it came from is wrong."""
    from topology.metrics import EXACT, MetricSpec, locate_errors, measure

    errors = locate_errors(values, reference, spec=MetricSpec(threshold=threshold))
    metrics: dict[str, Any] = measure(mask, reference, spacing=spacing)
    return Comparison(
        metrics=metrics,
        error_count=len(errors),
        errors=[LocatedError(**error) for error in errors[:LISTED]],
        metric_spec=EXACT.as_dict(),
        metric_digest=EXACT.digest(),
    )
