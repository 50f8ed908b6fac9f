"""Draws the pictures of docs/topology.md from the kernels themselves: `python docs/topology_pictures.py`."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from topology.matching import match
from topology.metrics import locate_errors
from topology.persistence import persistence
from topology.pruning import prune
from topology.simple import simple_points
from topology.skeleton import skeletonize

FOLDER = Path(__file__).parent / "pictures"
INK, PALE, GREEN, RED, BLUE, GOLD = "#2f3e46", "#cfd8dc", "#2a9d8f", "#d1495b", "#30638e", "#edae49"
PIXEL = 12


class Sheet:
    """An SVG of pixel panels side by side, each with a caption."""

    def __init__(self):
        self.parts, self.width, self.height = [], 10, 0

    def panel(self, layers, caption, marks=()):
        """layers: (mask, colour) painted in turn; marks: (row, column, colour, text) circles."""
        rows, columns = layers[0][0].shape
        self.parts.append(f'<g transform="translate({self.width} 26)">')
        self.parts.append(f'<text x="0" y="-8" fill="{INK}">{caption}</text>')
        self.parts.append(f'<rect width="{columns * PIXEL}" height="{rows * PIXEL}" fill="#f7f7f5" stroke="{PALE}"/>')
        for mask, colour in layers:
            for row, column in np.argwhere(mask).tolist():
                self.parts.append(
                    f'<rect x="{column * PIXEL}" y="{row * PIXEL}" width="{PIXEL - 1}" height="{PIXEL - 1}"'
                    f' fill="{colour}"/>'
                )
        for row, column, colour, text in marks:
            x, y = (column + 0.5) * PIXEL, (row + 0.5) * PIXEL
            self.parts.append(
                f'<circle cx="{x}" cy="{y}" r="{0.9 * PIXEL}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
            )
            self.parts.append(
                f'<text x="{x + PIXEL}" y="{y - PIXEL * 0.7}" fill="{colour}" font-weight="bold">{text}</text>'
            )
        self.parts.append("</g>")
        self.width += columns * PIXEL + 24
        self.height = max(self.height, rows * PIXEL + 40)

    def heat(self, values, caption, marks=()):
        """A map in shades, largest darkest."""
        share = (values - values.min()) / np.ptp(values)
        bands = [
            ((share >= k / 8) & (share < (k + 1) / 8 + (k == 7)), f"rgb({240 - 26 * k},{242 - 22 * k},{244 - 17 * k})")
            for k in range(8)
        ]
        self.panel(bands, caption, marks)

    def bars(self, code, caption, colours):
        """A barcode: one line a feature from birth (left, high) to death."""
        self.parts.append(f'<g transform="translate({self.width} 26)"><text x="0" y="-8" fill="{INK}">{caption}</text>')
        for k in range(len(code)):
            ends = [230 * (1 - max(float(v), 0.0)) for v in (code.birth_values[k], code.death_values[k])]
            self.parts.append(
                f'<path d="M{ends[0]:.1f} {12 + 13 * k}H{ends[1]:.1f}" stroke="{colours[k]}" stroke-width="6"/>'
            )
        base = 24 + 13 * len(code)
        self.parts.append(f'<path d="M0 {base}H230" stroke="{INK}"/><text x="0" y="{base + 16}" fill="{INK}">1</text>')
        self.parts.append(
            f'<text x="150" y="{base + 16}" fill="{INK}">threshold</text><text x="224" y="{base + 16}"'
            f' fill="{INK}">0</text></g>'
        )
        self.width += 260
        self.height = max(self.height, base + 60)

    def save(self, name):
        """Write docs/pictures/NAME.svg."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}"'
            ' font-family="sans-serif" font-size="13">'
        )
        text = "\n".join(
            [head, f'<rect width="{self.width}" height="{self.height}" fill="white"/>', *self.parts, "</svg>"]
        )
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.svg").write_text(text + "\n")


def drawn(picture):
    """Bool mask of a drawing, `#` is foreground."""
    return np.array([[mark == "#" for mark in line.strip()] for line in picture.strip().split("\n")])


