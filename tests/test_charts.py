"""Charts and the numbers on them: valid, inside the frame, round, readable."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_runs import HOSTILE
from forethought.evaluation.charts import (
    Line,
    Point,
    downsample,
    line_chart,
    nice_ticks,
    spread,
    stacked_bar,
)
from forethought.evaluation.units import Unit, write_difference, write_value

FINITE = st.floats(-1e9, 1e9).map(lambda x: 0.0 if abs(x) < 1e-9 else x)


def _coordinates(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


@pytest.mark.parametrize(
    ("high", "unit", "expected"),
    [
        (1.0, Unit.FRACTION, ["0%", "20%", "40%", "60%", "80%", "100%"]),
        (5e-4, Unit.NUMBER, ["0", "1e-4", "2e-4", "3e-4", "4e-4", "5e-4"]),
        (1.1, Unit.NUMBER, ["0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]),
        (25e6, Unit.TOKENS, ["0", "5M", "10M", "15M", "20M", "25M"]),
    ],
)
def test_axis_is_labelled_with_short_numbers(high: float, unit: Unit, expected: list[str]) -> None:
    points = (Point(step=7, value=0.0), Point(step=8, value=high))
    svg = ElementTree.fromstring(line_chart("Any", [Line(name="", points=points)], unit))
    texts = [node.text for node in svg.iter("text") if node.attrib.get("text-anchor") == "end"]
    assert texts == expected


def test_band_encloses_its_line() -> None:
    points = tuple(
        Point(step=s, value=s / 10, low=s / 10 - 0.1, high=s / 10 + 0.1) for s in (2, 4, 9)
    )
    svg = ElementTree.fromstring(
        line_chart("Accuracy", [Line(name="", points=points)], Unit.FRACTION)
    )
    line, band = svg.find("polyline"), svg.find("polygon")
    assert line is not None and band is not None
    middle, outline = _coordinates(line.attrib["points"]), _coordinates(band.attrib["points"])
    for (x, y), above, below in zip(middle, outline, reversed(outline), strict=False):
        assert above[0] == x == below[0]
        assert above[1] < y < below[1]  # y grows downwards


@given(
    st.lists(
        st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1, max_size=5),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from(Unit),
    st.booleans(),
)
def test_any_chart_is_valid_and_stays_inside_its_frame(
    values: list[list[tuple[float, float, float]]], unit: Unit, from_zero: bool
) -> None:
    lines = [
        Line(
            name=HOSTILE,
            points=tuple(
                Point(step=s, value=v[0], low=min(v), high=max(v)) for s, v in enumerate(series)
            ),
            color=color,
        )
        for color, series in enumerate(values)
    ]
    svg = ElementTree.fromstring(line_chart("Any <title>", lines, unit, from_zero=from_zero))
    assert svg.findtext("title") == "Any <title>"
    assert len(svg.findall("polyline")) == len(lines)
    for shape in [*svg.iter("polyline"), *svg.iter("polygon")]:
        for x, y in _coordinates(shape.attrib["points"]):
            assert 0 <= x <= 480 and 0 <= y <= 228


def test_a_chart_of_nothing_is_empty() -> None:
    assert line_chart("Nothing", [Line(name="x", points=())], Unit.NUMBER) == ""
    assert stacked_bar("Nothing", [("a", 0.0, 0)]) == ""


@given(FINITE, FINITE, st.integers(2, 8))
def test_ticks_are_round_even_and_cover(one: float, other: float, max_steps: int) -> None:
    low, high = sorted((one, other))
    ticks = nice_ticks(low, high, max_steps)
    gap = ticks[1] - ticks[0]
    slack = gap * 1e-6
    assert 2 <= len(ticks) <= max_steps + 2
    if high - low > 1e-6 * max(abs(low), abs(high), 1):
        assert ticks[0] - slack <= low and high <= ticks[-1] + slack
        assert all(abs(b - a - gap) <= slack for a, b in itertools.pairwise(ticks))
        assert round(gap / 10 ** math.floor(math.log10(gap) + 1e-9), 3) in (1, 2, 5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 47, (0, 10, 20, 30, 40, 50)),
        (-0.41, -0.19, (-0.45, -0.4, -0.35, -0.3, -0.25, -0.2, -0.15)),
    ],
)
def test_ticks_of_known_ranges(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@given(st.lists(FINITE, max_size=300), st.integers(3, 60))
def test_downsampling_keeps_order_ends_and_real_points(
    values: list[float], max_points: int
) -> None:
    points = [Point(step=step, value=value) for step, value in enumerate(values)]
    kept = downsample(points, max_points)
    assert len(kept) == min(len(points), max_points)
    steps = [point.step for point in kept]
    assert steps == sorted(set(steps))
    assert set(kept) <= set(points)
    assert not points or (kept[0], kept[-1]) == (points[0], points[-1])


@settings(max_examples=20)
@given(st.integers(1, 4998))
def test_downsampling_keeps_a_spike(place: int) -> None:
    points = [Point(step=s, value=1000.0 if s == place else 0.0) for s in range(5000)]
    assert max(point.value for point in downsample(points)) == 1000.0


@given(st.lists(st.floats(-50, 150), max_size=6))
def test_labels_never_overlap_and_keep_their_order(positions: list[float]) -> None:
    placed = spread(positions, 15, 0, 100)
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in placed)
    ordered = sorted(placed)
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(ordered))
    for (a, x), (b, y) in itertools.combinations(zip(positions, placed, strict=True), 2):
        assert a == b or (a < b) == (x < y)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.8617, Unit.FRACTION, "86.2%"),
        (-0.0001, Unit.FRACTION, "0.0%"),
        (44.14, Unit.TOKENS, "44.1"),
        (1234567, Unit.TOKENS, "1,234,567"),
        (12.34, Unit.SECONDS, "12.3 s"),
        (200, Unit.SECONDS, "3 min 20 s"),
        (7384, Unit.SECONDS, "2 h 03 min"),
        (0.00031234, Unit.NUMBER, "0.000312"),
        (-0.41, Unit.NUMBER, "\u22120.410"),
        (0, Unit.NUMBER, "0"),
    ],
)
def test_values_read_well(value: float, unit: Unit, expected: str) -> None:
    assert write_value(value, unit) == expected


def test_differences_carry_their_sign() -> None:
    assert write_difference(0.549, Unit.FRACTION) == "+54.9"
    assert write_difference(-12.9, Unit.TOKENS) == "\u221212.9"
    assert write_difference(0.0001, Unit.FRACTION) == "0.0"
