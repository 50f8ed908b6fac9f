"""Number formats, charts and layer colours of pages, without a server."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from itertools import combinations

import numpy as np
import pytest
from PIL import Image as Pillow

from app.pages import charts, layers, words
from app.pages.rendering import STATIC

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"),
        (9.9, "just now"),
        (10, "10 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86399, "23 h ago"),
        (86400, "yesterday"),
        (3 * 86400, "3 days ago"),
        (100 * 86400, "21 Nov 2025"),
    ],
)
def test_times_are_shown_relative_to_now(seconds: float, said: str) -> None:
    assert words.ago((NOON - timedelta(seconds=seconds)).isoformat(), NOON) == said


def test_exact_time_is_utc() -> None:
    assert words.exact("2026-03-01T14:00:00+02:00") == "2026-03-01 12:00:00 UTC"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0.34, "340 ms"), (9.94, "9.9 s"), (12, "12 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations_are_formatted(seconds: float | None, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "digits", "said"),
    [
        (None, 3, "–"),
        (3, 3, "3"),
        (1234567, 3, "1 234 567"),
        (-3, 3, "−3"),
        (0.98765, 3, "0.988"),
        (-0.5, 2, "−0.50"),
        (True, 3, "yes"),
        ("x", 3, "x"),
    ],
)
def test_numbers_have_fixed_digits_and_a_minus_sign(value: object, digits: int, said: str) -> None:
    assert words.number(value, digits) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "±0.000"), (0.0002, "±0.000"), (-0.0002, "±0.000"), (0.01, "+0.010"), (-2.0, "−2.000"), (None, "–")],
)
def test_a_difference_has_its_sign(value: float | None, said: str) -> None:
    assert words.signed(value) == said


@pytest.mark.parametrize(
    ("metric", "difference", "how"),
    [
        ("dice", 0.1, "better"),
        ("dice", -0.1, "worse"),
        ("beta0_error", 1, "worse"),
        ("beta0_error", -1, "better"),
        ("dice", 0.0001, "equal"),
        ("unknown", 3, "equal"),
    ],
)
def test_comparison_marks_the_better_value(metric: str, difference: float, how: str) -> None:
    assert words.better(metric, difference) == how


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 * 1024**2, "300 MiB"), (None, "–")]
)
def test_sizes_are_formatted(count: int | None, said: str) -> None:
    assert words.size(count) == said


def test_loss_is_described_in_one_line() -> None:
    loss = {
        "terms": [{"name": "dice", "weight": 1.0}, {"name": "soft_cldice", "weight": 0.5}],
        "neighbour_penalty": {"window": 3, "mode": "add"},
    }
    assert words.loss_sentence(loss) == "dice + 0.5 soft_cldice, neighbour penalty, window 3"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (0, 1000, [0, 500, 1000]),
        (0.31, 0.72, [0.2, 0.4, 0.6, 0.8]),
        (5, 5, [2, 4, 6, 8]),
        (0, 0, [-0.5, 0, 0.5]),
        (-3, 4, [-4, -2, 0, 2, 4]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert charts.round_steps(low, high, 4) == pytest.approx(ticks)


@pytest.mark.parametrize("seed", range(20))
def test_axes_enclose_their_data_in_few_steps(seed: int) -> None:
    low, high = np.sort(np.random.default_rng(seed).normal(0, 10.0 ** np.random.default_rng(seed).integers(-6, 6), 2))
    ticks = charts.round_steps(low, high, 4)
    assert ticks[0] <= low and ticks[-1] >= high and 3 <= len(ticks) <= 7


def test_chart_thinning_keeps_spikes() -> None:
    points = [(step, 1.0) for step in range(5000)]
    points[3333] = (3333, 99.0)
    kept = charts.thin(points)
    assert (
        len(kept) <= charts.MOST_POINTS + 1 and (3333, 99.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    )
    assert kept == sorted(kept)


def test_chart_skips_nan() -> None:
    chart = charts.draw(
        "Loss", "", {"loss": [(0, 2.0), (1, float("nan")), (2, float("inf")), (3, 1.0)], "none": [(0, float("nan"))]}
    )
    assert [line.name for line in chart.lines] == ["loss"] and chart.data["loss"] == [(0, 2.0), (3, 1.0)]
    assert charts.draw("Loss", "", {}).lines == []


def test_a_chart_of_one_point_is_inside_its_frame() -> None:
    chart = charts.draw("Loss", "", {"loss": [(5, 0.5)]}, end=1000, marks={"best": 5, "beyond": 5000})
    x, y = chart.lines[0].last
    assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT and charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    assert chart.x_ticks[-1].label == "1000" and [mark.label for mark in chart.marks] == ["best"]


# Layers -------------------------------------------------------------------------------------------------------------


def rgba(content: bytes) -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(content)).convert("RGBA"))


def test_mask_is_coloured_by_class_on_transparent_background() -> None:
    drawn = rgba(layers.mask_layer(np.array([[0, 1, 2], [8, 0, 7]], np.uint8)))
    assert drawn[0, 0, 3] == drawn[1, 1, 3] == 0 and drawn[0, 1, 3] == 255
    assert tuple(drawn[0, 1, :3]) == layers.CLASSES[0] and tuple(drawn[0, 2, :3]) == layers.CLASSES[1]
    assert tuple(drawn[1, 0, :3]) == layers.CLASSES[0], "colours repeat after seven"


def test_difference_image_shows_both_error_types_and_no_ignored_pixels() -> None:
    prediction, reference = np.array([[0, 1, 1, 0, 1, 2]], np.uint8), np.array([[0, 1, 0, 1, 255, 1]], np.uint8)
    drawn = rgba(layers.difference_layer(prediction, reference, ignore=255))[0]
    assert [tuple(pixel[:3]) if pixel[3] else None for pixel in drawn] == [
        None,
        None,
        layers.FALSE_POSITIVE,
        layers.FALSE_NEGATIVE,
        None,
        layers.FALSE_POSITIVE,
    ]


def test_drawing_does_not_modify_arrays() -> None:
    mask = np.array([[0, 3], [1, 0]], np.uint8)
    mask.flags.writeable = False
    for made in (
        layers.mask_layer(mask),
        layers.skeleton_layer(mask),
        layers.reference_layer(mask),
        layers.difference_layer(mask, mask.T),
    ):
        assert rgba(made).shape == (2, 2, 4)
    np.testing.assert_array_equal(mask, [[0, 3], [1, 0]])


SIGHT = {
    "all": np.eye(3),
    # Machado, Oliveira, Fernandes 2009, table 1, severity 1.0; in linear RGB.
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no blue": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(rgb: tuple[int, int, int], sight: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as an eye sees it."""
    value = np.array(rgb) / 255
    linear = np.clip(sight @ np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ linear
        / [0.9505, 1.0, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SIGHT)
def test_layer_colours_are_distinct_for_colour_blind_readers(eye: str) -> None:
    colours = {
        "mask": layers.MASK,
        "skeleton": layers.SKELETON,
        "false positive": layers.FALSE_POSITIVE,
        "false negative": layers.FALSE_NEGATIVE,
    }
    apart = {
        (a, b): float(np.linalg.norm(lab(colours[a], SIGHT[eye]) - lab(colours[b], SIGHT[eye])))
        for a, b in combinations(colours, 2)
    }
    assert min(apart.values()) > 15, apart  # 2.3 is just noticeable


def test_legend_has_the_colours_of_the_layers() -> None:
    sheet = STATIC["style.css"].decode()
    for name, colour in layers.SWATCHES.items():
        rule = re.search(rf"\.swatch-{name}\b[^{{]*{{ background: (#\w+); }}", sheet)
        assert rule is not None and rule.group(1) == "#{:02x}{:02x}{:02x}".format(*colour), name


def test_static_files_load_nothing_external() -> None:
    for name, content in STATIC.items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(", text), name