VESSEL = drawn("""
    ..........................
    ..####..............###...
    ..#####............#####..
    ...#####..........#####...
    ....#####........#####....
    .....##################...
    ......##################..
    .......####....#########..
    .......####......####.....
    .......####.....#####.....
    .......#############......
    ........###########.......
    ..........................
    ....##....................
    ....##.................... """)


def simple_point():
    sheet = Sheet()
    simple = simple_points(VESSEL)
    sheet.panel([(VESSEL, INK), (simple, GREEN)], "simple points: any one may go")
    bridge = drawn("""
        ..........
        .###..###.
        .########.
        .###..###.
        .......... """)
    kept = bridge & ~simple_points(bridge)
    sheet.panel([(bridge, GREEN), (kept, RED)], "not simple: bridge, inside")
    sheet.save("topology-simple-points")


def skeleton():
    sheet = Sheet()
    sheet.panel([(VESSEL, PALE), (skeletonize(VESSEL), INK)], "skeletonize")
    sheet.panel([(VESSEL, PALE), (prune(skeletonize(VESSEL), shorter_than=6), BLUE)], "pruned")
    sheet.save("topology-skeleton")


def landscape():
    """A map with three peaks and a ring that is nearly closed."""
    y, x = np.indices((22, 30), float)
    ring = (
        0.85
        * np.exp(-((np.hypot(y - 11, x - 11) - 6) ** 2) / 3)
        * (1 - 0.45 * np.exp(-((y - 11) ** 2 + (x - 17) ** 2) / 6))
    )
    blobs = 0.7 * np.exp(-((y - 5) ** 2 + (x - 24) ** 2) / 5) + 0.5 * np.exp(-((y - 16) ** 2 + (x - 25) ** 2) / 4)
    return np.maximum(ring, blobs).astype(np.float32)


def bars():
    values = landscape()
    code = persistence(values, min_persistence=0.05)
    marks = [(*place, GREEN if code.dimension[k] == 0 else BLUE, f"{k + 1}") for k, place in enumerate(code.births)]
    marks += [(*place, RED, f"{k + 1}") for k, place in enumerate(code.deaths) if place[0] >= 0]
    sheet = Sheet()
    sheet.heat(values, "green: component born, blue: loop born, red: it dies", marks)
    sheet.bars(code, "barcode, bars 1 to 4", [GREEN if d == 0 else BLUE for d in code.dimension])
    sheet.save("topology-persistence")


def matching():
    values = landscape()
    other = gaussian_filter(np.roll(values, 1, 0), 0.6)
    other[:9, 20:] = 0
    other[1:4, 1:4] = 0.6
    found = match(values, other)
    keep = [code.persistence > 0.1 for code in (found.prediction, found.reference)]
    shown = [pair for pair in found.matched if keep[0][pair[0]] and keep[1][pair[1]]]
    sheet = Sheet()
    for side, (image, code, caption) in enumerate(
        ((values, found.prediction, "prediction"), (other, found.reference, "reference"))
    ):
        marks = [(*code.births[pair[side]], GREEN, f"{number + 1}") for number, pair in enumerate(shown)]
        marks += [
            (*code.births[k], RED, "alone")
            for k in (found.only_prediction, found.only_reference)[side]
            if keep[side][k]
        ]
        sheet.heat(image, f"{caption}: equal numbers are one feature", marks)
    sheet.save("topology-matching")


def located_errors():
    reference, prediction = VESSEL.copy(), VESSEL.copy()
    prediction[5:8, 13:15] = False
    prediction[13:15, 4:6] = False
    prediction[3:5, 4:6] = [[False, True], [True, True]]
    prediction[2, 21] = False
    prediction[12, 8] = True
    prediction[2, 10:12] = True
    errors = locate_errors(prediction, reference)
    marks = [(*error["position"], BLUE, error["kind"]) for error in errors]
    sheet = Sheet()
    sheet.panel(
        [(prediction & reference, PALE), (prediction & ~reference, GOLD), (reference & ~prediction, RED)],
        "red: lost, yellow: extra; circled: changes the topology",
        marks,
    )
    sheet.save("topology-located-errors")


if __name__ == "__main__":
    for draw in (simple_point, skeleton, bars, matching, located_errors):
        draw()
